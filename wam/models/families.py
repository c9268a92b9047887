"""Hugging Face `config.json` <-> `DecoderConfig`, for each family.

Reads the old keys (rope_theta, rope_scaling, torch_dtype) and those of transformers 5 (rope_parameters, dtype), and
writes both. Pure: dictionaries in, dictionaries out. Llama 2 and 3 and OpenLLaMA are all model_type "llama".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wam.core.errors import BadCheckpoint, ConfigError, unknown_name
from wam.models.config import DecoderConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class _Family:
  """What a model_type fixes, and what it lets config.json say.

  Attributes:
    name: the prefix of its class names in transformers.
    biases: which of q/k/v and o have biases: "config" where attention_bias says so.
    mlp_bias: whether the key mlp_bias is looked at.
    qk_norm: RMSNorm on the heads of q and k.
    window: "none", "all" layers, or "some" (use_sliding_window, max_window_layers, layer_types).
    head_dim: used when config.json has none; 0: hidden_size / heads.
    needs_kv_heads: whether a config without num_key_value_heads is incomplete.
  """

  name: str
  biases: tuple[bool | str, bool | str]
  mlp_bias: bool
  qk_norm: bool
  window: str
  head_dim: int = 0
  needs_kv_heads: bool = True


FAMILIES: dict[str, _Family] = {
  "llama": _Family("Llama", ("config", "config"), True, False, "none", needs_kv_heads=False),
  "mistral": _Family("Mistral", (False, False), False, False, "all"),
  "qwen2": _Family("Qwen2", (True, False), False, False, "some"),
  "qwen3": _Family("Qwen3", ("config", "config"), False, True, "some", head_dim=128),
}

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
}
_WRITTEN_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

# DecoderConfig field -> key of config.json, for the keys that must be there.
_REQUIRED = {
  "vocab_size": "vocab_size",
  "hidden_size": "hidden_size",
  "intermediate_size": "intermediate_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
}
# What transformers assumes when a key is absent.
_DEFAULT_THETA = 10000.0
_DEFAULT_WINDOW = 4096
_DEFAULT_MAX_WINDOW_LAYERS = 28
_DEFAULT_CONTEXT = {"llama": 2048, "mistral": 4096 * 32, "qwen2": 32768, "qwen3": 32768}
_ROPE_NUMBERS = (
  "factor",
  "low_freq_factor",
  "high_freq_factor",
  "attention_factor",
  "beta_fast",
  "beta_slow",
  "mscale",
  "mscale_all_dim",
)


def config_from_hf(data: Mapping[str, Any]) -> DecoderConfig:
  """The decoder that a `config.json` describes.

  Raises:
    UnknownName: if model_type, hidden_act or the rope type is none of ours.
    BadCheckpoint: if keys are missing (all named) or ask for what no family here has.
  """
  if "model_type" not in data:
    raise BadCheckpoint("config.json: no model_type; expected one of " + ", ".join(FAMILIES))
  model_type = str(data["model_type"])
  if model_type not in FAMILIES:
    raise unknown_name("model_type", model_type, FAMILIES)
  family = FAMILIES[model_type]
  needed = [*_REQUIRED.values(), *(["num_key_value_heads"] if family.needs_kv_heads else [])]
  missing = [key for key in needed if data.get(key) is None]
  if missing:
    raise BadCheckpoint(f"config.json: model_type '{model_type}' needs {', '.join(missing)}")
  wrong = [key for key in needed if type(data[key]) is not int]
  if wrong:
    raise BadCheckpoint(
      "config.json: expected whole numbers, found " + ", ".join(f"{k}={data[k]!r}" for k in wrong)
    )
  activation = str(data.get("hidden_act", "silu"))
  if activation not in _ACTIVATIONS:
    raise unknown_name("hidden_act", activation, _ACTIVATIONS)
  context = data.get("max_position_embeddings") or _DEFAULT_CONTEXT[model_type]
  theta, scaling = _rope(data, context)
  window, layers = _window(data, family)
  qkv_bias, output_bias = (
    bool(data.get("attention_bias", False)) if bias == "config" else bool(bias)
    for bias in family.biases
  )
  return DecoderConfig(
    **{field: data[key] for field, key in _REQUIRED.items()},
    num_kv_heads=data.get("num_key_value_heads") or data["num_attention_heads"],
    head_dim=data.get("head_dim") or family.head_dim,
    rope_theta=theta,
    rope_scaling=scaling,
    rms_norm_eps=float(data.get("rms_norm_eps", 1e-6)),
    max_position_embeddings=context,
    sliding_window=window,
    sliding_layers=layers,
    tie_embeddings=bool(data.get("tie_word_embeddings", False)),
    attention_bias=qkv_bias,
    attention_output_bias=output_bias,
    mlp_bias=family.mlp_bias and bool(data.get("mlp_bias", False)),
    qk_norm=family.qk_norm,
    activation=_ACTIVATIONS[activation],
    initializer_range=float(data.get("initializer_range", 0.02)),
    family=model_type,
    bos_token_id=data.get("bos_token_id"),
    eos_token_id=_ids(data.get("eos_token_id")),
    pad_token_id=data.get("pad_token_id"),
  )


def config_to_hf(config: DecoderConfig, *, dtype: str, scalar: bool = False) -> dict[str, Any]:
  """The `config.json` that describes this decoder.

  Args:
    config: of the decoder; its `family` decides the model_type.
    dtype: of the stored weights: "float32", "bfloat16" or "float16".
    scalar: write the sequence classification class with one label instead of the causal language model.

  Raises:
    UnknownName: if the family is none of ours.
    ConfigError: if the family cannot express the config; names the fields.
  """
  if config.family not in FAMILIES:
    raise unknown_name("family", config.family, FAMILIES)
  family = FAMILIES[config.family]
  purpose = "ForSequenceClassification" if scalar else "ForCausalLM"
  data: dict[str, Any] = {
    "architectures": [family.name + purpose],
    "model_type": config.family,
    **{key: getattr(config, field) for field, key in _REQUIRED.items()},
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "hidden_act": _WRITTEN_ACTIVATIONS[config.activation],
    "max_position_embeddings": config.max_position_embeddings,
    "rms_norm_eps": config.rms_norm_eps,
    "initializer_range": config.initializer_range,
    "tie_word_embeddings": config.tie_embeddings,
    "attention_dropout": 0.0,
    "use_cache": True,
    "bos_token_id": config.bos_token_id,
    "eos_token_id": _written_ids(config.eos_token_id),
    "pad_token_id": config.pad_token_id,
    "dtype": dtype,
    "torch_dtype": dtype,
    **_written_rope(config),
    **_written_window(config, family),
  }
  if "config" in family.biases:
    data["attention_bias"] = config.attention_bias
  if family.mlp_bias:
    data["mlp_bias"] = config.mlp_bias
  if scalar:
    data |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
  _check_expressible(config, data)
  return data


def _check_expressible(config: DecoderConfig, data: Mapping[str, Any]) -> None:
  """What is read back must be what was written: a field that the family does not know would be lost silently."""
  back = config_from_hf(data)
  lost = [
    f"{field.name}={getattr(config, field.name)!r}"
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != getattr(back, field.name)
  ]
  if lost:
    raise ConfigError(
      f"the family '{config.family}' cannot express {', '.join(lost)}; choose another of"
      f" {', '.join(FAMILIES)} or change these fields"
    )


def is_scalar(data: Mapping[str, Any]) -> bool:
  """Whether a `config.json` describes a sequence classifier rather than a language model."""
  names = data.get("architectures") or []
  return any(str(name).endswith("ForSequenceClassification") for name in names)


def num_labels(data: Mapping[str, Any]) -> int:
  """How many outputs a sequence classifier's `config.json` asks for (transformers assumes 2 when it says nothing)."""
  return len(data["id2label"]) if data.get("id2label") else int(data.get("num_labels", 2))


