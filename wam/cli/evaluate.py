"""`wam evaluate --config FILE MODEL [MODEL ...]`: scores of models on the tasks of a config."""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from wam.cli import configs
from wam.cli.models import load


def main(arguments: Sequence[str]) -> int:
  """Prints a table of every model on every task, with bootstrap intervals; see `--help`."""
  if {"-h", "--help"} & set(arguments):
    _parser().print_help()
    sys.exit(0)
  config, rest = configs.parse(arguments, verb="evaluate")
  options = _parser().parse_args(rest)

  import rich
  import rich.table

  from wam.evaluation import metrics, tasks
  from wam.evaluation.statistics import statistic_interval
  from wam.recipes import problems

  data = problems.make(config["problem"])
  found: list[dict[str, Any]] = []
  for directory in options.models:
    loaded = load(directory)
    for task in data.tasks[options.split]:
      prepared = tasks.prepare(task, loaded.tokenizer, max_length=options.max_length)
      score = prepared.evaluate(loaded.model, loaded.params)
      value = functools.partial(metrics.value, score.metric)
      interval = statistic_interval(score.statistics, value)
      found.append(
        {
          "model": str(directory),
          "task": score.name,
          "metric": score.metric,
          "split": options.split,
          "value": score.value,
          "low": interval.low,
          "high": interval.high,
          "items": len(score.per_item),
        }
      )
  table = rich.table.Table(
    title=f"Scores on the {options.split} split, 95% bootstrap intervals over items"
  )
  for name in ("model", "task", "metric", "value", "interval", "items"):
    table.add_column(name, justify="left" if name in ("model", "task", "metric") else "right")
  for row in found:
    between = f"{row['low']:.4g} to {row['high']:.4g}"
    table.add_row(
      row["model"], row["task"], row["metric"], f"{row['value']:.4g}", between, str(row["items"])
    )
  rich.print(table)
  if options.out:
    from wam.checkpoints.records import write_atomically

    write_atomically(options.out, json.dumps(found, indent=2) + "\n")
    print(f"written: {options.out}")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="wam evaluate",
    usage="wam evaluate --config FILE [--config.KEY=VALUE ...] [options] MODEL [MODEL ...]",
    description="Scores models on the tasks of a config's problem.",
  )
  parser.add_argument("models", nargs="+", type=pathlib.Path, help="Hugging Face model directories")
  parser.add_argument("--split", choices=("validation", "test"), default="test")
  parser.add_argument(
    "--max-length", type=int, default=1024, help="tokens of a prompt; the right end is kept"
  )
  parser.add_argument("--out", type=pathlib.Path, help="write the scores there too, as JSON")
  return parser
