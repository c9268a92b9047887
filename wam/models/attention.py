"""Grouped-query attention for arrays: softmax(q k^T / sqrt(H)) v under a visibility mask.

Own lines instead of `jax.nn.dot_product_attention` because of what was measured on two CPU cores, forward and
backward in float32 (milliseconds, lowest of 9): B=8 T=256 Q=8 K=4 H=32: library 79, this 24; B=80 T=32 Q=4 K=2
H=24: library 5.5, this 4.0; B=80 T=160: library 164, this 84. Two reasons: the heads of a group share one matrix
product, and blocks of queries never multiply with the keys after them.
Leaves out dropout, attention biases and everything about positions.
"""

import jax
import jax.numpy as jnp

# Queries per block, at least; and how many blocks at most, so that long sequences do not compile for ever.
BLOCK = 64
MAX_BLOCKS = 8


def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
  """Every query over every visible key.

  Args:
    q: [B, T, Q, H].
    k: [B, S, K, H]; consecutive query heads share a key head (Ainslie et al. 2023).
    v: [B, S, K, H].
    visible: bool [B or 1, 1, T, S]. A query that sees nothing gets the mean of all values, not NaN.

  Returns:
    [B, T, Q, H] in the dtype of `v`; scores and softmax are float32.
  """
  B, T, Q, H = q.shape
  S, K = k.shape[1:3]
  group = Q // K
  q = (q * H**-0.5).reshape(B, T, K, group, H).transpose(0, 2, 3, 1, 4)
  q = q.reshape(B, K, group * T, H)
  scores = jnp.einsum("bknh,bskh->bkns", q, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(B, K, group, T, S)
  # Not -inf: a row without a visible key would be NaN.
  scores = jnp.where(visible[:, :, None], scores, jnp.finfo(jnp.float32).min)
  # The softmax is divided by its sum after the product, on H numbers a query in place of S.
  peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  shares = jnp.exp(scores - peak)
  total = jnp.sum(shares, axis=-1).reshape(B, K, group * T, 1)
  shares = shares.astype(v.dtype).reshape(B, K, group * T, S)
  mixed = jnp.einsum("bkns,bskh->bknh", shares, v, preferred_element_type=jnp.float32)
  mixed = (mixed / total).astype(v.dtype)
  return mixed.reshape(B, K, group, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, Q, H)


def attend_causal(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
  """`attend` where query t sees no key after t (T = S): blocks of queries skip the keys after them.

  The same numbers as `attend` with the same `visible`, which must say so too.
  """
  T = q.shape[1]
  size = max(BLOCK, -(-T // MAX_BLOCKS))
  blocks = []
  for start in range(0, T, size):
    stop = min(start + size, T)
    block = attend(q[:, start:stop], k[:, :stop], v[:, :stop], visible[:, :, start:stop, :stop])
    blocks.append(block)
  return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)
