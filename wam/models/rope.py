"""Rotary position embeddings in Hugging Face's half-split convention, with the scalings in use.

The tables are made once per forward pass, from the positions. Leaves out partial rotation and per-layer bases.

Sources: Su et al. 2021 (RoPE); Chen et al. 2023 (linear); NTK by parts: Peng et al. 2023 (YaRN); Ding et al. 2024
(LongRoPE); the Llama 3.1 model card (llama3). The numbers agree with transformers 5.23.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from wam.models.config import DecoderConfig, RopeScaling


def _frequencies(config: DecoderConfig) -> np.ndarray:
  """θ^(-2i/H), float64 [H/2]: radians per token."""
  return config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)


def _llama3(config: DecoderConfig, scaling: RopeScaling) -> np.ndarray:
  """Long wavelengths are stretched, short ones kept, those between interpolated."""
  assert scaling.low_freq_factor and scaling.high_freq_factor
  assert scaling.factor and scaling.original_max_position_embeddings
  frequencies = _frequencies(config)
  turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return frequencies * (kept + (1 - kept) / scaling.factor)


def _yarn(config: DecoderConfig, scaling: RopeScaling) -> tuple[np.ndarray, float]:
  """Frequencies and the attention factor of YaRN (Peng et al. 2023, section 3)."""
  original = scaling.original_max_position_embeddings
  assert original
  factor = scaling.factor or config.max_position_embeddings / original
  dim, theta = config.head_dim, config.rope_theta

  def dimension_with(turns: float) -> float:
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

  low = dimension_with(scaling.beta_fast or 32.0)
  high = dimension_with(scaling.beta_slow or 1.0)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  # A ramp of no width would divide by zero.
  ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
  frequencies = _frequencies(config)

  def magnitude(scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

  attention_factor = scaling.attention_factor
  if attention_factor is None:
    attention_factor = magnitude(1.0)
    if scaling.mscale and scaling.mscale_all_dim:
      attention_factor = magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
  return frequencies * (ramp / factor + (1 - ramp)), attention_factor


def _longrope(
  config: DecoderConfig, scaling: RopeScaling, length: jax.Array
) -> tuple[jax.Array, float]:
  """The short or the long divisors, by the length in use (Ding et al. 2024)."""
  original = scaling.original_max_position_embeddings
  assert original and scaling.short_factor and scaling.long_factor
  factor = scaling.factor or config.max_position_embeddings / original
  attention_factor = scaling.attention_factor
  if attention_factor is None:
    attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
  frequencies = _frequencies(config)
  short = jnp.asarray(frequencies / np.asarray(scaling.short_factor), jnp.float32)
  long = jnp.asarray(frequencies / np.asarray(scaling.long_factor), jnp.float32)
  return jnp.where(length > original, long, short), attention_factor


def _dynamic(config: DecoderConfig, scaling: RopeScaling, length: jax.Array) -> jax.Array:
  """The base grows with the length in use, once that exceeds the trained context (NTK-aware)."""
  assert scaling.factor
  trained, dim = config.max_position_embeddings, config.head_dim
  stretch = scaling.factor * jnp.maximum(length, trained).astype(jnp.float32) / trained
  base = config.rope_theta * (stretch - (scaling.factor - 1)) ** (dim / (dim - 2))
  return base ** -jnp.asarray(np.arange(0, dim, 2) / dim, jnp.float32)


def scaled_frequencies(
  config: DecoderConfig, length: jax.Array | int
) -> tuple[jax.Array | np.ndarray, float]:
  """Radians per token of each pair of dimensions, and the factor on cos and sin.

  Args:
    config: gives the base, the head size and the scaling.
    length: the largest position in use + 1 (only dynamic and longrope look at it).

  Returns:
    Frequencies [H/2] and the attention factor.
  """
  scaling = config.rope_scaling
  if scaling is None:
    return _frequencies(config), 1.0
  length = jnp.asarray(length)
  match scaling.kind:
    case "linear":
      assert scaling.factor
      return _frequencies(config) / scaling.factor, 1.0
    case "dynamic":
      return _dynamic(config, scaling, length), 1.0
    case "llama3":
      return _llama3(config, scaling), 1.0
    case "yarn":
      return _yarn(config, scaling)
    case _:
      return _longrope(config, scaling, length)


def tables(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """cos and sin of the rotation angles.

  Args:
    config: of the decoder.
    positions: int32 [B, T] or [1, T].

  Returns:
    Two float32 arrays [B, T, 1, H/2], to be broadcast over the heads.
  """
  frequencies, factor = scaled_frequencies(config, positions.max() + 1)
  frequencies = jnp.asarray(frequencies, jnp.float32)[None, None, None, :]
  angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns the pairs (x[i], x[i + H/2]) by their angles; [B, T, heads, H] in, the same out, in the dtype of `x`."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
