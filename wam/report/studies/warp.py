"""The page of WARP: gold reward against KL of trajectories, merged policies and baselines, η by η."""

import math
from collections.abc import Sequence

from wam.report import explorers, measurements
from wam.report.blocks import Block, Figure, Figures, Page, Section, Text, line
from wam.report.measurements import (
  Measurement,
  by_family,
  named,
  numbers,
  of_study,
  reading,
  title_of,
  value_names,
)
from wam.report.records import Run
from wam.report.studies import sections, warm_sections, wording

STUDY, WITHIN = "front", "reward within a KL"
MAIN = "WARP"
KL = "kl"
_INTERVALS = " Bars are 95 % intervals where the run recorded them."


def blocks(run: Run) -> Page:
  """The page of a run, finished or in progress."""
  every = measurements.collect(run.records)
  points = sections.of_test_split(of_study(every, STUDY))
  judge = named(value_names(points), "gold", "control", "proxy", "reward")
  main = _main(points)
  parts = [_front(run, points, judge), *_episodes(points, main)]
  cosines = sections.cosines(run.records)
  if cosines is not None:
    parts.append(Section("cosines", "Task vectors", [Text([_cosine_text()]), cosines]))
  parts.append(Section("hypervolumes", "Hypervolume", sections.hypervolumes(run.records)))
  if (models := warm_sections.accuracy(run, every)) is not None:
    parts.append(models)
  if (budgets := _budgets(of_study(every, WITHIN), judge)) is not None:
    parts.append(budgets)
  parts += sections.others(every, {STUDY, WITHIN, *warm_sections.ACCURACY})
  if points:
    table = sections.table(of_study(every, STUDY))
    parts.append(Section("points", "Every model that was evaluated", [table]))
  return Page(
    title="More reward at the same distance from the start?",
    headline=_headline(run, points, judge, main),
    sections=parts,
    missing=_missing(run, points),
    words=wording.terms(
      "episode", "EMA anchor", "SLERP", "LITI, η", "KL", "gold and proxy reward", "intervals"
    ),
    main=main,
  )


def _main(points: Sequence[Measurement]) -> str:
  """The path over η of the last episode of WARP itself; of any line where there is none."""
  paths = [
    family
    for family in by_family(points)
    if any("eta" in p.x for p in points if p.family == family)
  ]
  warp = [family for family in paths if family.startswith(MAIN)]
  return (warp or paths or [MAIN])[-1]


def _episodes(points: Sequence[Measurement], main: str) -> list[Section]:
  """What each episode's merge is worth, where there is more than one."""
  merged = [p for p in points if p.x.get("eta") == 1 and "episode" in p.x and _own(p.family)]
  merged.sort(key=lambda point: point.x["episode"])
  if len(merged) < 2:
    return []
  text = (
    "The merged policies of every episode, before they are interpolated towards the start. Each episode starts further"
    " from the first start than the one before."
  )
  return [Section("episodes", "Episode by episode", [Text([text]), sections.table(merged)])]


def _front(run: Run, points: Sequence[Measurement], judge: str | None) -> Section:
  title = "Reward against the distance from the start"
  if judge is None:
    return Section("front", title, [Text(["No point of the front has been measured yet."])])
  values = [judge] + [n for n in value_names(points) if n != judge and _is_reward(n)]
  drawn = [
    found
    for i, value in enumerate(values)
    if (found := _panel(points, value, _main(points), wide=i == 0)) is not None
  ]
  if len(drawn) == 2:
    drawn[0] = drawn[0]._replace(wide=False)  # two look better side by side
  figures = Figures("front", drawn) if drawn else None
  scores = [
    *values,
    *(n for n in (KL, "length", "win_rate", "skill_mean") if n in value_names(points)),
  ]
  explorer = explorers.over_interpolation(
    points,
    scores,
    measurements.samples(run.records),
    corners=("the start, η = 0", "the merged policies, η = 1"),
    figures=figures,
    places=[(KL, value) for value in values] if figures else [],
    first=_main(points),
  )
  text = (
    "Further left a model has stayed closer to the start, further up it has more reward: up and to the left is better."
    " A line that runs above another gives more reward for the same KL."
  )
  blocks: list[Block] = [Text([text + _INTERVALS])]
  if explorer is not None:
    blocks[0] = Text(
      [f"{text} Move the slider to go from the start (η = 0) to the merged policies (η = 1); the"
       f" circle in the figures shows where you are.{_INTERVALS}"]
    )  # fmt: skip
    blocks.append(explorer)
  elif figures is not None:
    blocks.append(figures)
  return Section("front", title, blocks)


def _headline(run: Run, points: Sequence[Measurement], judge: str | None, main: str) -> list[str]:
  ours = [p for p in points if p.family == main and judge in p.values]
  if judge is None or not ours:
    return ["The merged policies have not been measured yet; the page shows what there is so far."]
  start = next((p for p in points if p.mean(KL) == 0 and judge in p.values), None)
  top = wording.highest(ours, judge)
  assert top is not None
  sentences = [
    f"Along {main} the {title_of(judge)} is highest at {top.label}: {_at(top, judge)}"
    + (f", from {reading(judge, start.values[judge])} at the start." if start else ".")
  ]
  chosen = wording.selected(run, points)
  if chosen is not None and chosen[0] is not top:
    point, rule, split = chosen
    what = _at(point, judge) if judge in point.values else "not measured"
    sentences.append(
      f"Chosen on the {split} split ({rule}): {point.family}, {point.label}, {what}."
    )
  sentences += _within(run, judge, main)
  sentences += _cosine_sentence(run)
  return sentences + _hypervolume(run, judge)


