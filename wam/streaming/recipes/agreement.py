"""Whether checkpoints fit together: configs and shapes, from headers and config.json alone.

Keys of config.json that change what the weights mean are refused where they differ, others are noted, and the donor's
are kept. Leaves out which tensors there are (slices.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from wam.streaming.recipes.slices import Model, Row, config_value, stored_dtype

# The same weights compute something else when one of these is changed.
MEANING = frozenset(
  (
    *(
      "model_type",
      "hidden_size",
      "n_embd",
      "d_model",
      "num_attention_heads",
      "n_head",
      "num_heads",
    ),
    *(
      "num_key_value_heads",
      "head_dim",
      "multi_query",
      "new_decoder_architecture",
      "parallel_attn",
    ),
    *("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_act", "activation_function"),
    *("hidden_activation", "feed_forward_proj", "rope_theta", "rope_type", "rope_factor"),
    *("partial_rotary_factor", "rotary_pct", "rotary_dim", "rotary_emb_base", "alibi"),
    *("position_embedding_type", "attention_bias", "qkv_bias", "mlp_bias", "use_qk_norm"),
    *("qk_layernorm", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("scale_embeddings", "embedding_multiplier", "residual_multiplier", "attention_multiplier"),
    *("logits_scaling", "logit_scale", "num_experts", "num_local_experts", "n_routed_experts"),
    *("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "layer_types"),
    *("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
    *("state_size", "conv_kernel", "use_parallel_residual", "scale_attn_weights"),
    *("do_layer_norm_before", "quantization_config"),
  )
)
# Compared elsewhere (layers and vocabulary by the tensors themselves), or said in another way below.
_ELSEWHERE = frozenset(
  (
    *("num_hidden_layers", "n_layer", "num_layers", "n_layers", "vocab_size", "rope_scaling"),
    *("rope_parameters", "tie_word_embeddings"),
  )
)
# Says nothing that anyone would want to know.
_SILENT = frozenset(("_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype"))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The keys of nested configs as "text_config.hidden_size"; the ways to write the rotary base and scaling as one."""
  found: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and key.endswith("_config") and key != "quantization_config":
      found |= _flat(value, f"{prefix}{key}.")
    elif key not in _ELSEWHERE:
      found[prefix + key] = value
  for key in ("rope_parameters", "rope_scaling"):
    rope = config.get(key)
    if isinstance(rope, Mapping):
      kind = rope.get("rope_type", rope.get("type", "default"))
      if rope.get("rope_theta") is not None:
        found[f"{prefix}rope_theta"] = rope["rope_theta"]
      if kind != "default":
        rest = {k: v for k, v in rope.items() if k not in ("rope_theta", "rope_type", "type")}
        found |= {f"{prefix}rope_type": kind, f"{prefix}rope_factor": rest}
  return found


def _same(a: Any, b: Any) -> bool:
  return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def compare_configs(
  donor: Model, other: Model, *, accepted: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
  """What in two configs disagrees.

  A key that one of them does not have stands for a default that only the model's code knows; that is noted, not
  refused, but for scaled rotary positions, which no model has by default.

  Args:
    donor: the model whose config the output gets.
    other: compared with it.
    accepted: keys that may differ.

  Returns:
    (problems, notes).
  """
  if donor.source.config is None or other.source.config is None:
    return [], []
  mine, theirs = _flat(donor.source.config), _flat(other.source.config)
  problems, differing = [], []
  for key in sorted(mine.keys() | theirs.keys()):
    a, b = mine.get(key), theirs.get(key)
    last = key.rsplit(".", 1)[-1]
    if _same(a, b) or last in _SILENT:
      continue
    known = key in mine and key in theirs
    certain = known or last in ("rope_type", "rope_factor")
    text = f"{key} is {_short(a, key in mine)} in {donor.name} and {_short(b, key in theirs)} in {other.name}"
    if last in MEANING and certain and last not in accepted and key not in accepted:
      problems.append(text)
    elif known or last in MEANING:
      differing.append(text)
  notes = []
  if differing:
    notes.append(f"config.json: {'; '.join(differing)}; the output has those of {donor.name}")
  return problems, notes


def _short(value: Any, given: bool) -> str:
  if not given:
    return "not given"
  text = repr(value)
  return text if len(text) <= 50 else f"{text[:47]}..."


def check_one(model: Model, *, accepted: Sequence[str] = (), layers: int) -> list[str]:
  """What in one checkpoint contradicts its own config.

  Args:
    model: the checkpoint.
    accepted: keys of the config that are not looked at.
    layers: how many the tensors have, of the one stack; 0 where that cannot be said.
  """
  problems = []
  config = model.source.config
  if config_value(config, "quantization_config") and "quantization_config" not in accepted:
    problems.append(
      f"{model.name} is quantised (quantization_config): its tensors are packed codes, which"
      " cannot be averaged; merge the unquantised models"
    )
  said = next(
    (
      config_value(config, key)
      for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
      if config_value(config, key) is not None
    ),
    None,
  )
  if layers and isinstance(said, int) and said > layers:
    problems.append(f"{model.name}: config.json says {said} layers, the tensors are of {layers}")
  size = config_value(config, "vocab_size")
  if model.embedding is not None and isinstance(size, int) and "vocab_size" not in accepted:
    rows = model.source.tensors[model.embedding].shape[0]
    if rows != size:
      problems.append(
        f"{model.name}: config.json says vocab_size {size}, '{model.embedding}' has {rows} rows"
      )
  return problems


def check_shapes(rows: Sequence[Row], models: Mapping[int, Sequence[Model]]) -> list[str]:
  """Names every tensor whose shape is not the same in all models.

  Args:
    rows: of the output.
    models: of every slice, in the order of the inputs of its rows.
  """
  problems = []
  for row in rows:
    shapes = [reader.shape for _, reader in row.inputs]
    if len(set(shapes)) == 1:
      continue
    every = models[row.slice]
    found = ", ".join(
      f"{list(shape)} in {model.name}" for shape, model in zip(shapes, every, strict=True)
    )
    by_token = any(
      name == model.embedding for (name, _), model in zip(row.inputs, every, strict=True)
    )
    hint = (
      "; the vocabularies differ: give 'tokenizer_source' (base, union or a model)"
      if by_token and len({x[1:] for x in shapes}) == 1
      else ""
    )
    problems.append(f"'{row.name}' is {found}{hint}")
  return problems


def mixed_dtypes(rows: Sequence[Row], models: Mapping[int, Sequence[Model]]) -> list[str]:
  """A note on dtypes that differ between the inputs of a tensor; arguments as of `check_shapes`."""
  found: dict[tuple[str, ...], int] = {}
  for row in rows:
    pairs = zip(models[row.slice], row.inputs, strict=False)
    kinds = tuple(sorted({str(stored_dtype(model, reader)) for model, (_, reader) in pairs}))
    if len(kinds) > 1:
      found[kinds] = found.get(kinds, 0) + 1
  return [
    f"{count} tensors are stored as {' and '.join(kinds)} in different models; all are computed in"
    " float32 or wider"
    for kinds, count in found.items()
  ]