def _ids(value: Any) -> tuple[int, ...]:
  if value is None:
    return ()
  return tuple(value) if isinstance(value, list) else (value,)


def _written_ids(ids: tuple[int, ...]) -> int | list[int] | None:
  if not ids:
    return None
  return ids[0] if len(ids) == 1 else list(ids)


def _rope(data: Mapping[str, Any], context: int) -> tuple[float, RopeScaling | None]:
  """Base and scaling of the rotary embedding, from the old or the new keys."""
  rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
  nested = [value for value in rope.values() if isinstance(value, Mapping)]
  if nested:
    if any(value != nested[0] for value in nested):
      raise BadCheckpoint("config.json: rotary embeddings that differ between layers are not known")
    rope = nested[0]
  partial = rope.get("partial_rotary_factor", data.get("partial_rotary_factor")) or 1.0
  if partial != 1.0:
    raise BadCheckpoint(f"config.json: partial_rotary_factor must be 1, found {partial}")
  theta = rope.get("rope_theta") or data.get("rope_theta") or _DEFAULT_THETA
  kind = str(rope.get("rope_type") or rope.get("type") or "default")
  if kind == "default":
    return float(theta), None
  original = None
  if kind in ("llama3", "yarn", "longrope"):
    original = data.get("original_max_position_embeddings")
    original = original or rope.get("original_max_position_embeddings") or context
  fields: dict[str, Any] = {
    name: float(rope[name]) for name in _ROPE_NUMBERS if rope.get(name) is not None
  }
  fields |= {
    name: tuple(float(x) for x in rope[name])
    for name in ("short_factor", "long_factor")
    if rope.get(name) is not None
  }
  truncate = bool(rope.get("truncate", True))
  scaling = RopeScaling(
    kind, original_max_position_embeddings=original, truncate=truncate, **fields
  )
  return float(theta), scaling