def _budgets(found: Sequence[Measurement], judge: str | None) -> Section | None:
  """The largest reward within each budget of KL; lines of single runs and episodes are in the table alone."""
  if not found or judge is None:
    return None
  groups = [p for p in found if p.family == MAIN or not (_own(p.family) or ": " in p.family)]
  values = [judge, *(n for n in value_names(found) if n != judge and _is_reward(n))]
  drawn = [p for value in values if (p := sections.panel(groups, KL, value)) is not None]
  text = (
    "The largest reward that a line reaches without going further than so many nats, on straight paths through its"
    " points. Of lines that differ in one setting the best counts, at each budget."
  )
  blocks: list[Block] = [Text([text])]
  if drawn:
    blocks.append(Figures("budgets", drawn))
  return Section("budgets", "Reward within a KL", [*blocks, sections.table(found)])


def _at(point: Measurement, judge: str) -> str:
  kl = point.estimate(KL)
  return reading(judge, point.values[judge]) + (f" at a KL of {reading(KL, kl)} nats" if kl else "")


def _within(run: Run, judge: str, main: str) -> list[str]:
  """The largest reward within each budget of KL, against the best line that is not WARP's own."""
  found = [p for p in of_study(measurements.collect(run.records), WITHIN) if judge in p.values]
  sentences = []
  for budget in sorted({p.x[KL] for p in found if KL in p.x}):
    here = [p for p in found if p.x.get(KL) == budget]
    ours = wording.highest([p for p in here if p.family in (main, MAIN)], judge)
    theirs = wording.highest([p for p in here if not _own(p.family)], judge)
    if ours is not None and theirs is not None:
      what = f"most {title_of(judge)} within a KL of {budget:g} nats"
      first, second = ((p.family, p.values[judge]) for p in (ours, theirs))
      sentences.append(wording.comparison(judge, what, first, second))
  return sentences


def _hypervolume(run: Run, judge: str) -> list[str]:
  axes = [r for r in run.of_kind("front") if (r["x"], r["y"]) == (judge, KL)]
  kept = [r for r in axes if r["family"] == MAIN or not _own(r["family"])]
  return wording.hypervolumes(kept, MAIN)


def _own(family: str) -> bool:
  """Whether a line is one of WARP's own: an episode's, a trajectory inside it, or the start of all."""
  return family in ("init", "episode starts") or family.startswith((MAIN, "REINFORCE: "))


def _cosine_sentence(run: Run) -> list[str]:
  every = run.of_kind("cosines")
  # Those of comparisons are written later than WARP's own.
  own = [record for record in every if record.get("family") == MAIN]
  found = [numbers(record["values"]) for record in own or every]
  if not found or not found[-1]:
    return []
  name = named(found[-1], "whole", "mean", "cosine", "layers") or next(iter(found[-1]))
  cosine = found[-1][name]
  if not -1 <= cosine <= 1:
    return []
  kept = math.sqrt((1 + cosine) / 2)
  return [
    f"The task vectors that were merged have a cosine of {cosine:.2f} ({name.replace('_', ' ')}): for two of them a"
    f" straight average has {kept:.0%} of their length, so SLERP and LERP"
    + (" are nearly the same here." if kept > 0.95 else " differ.")
  ]


def _missing(run: Run, points: Sequence[Measurement]) -> list[str]:
  families = by_family(points)
  expected = {
    "training curves (no metric was recorded)": bool(run.of_kind("metric")),
    "points of the front": bool(points),
    "merged policies over η": any("eta" in point.x for point in points),
    "baselines": len(families) > 1,
    "cosines of the task vectors": bool(run.of_kind("cosines")),
    "sample completions": bool(run.of_kind("samples")),
    "hypervolumes of the fronts": bool(run.of_kind("front")),
  }
  return [what for what, there in expected.items() if not there]


def _panel(points: Sequence[Measurement], value: str, main: str, *, wide: bool) -> Figure | None:
  """A value over KL; lines whose names agree before a colon look alike, and say at their end what differs."""
  lines = []
  for family, members in by_family(points).items():
    kind, colon, rest = family.partition(": ")
    tail = ""
    if colon and ", LITI" in rest:
      kind, rest = f"{kind}, LITI", rest.replace(", LITI", "")
    ordered = sorted(members, key=lambda point: point.x.get("eta", 0.0))
    if wide and colon and kind != "REINFORCE":
      tail = rest
    if wide and family == main:
      marks = [f"{p.x['eta']:g}" if 0 < p.x["eta"] < 1 else "" for p in ordered]
    else:
      marks = [""] * (len(ordered) - 1) + [tail]
    drawn = line(kind, ordered, KL, value, marks=marks)
    if drawn.x:
      lines.append(drawn)
  title = f"{title_of(value)} over KL"
  return Figure(title, title_of(KL), lines, wide=wide) if lines else None


def _is_reward(name: str) -> bool:
  return any(word in name.lower() for word in ("reward", "gold", "proxy", "control"))


def _cosine_text() -> str:
  return (
    "Cosines of the task vectors of policies trained from the same start. Near 0 (the paper's case) averaging shortens"
    " them and SLERP restores their length; near 1 SLERP and LERP are the same."
  )
