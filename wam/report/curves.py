"""Training curves: the metric records of a run, grouped into small panels by stage and by what they measure."""

from collections.abc import Sequence
from typing import NamedTuple

from wam.checkpoints.records import is_time
from wam.report.records import Record, finite, of_kind

MAX_POINTS = 600  # a line on a screen shows no more
MAX_PANELS = 6  # a stage
_GROUPS = (
  "loss",
  "accuracy",
  "gold",
  "control",
  "proxy",
  "reward",
  "kl",
  "margin",
  "length",
  "entropy",
)
# Of interest for speed and debugging, not for what a run did; shown nowhere.
_ASIDE = ("learning_rate", "memory", "tokens_seen", "epoch", "percent", "best_of", "kl_bound")
_NOT_VALUES = ("kind", "stage", "step", "seed")


class Line(NamedTuple):
  """One field over the steps of a stage."""

  name: str
  steps: list[float]
  values: list[float]


class Panel(NamedTuple):
  """Fields of one stage that share a scale."""

  stage: str
  title: str
  lines: list[Line]


def panels(records: Sequence[Record]) -> list[Panel]:
  """Groups the metric records; stages and fields keep the order in which they were first written.

  Values that are not finite numbers are left out. Fields about speed are not shown, and a stage shows at most
  MAX_PANELS panels.
  """
  stages: dict[str, dict[str, dict[float, float]]] = {}
  for record in of_kind(records, "metric"):
    fields = stages.setdefault(record["stage"], {})
    for name, raw in record.items():
      value = finite(raw)
      if (
        name in _NOT_VALUES
        or value is None
        or is_time(name)
        or any(word in name for word in _ASIDE)
      ):
        continue
      fields.setdefault(name, {})[record["step"]] = (
        value  # a step run again after a kill counts once
      )
  found = []
  for stage, fields in stages.items():
    groups: dict[str, list[Line]] = {}
    for name, by_step in fields.items():
      groups.setdefault(_group(name), []).append(_line(name, by_step))
    ordered = sorted(groups, key=lambda g: _GROUPS.index(g) if g in _GROUPS else len(_GROUPS))
    found += [Panel(stage, group, groups[group]) for group in ordered[:MAX_PANELS]]
  return found


def _group(name: str) -> str:
  words = name.lower().replace("/", "_").split("_")
  return next((group for group in _GROUPS if group in words), name)


def _line(name: str, by_step: dict[float, float]) -> Line:
  steps = sorted(by_step)
  stride = -(-len(steps) // MAX_POINTS)
  # From the end, so that the last value is always there.
  thinned = steps[::-1][::stride][::-1]
  return Line(name, thinned, [by_step[step] for step in thinned])
