"""Sentences about measured differences, the same on all pages, and the glossary."""

from collections.abc import Sequence

from wam.report.measurements import Measurement, by_family, reading, title_of
from wam.report.points import Estimate
from wam.report.records import Record, Run, finite, of_kind
from wam.report.story import number

Named = tuple[str, Estimate]

_TERMS = {
  "WARM": "Weight-averaged reward models: M reward models that share a start are trained, and their weights averaged;"
  " the result costs as much as one.",
  "ensemble": "The M models all score a completion. Mean: the average of the scores; worst case: the lowest;"
  " uncertainty-weighted: the mean less a multiple of the variance.",
  "Baklava": "The members start from different checkpoints of one fine-tuning run, with the same head.",
  "swapped pairs": "Training pairs whose labels were exchanged on purpose, an exact share, so that what a model"
  " memorises can be told from what it learns.",
  "best of n": "The expected score of the completion that a reward model likes best among n, without bias from all"
  " subsets of the samples.",
  "episode": "M policies are trained from one start, merged, and interpolated towards that start, which gives the next"
  " start.",
  "EMA anchor": "The KL penalty is taken to a moving average of the policy's own weights, not to a frozen start.",
  "SLERP": "The task vectors of the policies are merged along the sphere, which keeps their length.",
  "LITI, η": "Linear interpolation towards the initialisation: (1−η)·start + η·merged policies.",
  "rewarded soups": "One model is fine-tuned for each reward from the same start; their weights are then averaged with"
  " the coefficients λ, so that the preference is chosen after training.",
  "CLP": "Conditional language policy: λ is drawn anew while training, and the weights used are those shared by all"
  " preferences plus a mixture, with λ, of one group per reward. Full: all weights are mixed; attention: those of"
  " attention only; logit: the logits are mixed; prompt: λ stands in the prompt.",
  "λ": "The share of each reward, numbers of at least 0 that sum to 1. It is a preference, not a promise: what a λ"
  " gives is what was measured.",
  "MORL": "Multi-objective RL: one model trained for every λ on the weighted sum of the rewards, the costly baseline.",
  "MOD": "Multi-objective decoding: the one-reward models run side by side and their distributions over the next token"
  " are mixed, which costs as many forward passes as there are rewards.",
  "hypervolume": "The volume of all reward combinations that some model of a line reaches or beats, beyond the"
  " reference point.",
  "gold and proxy reward": "Proxy: what was optimised. Gold or control: a judge that training never saw.",
  "KL": "Distance of the completions from those of the initial policy θ_0, in nats a completion.",
  "intervals": "± is the half width of a 95 % interval, over what the run says it resampled.",
}


def terms(*names: str) -> list[tuple[str, str]]:
  """Terms of the glossary with what they mean."""
  return [(_capital(name), _TERMS[name]) for name in names]


def verdict(ours: Named, theirs: Named) -> str:
  """What two intervals allow to say, as the end of a sentence; more is better.

  >>> verdict(("A", Estimate(2.0, 1.9, 2.1, 3)), ("B", Estimate(1.0, 0.9, 1.1, 3)))
  'the intervals do not overlap: A is ahead'
  """
  a, b = ours[1], theirs[1]
  if a.mean == b.mean:
    return "they are equal"
  if a.low is None or a.high is None or b.low is None or b.high is None:
    ahead = (ours if a.mean > b.mean else theirs)[0]
    return f"{ahead} is higher, but there is no interval to tell whether that is more than chance"
  if a.low > b.high:
    return f"the intervals do not overlap: {ours[0]} is ahead"
  if b.low > a.high:
    return f"the intervals do not overlap: {theirs[0]} is ahead"
  return "the intervals overlap, so this run does not tell them apart"


def order(first: Estimate, second: Estimate) -> str:
  """What two intervals allow to say of the first value, in a word or two.

  >>> order(Estimate(1.0, 0.9, 1.1, 3), Estimate(2.0, 1.9, 2.1, 3))
  'lower'
  """
  if first.low is None or first.high is None or second.low is None or second.high is None:
    return "no intervals"
  if first.low > second.high:
    return "higher"
  return "lower" if second.low > first.high else "intervals overlap"


