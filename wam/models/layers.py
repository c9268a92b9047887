"""The Flax NNX modules of one decoder: norm, linear, attention, gated MLP, layer.

They hold weights and compute; they know nothing of batches of text, caches in a list, or layouts (`decoder.py`).
Dropout is left out: none of the families uses it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from wam.models import rope
from wam.models.attention import attend_causal
from wam.models.config import DecoderConfig

# cos and sin, each [B, T, 1, H/2].
RopeTables = tuple[jax.Array, jax.Array]
# Keys [B, K, H, S] and values [B, K, S, H] of the slots seen so far, and the slot to write at.
LayerCache = tuple[jax.Array, jax.Array, jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class RMSNorm(nnx.Module):
  """x / rms(x) * scale, in float32 whatever the dtype of x (Zhang & Sennrich 2019)."""

  def __init__(self, size: int, eps: float):
    self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis; the dtype of `x` is kept."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * scale).astype(x.dtype)


class Linear(nnx.Module):
  """x @ kernel (+ bias), in the dtype of x."""

  def __init__(self, inputs: int, outputs: int, *, bias: bool, std: float, rngs: nnx.Rngs):
    self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., inputs] -> [..., outputs]."""
    # As one matrix of tokens: XLA's CPU backend is slow at gradients that contract batch and time apart (the layers of
    # a training step of 16 x 256 tokens take 40 % longer).
    y = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
    if self.bias is not None:
      y = y + self.bias[...].astype(x.dtype)[None]
    return y.reshape(*x.shape[:-1], y.shape[-1])


class Embedding(nnx.Module):
  """The token table; also the output matrix when they are tied."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    shape = (config.vocab_size, config.hidden_size)
    std = config.initializer_range
    self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    D, H, Q, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
    linear = functools.partial(Linear, std=config.initializer_range, rngs=rngs)
    self.q = linear(D, Q * H, bias=config.attention_bias)
    self.k = linear(D, K * H, bias=config.attention_bias)
    self.v = linear(D, K * H, bias=config.attention_bias)
    self.o = linear(Q * H, D, bias=config.attention_output_bias)
    self.q_norm = RMSNorm(H, config.rms_norm_eps) if config.qk_norm else None
    self.k_norm = RMSNorm(H, config.rms_norm_eps) if config.qk_norm else None
    self.head_dim = H

  def __call__(
    self, x: jax.Array, tables: RopeTables, visible: jax.Array, cache: LayerCache | None
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """[B, T, D] -> [B, T, D] and, with a cache, its keys and values after the writing."""
    B, T, _ = x.shape
    q = self.q(x).reshape(B, T, -1, self.head_dim)
    k = self.k(x).reshape(B, T, -1, self.head_dim)
    v = self.v(x).reshape(B, T, -1, self.head_dim)
    if self.q_norm is not None and self.k_norm is not None:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k = rope.rotate(q, *tables), rope.rotate(k, *tables)
    if cache is None:
      mixed, written = attend_causal(q, k, v, visible), None
    else:
      keys, values, index = cache
      k, v = k.transpose(0, 2, 3, 1).astype(keys.dtype), v.swapaxes(1, 2).astype(values.dtype)
      keys = jax.lax.dynamic_update_slice(keys, k, (0, 0, 0, index))
      values = jax.lax.dynamic_update_slice(values, v, (0, 0, index, 0))
      mixed, written = _attend_cache(q, keys, values, visible), (keys, values)
    return self.o(mixed.reshape(B, T, -1)), written


def _attend_cache(
  q: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array
) -> jax.Array:
  """Attention of queries [B, T, Q, H] to a cache: [B, T, Q, H]; softmax in float32.

  The layouts of the cache make both products plain matrix products over adjacent memory: a decoding step of 32 rows
  takes 2.5 times longer on a CPU with keys and values as [B, S, K, H].
  """
  B, T, Q, H = q.shape
  K = keys.shape[1]
  # Query heads of one key head, and their times, become the rows of a matrix.
  q = q.reshape(B, T, K, Q // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
  scores = jnp.matmul(
    q * jnp.asarray(H**-0.5, q.dtype), keys.astype(q.dtype), preferred_element_type=jnp.float32
  ).reshape(B, K, Q // K, T, -1)
  # Finite, so that a padded query, which sees nothing, gets no NaN.
  scores = jnp.where(visible[:, :, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(B, K, Q // K * T, -1)
  mixed = jnp.matmul(weights, values.astype(q.dtype)).reshape(B, K, Q // K, T, H)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, Q, H)


class MLP(nnx.Module):
  """down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    D, F = config.hidden_size, config.intermediate_size
    linear = functools.partial(
      Linear, bias=config.mlp_bias, std=config.initializer_range, rngs=rngs
    )
    self.gate, self.up, self.down = linear(D, F), linear(D, F), linear(F, D)
    self.activation = config.activation

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Layer(nnx.Module):
  """One pre-norm block: attention, then the MLP, each added to its input."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    self.mlp = MLP(config, rngs=rngs)

  def __call__(
    self, x: jax.Array, tables: RopeTables, visible: jax.Array, cache: LayerCache | None = None
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """As `Attention`, for the whole block."""
    mixed, written = self.attention(self.attention_norm(x), tables, visible, cache)
    x = x + mixed
    return x + self.mlp(self.mlp_norm(x)), written


class Ends(nnx.Module):
  """What is not a layer: the embedding, the last norm and, when untied, the output matrix."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.embed = Embedding(config, rngs=rngs)
    self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    D, V, std = config.hidden_size, config.vocab_size, config.initializer_range
    tied = config.tie_embeddings
    self.lm_head = None if tied else Linear(D, V, bias=False, std=std, rngs=rngs)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] -> [..., V] float32, the products accumulated in float32."""
    if self.lm_head is None:
      equation, kernel = "nd,vd->nv", self.embed.embedding[...]
    else:
      equation, kernel = "nd,dv->nv", self.lm_head.kernel[...]
    # One matrix of tokens, as in `Linear`.
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = jnp.einsum(
      equation, flat, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    return logits.reshape(*hidden.shape[:-1], logits.shape[-1])
