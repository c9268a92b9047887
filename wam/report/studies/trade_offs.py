"""Fronts between rewards: what the pages of Rewarded Soups and CLP have in common.

Points of the study "front" are placed by λ (x: lambda_<reward>) and have a value for every reward.
"""

import itertools
from collections.abc import Sequence

from wam.report import explorers, measurements
from wam.report.blocks import Block, Explorer, Figure, Figures, Section, Text, line
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
from wam.report.records import Run
from wam.report.studies import sections, wording

STUDY = "front"


def shown(run: Run) -> list[Measurement]:
  """The points of the front on the split that is shown."""
  return sections.of_test_split(of_study(measurements.collect(run.records), STUDY))


def figures(points: Sequence[Measurement], names: Sequence[str], name: str) -> Figures | None:
  """The front: one panel for every two rewards. Lines follow λ between two rewards; for more there are markers only."""
  drawn = [
    found
    for x, y in _axes(points, names)
    if (found := _front_panel(points, names, x, y, wide=len(names) == 2)) is not None
  ]
  return Figures(name, drawn) if drawn else None


def explorer(
  run: Run, points: Sequence[Measurement], names: Sequence[str], main: str
) -> Explorer | None:
  """The slider, or the triangle, over λ, with the front beside it."""
  return explorers.over_preferences(
    points,
    names,
    measurements.samples(run.records),
    figures=figures(points, names, "front"),
    places=_axes(points, names),
    first=main,
  )


def along(points: Sequence[Measurement], names: Sequence[str], main: str) -> Section | None:
  """Every reward and the KL over λ, for two rewards: is the line above the chord between its ends?"""
  if len(names) != 2:
    return None
  x = LAMBDA + names[1]
  values = [value for n in names if (value := reward_value(points, n)) is not None] + ["kl"]
  drawn = [p for value in values if (p := sections.panel(points, x, value)) is not None]
  if not drawn:
    return None
  text = (
    "Between two models that share their start, the reward of the averaged weights should not fall below the straight"
    " line between the rewards of the two (linear mode connectivity)."
  )
  checked = [connectivity(points, name, main) for name in names]
  return Section(
    "along", "Along λ", [Text([text, *filter(None, checked)]), Figures("along_lambda", drawn)]
  )


def connectivity(points: Sequence[Measurement], reward: str, main: str) -> str | None:
  """At how many inner λ a reward of the main family is at least Σ λ_i times that of the one-reward models i."""
  value = reward_value(points, reward)
  members = [p for p in points if p.family == main and value is not None and value in p.values]
  corners = {name: p for p in members for name in p.x if p.x[name] == 1 and _is_lambda(name)}
  if value is None or any(
    _is_lambda(name) and name not in corners for p in members for name in p.x
  ):
    return None
  gaps = []
  for point in members:
    shares = {name: share for name, share in point.x.items() if _is_lambda(name)}
    if shares and max(shares.values()) < 1:
      expected = sum(share * corners[name].values[value].mean for name, share in shares.items())
      gaps.append((point.values[value].mean - expected, wording.half(point.values[value])))
  if not gaps:
    return None
  above = sum(gap >= 0 for gap, _ in gaps)
  clear = sum(gap < -noise for gap, noise in gaps)
  text = (
    f"The {reward} reward of {main} is at least the λ-weighted mean of the one-reward models at"
    f" {above} of {len(gaps)} inner λ"
  )
  if above == len(gaps) or not any(noise for _, noise in gaps):
    return text + "."
  return f"{text}; below it by more than the half width of its interval at {clear}."


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
  elif (drawn := figures(points, names, "front")) is not None:
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
  found = [Section("hypervolumes", "Hypervolume", sections.hypervolumes(run.records))]
  found += sections.others(every, {STUDY})
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
  points: Sequence[Measurement], names: Sequence[str], x: str, y: str, *, wide: bool
) -> Figure | None:
  lines = []
  for family, members in by_family(points).items():
    key = [LAMBDA + name for name in names]
    placed = all(name in point.x for point in members for name in key)
    ordered = sorted(members, key=lambda p: [-p.x[k] for k in key]) if placed else members
    joined = len(names) == 2 and placed and len(members) > 1
    marks = [f"{p.x[key[-1]]:.2g}" for p in ordered] if joined and wide else ()
    drawn = line(family, ordered, x, y, form="both" if joined else "markers", marks=marks)
    if drawn.x:
      lines.append(drawn)
  title = f"{title_of(y)} (up) against {title_of(x)} (right)"
  return Figure(title, title_of(x), lines, wide=wide) if lines else None
