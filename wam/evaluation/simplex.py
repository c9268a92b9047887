"""Coefficients and preferences on the simplex, and what a set of models is worth to users who have them.

λ are the coefficients of a soup or a mixture of rewards, μ is what a user cares about; both are [R], at least 0, with
sum 1. Every objective is maximised. After Ramé et al. 2023 (Rewarded Soups, arXiv 2306.04488); the hypervolume and the
C metric are in pareto.py. NumPy only.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from wam.core.errors import BadData, ConfigError, check_rank, unknown_name

TOLERANCE = 1e-6


def grid(num_rewards: int, intervals: int) -> np.ndarray:
  """All λ whose entries are multiples of 1/intervals: float64 [K, R], K = C(intervals + R - 1, R - 1).

  In order of falling first entry, then second, and so on; 11 points for 2 rewards and 10 intervals, 15 for 3 and 4.

  Raises:
    ConfigError: if there are less than 1 reward or interval.

  >>> grid(2, 2).tolist()
  [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
  """
  if num_rewards < 1 or intervals < 1:
    raise ConfigError(
      f"a grid over the simplex needs 1 reward and 1 interval at least, found {num_rewards} and {intervals}"
    )
  return _compositions(num_rewards, intervals) / intervals


def preferences(num_rewards: int, intervals: int) -> np.ndarray:
  """μ spread evenly inside the simplex, none on its border: float64 [U, R], with mean 1/R in every entry.

  The centres of the cells that the multiples of 1/intervals cut the simplex into: U = intervals for 2 rewards and
  intervals² for 3, where all cells are equal, so that a mean over them is the midpoint rule of the integral over users
  drawn uniformly. For more rewards the cells differ, and the mean is near it only.

  Raises:
    ConfigError: if there are less than 2 rewards or 1 interval.

  >>> preferences(2, 2).tolist()
  [[0.75, 0.25], [0.25, 0.75]]
  """
  if num_rewards < 2:
    raise ConfigError(f"preferences are among 2 rewards at least, found {num_rewards}")
  grid(num_rewards, intervals)
  cells = [
    _compositions(num_rewards, intervals - j) + j / num_rewards
    for j in range(1, min(num_rewards, intervals + 1))
  ]
  return np.concatenate(cells) / intervals


def check(coefficients: Mapping[str, float], names: Sequence[str], where: str) -> np.ndarray:
  """λ by name as float64 [R], in the order of `names`; names that are left out have 0.

  Raises:
    UnknownName: for a name that is no reward; ConfigError: if λ is off the simplex, by more than 1e-6.
  """
  if not isinstance(coefficients, Mapping):
    raise ConfigError(f"{where}: expected a number by name of a reward, found {coefficients!r}")
  for name in coefficients:
    if name not in names:
      raise unknown_name(f"reward in {where}", name, names)
  values = np.array([coefficients.get(name, 0.0) for name in names], np.float64)
  check_rows(values[None], where)
  return values


def check_rows(rows: np.ndarray, where: str) -> None:
  """Checks λ or μ [K, R].

  Raises:
    ConfigError: names the first row that is off the simplex.
  """
  check_rank(where, rows, 2)
  for row in np.asarray(rows, np.float64):
    # Written so that NaN is refused too.
    if not ((row >= 0).all() and abs(row.sum() - 1) <= TOLERANCE):
      raise ConfigError(
        f"{where}: {row.tolist()} is off the simplex: expected numbers of at least 0 with sum 1, found the sum"
        f" {row.sum():g}"
      )


def utilities(points: np.ndarray, users: np.ndarray) -> np.ndarray:
  """μ·R of every user and point: float64 [U, P].

  Args:
    points: [P, R], the rewards of models.
    users: [U, R], their μ.

  Raises:
    BadData: if there are no points, or a reward is not finite; ConfigError: if a μ is off the simplex.
  """
  values = _finite(points)
  check_rows(users, "preferences")
  return np.asarray(users, np.float64) @ values.T


def expected_utility(points: np.ndarray, users: np.ndarray) -> float:
  """E_μ max_λ μ·R(θ_λ), the mean over users [U, R] of what each has of the best of the points [P, R] for it."""
  return float(utilities(points, users).max(axis=1).mean())


def best_for(points: np.ndarray, users: np.ndarray) -> np.ndarray:
  """For every user [U, R] the index of the best of the points [P, R]: int [U]; the first of equals.

  λ chosen by cross-validation, where the points were measured on a validation split.
  """
  return utilities(points, users).argmax(axis=1)


def nearest(coefficients: np.ndarray, users: np.ndarray) -> np.ndarray:
  """For every μ [U, R] the index of the nearest λ [K, R]: int [U]; the first of equals.

  λ = μ, the choice that needs no measuring, on a grid of λ.
  """
  distances = np.asarray(users)[:, None] - np.asarray(coefficients)[None]
  # Rounded: of two that are equally near, the first one wins on every machine.
  return np.round((distances**2).sum(axis=-1), 12).argmin(axis=1)


def additive_epsilon(a: np.ndarray, b: np.ndarray) -> float:
  """The least ε such that every point of b [P, R] is weakly dominated by a point of a [Q, R] plus ε in every objective.

  max_b min_a max_r (b_r - a_r): at most 0 where a covers b (Zitzler et al. 2003, the additive ε indicator).
  """
  first, second = _finite(a), _finite(b)
  return float((second[None] - first[:, None]).max(axis=-1).min(axis=0).max())


def connectivity_gaps(coefficients: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """R(θ_λ) - Σ λ_i R(θ_i): linear mode connectivity holds at λ where that is at least 0 (paper, hypothesis 1).

  Args:
    coefficients: λ [K, R]; every corner of the simplex is among them.
    scores: [K], or [K, S] of S rewards, of the soups with these coefficients.

  Returns:
    float64, of the shape of the scores; exactly 0 at the corners.

  Raises:
    BadData: if a corner is missing, or a score is not finite.
  """
  rows, values = np.asarray(coefficients, np.float64), np.asarray(scores, np.float64)
  check_rows(rows, "coefficients")
  if len(values) != len(rows) or not np.isfinite(values).all():
    raise BadData(
      f"connectivity: expected a finite score for each of {len(rows)} λ, found the shape {values.shape} with"
      f" {int((~np.isfinite(values)).sum())} that are not finite"
    )
  corners = []
  for number in range(rows.shape[1]):
    found = np.flatnonzero(rows[:, number] == 1)
    if not len(found):
      raise BadData(
        f"connectivity: λ = 1 on reward {number} was not measured; every corner of the simplex is needed"
      )
    corners.append(values[found[0]])
  gaps = values - np.tensordot(rows, np.stack(corners), axes=1)
  gaps[(rows == 1).any(axis=1)] = 0.0
  return gaps


def _finite(points: np.ndarray) -> np.ndarray:
  values = np.asarray(points, np.float64)
  check_rank("points", values, 2)
  if not len(values) or not np.isfinite(values).all():
    raise BadData(f"points: expected finite rewards of 1 point at least, found {values.tolist()}")
  return values


def _compositions(parts: int, total: int) -> np.ndarray:
  """All ways to write `total` as a sum of `parts` whole numbers from 0, in falling order: float64 [K, parts]."""
  rows = [
    np.diff((-1, *bars, total + parts - 1)) - 1
    for bars in itertools.combinations(range(total + parts - 1), parts - 1)
  ]
  return np.array(rows[::-1], np.float64)
