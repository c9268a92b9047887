"""The page of WARM: averaged reward models against single ones and ensembles; accuracy, best-of-n, RL."""

import math
from collections.abc import Sequence

from wam.report import measurements
from wam.report.blocks import Block, Figure, Figures, Line, Page, Section, Text, line
from wam.report.measurements import (
  Measurement,
  by_family,
  named,
  numbers,
  of_study,
  reading,
  splits,
  title_of,
  value_names,
)
from wam.report.points import Estimate
from wam.report.records import Record, Run
from wam.report.studies import sections, wording

FAMILY = "WARM"
ACCURACY = ("accuracy", "members")
BEST_OF_N, RL = ("best_of_n",), ("over_optimisation", "rl")
CONNECTIVITY = ("connectivity", "interpolation", "lmc")
KNOWN = {*ACCURACY, *BEST_OF_N, *RL, *CONNECTIVITY}
_JUDGES = ("gold", "control")
_CURVE_POINTS = 60
_MAX_PAIRS = 6


def blocks(run: Run) -> Page:
  """The page of a run, finished or in progress."""
  points = measurements.collect(run.records)
  found = [
    _accuracy(points),
    _best_of_n(points, run.of_kind("fit")),
    _over_optimisation(points, run.of_kind("fit")),
    _connectivity(points),
  ]
  return Page(
    title="One reward model out of many: is it harder to fool?",
    headline=_headline(run, points),
    sections=[*(s for s in found if s is not None), *sections.others(points, KNOWN)],
    missing=_missing(run, points),
    words=wording.terms(
      "WARM",
      "ensemble",
      "Baklava",
      "gold and proxy reward",
      "swapped pairs",
      "best of n",
      "KL",
      "intervals",
    ),
    main=main_family(points),
  )


def main_family(points: Sequence[Measurement]) -> str:
  """The family of the averaged model."""
  return named(by_family(points), FAMILY, "warm") or FAMILY


def corruption(run: Run) -> str | None:
  """How many labels were swapped, from the record of a stage that counted them."""
  for record in reversed(run.records):
    fields = numbers(record)
    for name, value in fields.items():
      if (
        ("swapped" in name or "corrupt" in name) and value >= 1 and record["kind"] != "measurement"
      ):
        pairs = next(
          (fields[n] for n in ("pairs", "num_pairs", "train_pairs") if n in fields), None
        )
        share = f", {value / pairs:.1%} of {pairs:.0f}" if pairs else ""
        return f"The labels of {value:.0f} training pairs were swapped{share}."
  return None


def _headline(run: Run, points: Sequence[Measurement]) -> list[str]:
  sentences = [text] if (text := corruption(run)) else []
  main = main_family(points)
  accuracy = of_study(points, "accuracy")
  value = named(value_names(accuracy), "accuracy")
  if value is not None:
    sentences += _compared_accuracy(accuracy, value, main)
  for studies, along, what in ((BEST_OF_N, "n", "best-of-n"), (RL, "kl", "RL")):
    found = of_study(points, *studies)
    judge = named(value_names(found), *_JUDGES)
    if judge is None:
      continue
    axis = along if any(p.mean(along) is not None for p in found) else "step"
    clauses = wording.over_optimised(sections.of_test_split(found), axis, judge)
    if clauses:
      sentences.append(f"{title_of(judge).capitalize()} under {what}: {'; '.join(clauses)}.")
    sentences += _best_against(sections.of_test_split(found), judge, main, what)
  return sentences or [
    "The reward models have not been measured yet; the page shows what there is so far."
  ]


def _compared_accuracy(points: Sequence[Measurement], value: str, main: str) -> list[str]:
  """The averaged model against the best single model and the prediction ensemble, all splits in a sentence each."""
  families = by_family([p for p in points if value in p.values])
  ours = {p.split: p for p in families.get(main, ())}
  sentences = []
  for word in ("single", "ensemble mean"):
    family = named((name for name in families if name != main), word)
    theirs = {p.split: p for p in families.get(str(family), ())}
    shared = [split for split in ours if split in theirs]
    if not shared:
      continue
    clauses = [_clause(value, split, ours[split], theirs[split]) for split in shared]
    rival = _called(theirs[shared[-1]])
    sentences.append(
      f"Accuracy of {_called(ours[shared[-1]])} against {rival}: {'; '.join(clauses)}."
    )
  return sentences


