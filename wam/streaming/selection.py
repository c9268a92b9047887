"""The exact k-th largest of numbers that come piece by piece, without sorting or keeping them.

A sample brackets the answer; one sweep counts what lies above the bracket and keeps what lies inside, a per cent or
two; the answer is found among the kept (after Floyd and Rivest 1975, algorithm 489). Where the sample misled, the sweep
says on which side the answer lies and is repeated there: always exact, in one sweep nearly always. NumPy only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The bracket reaches this many standard deviations of the sample's rank to each side.
_DEVIATIONS = 5.0


class Counts(NamedTuple):
  """What a sweep found in some of the numbers, relative to a bracket (low, high)."""

  above: int  # > high
  at_high: int
  inside: np.ndarray  # low < x < high
  at_low: int


def sample_size(num_entries: int) -> int:
  """How many numbers to sample of so many."""
  return min(num_entries, max(1 << 17, min(num_entries // 64, 1 << 20)))


class Selection:
  """The k-th largest of `num_entries` numbers >= 0: `bracket` with a sample, then sweeps until `answer` is not None.

  Attributes:
    answer: the k-th largest, once it is known.
  """

  def __init__(self, k: int, num_entries: int):
    """Asks for the k-th largest; k is clipped into [1, num_entries]."""
    self.k = min(max(int(k), 1), num_entries)
    self.num_entries = num_entries
    self.low, self.high = -1.0, math.inf
    self.answer: float | None = None
    self._sample = np.zeros(0, np.float32)
    self._margin = 0.0

  def bracket(self, values: np.ndarray) -> None:
    """Brackets the answer by a sample; a sample of all numbers gives the answer itself."""
    size = values.size
    if size >= self.num_entries:
      self.answer = _kth_largest(values.ravel(), self.k)
      return
    self._sample = np.sort(values, axis=None)
    share = self.k / self.num_entries
    # Entries of one run are alike, so that the sample is worth less than its size.
    self._margin = 1.5 * _DEVIATIONS * (math.sqrt(size * share * (1 - share)) + 1)
    self.high, self.low = self._ranked(-1), self._ranked(1)

  def _ranked(self, side: int) -> float:
    """The number of the sample that lies a margin above (-1) or below (1) where the answer is expected."""
    rank = round(self.k / self.num_entries * self._sample.size + side * self._margin)
    if rank < 1:
      return math.inf
    return float(self._sample[-rank]) if rank <= self._sample.size else -1.0

  def count(self, values: np.ndarray) -> Counts:
    """One piece of a sweep; a pure function, for any thread."""
    values = values.ravel()
    below = values < self.high
    at_least = values.size - int(np.count_nonzero(below))
    above = int(np.count_nonzero(values > self.high)) if at_least else 0
    over = values > self.low
    at_low = 0
    if self.low < self.high and self.low >= 0:
      at_low = int(np.count_nonzero(values == self.low))
    over &= below
    return Counts(above, at_least - above, values[over], at_low)

  def absorb(self, parts: Sequence[Counts]) -> None:
    """Ends a sweep: sets `answer`, or moves the bracket for another sweep."""
    ranks = self.k - np.cumsum(
      [
        sum(p.above for p in parts),
        sum(p.at_high for p in parts),
        sum(p.inside.size for p in parts),
        sum(p.at_low for p in parts),
      ]
    )
    if ranks[0] <= 0:
      # It lies further up; four times as far as thought, if need be again.
      self._margin *= 4
      self.low, self.high = self.high, self._ranked(-1)
    elif ranks[1] <= 0:
      self.answer = self.high
    elif ranks[2] <= 0:
      inside = np.concatenate([p.inside for p in parts if p.inside.size])
      self.answer = _kth_largest(inside, int(ranks[1]))
    elif ranks[3] <= 0:
      self.answer = self.low
    else:
      self._margin *= 4
      self.low, self.high = self._ranked(1), self.low


def _kth_largest(values: np.ndarray, k: int) -> float:
  return float(np.partition(values, values.size - k)[values.size - k])
