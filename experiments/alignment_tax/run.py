"""Trains what is missing, then puts every claim that can be judged into the ledger."""

import argparse
import pathlib
import platform
from collections.abc import Sequence

from experiments.alignment_tax import claims, figure, measurements, runs
from wam.recipes import runs as recipes
from wam.report import ledgers

HERE = pathlib.Path(__file__).resolve().parent
COMMAND = "python -m experiments.alignment_tax"


def main(arguments: Sequence[str]) -> int:
  """See `--help`."""
  parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
  parser.add_argument("--workdirs", type=pathlib.Path, default=pathlib.Path("runs/experiments"))
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--algorithms", nargs="+", choices=runs.ALGORITHMS, default=runs.ALGORITHMS)
  parser.add_argument(
    "--hardware", default=f"{platform.machine()} CPU", help="what to write into the ledger"
  )
  steps = parser.add_mutually_exclusive_group()
  steps.add_argument(
    "--train-only", action="store_true", help="judge nothing: the runs are shared among processes"
  )
  steps.add_argument("--judge-only", action="store_true", help="train nothing: the runs are done")
  options = parser.parse_args(arguments)
  for algorithm in options.algorithms:
    for seed in [] if options.judge_only else options.seeds:
      train(algorithm, seed, options.workdirs)
  if options.train_only:
    return 0
  measured = {
    judge: {
      algorithm: [
        measurements.read(_workdir(algorithm, seed, options.workdirs), seed=seed, judge=judge)
        for seed in options.seeds
      ]
      for algorithm in options.algorithms
    }
    for judge in measurements.JUDGES
  }
  entries = [e for judge, some in measured.items() for e in verdicts(some, judge, options.hardware)]
  ledgers.update(HERE, entries)
  results = HERE / "results"
  results.mkdir(exist_ok=True)
  measurements.write(measured, results / "points.csv")
  for judge, some in measured.items():
    figure.draw(some, judge, results / f"fronts_{judge}.png")
  print(ledgers.table(entries))
  return 0


def train(algorithm: str, seed: int, workdirs: pathlib.Path) -> None:
  """A run, or what is left of it."""
  workdir = _workdir(algorithm, seed, workdirs)
  recipes.run(runs.config(algorithm, seed), workdir, command=COMMAND)


def _workdir(algorithm: str, seed: int, workdirs: pathlib.Path) -> pathlib.Path:
  return workdirs / f"{algorithm}-{seed}"


def verdicts(measured: claims.Runs, judge: str, hardware: str) -> list[ledgers.Entry]:
  """The entries of all claims whose runs are there.

  Args:
    measured: by algorithm, one run a seed; at least two seeds.
    judge: of `measurements.JUDGES`. Claims that need no run are judged once, with the first.
    hardware: what they were made on.
  """
  entries = []
  for claim in claims.CLAIMS:
    if not set(claim.algorithms) <= set(measured):
      continue
    if not claim.algorithms and judge != next(iter(measurements.JUDGES)):
      continue
    needed = {name: measured[name] for name in claim.algorithms}
    found = claim.find(needed)
    entries.append(
      ledgers.Entry(
        claim=f"{claim.name} ({judge})" if needed else claim.name,
        paper=claim.paper,
        measured=found.measured,
        verdict=found.verdict,
        command=COMMAND,
        hardware=hardware,
        seeds=tuple(run.seed for name in claim.algorithms[:1] for run in needed[name]),
      )
    )
  return entries
