"""config.json of the output: the donor's, with what the merge has changed. No file access."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Lists of layer numbers.
_LAYER_NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices")
# They follow from the number of a layer by a rule that stacking breaks.
_LAYER_RULES = (
  "max_window_layers",
  "sliding_window_pattern",
  "full_attention_interval",
  "first_k_dense_replace",
  "decoder_sparse_step",
  "moe_layer_freq",
  "attn_layer_period",
  "no_rope_layer_interval",
)


def _holder(config: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  """The section that has one of the keys: the config itself, or its text_config."""
  text = config.get("text_config")
  if not any(key in config for key in keys) and isinstance(text, dict):
    return text
  return config


def stack_layers(
  config: Mapping[str, Any], origins: Sequence[tuple[Mapping[str, Any] | None, int]]
) -> tuple[dict[str, Any], list[str]]:
  """A config for layers that were taken from elsewhere.

  Args:
    config: of the donor.
    origins: for every layer of the output the config of the model that it comes from, and its number there.

  Returns:
    The config with the number of layers and lists with an entry a layer; notes on what could not be brought along.
  """
  changed = copy.deepcopy(dict(config))
  section = _holder(changed, _NUM_LAYERS)
  before = next((section[key] for key in _NUM_LAYERS if key in section), None)
  for key in _NUM_LAYERS:
    if key in section:
      section[key] = len(origins)
  if [number for _, number in origins] == list(range(before if isinstance(before, int) else 0)):
    return changed, []
  notes = []
  for key, value in list(section.items()):
    if (
      isinstance(value, list)
      and len(value) == before
      and "layer" in key
      and key not in _LAYER_NUMBERS
    ):
      section[key] = [_entry(source, key, number, value) for source, number in origins]
    elif key in _LAYER_NUMBERS and isinstance(value, list):
      section[key] = [new for new, (_, number) in enumerate(origins) if number in value]
    elif key in _LAYER_RULES and value:
      notes.append(
        f"config.json: {key} = {value!r} speaks of layers by their number, which stacking changes; it"
        " was left as it is, look at it"
      )
  return changed, notes


def _entry(source: Mapping[str, Any] | None, key: str, number: int, fallback: list[Any]) -> Any:
  """The entry of a layer in the list of the model that it comes from, else of the donor."""
  found = None if source is None else _holder(dict(source), (key,)).get(key)
  for values in (found, fallback):
    if isinstance(values, list) and number < len(values):
      return values[number]
  return fallback[-1]


def finish(
  config: Mapping[str, Any], *, tied: bool | None, dtypes: Sequence[np.dtype]
) -> dict[str, Any]:
  """A config with the stored dtype, and with tied or untied head where that has changed.

  Args:
    config: to start from.
    tied: whether the head is tied; None keeps what is there.
    dtypes: of the floating-point tensors; one entry each. Several dtypes leave the config's alone.
  """
  changed = copy.deepcopy(dict(config))
  if tied is not None:
    section = _holder(changed, ("tie_word_embeddings",))
    section["tie_word_embeddings"] = tied
  if len(set(dtypes)) == 1:
    for section in (changed, *(v for k, v in changed.items() if k.endswith("_config"))):
      for key in ("dtype", "torch_dtype"):
        if isinstance(section, dict) and isinstance(section.get(key), str):
          section[key] = str(dtypes[0])
  return changed
