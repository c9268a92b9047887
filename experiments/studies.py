"""Experiments on recipes that record studies: runs over seeds, what they measured, and the ledger of their claims.

A run is a workdir whose records of kind "measurement" say what was measured (wam/recipes/measurements.py). Leaves out
the claims themselves, which each experiment fixes before it is run.
"""

import argparse
import csv
import importlib.util
import pathlib
import platform
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.verdicts import Comparison, Finding, over_seeds
from wam.checkpoints import records
from wam.core.errors import BadData
from wam.recipes import runs as recipes
from wam.report import ledgers

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


# Rewards that nothing is optimised against: the true one of a world, or a model trained on data of its own.
JUDGES = ("gold", "control")


class Point(NamedTuple):
  """One measurement: its name in the family, what places it, and what was found."""

  study: str
  family: str
  split: str
  label: str
  x: Mapping[str, float]
  values: Mapping[str, float]


class Study(NamedTuple):
  """What a run measured.

  Attributes:
    seed: of the run.
    points: the records of kind "measurement".
    fits: of kind "fit", by family and curve.
    volumes: of kind "front", hypervolumes by family and the front's first two axes.
    cosines: of kind "cosines", by family and label.
  """

  seed: int
  points: Sequence[Point]
  fits: Mapping[tuple[str, str], Mapping[str, float]] = types.MappingProxyType({})
  volumes: Mapping[tuple[str, str, str], float] = types.MappingProxyType({})
  cosines: Mapping[tuple[str, str], Mapping[str, float]] = types.MappingProxyType({})

  @property
  def judge(self) -> str:
    """Which of `JUDGES` the run has."""
    names = {name.removeprefix("reward_") for point in self.points for name in point.values}
    return next(judge for judge in JUDGES if judge in names)

  def families(self, study: str) -> list[str]:
    """The names of the lines of a study, in order."""
    return list(dict.fromkeys(p.family for p in self.points if p.study == study))

  def of(self, study: str, family: str, split: str = "test") -> list[Point]:
    """The points of a line, in the order in which they were written.

    Raises:
      BadData: if there are none; names what there is.
    """
    found = [p for p in self.points if (p.study, p.family, p.split) == (study, family, split)]
    if not found:
      there = sorted({(p.family, p.split) for p in self.points if p.study == study})
      raise BadData(f"seed {self.seed}: no points of {study}, {family}, {split}; found {there}")
    return found

  def values(self, study: str, family: str, name: str, split: str = "test") -> np.ndarray:
    """One value along a line, [P]."""
    return np.asarray([p.values[name] for p in self.of(study, family, split)])

  def places(self, study: str, family: str, name: str, split: str = "test") -> np.ndarray:
    """Where the points of a line lie, [P]."""
    return np.asarray([p.x[name] for p in self.of(study, family, split)])

  def at(self, study: str, family: str, label: str, name: str, split: str = "test") -> float:
    """One value of one point."""
    found = {p.label: p.values[name] for p in self.of(study, family, split)}
    if label not in found:
      raise BadData(f"seed {self.seed}: {study}, {family} has no {label}; found {list(found)}")
    return found[label]


class Claim(NamedTuple):
  """A claim.

  Attributes:
    name: its key.
    paper: what the paper says, and where.
    find: the runs, one a seed -> what was found.
  """

  name: str
  paper: str
  find: Callable[[Sequence[Study]], Finding]


def compare(runs: Sequence[Study], quantity: Callable[[Study], float]) -> Comparison:
  """A quantity over the seeds."""
  return over_seeds([quantity(run) for run in runs])


def read(workdir: pathlib.Path, *, seed: int) -> Study:
  """What a run that is done measured.

  Raises:
    BadData: if it measured nothing.
  """
  every = records.read(workdir / records.FILE_NAME)
  points = [
    Point(r["study"], r["family"], r.get("split") or "", r["label"], r.get("x", {}), r["values"])
    for r in every
    if r["kind"] == "measurement"
  ]
  if not points:
    raise BadData(f"{workdir}: nothing was measured; run it first")
  fits = {(r["family"], r["curve"]): r["values"] for r in every if r["kind"] == "fit"}
  volumes = {(r["family"], r["x"], r["y"]): r["hypervolume"] for r in every if r["kind"] == "front"}
  cosines = {(r["family"], r["label"]): r["values"] for r in every if r["kind"] == "cosines"}
  return Study(seed, points, fits, volumes, cosines)


