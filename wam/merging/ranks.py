"""Drawing the entries of a row with probabilities that grow with their rank (DELLA, arXiv 2406.11617).

The r-th smallest of the n entries of a row stays with probability p_r = density - epsilon + 2·epsilon·(r - 1)/(n - 1),
and with p = density where n = 1. The random bits belong to ranks, not to places: what is kept can then be summed over
the sorted row, and nobody's rank be known. Of equal entries the one further to the right ranks higher.

For numpy and jax.numpy; see rules.py.
"""

from typing import Any

import numpy as np

from wam.core import counters
from wam.merging.rules import Array


def probabilities(size: int, density: float, epsilon: float) -> np.ndarray:
  """p of the ranks of a row of `size` entries, smallest first: float64, multiples of 2^-16 inside (0, 1)."""
  share = np.arange(size) / (size - 1) if size > 1 else np.full(size, 0.5)
  p = density - epsilon + 2 * epsilon * share
  return np.clip(np.rint(p * counters.RANGE), 1, counters.RANGE - 1) / counters.RANGE


def drawn(bits: Array, p: np.ndarray) -> Array:
  """Which ranks stay: bool [rows, n], from bits [rows, n] uint16 and p [n]."""
  return bits < (p * counters.RANGE).astype(np.uint16)[None, :]


def by_place(xp: Any, rows: Array, ranked: Array) -> Array:
  """What is given by rank, at the places of the entries.

  Args:
    xp: numpy or jax.numpy.
    rows: numbers >= 0 that are ranked, [rows, n].
    ranked: of the r-th smallest in column r, [rows, n].

  Returns:
    [rows, n], of the dtype of `ranked`.
  """
  if xp is not np:
    from jax import lax

    order = xp.argsort(rows, axis=-1, stable=True)
    # Sorted back, not scattered: for that a mesh would gather the rows of all devices.
    return lax.sort((order, ranked), dimension=-1, num_keys=1)[1]
  number = np.arange(rows.size, dtype=np.uint64).reshape(rows.shape)
  if rows.dtype == np.float32 and rows.size <= 1 << 32:
    # Sorting magnitude and place in one word takes a third of the time of argsort, which is not stable either.
    words = rows.view(np.uint32).astype(np.uint64)
    words <<= np.uint64(32)
    words |= number
    words.sort(axis=-1)
    words &= np.uint64(0xFFFFFFFF)
    places = words.view(np.int64)
  else:
    places = np.argsort(rows, axis=-1, kind="stable")
    places += number[:, :1].astype(np.int64)
  result = np.empty(rows.size, ranked.dtype)
  result[places.ravel()] = ranked.ravel()
  return result.reshape(rows.shape)
