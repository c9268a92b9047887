"""Exact order statistics without sorting, with jax.numpy: counts of entries above a trial value, one for every bit.

On a mesh the counts are all that is sent. wam/streaming/selection.py does the same for files, by sampling and counting.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def kth_largest(candidates: Sequence[Sequence[jax.Array]], ks: Sequence[Any]) -> list[jax.Array]:
  """The exact k-th largest of each of several lists of non-negative numbers, by bisection on their bits.

  No sort, and on a mesh one sum for every bit: of the counts of all lists together.

  Args:
    candidates: lists of arrays of one floating dtype.
    ks: an integer for each, possibly traced, clipped into [1, number of its candidates].
  """
  width = 32 if candidates[0][0].dtype.itemsize == 4 else 64
  kind = jnp.uint32 if width == 32 else jnp.uint64
  codes = [[jax.lax.bitcast_convert_type(x, kind) for x in arrays] for arrays in candidates]
  wanted = jnp.stack(
    [_limbs(k, sum(x.size for x in arrays)) for k, arrays in zip(ks, candidates, strict=True)]
  )

  def step(i: jax.Array, found: jax.Array) -> jax.Array:
    # The sign bit is never set.
    trial = found | (jnp.ones((), kind) << (width - 2 - i).astype(kind))
    counts = [[_count(x >= t) for x in arrays] for arrays, t in zip(codes, trial, strict=True)]
    reached = jnp.stack([_add_up(x) for x in counts])
    same = reached[:, 0] == wanted[:, 0]
    enough = (reached[:, 0] > wanted[:, 0]) | (same & (reached[:, 1] >= wanted[:, 1]))
    return jnp.where(enough, trial, found)

  code = jax.lax.fori_loop(0, width - 1, step, jnp.zeros(len(codes), kind))
  return list(jax.lax.bitcast_convert_type(code, candidates[0][0].dtype))


# Numbers of entries are two limbs of 16 bits, the high one first: those of a whole model do not fit 32 bits.


def _limbs(k: Any, total: int) -> jax.Array:
  if isinstance(k, int | np.integer):
    known = min(max(int(k), 1), total)
    return jnp.asarray([known >> 16, known & 0xFFFF], jnp.uint32)
  k = jnp.asarray(k)
  k = jnp.clip(k, 1, min(total, jnp.iinfo(k.dtype).max))
  return jnp.stack([k >> 16, k & 0xFFFF]).astype(jnp.uint32)


def _count(marks: jax.Array) -> jax.Array:
  """How many are set: one uint32, or one a layer where they might not fit."""
  axes = tuple(range(1, marks.ndim)) if marks.size >= 2**32 else None
  return jnp.sum(marks, axes, dtype=jnp.uint32)


def _add_up(counts: Sequence[jax.Array]) -> jax.Array:
  low = functools.reduce(jnp.add, [(c & 0xFFFF).sum(dtype=jnp.uint32) for c in counts])
  high = functools.reduce(jnp.add, [(c >> 16).sum(dtype=jnp.uint32) for c in counts])
  return jnp.stack([high + (low >> 16), low & 0xFFFF])
