"""The reward-tax front: staircase, end points, the selected average and its comparison with early stopping.

Hypervolumes are not computed here: they are read from the `front` records, with the reference point they were
computed with.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from wam.report.points import (
  AVERAGING,
  EARLY_STOPPING,
  INIT,
  JUDGES,
  MEAN,
  PART_WISE,
  Point,
  Points,
)
from wam.report.records import Record, of_kind

RULE = (
  "largest share of the reward gain kept minus share of the lost skill not won back"
  " (furthest above the straight line from the model before to the model after RLHF)"
)


class Ends(NamedTuple):
  """The models before and after RLHF; None where not evaluated yet."""

  before: Point | None
  after: Point | None


class Selection(NamedTuple):
  """The averaged model that a rule chose."""

  point: Point  # as measured on the split of the figures
  rule: str
  split: str  # the rule saw this split
  oracle: bool  # the rule saw the split, or the gold reward, that the result is reported on


class Comparison(NamedTuple):
  """The selected average against the early-stopping path at the same reward."""

  average: float  # mean of the skills
  baseline: float  # of the best early-stopped model with that reward, linear between checkpoints
  noise: float | None  # half width of the average's interval; None with one sampling seed

  @property
  def difference(self) -> float:
    """Positive where averaging is the better deal."""
    return self.average - self.baseline

  @property
  def clear(self) -> bool:
    """The difference is larger than the sampling noise."""
    return abs(self.difference) > (self.noise or 0.0)


def ends(points: Sequence[Point]) -> Ends:
  """Finds the models before and after RLHF among the points of one split."""
  before = next((p for p in points if p.family == INIT), None)
  before = before or next((p for p in points if _constant(p, 0.0)), None)
  after = next((p for p in points if _constant(p, 1.0) and p.family != EARLY_STOPPING), None)
  trajectory = [p for p in points if p.family == EARLY_STOPPING]
  return Ends(before, after or (trajectory[-1] if trajectory else None))


def trajectory(points: Sequence[Point]) -> list[Point]:
  """The RLHF run, from the model before it through every checkpoint."""
  before = ends(points).before
  return ([before] if before else []) + [p for p in points if p.family == EARLY_STOPPING]


def coordinates(points: Sequence[Point], x: str, y: str) -> list[tuple[Point, float, float]]:
  """Points that have both values, with the two means."""
  found = []
  for point in points:
    across, up = point.value(x), point.value(y)
    if across is not None and up is not None:
      found.append((point, across.mean, up.mean))
  return found


def staircase(
  pairs: Sequence[tuple[float, float]], *, higher_is_better: bool = True
) -> list[tuple[float, float]]:
  """Returns the non-dominated points, by rising x; more x is better, and more y unless told otherwise.

  >>> staircase([(0.0, 1.0), (0.5, 0.4), (0.4, 0.5), (0.3, 0.3)])
  [(0.0, 1.0), (0.4, 0.5), (0.5, 0.4)]
  """
  sign = 1.0 if higher_is_better else -1.0
  front: list[tuple[float, float]] = []
  for x, y in sorted(pairs, key=lambda pair: (-pair[0], -sign * pair[1])):
    if not front or sign * y > sign * front[-1][1]:
      front.append((x, y))
  return front[::-1]


def averages(points: Sequence[Point]) -> list[Point]:
  """Points that are real averages: neither end, nor a checkpoint of the trajectory."""
  return [
    p
    for p in points
    if (p.coefficients or p.family in (AVERAGING, PART_WISE))
    and p.family not in (INIT, EARLY_STOPPING)
    and not _constant(p, 0.0)
    and not _constant(p, 1.0)
  ]


def select(points: Points, records: Sequence[Record]) -> Selection | None:
  """Chooses an averaged model: what the run recorded (kind 'selection'), else by RULE.

  RULE sees the validation split where it was evaluated, and there the proxy reward, which is what a user
  has; without a validation split it sees the split of the figures, and the selection is labelled an oracle.
  None where RLHF bought no reward or cost no skill.
  """
  recorded = of_kind(records, "selection")
  if recorded:
    last = recorded[-1]
    point = _same_model(points.shown, last["family"], last["label"])
    if point is not None:
      oracle = last.get("oracle", last["split"] == points.split)
      return Selection(point, last["rule"], last["split"], bool(oracle))
  splits = {p.split for p in points.every}
  split = "validation" if "validation" in splits else points.split
  seen = [p for p in points.every if p.split == split]
  reward = "reward_proxy" if any("reward_proxy" in p.measures for p in seen) else points.x
  best = _best_trade(seen, reward)
  point = _same_model(points.shown, best.family, best.label) if best else None
  if point is None:
    return None
  label = reward.replace("reward_", "") + " reward"
  oracle = split == points.split or reward in JUDGES
  return Selection(point, f"{RULE}, by {label} and mean skill", split, oracle)


def compare(point: Point, points: Points) -> Comparison | None:
  """Compares with the best mean skill on the early-stopping path at the same reward.

  The path is taken as linear between successive checkpoints, which favours the baseline: those models do not exist.
  None where the path does not reach the reward.
  """
  path = coordinates(trajectory(points.shown), points.x, MEAN)
  reward, skill = point.value(points.x), point.value(MEAN)
  if reward is None or skill is None:
    return None
  reached = []
  for (_, x0, y0), (_, x1, y1) in itertools.pairwise(path):
    if min(x0, x1) <= reward.mean <= max(x0, x1):
      share = (reward.mean - x0) / (x1 - x0) if x1 != x0 else 0.0
      reached.append(y0 + share * (y1 - y0) if x1 != x0 else max(y0, y1))
  if not reached:
    return None
  noise = None if skill.high is None else skill.high - skill.mean
  return Comparison(skill.mean, max(reached), noise)


def kept(point: Point, between: Ends, name: str) -> float | None:
  """Share of the way from the model before to the model after RLHF in one measure (0: before, 1: after)."""
  values = [p.value(name) if p else None for p in (point, between.before, between.after)]
  if any(v is None for v in values):
    return None
  here, start, end = (v.mean for v in values if v is not None)
  return (here - start) / (end - start) if end != start else None


def _best_trade(points: Sequence[Point], reward: str) -> Point | None:
  between = ends(points)
  if between.before is None or between.after is None:
    return None
  gain = _change(between, reward)
  loss = _change(between, MEAN)
  if gain is None or loss is None or gain <= 0 or loss >= 0:
    return None
  best, best_score = None, 0.0
  for point in averages(points):
    reward_kept, tax_paid = kept(point, between, reward), kept(point, between, MEAN)
    if reward_kept is None or tax_paid is None:
      continue
    if best is None or reward_kept - tax_paid > best_score:
      best, best_score = point, reward_kept - tax_paid
  return best


def _change(between: Ends, name: str) -> float | None:
  if between.before is None or between.after is None:
    return None
  start, end = between.before.value(name), between.after.value(name)
  return None if start is None or end is None else end.mean - start.mean


def _constant(point: Point, value: float) -> bool:
  return bool(point.coefficients) and set(point.coefficients.values()) == {value}


def _same_model(points: Sequence[Point], family: str, label: str) -> Point | None:
  return next((p for p in points if p.family == family and p.label == label), None)
