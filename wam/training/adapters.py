"""Low-rank adapters as directories of PEFT: adapter_config.json and adapter_model.safetensors, out and in.

Their factors are transposed: lora_A [r, inputs], lora_B [outputs, r]. What is written, PEFT loads on the base model,
and the streaming merges read (wam/streaming/inputs/adapters.py). Leaves out every kind of adapter but plain LoRA on the
matrices of the layers; merge others into their base first, which those merges do.
"""

import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from wam.checkpoints.headers import read_header
from wam.checkpoints.safetensors import new_directory, open_tensor
from wam.checkpoints.untrusted import read_json, shown
from wam.core import trees
from wam.core.errors import BadCheckpoint, MissingFile, NonFinite
from wam.core.types import Params
from wam.models import hf_names, stacking
from wam.models.lora import GROUPS, MODULES, Lora

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = re.compile(
  r"base_model\.model\.model\.layers\.(\d+)\.(?:mlp|self_attn)\.(\w+)_proj\.lora_([AB])\.weight"
)
# What only rescales, or says nothing about the weights; anything else that is on makes it another kind of adapter.
_PLAIN = {
  "alpha_pattern",
  "auto_mapping",
  "base_model_name_or_path",
  "bias",
  "exclude_modules",
  "inference_mode",
  "init_lora_weights",
  "layers_pattern",
  "layers_to_transform",
  "lora_alpha",
  "lora_dropout",
  "megatron_core",
  "modules_to_save",
  "peft_type",
  "peft_version",
  "qalora_group_size",
  "r",
  "rank_pattern",
  "revision",
  "target_modules",
  "task_type",
  "use_rslora",
}


def save(
  directory: str | os.PathLike[str], lora: Lora, adapters: Params, *, base: str | None = None
) -> None:
  """Writes adapters as PEFT does, in float32.

  Args:
    directory: must not exist, or be empty; appears complete or not at all.
    lora: what they are.
    adapters: in either layout.
    base: where the base model lies, for PEFT to find it.

  Raises:
    ConfigError: if the directory is not empty.
    NonFinite: if a factor holds NaN or infinity; names it.
    WamError: if the disk is full.
  """
  broken = trees.non_finite(adapters)
  if broken:
    raise NonFinite(f"NaN or infinity in {', '.join(broken)}; such adapters are not written")
  tensors: dict[str, np.ndarray] = {}
  for name, x in trees.flatten(stacking.unstack_layers(adapters)).items():
    module, side = name.rsplit("/lora_", 1)
    theirs = hf_names.their_name(f"{module}/kernel").removesuffix(".weight")
    factor = np.asarray(jax.device_get(x), np.float32).T
    tensors[f"{_PREFIX}{theirs}.lora_{side.upper()}.weight"] = np.ascontiguousarray(factor)
  config = {
    "base_model_name_or_path": base,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
    "lora_dropout": lora.dropout,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": lora.rank,
    "target_modules": [f"{path.split('/')[1]}_proj" for path in lora.modules],
    "task_type": "CAUSAL_LM",
  }
  with new_directory(directory) as path:
    (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    safetensors.numpy.save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def load(directory: str | os.PathLike[str], *, stacked: bool = True) -> tuple[Lora, Params]:
  """Reads adapters that `save` or PEFT wrote; float32.

  Args:
    directory: with adapter_config.json and adapter_model.safetensors.
    stacked: the layout to return.

  Raises:
    MissingFile: if a file is missing.
    BadCheckpoint: if it is another kind of adapter, tensors disagree with the config, or not all layers have the same.
    NonFinite: if a factor holds NaN or infinity; names it.
  """
  path = pathlib.Path(directory)
  for name in (CONFIG, WEIGHTS):
    if not (path / name).is_file():
      raise MissingFile(f"{path}: no {name}; expected a directory of PEFT with {CONFIG}, {WEIGHTS}")
  config = read_json(path / CONFIG, "config of the adapter")
  _check_plain(path / CONFIG, config)
  rank = config["r"]
  flat: dict[str, np.ndarray] = {}
  problems = []
  for name, info in read_header(path / WEIGHTS).tensors.items():
    found = _NAME.fullmatch(name)
    if found is None or found[2] not in MODULES:
      problems.append(f"{shown(name)} is no factor of a matrix of a layer")
      continue
    layer, module, side = found.groups()
    if len(info.shape) != 2 or info.shape[side == "B"] != rank:
      problems.append(f"{shown(name)} has shape {info.shape}, the config says rank {rank}")
      continue
    ours = f"layers/{layer}/{MODULES[module]}/lora_{side.lower()}"
    flat[ours] = open_tensor(info).astype(np.float32).T
  problems += _incomplete(flat)
  if problems:
    raise BadCheckpoint(f"{path / WEIGHTS}: " + "; ".join(problems))
  adapters: Params = jax.tree.map(jnp.asarray, trees.unflatten(flat))
  if broken := trees.non_finite(adapters):
    raise NonFinite(f"{path / WEIGHTS}: NaN or infinity in {', '.join(broken)}")
  alpha = config["lora_alpha"] * (rank**0.5 if config.get("use_rslora") else 1)
  modules = {name.split("/")[3] for name in flat}
  lora = Lora(
    rank=rank,
    alpha=float(alpha),
    targets=_targets(modules),
    dropout=float(config.get("lora_dropout") or 0.0),
  )
  return lora, stacking.stack_layers(adapters) if stacked else adapters


def _check_plain(path: pathlib.Path, config: dict[str, Any]) -> None:
  """Refuses what W + (alpha/r)·A B does not say."""
  on = {key: value for key, value in config.items() if value}
  odd = {key: value for key, value in on.items() if key not in _PLAIN}
  odd |= {key: on[key] for key in ("alpha_pattern", "rank_pattern", "modules_to_save") if key in on}
  if config.get("peft_type") != "LORA":
    odd["peft_type"] = config.get("peft_type")
  if config.get("bias", "none") != "none":
    odd["bias"] = config["bias"]
  if config.get("init_lora_weights") not in (None, True, False, "gaussian", "eva", "orthogonal"):
    odd["init_lora_weights"] = config["init_lora_weights"]
  if odd:
    listed = ", ".join(f"{shown(key)}: {shown(value)}" for key, value in odd.items())
    raise BadCheckpoint(
      f"{path}: only plain LoRA can be trained on, found {listed}. Merge the adapter into its base (BASE+ADAPTER in"
      " `wam merge`, or merge_and_unload of PEFT) and go on from that"
    )
  for key, kinds in {"r": (int,), "lora_alpha": (int, float)}.items():
    value: Any = config.get(key)
    if type(value) not in kinds or not 0 < value < 1e9:
      raise BadCheckpoint(f"{path}: {key} is {shown(value)}, expected a positive number")


def _incomplete(flat: dict[str, np.ndarray]) -> list[str]:
  """What is missing for every layer to have A and B of the same matrices."""
  layers = {int(name.split("/")[1]) for name in flat}
  modules = {name.split("/", 2)[2].rsplit("/", 1)[0] for name in flat}
  wanted = [
    f"layers/{i}/{module}/lora_{side}"
    for i in range(max(layers, default=-1) + 1)
    for module in sorted(modules)
    for side in "ab"
  ]
  return [f"'{name}' is missing" for name in wanted if name not in flat] or (
    [] if flat else ["there is no factor"]
  )


def _targets(modules: set[str]) -> str:
  """The shortest way to say these matrices."""
  words = []
  for group, members in GROUPS.items():
    chosen = [m for m in members if m in modules]
    words += [group] if len(chosen) == len(members) else chosen
  return "+".join(words)
