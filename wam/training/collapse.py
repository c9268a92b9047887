"""Collapse of a policy that is trained on its own samples, and the way back: the restart trick.

Lin et al. 2024, appendix C.2: completions suddenly become short or do not end, or the reward drops. Then training goes
on from the policy of a few iterations before, with a fresh critic that is trained alone for an iteration. A policy's
ancestors are remembered here, because after a restart "three iterations before" is no longer three numbers less.
init / update / value on the host; leaves out the weights.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from wam.core.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """When a policy has collapsed, and what is done. Thresholds that are None say nothing.

  Attributes:
    length_drop: completions are shorter than before by more than this share of the length.
    truncation_rise: the share of completions that do not end rose by more than this.
    reward_drop: the mean reward fell by more than so many standard deviations of the rewards.
    window: "before" is the mean over so many policies, those that this one descends from.
    back: how many updated policies back training goes; the start if there are fewer.
    warm_up: for how many iterations the critic is then trained alone.
  """

  length_drop: float | None = 0.5
  truncation_rise: float | None = 0.3
  reward_drop: float | None = 1.0
  window: int = 3
  back: int = 3
  warm_up: int = 1

  def __post_init__(self) -> None:
    for name, least in (("window", 1), ("back", 1), ("warm_up", 0)):
      if getattr(self, name) < least:
        raise ConfigError(
          f"restart: {name}: expected at least {least}, found {getattr(self, name)}"
        )
    for name in ("length_drop", "truncation_rise", "reward_drop"):
      threshold = getattr(self, name)
      if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise ConfigError(f"restart: {name}: expected a number above 0 or None, found {threshold}")


class Measurement(NamedTuple):
  """What is looked at, of a policy's completions."""

  length: float  # mean, in tokens
  finished: float  # share with EOS
  reward: float  # mean
  reward_std: float  # over the completions


class State(NamedTuple):
  """The policies that the one under training descends from; entry 0 is where training started.

  Attributes:
    iterations: int32 [I + 1], which iteration left each of them.
    measured: float32 [I + 1, 4], their measurements.
    depth: int32 [], the entry of the present policy; later entries mean nothing.
    pause: int32 [], for how many more iterations the policy is not to be updated.
  """

  iterations: np.ndarray
  measured: np.ndarray
  depth: np.ndarray
  pause: np.ndarray


def init(num_iterations: int) -> State:
  """The state before the first of I iterations."""
  return State(
    np.zeros(num_iterations + 1, np.int32),
    np.zeros((num_iterations + 1, len(Measurement._fields)), np.float32),
    _whole(0),
    _whole(0),
  )


def measure(lengths: np.ndarray, finished: np.ndarray, rewards: np.ndarray) -> Measurement:
  """Of R completions: lengths [R] in tokens, finished [R] bool, rewards [R]."""
  return Measurement(
    float(np.mean(lengths)),
    float(np.mean(finished)),
    float(np.mean(rewards)),
    float(np.std(rewards)),
  )


def value(state: State, now: Measurement, rule: Rule) -> tuple[str, ...]:
  """Which of "length", "truncation" and "reward" say that the present policy has collapsed; often none.

  A policy without ancestors has not: there is nothing to compare it with, and nowhere to go back to.
  """
  depth = int(state.depth)
  if not depth:
    return ()
  ancestors = np.asarray(state.measured, np.float64)[max(depth - rule.window, 0) : depth]
  before = Measurement(*ancestors.mean(axis=0).tolist())
  found = {
    "length": rule.length_drop is not None and now.length < before.length * (1 - rule.length_drop),
    "truncation": rule.truncation_rise is not None
    and now.finished < before.finished - rule.truncation_rise,
    "reward": rule.reward_drop is not None
    and now.reward < before.reward - rule.reward_drop * before.reward_std,
  }
  return tuple(name for name, collapsed in found.items() if collapsed)


def update(state: State, now: Measurement, iteration: int) -> State:
  """After an iteration (from 1) that went on from the present policy: what it measured, and its policy.

  While `pause` is above 0 the policy stayed the same.
  """
  depth, pause = int(state.depth), int(state.pause)
  iterations, measured = np.array(state.iterations), np.array(state.measured)
  measured[depth] = now
  if pause:
    return State(iterations, measured, _whole(depth), _whole(pause - 1))
  iterations[depth + 1] = iteration
  return State(iterations, measured, _whole(depth + 1), _whole(0))


def back(state: State, rule: Rule) -> State:
  """After a collapse: the ancestor to go on from is the present policy now, and does not move at first."""
  depth = max(int(state.depth) - rule.back, 0)
  return state._replace(depth=_whole(depth), pause=_whole(rule.warm_up))


def origin(state: State) -> int:
  """Which iteration left the present policy; 0: the policy that training started from."""
  return int(state.iterations[int(state.depth)])


def _whole(number: int) -> np.ndarray:
  return np.asarray(number, np.int32)