def _clause(value: str, split: str, ours: Measurement, theirs: Measurement) -> str:
  a, b = ours.values[value], theirs.values[value]
  return f"{split or 'all pairs'} {reading(value, a)} against {reading(value, b)} ({wording.order(a, b)})"


def _best_against(points: Sequence[Measurement], judge: str, main: str, what: str) -> list[str]:
  """The best gold reward that the averaged model leads to, against the best of the others."""
  ours = wording.highest([p for p in points if p.family == main], judge)
  theirs = wording.highest([p for p in points if p.family != main], judge)
  if ours is None or theirs is None:
    return []
  return [
    wording.comparison(
      judge,
      f"highest {title_of(judge)} under {what}, each at its own best point",
      (f"{main} ({ours.label})", ours.values[judge]),
      (f"{theirs.family} ({theirs.label})", theirs.values[judge]),
    )
  ]


def _called(point: Measurement) -> str:
  return point.family if point.label == point.family else f"{point.family} ({point.label})"


def _accuracy(points: Sequence[Measurement]) -> Section | None:
  found = of_study(points, *ACCURACY)
  if not found:
    return None
  values = [name for name in value_names(found) if "accuracy" in name] or value_names(found)
  text = (
    "How often each reward model prefers the chosen completion. Swapped labels can only be got right by memorising"
    " them: on swapped training pairs a low accuracy is the better one."
  )
  blocks: list[Block] = [Text([text])]
  for value in values:
    blocks.append(sections.crossed(found, value, title=title_of(value) if len(values) > 1 else ""))
  by_size = [p for p in found if "m" in {name.lower() for name in p.x}]
  size = next((name for p in by_size for name in p.x if name.lower() == "m"), None)
  if size is not None and len({p.x[size] for p in by_size}) > 2:
    drawn = [
      panel
      for split in splits(by_size)
      if (
        panel := sections.panel(
          [p for p in by_size if p.split == split], size, values[0],
          title=f"{title_of(values[0])}, {split or 'all'} pairs",
        )
      ) is not None
    ]  # fmt: skip
    if drawn:
      blocks.append(Figures("accuracy", drawn))
  return Section("accuracy", "Accuracy", blocks)


def _best_of_n(points: Sequence[Measurement], fits: Sequence[Record]) -> Section | None:
  found = sections.of_test_split(of_study(points, *BEST_OF_N))
  values = [name for name in value_names(found) if name != "kl"]
  judge = named(values, *_JUDGES)
  if not found or not values:
    return None
  values.sort(key=lambda name: name != judge)
  drawn = [panel for value in values if (panel := sections.panel(found, "n", value, ticks=True))]
  if judge is not None and (against := _over_distance(found, judge, fits, "best_of_n")):
    drawn.insert(1, against)
  text = (
    "Each reward model chooses the best of n completions of the initial policy; the gold reward judges the choice."
    " Where it falls while n grows, the reward model is being fooled. The distance from the policy is at most"
    " log n − (n−1)/n nats."
  )
  blocks: list[Block] = [Text([text])]
  if drawn:
    blocks.append(Figures("best_of_n", drawn))
  blocks += _fit_table(fits, "best_of_n")
  blocks.append(sections.table(found))
  return Section("best-of-n", "Best of n", blocks)


def _over_optimisation(points: Sequence[Measurement], fits: Sequence[Record]) -> Section | None:
  found = sections.of_test_split(of_study(points, *RL))
  values = [name for name in value_names(found) if name not in ("kl", "length")]
  judge = named(values, *_JUDGES)
  if not found:
    return None
  drawn: list[Figure] = []
  for value in sorted(values, key=lambda name: name != judge):
    panel = _over_distance(found, value, fits if value == judge else (), "rl")
    if panel is not None:
      drawn.append(panel)
  text = (
    "Policies trained by RL against each reward model, judged by the gold reward, over the distance they have moved."
    " Dotted: the form of Gao et al., gain = d·(α − β·log d) with d = √KL, by least squares."
  )
  blocks: list[Block] = [Text([text])]
  if drawn:
    blocks.append(Figures("over_optimisation", drawn))
  blocks += _fit_table(fits, "rl")
  blocks.append(sections.table(found))
  return Section("over-optimisation", "Over-optimisation by RL", blocks)


