"""Measurements of a study: records of kind "measurement" as values with intervals, and the questions asked of them.

One measurement is one point (a model, a selector at some n, a place on a front) with what was measured of it. Leaves
out what the studies mean (`studies`) and how they look (`blocks`, `charts`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wam.report.points import Estimate
from wam.report.records import Record, finite, of_kind
from wam.report.story import number

LAMBDA = "lambda_"  # x of a point of a front between rewards: lambda_<reward>
_PERCENTAGES = ("accuracy", "win", "coverage", "share", "rate")


class Measurement(NamedTuple):
  """One point of a study.

  Attributes:
    study: such as "accuracy" or "front".
    family: the line or group it belongs to.
    label: the point's name in it.
    split: of the data; "" where the record names none.
    x: numbers that place it, such as n, kl, eta, lambda_<reward>.
    values: what was measured, by name, with 95 % intervals where the record holds half widths.
  """

  study: str
  family: str
  label: str
  split: str
  x: dict[str, float]
  values: dict[str, Estimate]

  def estimate(self, name: str) -> Estimate | None:
    """A value, or a placing number (without interval), by name; None where there is none."""
    if name in self.values:
      return self.values[name]
    return Estimate(self.x[name], None, None, 1) if name in self.x else None

  def mean(self, name: str) -> float | None:
    """The mean of `estimate`."""
    found = self.estimate(name)
    return None if found is None else found.mean


class Sample(NamedTuple):
  """What a model says to a prompt."""

  prompt: str
  completion: str


def collect(records: Sequence[Record]) -> list[Measurement]:
  """The measurements in the order in which they were first written, the values of one in several records together.

  A value written twice counts as the last time. Values that are not finite numbers are left out.
  """
  found: dict[tuple[Any, ...], Measurement] = {}  # "intervals" ([low, high]) go before "halves"
  for record in of_kind(records, "measurement"):
    x = numbers(record.get("x", {}))
    halves = numbers(record.get("halves", {}))
    seeds = record.get("seeds", 1)
    count = seeds if isinstance(seeds, int) else len(seeds) if isinstance(seeds, list) else 1
    values = {
      name: _estimate(value, halves.get(name), count)
      for name, value in numbers(record["values"]).items()
    }
    for name, ends in _mapping(record.get("intervals")).items():
      low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
      if name in values and finite(low) is not None and finite(high) is not None:
        values[name] = values[name]._replace(low=finite(low), high=finite(high))
    split = str(record.get("split") or "")
    point = Measurement(record["study"], record["family"], record["label"], split, x, values)
    key = (*point[:4], *sorted(x.items()))
    if key in found:
      point = point._replace(values=found[key].values | values)
    found[key] = point
  return list(found.values())


def samples(records: Sequence[Record]) -> dict[tuple[str, str], list[Sample]]:
  """Completions by (family, label), those of the last record of each."""
  return {
    (record["family"], record["label"]): [
      Sample(str(prompt), str(completion))
      for prompt, completion in zip(record["prompts"], record["completions"], strict=True)
    ]
    for record in of_kind(records, "samples")
  }


def of_study(points: Sequence[Measurement], *studies: str) -> list[Measurement]:
  """The points of the named studies."""
  return [point for point in points if point.study in studies]


def by_family(points: Sequence[Measurement]) -> dict[str, list[Measurement]]:
  """Groups points by family, keeping their order."""
  groups: dict[str, list[Measurement]] = {}
  for point in points:
    groups.setdefault(point.family, []).append(point)
  return groups


def splits(points: Sequence[Measurement]) -> list[str]:
  """The splits, as first met."""
  return list(dict.fromkeys(point.split for point in points))


def value_names(points: Sequence[Measurement]) -> list[str]:
  """The names of all values, as first met."""
  return list(dict.fromkeys(name for point in points for name in point.values))


def x_names(points: Sequence[Measurement]) -> list[str]:
  """The names of all placing numbers, as first met."""
  return list(dict.fromkeys(name for point in points for name in point.x))


def named(names: Iterable[str], *words: str) -> str | None:
  """The first name that is a word, else the first that holds one; the words by preference.

  >>> named(["reward_proxy", "reward_gold"], "gold", "proxy")
  'reward_gold'
  """
  names = list(names)
  for word in words:
    for name in (*(n for n in names if n == word), *(n for n in names if word in n.lower())):
      return name
  return None


def rewards(points: Sequence[Measurement]) -> list[str]:
  """The rewards of a front: those that have a λ and a value."""
  lambdas = [name.removeprefix(LAMBDA) for name in x_names(points) if name.startswith(LAMBDA)]
  return [name for name in lambdas if reward_value(points, name) is not None]


def reward_value(points: Sequence[Measurement], reward: str) -> str | None:
  """The name of the value that is a reward's score."""
  names = value_names(points)
  return next((n for n in (reward, f"reward_{reward}", f"reward/{reward}") if n in names), None)


