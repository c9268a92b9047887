"""Preferences that a conditioned policy is trained for: how they are drawn, and batches of several at once.

Leaves out what a preference does to the weights (models/conditioning.py) and what is learnt (algorithms/clp.py).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wam.core import rng
from wam.core.errors import ConfigError


class Objective(NamedTuple):
  """What a group of completions is to be good at: (1 - α)·w·R - α·KL.

  Attributes:
    preference: w, [N] float32 on the simplex.
    kl_weight: α.
    steering: what the policy is conditioned on: w, or ((1 - α)·w, α) where it knows α.
  """

  preference: np.ndarray
  kl_weight: float
  steering: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objectives:
  """Where objectives come from.

  Attributes:
    num_rewards: N.
    kl_weight: α in [0, 1]; or a pair (low, high), from which it is drawn uniformly and which the policy is conditioned
      on as on one more reward: the objective is linear in ((1 - α)·w, α).
    concentration: of the Dirichlet distribution of w, the same for every reward; 1 is uniform on the simplex.
    preference: w, in place of drawing; None: it is drawn.

  Raises:
    ConfigError: if a number makes no sense, or w is not on the simplex.
  """

  num_rewards: int
  kl_weight: float | Sequence[float]
  concentration: float = 1.0
  preference: Sequence[float] | None = None

  def __post_init__(self) -> None:
    weights = self.kl_weights
    if len(weights) != 2 or not 0 <= weights[0] <= weights[1] <= 1:
      raise ConfigError(
        f"kl_weight: expected a number from 0 to 1, or two that rise, found {self.kl_weight}"
      )
    if not 0 < self.concentration < float("inf"):
      raise ConfigError(f"concentration: expected a number above 0, found {self.concentration}")
    if self.preference is not None:
      self.check(np.asarray(self.preference, np.float64))

  @property
  def kl_weights(self) -> tuple[float, ...]:
    """The least and the largest α."""
    given = self.kl_weight
    return (given, given) if isinstance(given, int | float) else tuple(given)

  @property
  def steers_kl(self) -> bool:
    """Whether the policy is conditioned on α."""
    return not isinstance(self.kl_weight, int | float)

  @property
  def size(self) -> int:
    """Numbers that the policy is conditioned on."""
    return self.num_rewards + self.steers_kl

  def check(self, preference: np.ndarray) -> None:
    """Raises ConfigError unless w is on the simplex, a number for each reward."""
    on_simplex = (preference >= 0).all() and abs(preference.sum() - 1) < 1e-6
    if preference.shape != (self.num_rewards,) or not on_simplex:
      raise ConfigError(
        f"preference: expected {self.num_rewards} numbers, one for each reward, at least 0 with sum 1, found"
        f" {preference.tolist()}"
      )

  def make(self, preference: Sequence[float] | np.ndarray, kl_weight: float) -> Objective:
    """The objective of w [N] and α; where α is no range, it steers nothing."""
    steering = w = np.asarray(preference, np.float64)
    self.check(w)
    if self.steers_kl:
      steering = np.append((1 - kl_weight) * w, kl_weight)
    return Objective(w.astype(np.float32), float(kl_weight), steering.astype(np.float32))

  def draw(self, count: int, seed: int, stage: str, iteration: int) -> list[Objective]:
    """So many objectives for an iteration, from the random stream <stage>/preferences/<iteration>."""
    numbers = rng.generator(seed, f"{stage}/preferences/{iteration}")
    low, high = self.kl_weights
    found = []
    for _ in range(count):
      drawn = numbers.dirichlet(np.full(self.num_rewards, self.concentration))
      chosen = drawn if self.preference is None else self.preference
      found.append(self.make(chosen, float(numbers.uniform(low, high))))
    return found


def batches(
  groups: Sequence[Mapping[str, np.ndarray]],
  order: np.ndarray,
  num_batches: int,
  rows_per_microbatch: int,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches with rows of all groups, laid out so that a microbatch holds rows of one group only.

  Args:
    groups: G groups of arrays [R, ...].
    order: [R] int, in which the rows of every group are taken.
    num_batches: each takes R/num_batches rows of every group.
    rows_per_microbatch: B; divides that. A batch is split into microbatches as `make_update` does it: the k-th of K
      takes every K-th row.
  """
  for chosen in np.split(order, num_batches):

    def together(name: str, chosen: np.ndarray = chosen) -> np.ndarray:
      parts = np.concatenate([group[name][chosen] for group in groups])
      split = parts.reshape(-1, rows_per_microbatch, *parts.shape[1:])
      return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(parts.shape)

    yield {name: together(name) for name in groups[0]}