def _over_distance(
  points: Sequence[Measurement], value: str, fits: Sequence[Record], curve: str
) -> Figure | None:
  """A value over √KL, with the fitted curves."""
  lines: list[Line] = []
  for family, members in by_family(points).items():
    drawn = line(family, members, "kl", value)
    if not drawn.x:
      continue
    roots = [math.sqrt(max(0.0, kl)) for kl in drawn.x]
    lines.append(drawn._replace(x=roots, x_half=()))
    fit = next((r for r in fits if r["family"] == family and r["curve"] == curve), None)
    if fit is not None:
      lines += _fitted(fit, drawn._replace(x=roots))
  title = f"{title_of(value)} over √KL"
  return Figure(title, "d = √KL (√nats)", lines) if lines else None


def _fitted(fit: Record, measured: Line) -> list[Line]:
  """The fitted gain, from the value at the start: that of the record, else at the point nearest to it."""
  values = numbers(fit["values"])
  if "alpha" not in values or "beta" not in values or not max(measured.x) > 0:
    return []
  first = min(range(len(measured.x)), key=measured.x.__getitem__)
  if "start" not in values and measured.x[first] > 0:
    return []  # nobody knows where the gain is counted from
  origin = values.get("start", measured.y[first])
  places = [max(measured.x) * (i + 1) / _CURVE_POINTS for i in range(_CURVE_POINTS)]
  bend = (lambda d: d) if fit["curve"] == "best_of_n" else math.log
  gains = [d * (values["alpha"] - values["beta"] * bend(d)) for d in places]
  return [Line(measured.name, [0.0, *places], [origin, *(origin + g for g in gains)], form="curve")]


def _fit_table(fits: Sequence[Record], curve: str) -> list[Block]:
  found = [
    Measurement(
      "fit", r["family"], str(r.get("label", curve.replace("_", " "))), "", {},
      {n: Estimate(v, None, None, 1) for n, v in numbers(r["values"]).items()},
    )
    for r in fits if r["curve"] == curve
  ]  # fmt: skip
  if not found:
    return []
  remark = (
    "A β that is not positive means that no over-optimisation is seen; a peak beyond the furthest"
    " point is a guess."
  )
  return [sections.table(found, title="Fits of Gao et al."), Text([remark], fine=True)]


def _connectivity(points: Sequence[Measurement]) -> Section | None:
  found = of_study(points, *CONNECTIVITY)
  if not found:
    return None
  x = named((name for point in found for name in point.x), "lambda", "alpha", "x")
  value = named(value_names(found), "accuracy", "loss")
  blocks: list[Block] = []
  if x is not None and value is not None:
    families = list(by_family(found))
    text = (
      f"Accuracy of the reward models on the straight line between two members. A line that does not sag below its"
      f" ends means that they can be averaged; {len(families)} pairs or lines were measured."
    )
    drawn = [
      panel
      for split in splits(found)[:_MAX_PAIRS]
      if (
        panel := sections.panel(
          [p for p in found if p.split == split], x, value,
          title=f"{title_of(value)} between members" + (f", {split} pairs" if split else ""),
        )
      ) is not None
    ]  # fmt: skip
    blocks = [Text([text]), *([Figures("connectivity", drawn)] if drawn else [])]
  return Section("connectivity", "Between two members", [*blocks, sections.table(found)])


def _missing(run: Run, points: Sequence[Measurement]) -> list[str]:
  best, trained = of_study(points, *BEST_OF_N), of_study(points, *RL)
  expected = {
    "training curves (no metric was recorded)": bool(run.of_kind("metric")),
    "the accuracy of the reward models": bool(of_study(points, *ACCURACY)),
    "best-of-n": bool(best),
    "RL against the reward models": bool(trained),
    "fits of over-optimisation": bool(run.of_kind("fit")) or not (best or trained),
    "the line between two members": bool(of_study(points, *CONNECTIVITY)),
  }
  return [what for what, there in expected.items() if not there]