def comparison(value: str, what: str, ours: Named, theirs: Named) -> str:
  """One sentence: both values with intervals, and what follows.

  Args:
    value: the name of the value, which says how numbers are written.
    what: such as "the accuracy on validation pairs".
  """
  return (
    f"{_capital(what)}: {ours[0]} {reading(value, ours[1])}, {theirs[0]}"
    f" {reading(value, theirs[1])}; {verdict(ours, theirs)}."
  )


def hypervolumes(records: Sequence[Record], main: str) -> list[str]:
  """One sentence for every pair of axes: the main family's front against the best of the others."""
  groups: dict[tuple[str, ...], list[Record]] = {}
  for record in of_kind(records, "front"):
    groups.setdefault(axes_of(record), []).append(record)
  sentences = []
  for axes, found in groups.items():
    ours = [r for r in found if r["family"] == main]
    others = [r for r in found if not r["family"].startswith(main)]
    if not ours or not others:
      continue
    best = max(others, key=lambda r: r["hypervolume"])
    named = [(r["family"], _volume(r)) for r in (ours[-1], best)]
    texts = [
      f"{name} {number(v.mean)}"
      + (f" ({number(v.low)} to {number(v.high)})" if v.low is not None else "")
      for name, v in named
    ]
    sentences.append(
      f"Hypervolume of {listed([title_of(name) for name in axes])}: {texts[0]}, {texts[1]}, the best of the others;"
      f" {verdict(*named)}."
    )
  return sentences


def selected(run: Run, points: Sequence[Measurement]) -> tuple[Measurement, str, str] | None:
  """The point that the run chose, as measured on the shown split, with the rule and the split that the rule saw."""
  for record in reversed(run.of_kind("selection")):
    for point in points:
      if (point.family, point.label) == (record["family"], record["label"]):
        return point, record["rule"], record["split"]
  return None


def axes_of(record: Record) -> tuple[str, ...]:
  """The axes of a record of kind "front"."""
  return tuple(str(record[name]) for name in ("x", "y", "z") if name in record)


def highest(points: Sequence[Measurement], value: str) -> Measurement | None:
  """The point with the highest value, None where none has it."""
  known = [point for point in points if value in point.values]
  return max(known, key=lambda point: point.values[value].mean) if known else None


def over_optimised(points: Sequence[Measurement], along: str, value: str) -> list[str]:
  """One clause a family: where a curve peaks, and how far it falls behind the peak."""
  clauses = []
  for family, members in by_family(points).items():
    curve = [p for p in members if value in p.values and p.mean(along) is not None]
    curve.sort(key=lambda point: point.mean(along) or 0.0)
    if len(curve) < 3:
      continue
    values = [point.values[value] for point in curve]
    peak = max(range(len(values)), key=lambda i: values[i].mean)
    top, end = values[peak], values[-1]
    lost = top.mean - end.mean
    noise = max(half(top), half(end))
    if peak == len(values) - 1 or lost <= noise:
      clauses.append(
        f"{family} ends at {reading(value, end)}, not clearly below its best"
        if peak < len(values) - 1
        else f"{family} is highest at the end ({reading(value, end)})"
      )
    else:
      clauses.append(
        f"{family} peaks at {curve[peak].label} ({reading(value, top)}) and ends"
        f" {number(lost)} lower"
      )
  return clauses


def half(found: Estimate) -> float:
  """Half the width of the interval, 0 without one."""
  return 0.0 if found.high is None else found.high - found.mean


def listed(items: Sequence[str]) -> str:
  """Items as one text: "a, b and c".

  >>> listed(["a", "b", "c"])
  'a, b and c'
  """
  return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _volume(record: Record) -> Estimate:
  return Estimate(
    float(record["hypervolume"]), finite(record.get("low")), finite(record.get("high")), 1
  )


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:] if text[:1].isascii() else text  # λ stays λ
