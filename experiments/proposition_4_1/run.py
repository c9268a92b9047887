"""Proposition 4.1 against simulation and exact counting; writes results/ and ledger.json.

python -m experiments.proposition_4_1 [--draws N] [--seeds N] [--directory DIR]
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from experiments.proposition_4_1 import counts, figure, limits, verdicts
from wam.core import rng
from wam.report import ledgers

HERE = pathlib.Path(__file__).resolve().parent
LEVEL = 0.95
# Differences that the proposition speaks of, as (method, method that is taken off).
GAINS = {
  "ensemble": (
    "ensemble",
    "single",
  ),  # ξ⁽¹⁾ and, as ξ⁽²⁾ = 0 there, ξ⁽¹⁾ - ξ⁽²⁾ of prediction ensembling
  "xi1": ("average", "single"),
  "xi2": ("average, other labels", "single"),
  "xi1 - xi2": ("average", "average, other labels"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is computed.

  Attributes:
    n, p, num_classes: of the curves; p is kept with (1 - p)√n the same for other n, so that the limits agree.
    many: numbers of features at which the limit is tested, at `ratios` of the features shared; the largest one decides.
    scan: (K, p, n) whose every overlap is counted exactly, to see where the inequality holds.
    seeds, num_draws: simulations of every point, and samples of each.
  """

  n: int = 20
  p: float = 0.8
  num_classes: int = 10
  many: tuple[int, ...] = (20, 100, 500, 2000)
  ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
  scan: tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]] = (
    (3, 10),
    (0.5, 0.8),
    (2, 3, 4, 5, 6, 8, 12, 16, 20),
  )
  seeds: tuple[int, ...] = tuple(range(10))
  num_draws: int = 40_000

  def failing(self, n: int) -> float:
    """p for another number of features."""
    return 1 - (1 - self.p) * (self.n / n) ** 0.5


def main(arguments: Sequence[str]) -> int:
  """Runs the experiment."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.proposition_4_1", description=__doc__
  )
  parser.add_argument("--draws", type=int, default=Settings.num_draws, help="of each simulation")
  parser.add_argument("--seeds", type=int, default=len(Settings.seeds), help="how many simulations")
  parser.add_argument("--directory", type=pathlib.Path, default=HERE, help="where results/ goes")
  given = parser.parse_args(arguments)
  settings = Settings(num_draws=given.draws, seeds=tuple(range(given.seeds)))
  found = run(settings, given.directory, command="python -m experiments.proposition_4_1")
  print(ledgers.table(found))
  return 0


def run(settings: Settings, directory: pathlib.Path, *, command: str) -> list[ledgers.Entry]:
  """Computes everything; writes results/summary.json, results/tables.md, results/curves.png and ledger.json."""
  began = time.monotonic()
  results = directory / "results"
  results.mkdir(parents=True, exist_ok=True)
  summary: dict[str, Any] = {"settings": dataclasses.asdict(settings)}
  summary["curves"] = [point(settings, settings.n, o) for o in range(settings.n + 1)]
  summary["many"] = [
    point(settings, n, round(ratio * n), exactly=False)
    for n in settings.many
    for ratio in settings.ratios
  ]
  summary["scan"] = scan(settings)
  seconds = time.monotonic() - began
  hardware = f"{platform.machine()} CPU, {seconds / 60:.0f} min with other work on 2 cores"
  entries = verdicts.entries(summary, command=command, hardware=hardware, seeds=settings.seeds)
  (results / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
  (results / "tables.md").write_text(verdicts.tables(summary) + "\n")
  figure.draw(summary, results / "curves.png")
  ledgers.write(directory / ledgers.FILE_NAME, entries)
  return entries


def point(settings: Settings, n: int, overlap: int, *, exactly: bool = True) -> dict[str, Any]:
  """All numbers at one overlap: accuracies and gains, simulated with intervals, in the limit, and exact."""
  p, K = settings.failing(n), settings.num_classes
  drawn = [
    counts.simulate(
      rng.generator(seed, f"proposition_4_1/{n}/{overlap}"),
      settings.num_draws,
      n=n,
      overlap=overlap,
      p=p,
      num_classes=K,
    )
    for seed in settings.seeds
  ]
  limiting = {m: limits.limit(m, n, overlap, p, K) for m in limits.METHODS}
  # The limits of absolute accuracies are off by the same bias in all methods, those of differences much less.
  fields: dict[str, Any] = {"n": n, "overlap": overlap, "p": p}
  fields["accuracy"] = {
    m: {"simulated": _interval([d[m] for d in drawn]), "limit": limiting[m]} for m in limits.METHODS
  }
  fields["gain"] = {
    name: {
      "simulated": _interval([d[a] - d[b] for d in drawn]),
      "limit": limiting[a] - limiting[b],
    }
    for name, (a, b) in GAINS.items()
  }
  fields["printed"] = limits.printed(n, overlap, p, K)
  if exactly:
    exact = {m: counts.exact(m, n=n, overlap=overlap, p=p, num_classes=K) for m in limits.METHODS}
    for m in limits.METHODS:
      fields["accuracy"][m]["exact"] = exact[m]
    for name, (a, b) in GAINS.items():
      fields["gain"][name]["exact"] = exact[a] - exact[b]
  return fields


def scan(settings: Settings) -> list[dict[str, Any]]:
  """ξ⁽¹⁾ - ξ⁽²⁾ of weight averaging, counted exactly, for every overlap but the ends of every (K, p, n)."""
  classes, failing, sizes = settings.scan
  rows = []
  for n in sizes:
    for K in classes:
      for p in failing:
        differences = [
          counts.exact("average", n=n, overlap=o, p=p, num_classes=K)
          - counts.exact("average, other labels", n=n, overlap=o, p=p, num_classes=K)
          for o in range(1, n)
        ]
        lowest = int(np.argmin(differences))
        rows.append(
          {
            "n": n,
            "num_classes": K,
            "p": p,
            "lowest": differences[lowest],
            "overlap": lowest + 1,
            "negative": int(np.sum(np.array(differences) < -1e-9)),
          }
        )
  return rows


def _interval(values: Sequence[float]) -> list[float]:
  """[mean, low, high] of Student's interval over simulations."""
  mean = float(np.mean(values))
  half = float(scipy.stats.sem(values) * scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
  return [mean, mean - half, mean + half]