def judges(points: Sequence[Measurement], names: Sequence[str]) -> list[str]:
  """The names of the values that are rewards, but none of those of the front, which are called `names`."""
  own = {reward_value(points, name) for name in names}
  return [name for name in value_names(points) if name.startswith("reward_") and name not in own]


def title_of(name: str) -> str:
  """A name of the records as a title.

  >>> title_of("reward_gold"), title_of("kl"), title_of("lambda_brevity"), title_of("win_rate")
  ('gold reward', 'KL (nats)', 'λ of brevity', 'win rate')
  """
  known = {"kl": "KL (nats)", "eta": "η", "n": "n", "sqrt_kl": "√KL (√nats)", "lambda": "λ"}
  if name in known:
    return known[name]
  if name.startswith(LAMBDA):
    return f"λ of {name.removeprefix(LAMBDA)}"
  if name.startswith("skill_"):
    return (
      "mean of the skills" if name == "skill_mean" else f"{name.removeprefix('skill_')} (skill)"
    )
  if name.startswith("reward_"):
    return f"{name.removeprefix('reward_').replace('_', ' ')} reward"
  if name.startswith("mu_"):
    return f"μ of {name.removeprefix('mu_')}"
  return f"{name} reward" if name in ("gold", "proxy", "control") else name.replace("_", " ")


def is_percentage(name: str, value: float) -> bool:
  """Whether a value is shown as a percentage: an accuracy, a win rate, a share."""
  return 0 <= value <= 1 and any(word in name.lower().split("_") for word in _PERCENTAGES)


def texts(name: str, found: Estimate | None) -> tuple[str, str]:
  """A value and the half width of its interval for reading, with the decimals that the interval asks for.

  >>> (
  ...   texts("accuracy", Estimate(0.7123, 0.7073, 0.7173, 3)),
  ...   texts("kl", Estimate(3.21, None, None, 1)),
  ... )
  (('71.2 %', '0.5'), ('3.21', ''))
  >>> (
  ...   texts("gold", Estimate(0.7123, 0.7103, 0.7143, 3)),
  ...   texts("gold", Estimate(0.7123, 0.66, 0.76, 3)),
  ... )
  (('0.7123', '0.0020'), ('0.71', '0.05'))
  """
  if found is None:
    return "–", ""
  half = None if found.high is None else found.high - found.mean
  if is_percentage(name, found.mean):
    return f"{100 * found.mean:.1f} %", "" if half is None else f"{100 * half:.1f}"
  if half is None or half <= 0 or abs(found.mean) >= 1000:
    return number(found.mean), ""
  # Two digits of an interval that starts with 1 or 2, else one.
  digits = 2 if f"{half:e}"[0] in "12" else 1
  decimals = min(4, max(2 if half < 1 else 1, digits - 1 - math.floor(math.log10(half))))
  return f"{found.mean:.{decimals}f}".replace("-", "−"), f"{half:.{decimals}f}"


def reading(name: str, found: Estimate | None) -> str:
  """A value with its interval in one text: "0.71 ± 0.02"."""
  text, half = texts(name, found)
  return f"{text} ± {half}" if half else text


def numbers(fields: Mapping[str, Any]) -> dict[str, float]:
  """The finite numbers among the fields."""
  read = {name: finite(value) for name, value in fields.items()}
  return {name: value for name, value in read.items() if value is not None}


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def _estimate(value: float, half: float | None, count: int) -> Estimate:
  if half is None:
    return Estimate(value, None, None, count)
  return Estimate(value, value - half, value + half, count)
