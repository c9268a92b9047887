"""Points of the front: one model each, averaged over the sampling seeds it was evaluated with.

A point record is one model under one sampling seed; here they become estimates with intervals, are put into series
(one line of the figure each) and into order. Leaves out: what the points mean (`fronts`, `story`) and
how they look (`figures`, `panels`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from wam.report.records import Record, finite, of_kind

INIT = "init"
EARLY_STOPPING = "early stopping"
AVERAGING = "model averaging"
PART_WISE = "part-wise"
FAMILY_ORDER = (INIT, EARLY_STOPPING, AVERAGING, PART_WISE)
# Judges that were not optimised, by preference: the truth of a world, or a reward model trained on other pairs.
JUDGES = ("reward_gold", "reward_control")
MEASURES = ("reward_proxy", *JUDGES, "kl", "length")
MEAN = "mean"  # the name of the mean of the skills, in scores, fronts and panels
LEVEL = 0.95


class Estimate(NamedTuple):
  """A mean over sampling seeds; `low` and `high` are None with fewer than two seeds."""

  mean: float
  low: float | None
  high: float | None
  num_seeds: int


class Skill(NamedTuple):
  """What a score measures; from an optional record of kind 'task'."""

  name: str
  metric: str = ""
  higher_is_better: bool = True
  description: str = ""

  @property
  def title(self) -> str:
    """Name and metric for an axis or a table head."""
    return f"{self.name} ({self.metric})" if self.metric else self.name


class Point(NamedTuple):
  """One evaluated model."""

  family: str
  series: str  # the line it belongs to: its family, or family and part
  label: str
  split: str
  coefficients: dict[str, float]
  seeds: tuple[str, ...]
  measures: dict[str, Estimate]  # keys among MEASURES
  scores: dict[str, Estimate]  # one per skill, and MEAN where all skills were measured

  def value(self, name: str) -> Estimate | None:
    """Returns a measure or a score by name, None where it was not measured."""
    return self.measures.get(name) or self.scores.get(name)


class Points(NamedTuple):
  """All points of a run and the skills they were scored on."""

  every: list[Point]
  skills: list[Skill]
  split: str  # the split the figures show
  x: str  # the reward on the horizontal axis: a judge's, or 'reward_proxy' where there is none
  relative: bool  # the mean of the skills is of shares of the value before RLHF

  @property
  def shown(self) -> list[Point]:
    """The points of the split that the figures show."""
    return [point for point in self.every if point.split == self.split]

  def skill(self, name: str) -> Skill:
    """Returns the skill of this name; MEAN is one too."""
    if name == MEAN:
      return Skill(MEAN, "share of the value before RLHF" if self.relative else "")
    return next(skill for skill in self.skills if skill.name == name)


def estimate(values: Iterable[float]) -> Estimate:
  """Mean and Student-t interval (level 0.95) of independent values, one per sampling seed.

  low, high = mean -+ t_{n-1}(0.975) s / sqrt(n), with s the sample deviation.

  >>> estimate([1.0, 2.0, 3.0]).mean
  2.0
  """
  values = list(values)
  n = len(values)
  mean = math.fsum(values) / n
  if n < 2:
    return Estimate(mean, None, None, n)
  from scipy.special import stdtrit  # a third of a second, only needed with several seeds

  deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
  half = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * deviation / math.sqrt(n)
  return Estimate(mean, mean - half, mean + half, n)


def collect(records: Sequence[Record]) -> Points:
  """Builds the points of a run from its records; a point evaluated twice counts once (the last time)."""
  skills = _skills(records)
  groups: dict[tuple[str, str, str], dict[str, Record]] = {}
  for record in of_kind(records, "point"):
    split = str(record.get("split", "test"))
    group = groups.setdefault((record["family"], record["label"], split), {})
    group[str(record.get("seed", 0))] = record
  splits = [split for _, _, split in groups]
  shown = "test" if "test" in splits or not splits else splits[-1]
  # A mean that the run recorded itself is one of shares, whatever the scales of the metrics.
  recorded = any(MEAN in r.get("scores", {}) for r in of_kind(records, "point"))
  relative = recorded or not all(skill.higher_is_better for skill in skills)
  start = _init_scores(groups, shown, skills) if relative else {}
  points = [
    _point(*key, by_seed, skills=skills, relative=relative, start=start)
    for key, by_seed in groups.items()
  ]
  judges = [name for name in JUDGES if any(name in p.measures for p in points)]
  return Points(
    every=_in_order(points),
    skills=skills,
    split=shown,
    x=(judges or ["reward_proxy" if points else JUDGES[0]])[0],
    relative=relative,
  )


def series_name(family: str, coefficients: dict[str, float]) -> str:
  """Returns the line a point belongs to: part-wise points are split by the part that was averaged.

  >>> series_name("part-wise", {"input": 0.3, "middle": 1.0, "output": 1.0})
  'part-wise: input'
  """
  if family != PART_WISE or len(coefficients) < 2:
    return family
  averaged = [part for part, value in coefficients.items() if value != 1.0]
  return f"{family}: {averaged[0]}" if len(averaged) == 1 else family


def describe(coefficients: dict[str, float]) -> str:
  """Writes coefficients for people: one number where all parts agree.

  >>> describe({"input": 0.5, "output": 0.5}), describe({"input": 0.3, "output": 1.0})
  ('0.5', 'input 0.3, output 1')
  """
  if len(set(coefficients.values())) == 1:
    return f"{next(iter(coefficients.values())):g}"
  return ", ".join(f"{part} {value:g}" for part, value in coefficients.items())


def by_series(points: Sequence[Point]) -> dict[str, list[Point]]:
  """Groups points into the lines of the figure, keeping their order."""
  lines: dict[str, list[Point]] = {}
  for point in points:
    lines.setdefault(point.series, []).append(point)
  return lines


def _skills(records: Sequence[Record]) -> list[Skill]:
  described = {
    record["name"]: Skill(
      record["name"],
      str(record.get("metric", "")),
      record.get("higher_is_better") is not False,
      str(record.get("description", "")),
    )
    for record in of_kind(records, "task")
  }
  scored: dict[str, None] = {}
  for record in of_kind(records, "point"):
    scored.update(dict.fromkeys(record.get("scores", {})))
  scored.pop(MEAN, None)
  names = [n for n in described if n in scored] + [n for n in scored if n not in described]
  return [described.get(name, Skill(name)) for name in names]


def _init_scores(
  groups: dict[Any, dict[str, Record]], split: str, skills: list[Skill]
) -> dict[str, float]:
  """Mean score of the model before RLHF in each skill, from its points on the shown split."""
  start: dict[str, float] = {}
  for (family, _, its_split), by_seed in groups.items():
    if family != INIT or its_split != split:
      continue
    for skill in skills:
      values = [finite(r.get("scores", {}).get(skill.name)) for r in by_seed.values()]
      known = [v for v in values if v is not None]
      if known:
        start[skill.name] = estimate(known).mean
  return start


def _mean_of_skills(
  record: Record, skills: list[Skill], relative: bool, start: dict[str, float]
) -> float | None:
  """Mean over the skills for one record; None unless every skill was measured.

  Scores in which more is better are averaged as they are. Where one of them is a loss, each skill is first
  divided by its value before RLHF (a loss the other way up), so that 1 means that nothing was lost.
  """
  scores = record.get("scores", {})
  if MEAN in scores:
    return finite(scores[MEAN])
  total = 0.0
  for skill in skills:
    value = finite(scores.get(skill.name))
    if value is None:
      return None
    if relative:
      before = start.get(skill.name)
      top, bottom = (value, before) if skill.higher_is_better else (before, value)
      if not top or not bottom:
        return None
      value = top / bottom
    total += value
  return total / len(skills) if skills else None


def _point(
  family: str,
  label: str,
  split: str,
  by_seed: dict[str, Record],
  *,
  skills: list[Skill],
  relative: bool,
  start: dict[str, float],
) -> Point:
  records = list(by_seed.values())
  raw = records[0].get("coefficients", {})
  coefficients = {str(k): v for k, v in ((k, finite(v)) for k, v in raw.items()) if v is not None}
  columns = {name: [finite(r.get(name)) for r in records] for name in MEASURES}
  scores = {s.name: [finite(r.get("scores", {}).get(s.name)) for r in records] for s in skills}
  scores[MEAN] = [_mean_of_skills(r, skills, relative, start) for r in records]
  return Point(
    family=family,
    series=series_name(family, coefficients),
    label=label,
    split=split,
    coefficients=coefficients,
    seeds=tuple(by_seed),
    measures=_estimates(columns),
    scores=_estimates(scores),
  )


def _estimates(columns: dict[str, list[float | None]]) -> dict[str, Estimate]:
  known = {name: [v for v in column if v is not None] for name, column in columns.items()}
  return {name: estimate(column) for name, column in known.items() if column}


def _in_order(points: list[Point]) -> list[Point]:
  """Known families first; inside a series by coefficients, and a trajectory as it was written."""

  def rank(item: tuple[int, Point]) -> tuple[Any, ...]:
    index, point = item
    known = point.family in FAMILY_ORDER
    family = FAMILY_ORDER.index(point.family) if known else len(FAMILY_ORDER)
    along = 0.0 if point.family == EARLY_STOPPING else sum(point.coefficients.values())
    first = series_first[point.series]
    return (family, first, along, index)

  series_first: dict[str, int] = {}
  for index, point in enumerate(points):
    series_first.setdefault(point.series, index)
  return [point for _, point in sorted(enumerate(points), key=rank)]
