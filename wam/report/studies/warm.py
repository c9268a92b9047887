"""The page of WARM: averaged reward models against single ones and ensembles; accuracy, best-of-n, RL."""

from collections.abc import Sequence

from wam.report import measurements
from wam.report.blocks import Page
from wam.report.measurements import Measurement, by_family, named, of_study, reading, value_names
from wam.report.points import Estimate
from wam.report.records import Run
from wam.report.studies import sections, warm_sections, wording
from wam.report.studies.warm_sections import ACCURACY, BEST_OF_N, GAIN, JUDGES, LINES, RL

FAMILY = "WARM"
KNOWN = {*ACCURACY, *BEST_OF_N, *RL, *LINES, GAIN}
_RIVALS = ("single", "ensemble mean")


def blocks(run: Run) -> Page:
  """The page of a run, finished or in progress."""
  points = measurements.collect(run.records)
  return Page(
    title="One reward model out of many: is it harder to fool?",
    headline=_headline(run, points),
    sections=[
      *warm_sections.every(run, points),
      *sections.others(points, KNOWN),
    ],
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


def _headline(run: Run, points: Sequence[Measurement]) -> list[str]:
  sentences = [text] if (text := warm_sections.corruption(run)) else []
  main = main_family(points)
  accuracy = of_study(points, "accuracy")
  value = named(value_names(accuracy), "accuracy")
  if value is not None:
    sentences += _compared_accuracy(accuracy, value, main)
  sentences += _gain(of_study(points, GAIN))
  for studies, along, what in ((BEST_OF_N, "n", "best-of-n"), (RL, "kl", "RL")):
    found = sections.of_test_split(of_study(points, *studies))
    judge = named(value_names(found), *JUDGES)
    if judge is not None:
      sentences += _choices(found, judge, main, along=along, what=what)
  return sentences or [
    "The reward models have not been measured yet; the page shows what there is so far."
  ]


def _compared_accuracy(points: Sequence[Measurement], value: str, main: str) -> list[str]:
  """The averaged model against the best single model and the prediction ensemble, all splits in a sentence each."""
  families = by_family([p for p in points if value in p.values])
  ours = {p.split: p for p in families.get(main, ())}  # the last of a split averages the most
  sentences = []
  for word in _RIVALS:
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
  pairs = split.replace("_", " ") or "all pairs"
  # A model that was chosen by a split looks better on it than it is.
  flattered = "; it was chosen by these" if f"on {split}" in theirs.label else ""
  return (
    f"{pairs} {reading(value, a)} against {reading(value, b)} ({wording.order(a, b)}{flattered})"
  )


def _gain(points: Sequence[Measurement]) -> list[str]:
  """Average less ensemble, on the same pairs: a sharper comparison than that of two intervals."""
  last = {p.split: p for p in points if "difference" in p.values}
  clauses = []
  for split, point in last.items():
    found = point.values["difference"]
    clear = wording.half(found) and abs(found.mean) > wording.half(found)
    sure = "" if clear else ", no clear difference"
    clauses.append(f"{split.replace('_', ' ') or 'all pairs'} {_points(found)}{sure}")
  if not clauses:
    return []
  point = next(reversed(last.values()))
  return [
    f"Pair by pair, {point.family} ({point.label}), in percentage points: {'; '.join(clauses)}."
  ]


def _points(found: Estimate) -> str:
  half = wording.half(found)
  sign = "+" if found.mean > 0 else "−" if found.mean < 0 else ""
  return f"{sign}{abs(100 * found.mean):.1f}" + (f" ± {100 * half:.1f}" if half else "")


def _choices(
  points: Sequence[Measurement], judge: str, main: str, *, along: str, what: str
) -> list[str]:
  """Where the judge's score peaks for each way of scoring, and the best of ours against the best of each rival."""
  title = measurements.title_of(judge)
  shown = {main, *(f for word in _RIVALS if (f := named(by_family(points), word)))}
  found = [p for p in points if p.family in shown]
  sentences = []
  clauses = wording.over_optimised(found, along, judge)
  if clauses:
    sentences.append(f"{title[:1].upper()}{title[1:]} under {what}: {'; '.join(clauses)}.")
  ours = wording.highest([p for p in found if p.family == main], judge)
  rivals = [wording.highest([p for p in found if p.family == f], judge) for f in shown - {main}]
  if ours is None or not any(rivals):
    return sentences
  clauses = [f"{main} {reading(judge, ours.values[judge])} ({ours.label})"]
  for rival in sorted(filter(None, rivals), key=lambda point: point.family):
    value = rival.values[judge]
    order = wording.order(value, ours.values[judge])
    clauses.append(f"{rival.family} {reading(judge, value)} ({rival.label}; {order})")
  return [
    *sentences,
    f"Highest {title} under {what}, each at its own best point: {wording.listed(clauses)}.",
  ]


def _called(point: Measurement) -> str:
  return point.family if point.label == point.family else f"{point.family} ({point.label})"


def _missing(run: Run, points: Sequence[Measurement]) -> list[str]:
  best, trained = of_study(points, *BEST_OF_N), of_study(points, *RL)
  expected = {
    "training curves (no metric was recorded)": bool(run.of_kind("metric")),
    "the accuracy of the reward models": bool(of_study(points, *ACCURACY)),
    "best-of-n": bool(best),
    "RL against the reward models": bool(trained),
    "fits of over-optimisation": bool(run.of_kind("fit")) or not (best or trained),
    "the line between two members": bool(of_study(points, *LINES)),
  }
  return [what for what, there in expected.items() if not there]
