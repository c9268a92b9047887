"""Linear mode connectivity: a metric along the straight line between two networks, and the barrier on it.

Both definitions of the barrier are in use and differ where the end points do; both are reported. Compare in evaluation
mode. Leaves out pictures (report) and paths that are not straight.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params
from wam.evaluation.statistics import Interval, check_level, percentile_interval, resampling_counts
from wam.merging import averages

BarrierKind = Literal["mean", "interpolated"]


def _baseline(grid: np.ndarray, errors: np.ndarray, kind: str) -> np.ndarray:
  first, last = errors[..., :1], errors[..., -1:]
  if kind == "mean":
    return (first + last) / 2
  if kind == "interpolated":
    return (1 - grid) * first + grid * last
  raise unknown_name("barrier", kind, ["mean", "interpolated"])


def barrier(
  grid: np.ndarray,
  values: np.ndarray,
  *,
  kind: BarrierKind = "mean",
  maximize: bool = False,
) -> np.ndarray:
  """The barrier of a metric along the path θ_λ = (1 - λ)·θ_1 + λ·θ_2; 0 where there is none.

  "mean": sup_λ E(θ_λ) - (E(θ_1) + E(θ_2))/2, the instability of Frankle et al. (2020, arXiv 1912.05671); it is at least
  half the difference of the end points.
  "interpolated": sup_λ [E(θ_λ) - ((1 - λ) E(θ_1) + λ E(θ_2))], WARM's and WARP's definition (arXiv 2401.12187, eq. 2).

  Args:
    grid: λ, rising from 0 to 1, [G].
    values: the metric at those points, [..., G].
    kind: the definition.
    maximize: whether the metric is better when higher (accuracy, reward), so that its error is -value.

  Returns:
    [...], never negative.
  """
  points = np.asarray(grid, np.float64)
  if (
    points.ndim != 1
    or len(points) < 2
    or points[0] != 0
    or points[-1] != 1
    or (np.diff(points) <= 0).any()
  ):
    raise ConfigError(f"a path's grid must rise from 0 to 1, found {points.tolist()}")
  errors = np.asarray(values, np.float64) * (-1 if maximize else 1)
  # The end points count, so the supremum of the interpolated kind is at least 0.
  return np.asarray(np.max(errors - _baseline(points, errors, kind), axis=-1))


@dataclasses.dataclass(frozen=True)
class Connectivity:
  """A metric along the path between two networks.

  Attributes:
    grid: λ of θ_λ = (1 - λ)·a + λ·b, [G].
    per_item: the metric of every item at every λ, [G, N].
    values: its means, [G].
    low: lower ends of the pointwise bootstrap intervals, [G].
    high: upper ends, [G].
    mean_barrier: see `barrier`.
    interpolated_barrier: see `barrier`.
    worst: λ where the interpolated barrier is reached.
    maximize: whether higher is better.
    level: of confidence.
  """

  grid: np.ndarray
  per_item: np.ndarray
  values: np.ndarray
  low: np.ndarray
  high: np.ndarray
  mean_barrier: Interval
  interpolated_barrier: Interval
  worst: float
  maximize: bool
  level: float


def connectivity(
  evaluate: Callable[[Params], np.ndarray],
  a: Params,
  b: Params,
  *,
  grid: int | Sequence[float] = 11,
  maximize: bool = False,
  level: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> Connectivity:
  """Evaluates a metric along the straight line from a to b.

  Items are resampled with replacement, the same at every λ. A supremum of noisy values lies above the true one, so the
  intervals of the barriers lean upwards: judge them beside a pair that is known to be connected.

  Args:
    evaluate: params -> the metric of every item, [N]; the same items in the same order at every call.
    a: weights at λ = 0.
    b: weights at λ = 1.
    grid: the number of points, evenly spread with both ends, or the λ themselves. Too few miss a narrow barrier.
    maximize: whether the metric is better when higher.
    level: of confidence.
    num_resamples: bootstrap samples.
    seed: of the resampling.

  Raises:
    ConfigError: if the grid does not rise from 0 to 1.
    MismatchedTrees: names the leaves of a and b that do not agree.
    BadData: if `evaluate` returns another number of items at some λ, or values that are not finite.
  """
  check_level(level)
  points = np.linspace(0, 1, grid) if isinstance(grid, int) else np.asarray(grid, np.float64)
  barrier(points, np.zeros(len(points)))  # refuses a bad grid before the first evaluation
  rows = [np.asarray(evaluate(averages.lerp(a, b, float(t))), np.float64) for t in points]
  if len({row.shape for row in rows}) != 1 or rows[0].ndim != 1 or not len(rows[0]):
    raise BadData(f"evaluate must return one number an item, [N], found {[r.shape for r in rows]}")
  per_item = np.stack(rows)
  if not np.isfinite(per_item).all():
    bad = points[~np.isfinite(per_item).all(1)].tolist()
    raise BadData(f"evaluate returned NaN or infinity at lambda {bad}")
  values = per_item.mean(1)
  counts = resampling_counts(np.random.default_rng(seed), per_item.shape[1], num_resamples)
  replicates = counts @ per_item.T / per_item.shape[1]
  low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], axis=0)

  def interval(kind: BarrierKind) -> Interval:
    value, drawn = (barrier(points, v, kind=kind, maximize=maximize) for v in (values, replicates))
    return percentile_interval(float(value), drawn, level)

  errors = -values if maximize else values
  worst = float(points[np.argmax(errors - _baseline(points, errors, "interpolated"))])
  return Connectivity(
    points,
    per_item,
    values,
    low,
    high,
    interval("mean"),
    interval("interpolated"),
    worst,
    maximize,
    level,
  )
