"""Which completions are worth imitating: a draw from those of the highest rewards. Leaves out sampling and scoring."""

from typing import Any, TypeVar

import numpy as np

from wam.core.errors import BadData, ConfigError, check_rank, check_same_shape

Arrays = TypeVar("Arrays", bound=tuple[Any, ...])


def draw_from_the_best(
  rewards: np.ndarray,
  *,
  generator: np.random.Generator,
  pool: int = 5000,
  size: int = 2000,
  usable: np.ndarray | None = None,
) -> np.ndarray:
  """The rows of a proxy data set D_θ: `size` drawn without replacement from the `pool` of the highest rewards.

  "We sample about 2000 pieces from the set consisting of the 5000 samples with the highest rewards" (Lin et al. 2024,
  appendix C.5). Of equal rewards the first count as higher. Where there are fewer rows, all of them are the pool, and
  the whole pool is taken.

  Args:
    rewards: [R] float.
    generator: what draws.
    pool, size: at least 1; size is not above pool.
    usable: [R] bool, the rows that may be taken; default all.

  Returns:
    Row numbers, ascending.

  Raises:
    ConfigError: if the numbers are out of range. BadData: if no row is usable, or a usable reward is NaN.
  """
  check_rank("rewards", rewards, 1)
  if not 1 <= size <= pool:
    raise ConfigError(
      f"expected 1 <= size <= pool, found size = {size} and pool = {pool}: the draw is from the pool"
    )
  allowed = np.ones(len(rewards), bool) if usable is None else np.asarray(usable, bool)
  check_same_shape(rewards=rewards, usable=allowed)
  rows = np.flatnonzero(allowed)
  if not len(rows):
    raise BadData(
      f"none of {len(rewards)} completions can be used: none of them ends, or none came"
    )
  if np.isnan(rewards[rows]).any():
    raise BadData(f"{int(np.isnan(rewards[rows]).sum())} of {len(rows)} rewards are NaN")
  best = rows[np.argsort(-np.asarray(rewards[rows], np.float64), kind="stable")[:pool]]
  return np.sort(generator.choice(best, min(size, len(best)), replace=False))


def take(arrays: Arrays, rows: np.ndarray) -> Arrays:
  """These rows of a named tuple of arrays [R, ...], such as a rollout."""
  return type(arrays)(*(array[rows] for array in arrays))
