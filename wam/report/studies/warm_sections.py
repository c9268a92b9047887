"""The sections of WARM's page: accuracy by split and size, best-of-n, RL, the line between members, what is picked."""

import math
from collections.abc import Sequence

from wam.report import measurements
from wam.report.blocks import Block, Figure, Figures, Line, Section, Table, Text, line, text_cell
from wam.report.measurements import (
  Measurement,
  by_family,
  named,
  numbers,
  of_study,
  splits,
  title_of,
  value_names,
)
from wam.report.points import Estimate
from wam.report.records import Record, Run, finite
from wam.report.studies import sections

ACCURACY = ("accuracy", "members")
BEST_OF_N, RL = ("best_of_n",), ("over_optimisation",)
LINES = ("interpolation", "connectivity_summary")
GAIN = "averaging_gain"
JUDGES = ("gold", "control")
MEMBERS = "members"
_SIZE = "M"
_CURVE_POINTS = 60


def every(run: Run, points: Sequence[Measurement]) -> list[Section]:
  """All sections that the records have something for."""
  fits = run.of_kind("fit")
  found = [
    accuracy(run, points),
    _best_of_n(run, points, fits),
    _over_optimisation(points, fits),
    _lines(points),
    _picks(run),
  ]
  return [section for section in found if section is not None]


def corruption(run: Run) -> str | None:
  """How many labels were swapped on purpose."""
  for record in run.of_kind("corruption"):
    rows, pairs = record.get("swapped"), finite(record.get("pairs"))
    count = float(len(rows)) if isinstance(rows, list) else finite(rows)
    if count is None:
      continue
    among = f" of {pairs:.0f} ({count / pairs:.1%})" if pairs else ""
    return f"The labels of {count:.0f} training pairs{among} were swapped."
  return None


def accuracy(run: Run, points: Sequence[Measurement]) -> Section | None:
  """How often the reward models prefer the chosen completion; also of a population that is not the main matter."""
  found = of_study(points, "accuracy")
  settings = of_study(points, MEMBERS)
  if not found and not settings:
    return None
  values = [name for name in value_names(found) if "accuracy" in name] or value_names(found)
  text = (
    "How often each reward model prefers the chosen completion; ties count one half unless a title says otherwise."
    " Swapped labels can only be got right by memorising them: on swapped training pairs a low accuracy is the better"
    " one. Members are ordered by the validation pairs, so that there the best single model and averages of few look"
    " better than they are."
  )
  blocks: list[Block] = [Text([text, *filter(None, [corruption(run)])])]
  if values:
    blocks.append(sections.crossed(largest(found, values[0]), values[0]))
    blocks += _over_size(found, values[0])
  for number, value in enumerate(values):
    whole = sections.crossed(found, value, title=f"{title_of(value)} of all of them")
    if number or len(whole.rows) > len(sections.crossed(largest(found, value), value).rows):
      blocks.append(whole)
  gain = of_study(points, GAIN)
  if gain:
    blocks.append(sections.crossed(gain, "difference", title="Average less ensemble, pair by pair"))
  if settings:
    blocks.append(sections.table(settings, title="The members"))
  return Section("accuracy", "Accuracy of the reward models", blocks)


def largest(points: Sequence[Measurement], value: str) -> list[Measurement]:
  """One row a family and split: the last, which has the most members; of the single members their mean."""
  found = []
  for family, members in by_family([p for p in points if value in p.values]).items():
    for split in splits(members):
      own = [p for p in members if p.split == split]
      if family != MEMBERS:
        found.append(own[-1])
        continue
      mean = math.fsum(p.values[value].mean for p in own) / len(own)
      found.append(
        own[0]._replace(
          label=f"mean of {len(own)}", values={value: Estimate(mean, None, None, len(own))}
        )
      )
  return found


def _over_size(points: Sequence[Measurement], value: str) -> list[Block]:
  sized = [p for p in points if _SIZE in p.x]
  if len({p.x[_SIZE] for p in sized}) < 3:
    return []
  drawn = []
  for split in splits(sized):
    title = f"{title_of(value)}, {split.replace('_', ' ') or 'all'} pairs"
    panel = sections.panel([p for p in sized if p.split == split], _SIZE, value, title=title)
    if panel is not None:
      drawn.append(panel)
  return [Figures("accuracy", drawn)] if drawn else []