def _written_rope(config: DecoderConfig) -> dict[str, Any]:
  """The rotary embedding under the old keys and under those of transformers 5."""
  scaling: dict[str, Any] | None = None
  if config.rope_scaling is not None:
    fields = dataclasses.asdict(config.rope_scaling)
    kind = fields.pop("kind")
    if fields["truncate"]:
      del fields["truncate"]
    scaling = {"rope_type": kind}
    scaling |= {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in fields.items()
      if value is not None
    }
  parameters = {"rope_type": "default", "rope_theta": config.rope_theta} | (scaling or {})
  return {
    "rope_theta": config.rope_theta,
    "rope_scaling": scaling,
    "rope_parameters": parameters,
  }


def _window(data: Mapping[str, Any], family: _Family) -> tuple[int | None, tuple[bool, ...] | None]:
  """The sliding window and the layers that it holds for."""
  if family.window == "none":
    return None, None
  window = data.get("sliding_window", _DEFAULT_WINDOW)
  if family.window == "all":
    return window, None
  if not data.get("use_sliding_window", False) or window is None:
    return None, None
  kinds = data.get("layer_types")
  if kinds is None:
    first = data.get("max_window_layers", _DEFAULT_MAX_WINDOW_LAYERS)
    return window, tuple(i >= first for i in range(data["num_hidden_layers"]))
  for kind in kinds:
    if kind not in ("sliding_attention", "full_attention"):
      raise unknown_name("layer type", str(kind), ["sliding_attention", "full_attention"])
  return window, tuple(kind == "sliding_attention" for kind in kinds)


def _written_window(config: DecoderConfig, family: _Family) -> dict[str, Any]:
  if family.window == "none":
    return {}
  if family.window == "all":
    return {"sliding_window": config.sliding_window}
  windowed = config.windowed()
  return {
    "use_sliding_window": config.sliding_window is not None,
    "sliding_window": config.sliding_window,
    "max_window_layers": windowed.index(True) if any(windowed) else config.num_layers,
    "layer_types": ["sliding_attention" if w else "full_attention" for w in windowed],
  }
