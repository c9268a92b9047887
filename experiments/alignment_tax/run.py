"""Trains what is missing, then puts every claim that can be judged into the ledger."""

import argparse
import pathlib
import platform
from collections.abc import Sequence

from experiments.alignment_tax import claims, figure, measurements, runs
from wam.recipes import alignment_tax
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
  parser.add_argument(
    "--train-only", action="store_true", help="judge nothing: the runs are shared among processes"
  )
  options = parser.parse_args(arguments)
  measured = {
    algorithm: [train(algorithm, seed, options.workdirs) for seed in options.seeds]
    for algorithm in options.algorithms
  }
  if options.train_only:
    return 0
  entries = judge(measured, hardware=options.hardware)
  ledgers.update(HERE, entries)
  (HERE / "results").mkdir(exist_ok=True)
  measurements.write(measured, HERE / "results" / "points.csv")
  figure.draw(measured, HERE / "results" / "fronts.png")
  print(ledgers.table(entries))
  return 0


def train(algorithm: str, seed: int, workdirs: pathlib.Path) -> measurements.Measured:
  """A run, or what is left of it, and what it measured."""
  workdir = workdirs / f"{algorithm}-{seed}"
  alignment_tax.run(runs.config(algorithm, seed), workdir, command=COMMAND)
  return measurements.read(workdir, seed=seed)


def judge(measured: claims.Runs, *, hardware: str) -> list[ledgers.Entry]:
  """The entries of all claims whose runs are there.

  Args:
    measured: by algorithm, one run a seed; at least two seeds.
    hardware: what they were made on.
  """
  entries = []
  for claim in claims.CLAIMS:
    if not set(claim.algorithms) <= set(measured):
      continue
    needed = {name: measured[name] for name in claim.algorithms}
    found = claim.find(needed)
    entries.append(
      ledgers.Entry(
        claim=claim.name,
        paper=claim.paper,
        measured=found.measured,
        verdict=found.verdict,
        command=COMMAND,
        hardware=hardware,
        seeds=tuple(run.seed for name in claim.algorithms[:1] for run in needed[name]),
      )
    )
  return entries