def _best_of_n(run: Run, points: Sequence[Measurement], fits: Sequence[Record]) -> Section | None:
  found = sections.of_test_split(of_study(points, *BEST_OF_N))
  values = [name for name in value_names(found) if name != "kl"]
  judge = named(values, *JUDGES)
  if not found or not values:
    return None
  values.sort(key=lambda name: name != judge)
  drawn = [panel for value in values if (panel := sections.panel(found, "n", value, ticks=True))]
  if judge is not None and (against := _over_distance(found, judge, fits, "best_of_n")):
    drawn.insert(1, against)
  text = (
    "Each reward model chooses the best of n completions of the initial policy; the judge scores the choice. Where its"
    " score falls while n grows, the reward model is being fooled. The KL of best-of-n is log n − (n−1)/n nats"
    " where no two completions are alike, and less elsewhere. Dotted: the form of Gao et al., gain = d·(α − β·d) with"
    " d = √KL, by least squares."
  )
  paragraphs = [text]
  for record in run.of_kind("candidates"):
    if (repeated := finite(record.get("repeated"))) is not None:
      paragraphs.append(f"{repeated:.1%} of the completions repeat another one of their prompt.")
  blocks: list[Block] = [Text(paragraphs)]
  if drawn:
    blocks.append(Figures("best_of_n", drawn))
  blocks += _fit_table(fits, "best_of_n")
  blocks.append(sections.table(found))
  return Section("best-of-n", "Best of n", blocks)


def _over_optimisation(points: Sequence[Measurement], fits: Sequence[Record]) -> Section | None:
  found = sections.of_test_split(of_study(points, *RL))
  values = [name for name in value_names(found) if name not in ("kl", "length")]
  judge = named(values, *JUDGES)
  if not found:
    return None
  drawn: list[Figure] = []
  for value in sorted(values, key=lambda name: name != judge):
    panel = _over_distance(found, value, fits if value == judge else (), "rl")
    if panel is not None:
      drawn.append(panel)
  text = (
    "Policies trained by RL against each reward model, scored by the judge, over the distance they have moved. Dotted:"
    " the form of Gao et al., gain = d·(α − β·log d) with d = √KL, by least squares."
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
  """The fitted gain, counted from the start that the record names, else from the point at no distance."""
  values = numbers(fit["values"])
  if "alpha" not in values or "beta" not in values or not max(measured.x) > 0:
    return []
  first = min(range(len(measured.x)), key=measured.x.__getitem__)
  if "start" not in values and measured.x[first] > 0:
    return []  # nobody knows where the gain is counted from
  origin = values.get("start", measured.y[first])
  places = [max(measured.x) * (i + 1) / _CURVE_POINTS for i in range(_CURVE_POINTS)]
  gains = [
    d * (values["alpha"] - values["beta"] * (d if fit["curve"] == "best_of_n" else math.log(d)))
    for d in places
  ]
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
    "A β that is not positive means that no over-optimisation is seen; a peak (in √nats) beyond the furthest point is"
    " an extrapolation."
  )
  return [sections.table(found, title="Fits of Gao et al."), Text([remark], fine=True)]


def _lines(points: Sequence[Measurement]) -> Section | None:
  found, whole = (of_study(points, study) for study in LINES)
  if not found and not whole:
    return None
  text = (
    "Reward models on the straight line between two members, by what the two differ in. A line that does not sag below"
    " its ends means that they can be averaged; how far it rises above them is what averaging gains."
  )
  blocks: list[Block] = [Text([text])]
  drawn = []
  for split in splits(found):
    title = f"accuracy between two members, {split.replace('_', ' ') or 'all'} pairs"
    own = [p for p in found if p.split == split]
    value = named(value_names(own), "accuracy")
    panel = sections.panel(own, "lambda", value, title=title) if value else None
    if panel is not None:
      drawn.append(panel)
  if drawn:
    blocks.append(Figures("interpolation", drawn))
  blocks += [sections.table(own) for own in (whole, found) if own]
  return Section("lines", "Between two members", blocks)


def _picks(run: Run) -> Section | None:
  """What each reward model likes best, side by side."""
  found = measurements.samples(run.records)
  if not found:
    return None
  prompts = list(dict.fromkeys(s.prompt for samples in found.values() for s in samples))
  rows = []
  for (family, label), samples in found.items():
    said = {sample.prompt: sample.completion for sample in samples}
    cells = [text_cell(said.get(prompt, "–")) for prompt in prompts]
    rows.append([text_cell(f"{family}, {label}"), *cells])
  text = (
    "Completions of the same prompts: what each reward model picks of n, and what policies say that were trained"
    " against it."
  )
  return Section(
    "picks", "What it picks", [Text([text]), Table(["line", *prompts], rows, len(prompts) + 1)]
  )
