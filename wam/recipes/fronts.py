"""Hypervolumes of the families of a trade-off, with bootstrap intervals, from the records of its points.

Reward against each skill, and against the mean of the skills, on the test split. Leaves out figures (report).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.checkpoints import records
from wam.evaluation import metrics, pareto
from wam.evaluation.statistics import percentile_interval
from wam.recipes.panels import MEAN
from wam.training.workdir import Run

STAGE = "fronts"
LEVEL = 0.95
NUM_RESAMPLES = 500
RULE = "largest share of the reward gain kept minus share of the skill lost, by proxy reward and mean skill"


class Table(NamedTuple):
  """The points of a split, with what can be resampled.

  Attributes:
    families: [P] of each point.
    labels: [P].
    rewards: [P, S, N], of S sampling seeds and N prompts.
    skills: by name, the statistics of items [P, 1, N, K].
    metrics: by skill.
    in_mean: by skill, whether it counts in the mean.
    reward: the name of the reward.
  """

  families: list[str]
  labels: list[str]
  rewards: np.ndarray
  skills: dict[str, np.ndarray]
  metrics: dict[str, str]
  in_mean: list[bool]
  reward: str


def write(run: Run, *, families: Sequence[str], anchor: str) -> None:
  """Writes one record of kind "front" for every family and skill, replacing those of an earlier call.

  A family's front is that of its points and of the anchor (the model before RLHF), which all families share. The
  reference point is the worst value of each axis among all points, so that volumes compare within a run, not between
  runs; it is in the record. Intervals are percentiles over resampled prompts, items and sampling seeds. There is no
  front against the mean skill where the anchor has nothing of any skill, so that shares are not defined.

  Args:
    run: the open workdir, with records of kind "point" and "task".
    families: which.
    anchor: the family of the model before RLHF.
  """
  run.records.drop(lambda record: record["kind"] == "front")
  every = records.read(run.directory / records.FILE_NAME)
  table = collect(every, split="test", rewards=("reward_gold", "reward_control", "reward_proxy"))
  exact, resampled = coordinates(table, anchor=anchor, num_resamples=NUM_RESAMPLES, seed=run.seed)
  reference = exact.min(axis=0)
  step = 0
  for family in families:
    rows = [i for i, name in enumerate(table.families) if name in (family, anchor)]
    for column, skill in enumerate([*table.skills, MEAN], start=1):
      if np.isnan(resampled[..., column]).any() or np.isnan(exact[:, column]).any():
        # Shares of skills of which the model before RLHF has nothing, or next to nothing.
        continue
      pick = np.ix_(rows, [0, column])
      origin = reference[[0, column]]
      volume = pareto.hypervolume(exact[pick], origin)
      replicates = np.array([pareto.hypervolume(points[pick], origin) for points in resampled])
      interval = percentile_interval(volume, replicates, LEVEL)
      sign = -1.0 if table.metrics.get(skill) in metrics.LOSSES else 1.0
      run.log(
        {
          "family": family,
          "x": table.reward,
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


def select(run: Run, *, families: Sequence[str], before: str, after: str) -> str | None:
  """Chooses a model on the validation split by RULE, and writes the record of kind "selection".

  The rule sees what a user has: the proxy reward, and the skills on held-out items.

  Args:
    run: the open workdir.
    families: to choose from.
    before: the family of the model before RLHF.
    after: the label of the model after RLHF.

  Returns:
    The label of the model; None, and no record, where RLHF bought no reward or cost no skill.
  """
  run.records.drop(lambda record: record["kind"] == "selection")
  every = records.read(run.directory / records.FILE_NAME)
  table = collect(every, split="validation", rewards=("reward_proxy",))
  exact, _ = coordinates(table, anchor=before, num_resamples=1, seed=run.seed)
  reward, skill = exact[:, 0], exact[:, -1]
  first, last = table.families.index(before), table.labels.index(after)
  gain, loss = reward[last] - reward[first], skill[first] - skill[last]
  if not (gain > 0 and loss > 0):
    return None
  trade = (reward - reward[first]) / gain - (skill[first] - skill) / loss
  trade[[name not in families for name in table.families]] = -np.inf
  best = int(np.argmax(trade))
  fields = {
    "family": table.families[best],
    "label": table.labels[best],
    "trade": float(trade[best]),
  }
  about = {"rule": RULE, "split": "validation", "oracle": False}
  run.log(fields | about, kind="selection", stage=STAGE, step=0)
  return table.labels[best]


def collect(every: Sequence[Mapping[str, Any]], *, split: str, rewards: Sequence[str]) -> Table:
  """The points of a split as arrays.

  Args:
    every: the records of a run.
    split: which.
    rewards: by preference; the first one that was measured is taken.
  """
  groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for record in every:
    if record["kind"] == "point" and record["split"] == split:
      groups.setdefault((record["family"], record["label"]), []).append(record)
  measured = next(iter(groups.values()))[0]["items"]
  reward = next(name for name in rewards if name in measured)
  described = [r for r in every if r["kind"] == "task"]
  tasks = {r["name"]: r["metric"] for r in described}
  return Table(
    families=[family for family, _ in groups],
    labels=[label for _, label in groups],
    rewards=np.array([[r["items"][reward] for r in seeds] for seeds in groups.values()]),
    skills={
      name: np.array([[seeds[0]["items"][name]] for seeds in groups.values()]) for name in tasks
    },
    metrics=tasks,
    in_mean=[r["in_mean"] for r in described],
    reward=reward,
  )


def coordinates(
  table: Table, *, anchor: str, num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """What every point is worth, more being better.

  Returns:
    [P, 1 + skills + 1]: reward, skills (losses with their sign turned), and the mean of the skills as shares of what
    the anchor has (for losses the other way up), so that 1 means that nothing was lost whatever the scales; and as
    many resamples of it [B, P, ...].
  """
  exact, resampled = pareto.resample(
    [table.rewards, *table.skills.values()],
    finish=[None, *(_finish(table.metrics[n], s.shape[2]) for n, s in table.skills.items())],
    num_resamples=num_resamples,
    seed=seed,
  )
  loss = [table.metrics[name] in metrics.LOSSES for name in table.skills]
  counted = [i for i, counts in enumerate(table.in_mean) if counts]
  row = table.families.index(anchor)

  def complete(values: np.ndarray) -> np.ndarray:
    scores = values[..., 1:]
    kept = scores[..., counted]
    mean = metrics.retained(kept, kept[..., row : row + 1, :], [loss[i] for i in counted])
    upward = np.where(loss, -scores, scores)
    return np.concatenate([values[..., :1], upward, mean[..., None]], axis=-1)

  return complete(exact), complete(resampled)


def _finish(metric: str, num_items: int) -> Callable[[np.ndarray], np.ndarray]:
  """From mean statistics of items [..., K] to the metric [...]."""
  if metric == "bleu":
    return lambda means: np.apply_along_axis(metrics.bleu, -1, np.rint(means * num_items))
  return lambda means: means[..., 0] / means[..., 1]
