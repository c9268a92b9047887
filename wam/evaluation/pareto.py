"""Pareto fronts and hypervolumes. Every objective is maximised: negate a KL or a loss first.

Exact for any number of objectives. NumPy only. Leaves out fronts of random variables: `bootstrap_hypervolume` resamples
the measurements behind the points instead.
"""

from collections.abc import Callable, Sequence

import numpy as np

from wam.core.errors import BadData, check_rank
from wam.evaluation.statistics import Interval, check_level, percentile_interval, resampling_counts

Finish = Callable[[np.ndarray], np.ndarray]


def _points(points: np.ndarray) -> np.ndarray:
  values = np.asarray(points, np.float64)
  check_rank("points", values, 2)
  if np.isnan(values).any():
    rows = np.flatnonzero(np.isnan(values).any(1)).tolist()
    raise BadData(f"points: rows {rows} hold NaN; a point without a score has no place on a front")
  return values


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether a [R] is at least as good as b [R] everywhere and better somewhere."""
  return bool(np.all(np.asarray(a) >= b) and np.any(np.asarray(a) > b))


def dominated(points: np.ndarray) -> np.ndarray:
  """Which of the points [P, R] another one dominates: bool [P]. Duplicates do not dominate each other."""
  values = _points(points)
  better_or_equal = (values[:, None] >= values[None]).all(-1)
  better = (values[:, None] > values[None]).any(-1)
  return np.asarray((better_or_equal & better).any(0))


def front(points: np.ndarray) -> np.ndarray:
  """Indices [F] of the points [P, R] on the Pareto front, by rising first objective; duplicates are all kept."""
  values = _points(points)
  on_front = np.flatnonzero(~dominated(values))
  # lexsort takes its last key first; the last objective breaks ties, and the order given the rest.
  return on_front[np.lexsort(values[on_front].T[::-1])]


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
  """The volume that the points dominate above the reference point.

  Points that are not better than the reference in every objective contribute nothing. The reference is part of the
  result: volumes of different references cannot be compared, so it has no default.

  Args:
    points: [P, R], every objective maximised; P may be 0.
    reference: [R], such as the worst acceptable score of every objective.

  Raises:
    ValueError: if the numbers of objectives differ.
    BadData: if a coordinate is NaN, or the reference is not finite.
  """
  values, origin = _points(points), np.asarray(reference, np.float64)
  if origin.shape != values.shape[1:]:
    raise ValueError(
      f"hypervolume: points {values.shape} need a reference of shape {values.shape[1:]},"
      f" found {origin.shape}"
    )
  if not np.isfinite(origin).all():
    raise BadData(f"hypervolume: the reference must be finite, found {origin.tolist()}")
  shifted = values - origin
  return _volume(shifted[(shifted > 0).all(1)])


def _volume(points: np.ndarray) -> float:
  """Volume of the union of boxes [0, point], by slicing along the last objective."""
  if len(points) == 0:
    return 0.0
  if points.shape[1] == 1:
    return float(points.max())
  points = points[np.argsort(-points[:, -1], kind="stable")]
  if points.shape[1] == 2:
    # A staircase: each step adds what lies beyond the widest point so far.
    reach = np.maximum.accumulate(points[:, 0])
    return float(np.sum(np.diff(reach, prepend=0.0) * points[:, 1]))
  heights = points[:, -1] - np.append(points[1:, -1], 0.0)
  total, base = 0.0, points[:0, :-1]
  for point, height in zip(points, heights, strict=True):
    base = np.vstack([base, point[:-1]])
    base = base[~dominated(base)]
    if height > 0:
      total += float(height) * _volume(base)
  return total


def coverage(a: np.ndarray, b: np.ndarray) -> float:
  """The share of the points b [P, R] that some point of a [Q, R] dominates or equals (Zitzler's C metric)."""
  first, second = _points(a), _points(b)
  if not len(second):
    raise BadData("coverage: the second set of points is empty")
  return float((first[:, None] >= second[None]).all(-1).any(0).mean())


def normalize(points: np.ndarray, worst: np.ndarray, best: np.ndarray) -> np.ndarray:
  """(points - worst) / (best - worst), so that every objective runs from 0 at `worst` [R] to 1 at `best` [R].

  Raises:
    BadData: if best is not above worst in every objective.
  """
  low, high = np.asarray(worst, np.float64), np.asarray(best, np.float64)
  if not (high > low).all():
    raise BadData(
      f"normalize: best {high.tolist()} must be above worst {low.tolist()} in every objective"
    )
  return (_points(points) - low) / (high - low)


def standardize(points: np.ndarray, samples: np.ndarray) -> np.ndarray:
  """(points - mean) / standard deviation of samples [N, R], such as rewards of the init model's completions.

  Raises:
    BadData: if an objective does not vary among the samples.
  """
  spread = np.std(np.asarray(samples, np.float64), axis=0)
  if not (spread > 0).all():
    raise BadData(f"standardize: standard deviations {spread.tolist()} must be positive")
  return (_points(points) - np.mean(np.asarray(samples, np.float64), axis=0)) / spread


def bootstrap_hypervolume(
  scores: Sequence[np.ndarray],
  reference: np.ndarray,
  *,
  finish: Sequence[Finish | None] | None = None,
  level: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> Interval:
  """The hypervolume of measured points, with a percentile interval over seeds and items.

  A point's r-th coordinate is the mean over seeds and items of scores[r]. A resample draws seeds and items with
  replacement, the same for all points, since all were measured on the same ones. Objectives with equally many seeds
  share the draw of seeds. The front of noisy points lies above the true one, so the interval leans upwards.

  Args:
    scores: for each of R objectives the scores [P, S, N] of P points, S seeds and N items (N may differ by
      objective), or [P, S, N, K] with a `finish`.
    reference: [R].
    finish: for metrics that are not means of items (corpus BLEU): a function from mean statistics [..., K] of one
      seed's items to the metric [...]; None for plain means.
    level: of confidence.
    num_resamples: bootstrap samples B.
    seed: of the resampling.

  Raises:
    BadData: if objectives have different numbers of points.
    ConfigError: if the level is not between 0 and 1.
  """
  check_level(level)
  exact, resampled = resample(scores, finish=finish, num_resamples=num_resamples, seed=seed)
  value = hypervolume(exact, reference)
  replicates = [hypervolume(points, reference) for points in resampled]
  return percentile_interval(value, np.array(replicates), level)


def resample(
  scores: Sequence[np.ndarray],
  *,
  finish: Sequence[Finish | None] | None = None,
  num_resamples: int = 1000,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """The coordinates of measured points, and their bootstrap replicates over seeds and items.

  Args:
    scores: as in `bootstrap_hypervolume`.
    finish: likewise.
    num_resamples: B.
    seed: of the resampling.

  Returns:
    float64 [P, R], and [B, P, R]; in each replicate all points share the draw of seeds and items.

  Raises:
    BadData: if objectives have different numbers of points.
  """
  tables = [np.asarray(s, np.float64) for s in scores]
  finishes = list(finish) if finish is not None else [None] * len(tables)
  if len({len(t) for t in tables}) != 1:
    raise BadData(f"every objective needs the same points, found {[len(t) for t in tables]}")
  for r, (table, last) in enumerate(zip(tables, finishes, strict=True)):
    check_rank(f"scores[{r}]", table, 3 if last is None else 4)
  generator = np.random.default_rng(seed)
  seed_counts = {
    n: resampling_counts(generator, n, num_resamples) / n
    for n in dict.fromkeys(table.shape[1] for table in tables)
  }
  exact, resampled = [], []
  for table, last in zip(tables, finishes, strict=True):
    _, num_seeds, num_items = table.shape[:3]
    counts = resampling_counts(generator, num_items, num_resamples) / num_items
    by_seed, means = np.einsum("psn...,bn->bps...", table, counts), table.mean(2)
    if last is not None:
      by_seed, means = last(by_seed), last(means)
    resampled.append(np.einsum("bps,bs->bp", by_seed, seed_counts[num_seeds]))
    exact.append(means.mean(1))
  return np.stack(exact, -1), np.stack(resampled, -1)
