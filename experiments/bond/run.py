"""J-BOND with a moving-average anchor and with a periodic one, on tables of answers, and the claim in the ledger.

python -m experiments.bond
"""

import argparse
import csv
import functools
import pathlib
import platform
from collections.abc import Sequence

import jax
import numpy as np

from experiments import figures
from experiments.bond import j_bond
from experiments.bond.j_bond import Path, Settings
from experiments.figures import Panel
from experiments.verdicts import Finding, finding, over_seeds
from wam.report import ledgers

HERE = pathlib.Path(__file__).resolve().parent
ANCHORS = ("ema", "periodic")
PENALTIES = (0.0, 1.0)  # γ
# How near two gains in reward must be to be called the same, as a share of the gain.
NEAR = 0.05
COMMAND = "python -m experiments.bond"


def main(arguments: Sequence[str]) -> int:
  """Runs the experiment; writes results/ and ledger.json."""
  parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
  parser.add_argument("--seeds", type=int, default=10, help="how many tables of answers")
  parser.add_argument("--steps", type=int, default=Settings().num_steps, help="of each run")
  parser.add_argument("--directory", type=pathlib.Path, default=HERE, help="where results/ goes")
  parser.add_argument(
    "--hardware", default=f"{platform.machine()} CPU", help="what to write into the ledger"
  )
  given = parser.parse_args(arguments)
  seeds = tuple(range(given.seeds))
  paths = {
    (anchor, penalty): runs(seeds, anchor, Settings(num_steps=given.steps, kl_coef=penalty))
    for penalty in PENALTIES
    for anchor in ANCHORS
  }
  found = judge(paths)
  entry = ledgers.Entry(
    claim="BOND-1",
    paper="A moving-average anchor (η = 0.02) reaches the reward of one that is replaced every 50 steps, at a lower KL"
    " (Sessa et al. 2024, figure 5).",
    measured=found.measured,
    verdict=found.verdict,
    command=COMMAND,
    hardware=given.hardware,
    seeds=seeds,
  )
  ledgers.update(given.directory, [entry])
  results = given.directory / "results"
  results.mkdir(exist_ok=True)
  write(paths, results / "paths.csv")
  draw(paths, results / "paths.png")
  print(ledgers.table([entry]))
  return 0


def runs(seeds: Sequence[int], anchor: str, settings: Settings) -> list[Path]:
  """A path a seed."""
  train = jax.jit(functools.partial(j_bond.train, anchor=anchor, settings=settings))
  return [Path(*map(np.asarray, train(seed))) for seed in seeds]


Paths = dict[tuple[str, float], list[Path]]


def judge(paths: Paths) -> Finding:
  """BOND-1: what the KL of the periodic anchor is above that of the moving average, and how near their rewards are."""
  parts = {}
  for penalty in sorted({penalty for _, penalty in paths}):
    pairs = list(zip(*(paths[anchor, penalty] for anchor in ANCHORS), strict=True))
    saved = [excess(periodic, ema) for ema, periodic in pairs]
    apart = [NEAR - abs(gain(ema) - gain(other)) / gain(other) for ema, other in pairs]
    parts[f"γ = {penalty:g}: KL at equal reward, periodic less moving average, nats"] = over_seeds(
      saved
    )
    parts[f"γ = {penalty:g}: {NEAR:g} less the distance of the gains in reward"] = over_seeds(apart)
  return finding(parts, "at the end of the runs, and along them")


def gain(path: Path) -> float:
  """Of reward, over the run."""
  return float(path.reward[-1] - path.reward[0])


def excess(path: Path, other: Path) -> float:
  """KL of a path less that of another one where they first have equal rewards: the mean over a tenth to nine tenths."""
  top = min(path.reward.max(), other.reward.max())
  levels = path.reward[0] + np.linspace(0.1, 0.9, 33) * (top - path.reward[0])
  return float(np.mean(_kl_at(path, levels) - _kl_at(other, levels)))


def _kl_at(path: Path, levels: np.ndarray) -> np.ndarray:
  """The KL where the reward first reaches each level, on the line between two steps."""
  highest = np.maximum.accumulate(path.reward)
  after = np.searchsorted(highest, levels)
  before = np.maximum(after - 1, 0)
  low, high = path.reward[before], path.reward[after]
  share = np.where(high > low, (levels - low) / np.where(high > low, high - low, 1.0), 1.0)
  return path.kl[before] + share * (path.kl[after] - path.kl[before])


def write(paths: Paths, file: pathlib.Path, *, every: int = 20) -> None:
  """Every so many steps of every run, as a table."""
  with file.open("w", newline="", encoding="utf-8") as opened:
    table = csv.writer(opened)
    table.writerow(["anchor", "kl_coef", "seed", "step", "reward", "kl"])
    for (anchor, penalty), found in paths.items():
      for seed, path in enumerate(found):
        for step in range(0, len(path.kl), every):
          numbers = f"{path.reward[step]:.5g}", f"{path.kl[step]:.5g}"
          table.writerow([anchor, penalty, seed, step, *numbers])


def draw(paths: Paths, file: pathlib.Path) -> None:
  """Reward against KL, and reward and KL along the runs, without and with the extra penalty."""
  names = {"ema": "moving average, η = 0.02", "periodic": "every 50 steps"}
  panels = []
  for penalty in sorted({penalty for _, penalty in paths}):
    found = {names[anchor]: paths[anchor, penalty] for anchor in ANCHORS}
    steps = np.arange(len(found[names["ema"]][0].kl))
    panels.append(
      Panel(
        f"γ = {penalty:g}",
        "KL to the start, nats",
        "reward",
        {name: [(p.kl, p.reward) for p in each] for name, each in found.items()},
        mean=False,
      )
    )
    panels.append(
      Panel(
        f"γ = {penalty:g}",
        "step",
        "KL to the start, nats",
        {name: [(steps, p.kl) for p in each] for name, each in found.items()},
      )
    )
  figures.draw(panels, file)
