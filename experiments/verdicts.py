"""What became of a claim, by one rule for all experiments: a quantity that it says is positive, one value a seed.

Leaves out where the values come from, and ledgers (wam.report.ledgers).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats


class Comparison(NamedTuple):
  """A quantity over seeds: [S] values, their mean and its 95 % interval (Student's t)."""

  values: list[float]
  mean: float
  low: float
  high: float

  def __str__(self) -> str:
    return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


def over_seeds(values: Sequence[float]) -> Comparison:
  """The mean over seeds and its interval; at least two seeds."""
  array = np.asarray(values, np.float64)
  mean, error = array.mean(), scipy.stats.sem(array)
  reach = error * scipy.stats.t.ppf(0.975, len(array) - 1)
  return Comparison(array.tolist(), float(mean), float(mean - reach), float(mean + reach))


def verdict(comparisons: Sequence[Comparison]) -> str:
  """Of a claim that all these quantities are above 0.

  "reproduced" where every interval lies above 0, "not reproduced" where one lies below, "inconclusive" otherwise.
  """
  if all(c.low > 0 for c in comparisons):
    return "reproduced"
  if any(c.high < 0 for c in comparisons):
    return "not reproduced"
  return "inconclusive"


class Finding(NamedTuple):
  """What became of a claim."""

  measured: str
  verdict: str


def finding(parts: Mapping[str, Comparison], what: str) -> Finding:
  """That all these quantities are above 0; `what` says what they are."""
  listed = "; ".join(f"{name} {comparison}" for name, comparison in parts.items())
  return Finding(f"{what}: {listed}", verdict(list(parts.values())))
