"""Pairwise accuracy of rewards: how often the preferred completion gets the higher one, by group of pairs.

What counts at a tie is part of the figure. "half" is what this library reports: a reward model that says nothing is at
1/2. "correct" is r⁺ >= r⁻ as WARM writes it (Ramé et al. 2024, arXiv 2401.12187, section 2): there a constant reward
has accuracy 1, and rounding to bfloat16 looks like skill. Without ties the two are equal.

Accuracy is measured against the labels given. On swapped pairs (`wam.data.corruption`) with their swapped labels a high
accuracy means that the noise was learnt.
"""

from collections.abc import Mapping

import numpy as np

from wam.core.errors import BadData, NonFinite, check_rank, check_same_shape, unknown_name
from wam.evaluation.statistics import Interval, wilson_interval

TIES: dict[str, float] = {"half": 0.5, "correct": 1.0}


def credit(chosen: np.ndarray, rejected: np.ndarray, *, ties: str = "half") -> np.ndarray:
  """1 for each pair whose chosen reward is higher, 0 where it is lower; at a tie what TIES says.

  Two models on the same pairs are compared by `statistics.paired_difference` of these.

  Args:
    chosen: rewards of the preferred completions, [N].
    rejected: rewards of the others, [N].
    ties: one of TIES.

  Returns:
    [N] float64.

  Raises:
    UnknownName: if there is no such rule for ties. NonFinite: if a reward is NaN or infinite.
  """
  if ties not in TIES:
    raise unknown_name("rule for ties", ties, TIES)
  check_same_shape(chosen=chosen, rejected=rejected)
  check_rank("chosen", chosen, 1)
  better, worse = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
  bad = np.flatnonzero(~(np.isfinite(better) & np.isfinite(worse)))
  if bad.size:
    raise NonFinite(
      f"pairs: {bad.size} of {len(better)} have a reward that is not finite, the first is {bad[0]}"
    )
  return np.where(better == worse, TIES[ties], (better > worse).astype(np.float64))


def accuracy(
  chosen: np.ndarray, rejected: np.ndarray, *, ties: str = "half", level: float = 0.95
) -> Interval:
  """The mean credit of pairs, with Wilson's interval, which takes the pairs to be independent.

  Args:
    chosen, rejected, ties: as in `credit`.
    level: of confidence.

  Raises:
    BadData: if there are no pairs. UnknownName, NonFinite: as `credit`. ConfigError: if the level is not in (0, 1).
  """
  return by_group(chosen, rejected, {"all": np.arange(len(chosen))}, ties=ties, level=level)["all"]


def by_group(
  chosen: np.ndarray,
  rejected: np.ndarray,
  groups: Mapping[str, np.ndarray],
  *,
  ties: str = "half",
  level: float = 0.95,
) -> dict[str, Interval]:
  """`accuracy` of groups of pairs, such as "clean_train", "corrupt_train", "validation" and "out_of_distribution".

  Args:
    chosen, rejected: rewards of all pairs, [N].
    groups: the rows of each, indices or bool [N]; they may overlap and leave rows out.
    ties: as in `credit`.
    level: of confidence.

  Raises:
    BadData: names the groups without pairs. UnknownName, NonFinite, ConfigError: as `accuracy`.
  """
  every = credit(chosen, rejected, ties=ties)
  parts = {name: every[_rows(rows)] for name, rows in groups.items()}
  empty = [name for name, part in parts.items() if not len(part)]
  if empty:
    raise BadData(f"accuracy: no pairs in {', '.join(empty)}")
  return {
    name: wilson_interval(float(part.mean()), len(part), level=level)
    for name, part in parts.items()
  }


def _rows(rows: np.ndarray) -> np.ndarray:
  """Indices or a mask; an empty list is indices."""
  found = np.asarray(rows)
  return found if found.size else found.astype(int)
