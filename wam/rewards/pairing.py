"""Preference pairs out of scored samples: which two of a prompt's completions, and which of them is preferred.

Leaves out sampling, scoring, and pairs that somebody else judged (data).
"""

from typing import NamedTuple

import numpy as np

from wam.core.errors import check_same_shape, unknown_name

RULES = ("best_worst", "random")


class Pairing(NamedTuple):
  """The pairs, and what became of the other prompts.

  Attributes:
    prompts: [K] int, ascending: the prompts that have a pair.
    chosen: [K] int, the preferred sample of each, as an index into the flattened [P * N] samples.
    rejected: [K] int, the other one.
    equal_rewards: prompts left out because the two rewards are equal.
    too_few: prompts left out because fewer than two of their samples are usable.
  """

  prompts: np.ndarray
  chosen: np.ndarray
  rejected: np.ndarray
  equal_rewards: int
  too_few: int


def pair(
  rewards: np.ndarray, usable: np.ndarray, *, rule: str, draw: np.random.Generator
) -> Pairing:
  """One pair of every prompt that has two usable samples of different rewards.

  "best_worst" prefers the highest reward to the lowest, the first of equals; nothing is drawn. "random" takes two at
  random and prefers the first with probability σ(r_a - r_b), as Bradley and Terry's judge would: its chosen sample can
  be the one of the lower reward, and a policy that fits such pairs is the optimum of the KL-regularised reward.

  Args:
    rewards: [P, N] finite.
    usable: [P, N] bool; other samples are never taken.
    rule: its name.
    draw: for "random"; how much is drawn does not depend on the rewards.

  Raises:
    UnknownName: if there is no such rule.
  """
  check_same_shape(rewards=rewards, usable=usable)
  if rule not in RULES:
    raise unknown_name("pairing rule", rule, RULES)
  P, N = rewards.shape
  every = np.arange(P)
  if rule == "best_worst":
    first = np.argmax(np.where(usable, rewards, -np.inf), axis=1)
    second = np.argmin(np.where(usable, rewards, np.inf), axis=1)
  else:
    # The two usable samples of the highest of N random numbers are a random two.
    order = np.argsort(np.where(usable, draw.random((P, N)), -1.0), axis=1)
    first, second = order[:, -1], order[:, -2] if N > 1 else order[:, -1]
    gap = rewards[every, first].astype(np.float64) - rewards[every, second]
    swapped = draw.random(P) >= 0.5 * (1.0 + np.tanh(0.5 * gap))
    first, second = np.where(swapped, second, first), np.where(swapped, first, second)
  enough = usable.sum(axis=1) >= 2
  equal = enough & (rewards[every, first] == rewards[every, second])
  kept = np.flatnonzero(enough & ~equal)
  return Pairing(
    kept,
    kept * N + first[kept],
    kept * N + second[kept],
    equal_rewards=int(equal.sum()),
    too_few=int((~enough).sum()),
  )