def joined(parts: Mapping[str, Study], *, seed: int) -> Study:
  """The points of several runs, their families called "<part>: <family>"; of a single part "" the study itself."""
  if list(parts) == [""]:
    return parts[""]
  return Study(
    seed,
    [
      point._replace(family=f"{part}: {point.family}")
      for part, study in parts.items()
      for point in study.points
    ],
  )


def _parts(made: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
  return {"": made} if "recipe" in made else made


def config(name: str, seed: int) -> dict[str, Any]:
  """A config of configs/, such as "clp/tiny.py:argument", as nested plain data, with the seed of a run.

  The seed is that of the world, too, or of the order in which files are split into parts.
  """
  path, _, argument = name.partition(":")
  spec = importlib.util.spec_from_file_location("config", CONFIGS / path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  made: dict[str, Any] = _plain(module.get_config(*filter(None, [argument])))
  made["seed"] = seed
  _reseed(made["problem"], seed)
  return made


def _reseed(section: dict[str, Any], seed: int) -> None:
  for key, value in section.items():
    if key in ("seed", "shuffle_seed"):
      section[key] = seed
    elif isinstance(value, dict):
      _reseed(value, seed)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping) or hasattr(value, "items"):
    return {key: _plain(each) for key, each in value.items()}
  return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def main(
  arguments: Sequence[str],
  *,
  directory: pathlib.Path,
  make_config: Callable[[int], Mapping[str, Any]],
  claims: Sequence[Claim],
  draw: Callable[[Sequence[Study], pathlib.Path], None],
  read: Callable[..., Study] = read,
) -> int:
  """Runs what is missing, then judges: the command line of an experiment; see its `--help`.

  Args:
    arguments: of the command line.
    directory: of the experiment; its ledger and results are written there.
    make_config: a seed -> the config of its run; or those of several runs by name, which `joined` makes one study of.
    claims: what is judged.
    draw: writes the figures of runs into a directory.
    read: (workdir, seed=) -> what a run that is done measured.
  """
  command = f"python -m experiments.{directory.name}"
  parser = argparse.ArgumentParser(prog=command)
  parser.add_argument("--workdirs", type=pathlib.Path, default=pathlib.Path("runs/experiments"))
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument(
    "--hardware", default=f"{platform.machine()} CPU", help="what to write into the ledger"
  )
  steps = parser.add_mutually_exclusive_group()
  steps.add_argument(
    "--train-only", action="store_true", help="judge nothing: the runs are shared among processes"
  )
  steps.add_argument("--judge-only", action="store_true", help="train nothing: the runs are done")
  options = parser.parse_args(arguments)
  runs = []
  for seed in options.seeds:
    parts = {}
    for part, config in _parts(make_config(seed)).items():
      name = "-".join(filter(None, [directory.name, str(seed), part.replace(" ", "_")]))
      if not options.judge_only:
        recipes.run(config, options.workdirs / name, command=command)
      if not options.train_only:
        parts[part] = read(options.workdirs / name, seed=seed)
    runs.append(joined(parts, seed=seed))
  if options.train_only:
    return 0
  entries = [judged(claim, runs, command, options.hardware) for claim in claims]
  ledgers.update(directory, entries)
  results = directory / "results"
  results.mkdir(exist_ok=True)
  write(runs, results / "points.csv")
  draw(runs, results)
  print(ledgers.table(entries))
  return 0


def judged(claim: Claim, runs: Sequence[Study], command: str, hardware: str) -> ledgers.Entry:
  """A claim's entry of the ledger; needs two runs at least."""
  found = claim.find(runs)
  return ledgers.Entry(
    claim=claim.name,
    paper=claim.paper,
    measured=found.measured,
    verdict=found.verdict,
    command=command,
    hardware=hardware,
    seeds=tuple(run.seed for run in runs),
  )


def write(runs: Sequence[Study], path: pathlib.Path) -> None:
  """All points of all runs as a table with a row for every value."""
  with path.open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["seed", "study", "family", "split", "label", "x", "value", "number"])
    for run in runs:
      for point in run.points:
        place = "; ".join(f"{name} = {x:.6g}" for name, x in point.x.items())
        start = [run.seed, point.study, point.family, point.split, point.label, place]
        for name, value in point.values.items():
          table.writerow([*start, name, f"{value:.5g}"])
