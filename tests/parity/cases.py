"""Tiny decoders, one or more per family, and weights made by a formula; shared by golden and parity tests."""

import dataclasses

import numpy as np

from wam.core import trees
from wam.core.types import Params
from wam.models.config import DecoderConfig, RopeScaling

_LLAMA = DecoderConfig(
  vocab_size=61,
  hidden_size=24,
  intermediate_size=40,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  rms_norm_eps=1e-5,
  max_position_embeddings=16,
  bos_token_id=1,
  eos_token_id=(2,),
  pad_token_id=0,
)
_WIDE_HEADS = {"head_dim": 8}


def _llama(**changes) -> DecoderConfig:
  return dataclasses.replace(_LLAMA, **changes)


CASES: dict[str, DecoderConfig] = {
  "llama": _LLAMA,
  "llama_tied": _llama(tie_embeddings=True, rope_theta=500.0),
  "llama_biases": _llama(
    attention_bias=True, attention_output_bias=True, mlp_bias=True, num_kv_heads=4
  ),
  "llama_linear": _llama(rope_scaling=RopeScaling("linear", factor=2.0)),
  "llama_dynamic": _llama(rope_scaling=RopeScaling("dynamic", factor=2.0)),
  "llama_llama3": _llama(
    rope_scaling=RopeScaling(
      "llama3",
      factor=4.0,
      low_freq_factor=1.0,
      high_freq_factor=3.0,
      original_max_position_embeddings=8,
    )
  ),
  "llama_yarn": _llama(
    rope_scaling=RopeScaling("yarn", factor=2.0, original_max_position_embeddings=8)
  ),
  "llama_longrope": _llama(
    rope_scaling=RopeScaling(
      "longrope",
      factor=2.0,
      original_max_position_embeddings=8,
      short_factor=(1.0, 1.1, 1.2),
      long_factor=(1.5, 2.0, 3.0),
    )
  ),
  "mistral": _llama(family="mistral", sliding_window=5, **_WIDE_HEADS),
  "qwen2": _llama(
    family="qwen2",
    attention_bias=True,
    sliding_window=4,
    sliding_layers=(False, True, True),
    tie_embeddings=True,
  ),
  "qwen3": _llama(family="qwen3", qk_norm=True, tie_embeddings=True, **_WIDE_HEADS),
  "qwen3_window": _llama(
    family="qwen3",
    qk_norm=True,
    sliding_window=3,
    sliding_layers=(True, False, True),
    attention_bias=True,
    attention_output_bias=True,
    **_WIDE_HEADS,
  ),
}


def weights(config: DecoderConfig, seed: int = 0) -> Params:
  """Unrolled weights from NumPy's generator; large enough that every option changes the logits."""
  random = np.random.default_rng(seed)
  flat = {}
  for name, shape in config.shapes().items():
    centre = 1.0 if name.endswith("scale") else 0.0
    flat[name] = (centre + 0.3 * random.standard_normal(shape)).astype(np.float32)
  return trees.unflatten(flat)


def tokens(config: DecoderConfig) -> np.ndarray:
  """Two rows of 20 tokens, longer than the windows and the trained context; never the padding id."""
  return np.random.default_rng(1).integers(1, config.vocab_size, (2, 20))
