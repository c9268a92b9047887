"""Fronts of reward against KL to θ_SFT: hypervolumes with bootstrap intervals, rewards within budgets, and a choice.

From the records of policy_points.py, on the test split; the choice on the validation split. Leaves out figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.checkpoints import records
from wam.core.errors import ConfigError
from wam.evaluation import pareto
from wam.evaluation.statistics import Interval, percentile_interval
from wam.training.workdir import Run

STAGE, STUDY = "kl_fronts", "reward within a KL"
LEVEL = 0.95
NUM_RESAMPLES = 500
JUDGES = ("reward_gold", "reward_control")
PROXY = "reward_proxy"
RULE = "the largest proxy reward within the largest KL to the SFT policy that the front counts"


class Table(NamedTuple):
  """The points of a split.

  Attributes:
    families, labels: [P].
    rewards: by name, [P, S, N], of S sampling seeds and N prompts.
    kl: [P, S, N] nats of a completion.
  """

  families: list[str]
  labels: list[str]
  rewards: dict[str, np.ndarray]
  kl: np.ndarray

  @property
  def judge(self) -> str:
    """The reward that was not optimised, where there is one."""
    return next((name for name in JUDGES if name in self.rewards), PROXY)


def check_limits(limit: float | None, budgets: Sequence[float]) -> None:
  """Raises ConfigError for a largest KL or budgets that are not positive."""
  given = ([] if limit is None else [limit]) + list(budgets)
  wrong = [x for x in given if not 0 < x < float("inf")]
  if wrong:
    raise ConfigError(f"fronts: expected nats of a completion above 0, found {wrong}")


def collect(run: Run, *, split: str) -> Table:
  """The points of a split as arrays."""
  groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for record in records.read(run.directory / records.FILE_NAME):
    if record["kind"] == "point" and record["split"] == split:
      groups.setdefault((record["family"], record["label"]), []).append(record["items"])
  names = [n for n in next(iter(groups.values()))[0] if n.startswith("reward_")]

  def stacked(name: str) -> np.ndarray:
    return np.array([[items[name] for items in seeds] for seeds in groups.values()])

  return Table(
    families=[family for family, _ in groups],
    labels=[label for _, label in groups],
    rewards={name: stacked(name) for name in names},
    kl=stacked("kl"),
  )


def write(
  run: Run,
  *,
  lines: Mapping[str, Sequence[str]],
  anchor: str,
  limit: float | None,
  budgets: Sequence[float],
) -> None:
  """Writes a record of kind "front" for every line and reward, and the reward within every budget.

  A line's front is that of its points and of the anchor (θ_SFT), which all lines share. The reference point is the
  reward of θ_SFT and the KL `limit`: the volume is the gain over θ_SFT, integrated over KL budgets from 0 to the limit;
  points beyond it do not count. The reward within a budget is the largest on the paths through the points of each
  family in the order of their KL, straight between them, so that lines with few points do not lose by it. Intervals are
  percentiles over resampled prompts and sampling seeds.

  Args:
    run: the open workdir.
    lines: by name, the families whose points belong to it.
    anchor: the family of θ_SFT.
    limit: nats of a completion; None: the largest KL of the first line.
    budgets: nats of a completion.
  """
  run.records.drop(lambda record: record["stage"] == STAGE)
  table = collect(run, split="test")
  start = table.families.index(anchor)
  for name in dict.fromkeys((table.judge, PROXY)):
    exact, resampled = pareto.resample(
      [table.rewards[name], -table.kl], num_resamples=NUM_RESAMPLES, seed=run.seed
    )
    first = _rows(table, next(iter(lines.values())), start)
    most = float(-exact[first, 1].min()) if limit is None else float(limit)
    origin = np.array([exact[start, 0], -most])
    for step, (line, families) in enumerate(lines.items()):
      rows = _rows(table, families, start)
      if len(rows) < 2:
        continue
      replicates = np.array([pareto.hypervolume(points[rows], origin) for points in resampled])
      volume = pareto.hypervolume(exact[rows], origin)
      interval = percentile_interval(volume, replicates, LEVEL)
      fields = {
        "family": line,
        "x": name,
        "y": "kl",
        "reference": [float(origin[0]), most],
        "hypervolume": interval.value,
        "low": interval.low,
        "high": interval.high,
        "level": LEVEL,
      }
      run.log(fields, kind="front", stage=STAGE, step=step)
      paths = [_rows(table, [family], start) for family in families]
      for budget in budgets:
        within = _within(exact, resampled, paths, budget)
        about = {"study": STUDY, "family": line, "label": f"KL = {budget:g}", "split": "test"}
        numbers = {
          "x": {"kl": budget},
          "values": {name: within.value},
          "halves": {name: (within.high - within.low) / 2},
          "seeds": table.kl.shape[1],
        }
        run.log(about | numbers, kind="measurement", stage=STAGE, step=step)


def _within(
  exact: np.ndarray, resampled: np.ndarray, paths: Sequence[Sequence[int]], budget: float
) -> Interval:
  """The largest reward within a budget on any of the paths, each the numbers of its points."""

  def best(points: np.ndarray) -> float:
    return max(reward_within(points[rows, 0], -points[rows, 1], budget) for rows in paths)

  replicates = np.array([best(points) for points in resampled])
  return percentile_interval(best(exact), replicates, LEVEL)


def reward_within(rewards: np.ndarray, kl: np.ndarray, budget: float) -> float:
  """The largest reward at a KL of at most `budget` on the path through the points [P], in the order of their KL."""
  order = np.argsort(kl, kind="stable")
  kl, rewards = kl[order], rewards[order]
  inside = rewards[kl <= budget]
  at_budget = np.interp(budget, kl, rewards)
  return float(max(at_budget, inside.max(initial=-np.inf)))


def select(run: Run, *, family: str, limit: float | None) -> str | None:
  """Chooses a policy of a family on the validation split by RULE, and writes the record of kind "selection".

  Returns:
    Its label; None, and no record, where no point of the family is within the limit.
  """
  run.records.drop(lambda record: record["kind"] == "selection")
  table = collect(run, split="validation")
  kl, rewards = table.kl.mean(axis=(1, 2)), table.rewards[PROXY].mean(axis=(1, 2))
  allowed = np.array([name == family for name in table.families])
  allowed &= kl <= (np.inf if limit is None else limit)
  if not allowed.any():
    return None
  best = int(np.argmax(np.where(allowed, rewards, -np.inf)))
  about = {"rule": RULE, "split": "validation", "oracle": False, "limit": limit}
  fields = {"family": family, "label": table.labels[best], "kl": float(kl[best])}
  run.log(fields | about, kind="selection", stage=STAGE, step=0)
  return table.labels[best]


def _rows(table: Table, families: Sequence[str], start: int) -> list[int]:
  """θ_SFT, and the points of these families."""
  return [i for i, name in enumerate(table.families) if i == start or name in families]
