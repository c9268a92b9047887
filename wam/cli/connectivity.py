"""`wam connectivity --config FILE A B`: scores along the straight line between two models, and the barriers on it."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from wam.cli import configs
from wam.cli.models import load
from wam.core.errors import unknown_name

MEAN, LINE = "against the mean of the ends", "against the line between them"


def main(arguments: Sequence[str]) -> int:
  """Draws a picture and writes the numbers of every task; see `--help`."""
  if {"-h", "--help"} & set(arguments):
    _parser().print_help()
    sys.exit(0)
  config, rest = configs.parse(arguments, verb="connectivity")
  options = _parser().parse_args(rest)

  import rich

  from wam import report
  from wam.checkpoints.records import write_atomically, writing
  from wam.core.errors import check_same_trees
  from wam.recipes import problems

  chosen = problems.make(config["problem"]).tasks[options.split]
  if options.task:
    names = [task.name for task in chosen]
    for name in options.task:
      if name not in names:
        raise unknown_name("task", name, names)
    chosen = [task for task in chosen if task.name in options.task]
  first, second = load(options.first), load(options.second)
  check_same_trees(first.params, second.params, names=[str(options.first), str(options.second)])
  with writing("the results", options.out):
    options.out.mkdir(parents=True, exist_ok=True)
  results = []
  for task in chosen:
    result = _measure(task, first, second, points=options.points, max_length=options.max_length)
    result["names"] = [options.first.name, options.second.name]
    write_atomically(options.out / f"{task.name}.json", json.dumps(result, indent=2) + "\n")
    report.connectivity_figure(result, options.out / f"{task.name}.png")
    results.append(result)
  rich.print(_table(results))
  print(f"written: a .png and a .json for each task in {options.out}")
  return 0


def _measure(task: Any, first: Any, second: Any, *, points: int, max_length: int) -> dict[str, Any]:
  """The curve of one task, as plain data."""
  from wam.evaluation import curves, metrics, tasks

  prepared = tasks.prepare(task, first.tokenizer, max_length=max_length)
  metric = prepared.evaluate(first.model, first.params).metric
  curve = curves.connectivity(
    lambda params: prepared.evaluate(first.model, params).per_item,
    first.params,
    second.params,
    grid=points,
    maximize=metric not in metrics.LOSSES,
  )
  barriers = {MEAN: curve.mean_barrier, LINE: curve.interpolated_barrier}
  return {
    "task": task.name,
    "metric": metric,
    "higher_is_better": curve.maximize,
    "lambdas": curve.grid.tolist(),
    "values": curve.values.tolist(),
    "low": curve.low.tolist(),
    "high": curve.high.tolist(),
    "level": curve.level,
    "barriers": {name: barrier.value for name, barrier in barriers.items()},
    "barrier_intervals": {name: [b.low, b.high] for name, b in barriers.items()},
  }


def _table(results: Sequence[dict[str, Any]]) -> Any:
  import rich.table

  table = rich.table.Table(title="Barriers on the straight line (0: none), with 95% intervals")
  for name in ("task", "metric", "at A", "at B", MEAN, LINE):
    table.add_column(name, justify="left" if name in ("task", "metric") else "right")
  for result in results:
    barriers = [
      f"{result['barriers'][name]:.3g} ({low:.3g} to {high:.3g})"
      for name, (low, high) in result["barrier_intervals"].items()
    ]
    ends = [f"{result['values'][i]:.4g}" for i in (0, len(result["values"]) - 1)]
    table.add_row(result["task"], result["metric"], *ends, *barriers)
  return table


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="wam connectivity",
    usage="wam connectivity --config FILE [--config.KEY=VALUE ...] [options] A B",
    description="Evaluates (1 - λ)·A + λ·B on the tasks of a config's problem. Scores are means over"
    " items (for BLEU, of sentences).",
  )
  parser.add_argument(
    "first", type=pathlib.Path, metavar="A", help="a Hugging Face model directory"
  )
  parser.add_argument("second", type=pathlib.Path, metavar="B", help="another of the same shape")
  parser.add_argument("--task", action="append", help="only this task; may be given several times")
  parser.add_argument("--points", type=int, default=11, help="of λ, both ends included")
  parser.add_argument("--split", choices=("validation", "test"), default="test")
  parser.add_argument(
    "--max-length", type=int, default=1024, help="tokens of a prompt; the right end is kept"
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("connectivity"))
  return parser
