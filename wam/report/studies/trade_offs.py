"""Fronts between rewards: what the pages of Rewarded Soups and CLP have in common.

Points of the study "front" are placed by λ (x: lambda_<reward>) and have a value for every reward.
"""

import itertools
from collections.abc import Sequence

from wam.report import explorers, measurements
from wam.report.blocks import (
  Block,
  Explorer,
  Figure,
  Figures,
  Section,
  Table,
  Text,
  line,
  text_cell,
)
from wam.report.measurements import (
  LAMBDA,
  Measurement,
  by_family,
  of_study,
  reading,
  reward_value,
  rewards,
  title_of,
)
from wam.report.points import Estimate
from wam.report.records import Run
from wam.report.run_facts import plain_text
from wam.report.story import number
from wam.report.studies import sections, wording

STUDY, SUMMARY, CHOICES, GAPS = "front", "fronts", "preferences", "connectivity"
JUDGES = "judges"
_RECORD_FIELDS = ("kind", "stage", "step", "time")


def shown(run: Run) -> list[Measurement]:
  """The points of the front on the split that is shown."""
  return sections.of_test_split(of_study(measurements.collect(run.records), STUDY))


def figures(points: Sequence[Measurement], names: Sequence[str], main: str) -> Figures | None:
  """The front: one panel for every two rewards. Lines follow λ between two rewards; for more there are markers only."""
  drawn = [
    found
    for x, y in _axes(points, names)
    if (found := _front_panel(points, names, x, y, main=main)) is not None
  ]
  return Figures("front", drawn) if drawn else None


def explorer(
  run: Run, points: Sequence[Measurement], names: Sequence[str], main: str
) -> Explorer | None:
  """The slider, or the triangle, over λ, with the front beside it."""
  return explorers.over_preferences(
    points,
    names,
    measurements.samples(run.records),
    figures=figures(points, names, main),
    places=_axes(points, names),
    first=main,
  )


def along(points: Sequence[Measurement], names: Sequence[str]) -> Section | None:
  """Every reward and the KL over λ, for two rewards: is the line above the chord between its ends?"""
  if len(names) != 2:
    return None
  x = LAMBDA + names[1]
  # Lines go along λ, whatever the order of measuring was.
  points = sorted(points, key=lambda point: point.x.get(x, 0.0))
  values = [value for n in names if (value := reward_value(points, n)) is not None]
  values += [*measurements.judges(points, names), "kl"]
  drawn = [p for value in values if (p := sections.panel(points, x, value)) is not None]
  if not drawn:
    return None
  text = (
    "Between two models that share their start, the reward of the averaged weights should not fall below the straight"
    " line between the rewards of the two (linear mode connectivity)."
  )
  return Section("along", "Along λ", [Text([text]), Figures("along_lambda", drawn)])


def connected(
  run: Run, points: Sequence[Measurement], names: Sequence[str], main: str
) -> list[str]:
  """One sentence: at how many inner λ of the main family each reward is at least Σ λ_i that of one-reward models."""
  gaps = [p for p in of_study(measurements.collect(run.records), GAPS) if p.family == main]
  clauses = []
  for name in names:
    found = [p.values[name] for p in gaps if name in p.values] or _gaps(points, name, main)
    if not found:
      continue
    clause = f"{name} at {sum(gap.mean >= 0 for gap in found)} of {len(found)}"
    clear = sum(gap.mean < -wording.half(gap) for gap in found)
    if any(wording.half(gap) for gap in found) and any(gap.mean < 0 for gap in found):
      clause += f" (clearly below at {clear})"
    clauses.append(clause)
  if not clauses:
    return []
  return [
    f"The reward of {main} is at least the λ-weighted mean of the rewards of the one-reward models for"
    f" {wording.listed(clauses)} inner λ."
  ]


