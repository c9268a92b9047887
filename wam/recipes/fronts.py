"""Hypervolumes of the families of a trade-off, with bootstrap intervals, from the records of its points.

Reward against each skill, and against the mean of the skills, on the test split. Leaves out figures (report).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.checkpoints import records
from wam.evaluation import metrics, pareto
from wam.evaluation.statistics import percentile_interval
from wam.training.workdir import Run

STAGE = "fronts"
MEAN = "mean"
LEVEL = 0.95
NUM_RESAMPLES = 500


class Table(NamedTuple):
  """The points of some families, with what can be resampled.

  Attributes:
    families: [P] of each point.
    scores: by objective, [P, S, N] (means of items) or [P, S, N, K] (statistics of items that a metric finishes).
    losses: names of the objectives of which less is better.
    metric: by objective, the metric that finishes it, or "".
  """

  families: list[str]
  scores: dict[str, np.ndarray]
  losses: set[str]
  metric: dict[str, str]


def write(run: Run, *, families: Sequence[str], anchor: str) -> None:
  """Writes one record of kind "front" for every family and skill, replacing those of an earlier call.

  A family's front is that of its points and of the anchor (the model before RLHF), which all families share. The
  reference point is the worst value of each axis among all points, so that volumes compare within a run, not between
  runs; it is in the record. Intervals are percentiles over resampled prompts, items and sampling seeds.

  Args:
    run: the open workdir, with records of kind "point" and "task".
    families: which.
    anchor: the family of the model before RLHF.
  """
  run.records.drop(lambda record: record["kind"] == "front")
  table = collect(records.read(run.directory / records.FILE_NAME))
  x = next(iter(table.scores))
  skills = [name for name in table.scores if name != x]
  exact, resampled = _coordinates(table, x, skills, table.families.index(anchor), seed=run.seed)
  reference = exact.min(axis=0)
  step = 0
  for family in families:
    rows = [i for i, name in enumerate(table.families) if name in (family, anchor)]
    for column, skill in enumerate([*skills, MEAN], start=1):
      pick = np.ix_(rows, [0, column])
      origin = reference[[0, column]]
      volume = pareto.hypervolume(exact[pick], origin)
      replicates = np.array([pareto.hypervolume(points[pick], origin) for points in resampled])
      interval = percentile_interval(volume, replicates, LEVEL)
      sign = -1.0 if skill in table.losses else 1.0
      run.log(
        {
          "family": family,
          "x": x,
          "y": skill,
          "reference": [float(origin[0]), sign * float(origin[1])],
          "hypervolume": interval.value,
          "low": interval.low,
          "high": interval.high,
          "level": LEVEL,
        },
        kind="front",
        stage=STAGE,
        step=step,
      )
      step += 1


def collect(every: Sequence[Mapping[str, Any]], *, split: str = "test") -> Table:
  """The points of a split as arrays; the first objective is the judge's reward, the others are the skills."""
  tasks = {r["name"]: r for r in every if r["kind"] == "task"}
  groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for record in every:
    if record["kind"] == "point" and record["split"] == split:
      groups.setdefault((record["family"], record["label"]), []).append(record)
  first = next(iter(groups.values()))[0]["items"]
  rewards = [name for name in ("reward_gold", "reward_control", "reward_proxy") if name in first]
  objectives = [*rewards[:1], *tasks]
  return Table(
    families=[family for family, _ in groups],
    scores={
      name: np.array([[r["items"][name] for r in seeds] for seeds in groups.values()])
      for name in objectives
    },
    losses={name for name, task in tasks.items() if not task["higher_is_better"]},
    metric={name: tasks[name]["metric"] if name in tasks else "" for name in objectives},
  )


def _coordinates(
  table: Table, x: str, skills: Sequence[str], anchor: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """What every point is worth, more being better: [P, 1 + skills + mean], and its resamples [B, P, ...]."""
  exact, resampled = pareto.resample(
    [table.scores[name] for name in (x, *skills)],
    finish=[metrics.FINISH.get(table.metric[name]) for name in (x, *skills)],
    num_resamples=NUM_RESAMPLES,
    seed=seed,
  )
  loss = np.array([name in table.losses for name in skills])

  def complete(values: np.ndarray) -> np.ndarray:
    scores = values[..., 1:]
    before = scores[..., anchor : anchor + 1, :]
    if loss.any():
      # Losses and scores have no common scale: shares of what there was before, as in the report.
      shares = np.where(loss, before / scores, scores / before)
    else:
      shares = scores
    upward = np.where(loss, -scores, scores)
    return np.concatenate([values[..., :1], upward, shares.mean(-1, keepdims=True)], axis=-1)

  return complete(exact), complete(resampled)
