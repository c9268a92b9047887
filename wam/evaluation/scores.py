"""What a model scored on a task, and the interval around it. NumPy only."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wam.evaluation import metrics, statistics
from wam.evaluation.statistics import Interval

# How an interval was made: of a share of items, and of anything else.
WILSON = "wilson"
BOOTSTRAP = "percentile bootstrap over items"
NO_INTERVAL = "none, of one item"


class TaskScore(NamedTuple):
  """What one model scored on one task.

  Attributes:
    name: of the task.
    metric: one of metrics.METRICS.
    value: over all items.
    per_item: float64 [n]; for BLEU the sentence's own, for text the document's (the metric of that document alone).
    statistics: float64 [n, k]: sums over any rows of it give the metric of those items, for bootstraps.
    counts: what happened on the way: "truncated_prompts".
    signature: sacrebleu's, for BLEU; else empty.
  """

  name: str
  metric: str
  value: float
  per_item: np.ndarray
  statistics: np.ndarray
  counts: Mapping[str, int] = {}
  signature: str = ""

  def resampled(self, items: np.ndarray) -> float:
    """The metric over the given item numbers, with repetition."""
    return metrics.value(self.metric, self.statistics[items])


def from_statistics(name: str, metric: str, rows: np.ndarray) -> TaskScore:
  """The score of rows of statistics [n, k], each also taken by itself."""
  items = np.array([metrics.value(metric, row[None]) for row in rows])
  return TaskScore(name, metric, metrics.value(metric, rows), items, rows)


def from_items(name: str, metric: str, items: Sequence[float] | np.ndarray) -> TaskScore:
  """The score of a metric that is the mean of its items [n]."""
  values = np.asarray(items, np.float64)
  rows = np.stack([values, np.ones_like(values)], axis=1)
  return TaskScore(name, metric, metrics.value(metric, rows), values, rows)


def first(scores: Sequence[TaskScore], metric: str) -> TaskScore:
  """The one of this metric."""
  return next(score for score in scores if score.metric == metric)


def score_interval(
  score: TaskScore, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> tuple[Interval, str]:
  """The interval of a score, over the items that could have been asked, and how it was made.

  Shares of items (accuracies, exact match) have Wilson's interval (Wilson 1927), which does not end at 0 or 1 where no
  item, or every item, is right; everything else has the percentile bootstrap over items. One item has none: from NaN
  to NaN.

  Args:
    score: of n items.
    level: of confidence.
    num_resamples: bootstrap samples.
    seed: of the resampling.

  Raises:
    ConfigError: if the level is not between 0 and 1.
  """
  n = len(score.statistics)
  if score.metric in metrics.PROPORTIONS:
    return statistics.wilson_interval(score.value, n, level=level), WILSON
  if n == 1:
    statistics.check_level(level)
    return Interval(score.value, np.nan, np.nan, level), NO_INTERVAL
  interval = statistics.statistic_interval(
    score.statistics,
    lambda rows: metrics.value(score.metric, rows),
    level=level,
    num_resamples=num_resamples,
    seed=seed,
  )
  return interval, BOOTSTRAP
