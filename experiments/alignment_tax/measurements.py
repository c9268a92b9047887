"""The measured points of runs of the `alignment_tax` recipe, and how fronts compare over seeds.

Every number here comes from the test split of records.jsonl; more is better in every column. Leaves out claims.
"""

import csv
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wam.checkpoints import records
from wam.evaluation import pareto
from wam.recipes import alignment_tax as recipe
from wam.recipes import fronts

# Who judges: the true reward of the world, or the reward model that RLHF climbs, as in the paper.
JUDGES = {"gold": "reward_gold", "proxy": "reward_proxy"}
REWARD, MEAN = "reward", "mean"
# What log-likelihoods of the points of the grid are known of.
TEXTS = ("examples", "samples", "corpus")


class Measured(NamedTuple):
  """One run: P points in C columns.

  Attributes:
    seed: of the run.
    families, labels: [P].
    ratios: [P], the ratio of each part from input to output; empty where nothing is averaged.
    columns: "reward", the skills, "mean" (of the shares of the skills that are left).
    values: [P, C], more being better.
    likelihoods: by ratios, the mean log-likelihoods of "examples" and of the anchors, where the run has a grid.
  """

  seed: int
  families: list[str]
  labels: list[str]
  ratios: list[tuple[float, ...]]
  columns: list[str]
  values: np.ndarray
  likelihoods: Mapping[tuple[float, ...], Mapping[str, float]] = types.MappingProxyType({})

  def column(self, name: str) -> np.ndarray:
    """One column, [P]."""
    return self.values[:, self.columns.index(name)]

  def rows(self, keep: Callable[[str, str, tuple[float, ...]], bool]) -> list[int]:
    """The points of which keep(family, label, ratios) holds."""
    points = zip(self.families, self.labels, self.ratios, strict=True)
    return [i for i, point in enumerate(points) if keep(*point)]

  def of(self, *families: str) -> list[int]:
    """The points of some families."""
    return self.rows(lambda family, _, __: family in families)

  @property
  def before(self) -> int:
    """θ_0."""
    return self.of(recipe.INIT)[0]

  @property
  def after(self) -> int:
    """θ."""
    return self.labels.index(recipe.AFTER)

  @property
  def skills(self) -> list[str]:
    """The columns between reward and mean."""
    return self.columns[1:-1]


def read(workdir: pathlib.Path, *, seed: int, judge: str) -> Measured:
  """The points of a run that is done, by one of JUDGES."""
  every = records.read(workdir / records.FILE_NAME)
  table = fronts.collect(every, split="test", rewards=(JUDGES[judge],))
  values, _ = fronts.coordinates(table, anchor=recipe.INIT, num_resamples=1, seed=0)
  ratios = {
    (r["family"], r["label"]): tuple(r["coefficients"].values())
    for r in every
    if r["kind"] == "point"
  }
  names = list(zip(table.families, table.labels, strict=True))
  columns = [REWARD, *table.skills, MEAN]
  likelihoods = {_key(r["ratios"]): r["likelihood"] for r in every if r["kind"] == "objective"}
  return Measured(
    seed, table.families, table.labels, [ratios[n] for n in names], columns, values, likelihoods
  )


def write(runs: Mapping[str, Mapping[str, Sequence[Measured]]], path: pathlib.Path) -> None:
  """All points of runs by judge and algorithm, as a table; likelihoods where there are any."""
  judges = list(runs)
  with path.open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    columns = next(iter(runs[judges[0]].values()))[0].columns[1:]
    heads = ["algorithm", "seed", "family", "label", "ratios"]
    table.writerow([*heads, *(f"reward {judge}" for judge in judges), *columns, *TEXTS])
    for algorithm in runs[judges[0]]:
      for each in zip(*(runs[judge][algorithm] for judge in judges), strict=True):
        run = each[0]
        for row, (family, label, ratios) in enumerate(
          zip(run.families, run.labels, run.ratios, strict=True)
        ):
          likelihood = run.likelihoods.get(_key(ratios), {})
          numbers = [judged.values[row, 0] for judged in each]
          numbers += [*run.values[row, 1:], *(likelihood.get(name, np.nan) for name in TEXTS)]
          shown = ["" if np.isnan(x) else f"{x:.5g}" for x in numbers]
          ratio = "|".join(f"{x:.3g}" for x in ratios)
          table.writerow([algorithm, run.seed, family, label, ratio, *shown])


def _key(ratios: Sequence[float]) -> tuple[float, ...]:
  """Ratios to look a point up by."""
  return tuple(round(ratio, 6) for ratio in ratios)


def hypervolume(run: Measured, rows: Sequence[int], column: str) -> float:
  """Of the front of these points and θ_0, in the plane of reward and `column`.

  Both axes are scaled so that the worst point of the run is 0 and the best 1: volumes of seeds can be averaged.
  """
  plane = np.stack([run.column(REWARD), run.column(column)], axis=1)
  worst, best = plane.min(axis=0), plane.max(axis=0)
  scaled = pareto.normalize(plane, worst, np.where(best > worst, best, worst + 1))
  return pareto.hypervolume(scaled[[run.before, *rows]], np.zeros(2))


def at_equal_reward(run: Measured, row: int, curve: Sequence[int], column: str) -> float:
  """How far a point lies above the front of other points in `column`, at its own reward.

  The front goes straight from one point of `curve` that no other dominates to the next; outside, its nearest end is it.
  """
  plane = np.stack([run.column(REWARD), run.column(column)], axis=1)
  reward, score = plane[[curve[i] for i in pareto.front(plane[list(curve)])]].T
  return float(plane[row, 1] - np.interp(plane[row, 0], reward, score))


def objective(run: Measured, row: int, anchors: str | None) -> float:
  """What a search for ratios thinks of a point of the grid: eq. 8, or with anchors the sum of both likelihoods.

  See `wam.algorithms.adaptive_averaging.run`.
  """
  likelihood = run.likelihoods[_key(run.ratios[row])]
  return likelihood["examples"] + (0.0 if anchors is None else likelihood[anchors])


def joined(*runs: Measured) -> Measured:
  """The points of several runs from one θ_0 in one table; families get the number of their run in front.

  The points before RLHF are those of the first run.
  """
  families = [
    family if family == recipe.INIT and not number else f"{number} {family}"
    for number, run in enumerate(runs)
    for family in run.families
  ]
  return Measured(
    runs[0].seed,
    families,
    [label for run in runs for label in run.labels],
    [ratios for run in runs for ratios in run.ratios],
    runs[0].columns,
    np.concatenate([run.values for run in runs]),
  )