def _gaps(points: Sequence[Measurement], reward: str, main: str) -> list[Estimate]:
  """R(θ_λ) - Σ λ_i R(θ_i) of the inner points, with the intervals of the first term alone."""
  value = reward_value(points, reward)
  members = [p for p in points if p.family == main and value is not None and value in p.values]
  corners = {name: p for p in members for name in p.x if p.x[name] == 1 and _is_lambda(name)}
  if value is None or any(
    _is_lambda(name) and name not in corners for p in members for name in p.x
  ):
    return []
  gaps = []
  for point in members:
    shares = {name: share for name, share in point.x.items() if _is_lambda(name)}
    if shares and max(shares.values()) < 1:
      expected = sum(share * corners[name].values[value].mean for name, share in shares.items())
      found, half = point.values[value], wording.half(point.values[value])
      gap = found.mean - expected
      gaps.append(found._replace(mean=gap, low=gap - half, high=gap + half))
  return gaps


def compared(run: Run, study: str, families: Sequence[str], rival: str) -> list[str]:
  """One sentence: ratios (against 1) and gains (against 0) that the run resampled together, sharper than two intervals.

  Args:
    run: with all records.
    study: whose measurements hold them.
    families: which to speak of.
    rival: what they are compared with.
  """
  clauses = []
  for point in of_study(measurements.collect(run.records), study):
    if point.family not in families:
      continue
    for name, found in point.values.items():
      even = 1.0 if "ratio" in name else 0.0 if "gain" in name else None
      if even is None or found.low is None or found.high is None:
        continue
      title = title_of(name.split(f"_to_{rival}")[0].split(f"_over_{rival}")[0])
      sure = (
        "better" if found.low > even else "worse" if found.high < even else "no clear difference"
      )
      clauses.append(
        f"{point.family} {title} {number(found.mean)}"
        f" ({number(found.low)} to {number(found.high)}: {sure})"
      )
  return [f"Against {rival}, resampled together: {'; '.join(clauses)}."] if clauses else []


def judged(run: Run, main: str) -> list[str]:
  """One sentence a reward that nothing was trained on: does the main family beat both of its ends there?"""
  sentences = []
  for point in of_study(measurements.collect(run.records), JUDGES):
    if point.family != main:
      continue
    value, end, gain = (
      reading(name, point.values[name])
      for name in (f"reward_{point.label}", "better_end", "gain_over_better_end")
    )
    sentences.append(
      f"By {point.label}, which nothing was trained on, {main} has {value} at its best inner λ and the better of the"
      f" one-reward models {end} (difference {gain})."
    )
  return sentences


def reward_table(run: Run) -> Section | None:
  """What each reward is, and the scale it was put on."""
  found = run.of_kind("reward")
  if not found:
    return None
  names = [n for n in dict.fromkeys(n for r in found for n in r) if n not in _RECORD_FIELDS]
  rows = [[text_cell(plain_text(record.get(name, "–"))) for name in names] for record in found]
  text = "The scale of each reward as the run declared it; differences between rewards mean nothing without it."
  table = Table([name.replace("_", " ") for name in names], rows, len(names))
  return Section("rewards", "The rewards", [Text([text]), table])


def spread(points: Sequence[Measurement], names: Sequence[str], main: str) -> list[str]:
  """Between which values each reward can be had, in the main family, and where."""
  found = []
  for name in names:
    value = reward_value(points, name)
    known = [p for p in points if p.family == main and value in p.values]
    if value is None or len(known) < 2:
      continue
    low = min(known, key=lambda point: point.values[value].mean)
    high = max(known, key=lambda point: point.values[value].mean)
    found.append(
      f"the {name} reward from {reading(value, low.values[value])} ({low.label}) to"
      f" {reading(value, high.values[value])} ({high.label})"
    )
  return found


def _is_lambda(name: str) -> bool:
  return name.startswith(LAMBDA)


def front_section(
  run: Run, points: Sequence[Measurement], names: Sequence[str], *, main: str, how: str
) -> Section:
  """The explorer with the front, and the hypervolumes.

  Args:
    run: with all records.
    points: of the front.
    names: of the rewards.
    main: the family that the page is about.
    how: a sentence on what λ is here.
  """
  blocks: list[Block] = []
  found = explorer(run, points, names, main)
  if found is not None:
    move = (
      "Choose a point of the triangle with the pointer or the arrow keys"
      if found.is_triangle
      else "Move the slider with the pointer or the arrow keys"
    )
    where = "; the circle in the figure shows where you are" if found.figures else ""
    blocks += [Text([f"{how} {move}{where}. Further right and further up is better."]), found]
  elif (drawn := figures(points, names, main)) is not None:
    blocks.append(drawn)
  else:
    blocks.append(Text(["No point of the front has been measured yet."]))
  if len(names) > 2:
    remark = (
      "Each panel shows two of the rewards; a point that looks beaten there may be best in another."
    )
    blocks.append(Text([remark], fine=True))
  return Section("front", "The front", blocks)


