"""Intervals and tests for means, paired differences and win rates. NumPy and SciPy only; seeds are arguments."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats

from wam.core.errors import BadData, ConfigError, check_rank, check_same_shape


class Interval(NamedTuple):
  """A value and the interval around it."""

  value: float
  low: float
  high: float
  level: float  # of confidence, such as 0.95


class PairedTest(NamedTuple):
  """The mean of paired differences a - b, its interval, and the p-value of "there is no difference"."""

  difference: Interval
  p_value: float


def check_level(level: float) -> None:
  """Raises ConfigError unless 0 < level < 1."""
  if not 0 < level < 1:
    raise ConfigError(f"the confidence level must lie between 0 and 1, found {level}; try 0.95")


def percentile_interval(value: float, replicates: np.ndarray, level: float) -> Interval:
  """The percentile interval of bootstrap replicates [B] around a value."""
  low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
  return Interval(float(value), float(low), float(high), level)


def resampling_counts(
  generator: np.random.Generator, num_items: int, num_resamples: int
) -> np.ndarray:
  """How often every item is drawn in every resample of `num_items` with replacement: [B, N], as float64."""
  shares = np.full(num_items, 1 / num_items)
  return generator.multinomial(num_items, shares, size=num_resamples).astype(np.float64)


def _samples(name: str, samples: np.ndarray) -> np.ndarray:
  values = np.asarray(samples, np.float64)
  check_rank(name, values, 1)
  if len(values) < 2:
    raise BadData(f"{name}: an interval needs at least 2 items, found {len(values)}")
  if not np.isfinite(values).all():
    raise BadData(
      f"{name}: {int((~np.isfinite(values)).sum())} of {len(values)} items are NaN or infinite"
    )
  return values


def mean_interval(
  samples: np.ndarray,
  *,
  level: float = 0.95,
  num_resamples: int = 2000,
  method: str = "BCa",
  seed: int = 0,
) -> Interval:
  """The mean of items and its bootstrap interval (scipy.stats.bootstrap).

  Args:
    samples: one number an item, [N].
    level: of confidence.
    num_resamples: bootstrap samples.
    method: "BCa" (bias-corrected and accelerated), "percentile" or "basic".
    seed: of the resampling.

  Raises:
    BadData: if there are fewer than 2 items, or one is not finite.
    ConfigError: if the level is not between 0 and 1.
  """
  values = _samples("samples", samples)
  check_level(level)
  mean = float(values.mean())
  if np.ptp(values) == 0:  # BCa divides by the spread
    return Interval(mean, mean, mean, level)
  found = scipy.stats.bootstrap(
    (values,),
    np.mean,
    confidence_level=level,
    n_resamples=num_resamples,
    method=method,
    batch=max(1, 10_000_000 // len(values)),
    rng=np.random.default_rng(seed),
  ).confidence_interval
  return Interval(mean, float(found.low), float(found.high), level)


def statistic_interval(
  rows: np.ndarray,
  statistic: Callable[[np.ndarray], float],
  *,
  level: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> Interval:
  """Any statistic of items, such as corpus BLEU, and its percentile bootstrap interval.

  Args:
    rows: one row an item, [N, K].
    statistic: of rows [N, K].
    level: of confidence.
    num_resamples: bootstrap samples.
    seed: of the resampling.

  Raises:
    ConfigError: if the level is not between 0 and 1.
  """
  check_level(level)
  check_rank("rows", rows, 2)
  draws = np.random.default_rng(seed).integers(len(rows), size=(num_resamples, len(rows)))
  replicates = np.array([statistic(rows[draw]) for draw in draws])
  return percentile_interval(statistic(rows), replicates, level)


def paired_difference(
  a: np.ndarray,
  b: np.ndarray,
  *,
  level: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> PairedTest:
  """The mean of a - b over the same items, with a bootstrap interval and a sign-flip permutation test.

  Args:
    a: scores of one model on N items, [N].
    b: scores of another on the same items, [N].
    level: of confidence.
    num_resamples: bootstrap samples, and sign flips drawn (all 2^N where those are fewer).
    seed: of the resampling.

  Returns:
    The interval of the difference, and the two-sided p-value.

  Raises:
    BadData: if there are fewer than 2 items, or one is not finite.
  """
  check_same_shape(a=a, b=b)
  differences = _samples("differences", np.asarray(a, np.float64) - np.asarray(b, np.float64))
  interval = mean_interval(differences, level=level, num_resamples=num_resamples, seed=seed)
  if not differences.any():
    return PairedTest(interval, 1.0)
  test = scipy.stats.permutation_test(
    (differences,),
    np.mean,
    permutation_type="samples",
    n_resamples=num_resamples,
    vectorized=True,
    rng=np.random.default_rng(seed),
  )
  return PairedTest(interval, float(test.pvalue))


def win_rate(wins: int, losses: int, ties: int = 0, *, level: float = 0.95) -> Interval:
  """The share of wins, ties counting half, with Wilson's score interval (Wilson 1927).

  Args:
    wins: comparisons won.
    losses: comparisons lost.
    ties: comparisons without a winner.
    level: of confidence.

  Raises:
    BadData: if a number is negative or there is no comparison.
  """
  total = wins + losses + ties
  if min(wins, losses, ties) < 0 or total == 0:
    raise BadData(
      f"win rate: expected comparisons, found {wins} wins, {losses} losses, {ties} ties"
    )
  return wilson_interval((wins + ties / 2) / total, total, level=level)


def wilson_interval(share: float, total: int, *, level: float = 0.95) -> Interval:
  """A share of `total` trials, each of which counts 0, 1 or between, with Wilson's score interval (Wilson 1927).

  Raises:
    BadData: if there are no trials, or the share is not one.
    ConfigError: if the level is not between 0 and 1.
  """
  if total < 1 or not 0 <= share <= 1:
    raise BadData(f"expected a share from 0 to 1 of at least one trial, found {share} of {total}")
  check_level(level)
  z = float(scipy.stats.norm.ppf((1 + level) / 2))
  centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
  half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
  return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)), level)