def absent(run: Run, points: Sequence[Measurement], names: Sequence[str], main: str) -> list[str]:
  """What a trade-off page misses."""
  families = by_family(points)
  expected = {
    "training curves (no metric was recorded)": bool(run.of_kind("metric")),
    "points of the front": bool(points),
    "λ and a value for at least two rewards": len(names) > 1 or not points,
    f"the front of {main}": main in families,
    "anything to compare it with": len(families) > 1,
    "sample completions": bool(run.of_kind("samples")),
    "hypervolumes of the fronts": bool(run.of_kind("front")),
  }
  return [what for what, there in expected.items() if not there]


def rest(run: Run, points: Sequence[Measurement]) -> list[Section]:
  """Hypervolumes, the studies that the page does not know, and the table of all points."""
  every = measurements.collect(run.records)
  table = sections.table(of_study(every, STUDY))
  volumes: list[Block] = [*sections.hypervolumes(run.records)]
  if numbers := of_study(every, SUMMARY):
    volumes.append(sections.table(numbers, title="One number a front"))
  found = [Section("hypervolumes", "Hypervolume", volumes)]
  if chosen := of_study(every, CHOICES):
    text = (
      "A user has a preference μ; a rule turns it into λ, and the user gets the model of that λ. Utility is μ·R on the"
      " test split. The last rule looks at the test split itself: no rule can beat it, and none may use it."
    )
    found.append(
      Section("preferences", "From a preference to λ", [Text([text]), sections.table(chosen)])
    )
  if gaps := of_study(every, GAPS):
    text = (
      "R(θ_λ) − Σ λ_i R(θ_i) of every reward, prompt by prompt: at least 0 where averaging loses nothing against the"
      " one-reward models."
    )
    found.append(Section("gaps", "What averaging gains", [Text([text]), sections.table(gaps)]))
  if verdicts := of_study(every, JUDGES):
    text = (
      "Rewards that nothing was trained on, at the best of the inner λ by the validation split, against the better of"
      " the one-reward models on the test split, prompt by prompt."
    )
    found.append(
      Section(
        "judges", "Judged by what was not trained on", [Text([text]), sections.table(verdicts)]
      )
    )
  if (scales := reward_table(run)) is not None:
    found.append(scales)
  found += sections.others(every, {STUDY, SUMMARY, CHOICES, GAPS, JUDGES})
  if (cosines := sections.cosines(run.records)) is not None:
    found.append(Section("cosines", "Task vectors", [cosines]))
  if points:
    found.append(Section("points", "Every model that was evaluated", [table]))
  return found


def reward_names(run: Run, points: Sequence[Measurement]) -> list[str]:
  """The rewards, from the points; before there are any, from the config."""
  found = rewards(points)
  section = run.config.get("rewards")
  return found or (list(section) if isinstance(section, dict) else [])


def _axes(points: Sequence[Measurement], names: Sequence[str]) -> list[tuple[str, str]]:
  values = [value for name in names if (value := reward_value(points, name)) is not None]
  return list(itertools.combinations(values, 2))


def _front_panel(
  points: Sequence[Measurement], names: Sequence[str], x: str, y: str, *, main: str
) -> Figure | None:
  lines = []
  for family, members in by_family(points).items():
    key = [LAMBDA + name for name in names]
    placed = all(name in point.x for point in members for name in key)
    ordered = sorted(members, key=lambda p: [-p.x[k] for k in key]) if placed else members
    joined = len(names) == 2 and placed and len(members) > 1
    marks = [f"{p.x[key[-1]]:.2g}" for p in ordered] if joined and family == main else ()
    drawn = line(family, ordered, x, y, form="both" if joined else "markers", marks=marks)
    if drawn.x:
      lines.append(drawn)
  title = f"{title_of(y)} (up) against {title_of(x)} (right)"
  return Figure(title, title_of(x), lines, wide=len(names) == 2) if lines else None
