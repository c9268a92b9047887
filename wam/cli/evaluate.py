"""`wam evaluate MODEL [MODEL ...] --suites NAME,...`: scores on benchmarks, on a config's tasks, or by a judge."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from wam.cli import configs
from wam.cli.models import load
from wam.core.errors import ConfigError, MissingFile, did_you_mean


def main(arguments: Sequence[str]) -> int:
  """Prints a table of every model on every task, with intervals; see `--help`."""
  if {"-h", "--help"} & set(arguments):
    _parser().print_help()
    sys.exit(0)
  if "--list" in arguments:
    return _list_suites()
  config = None
  if any(a.lstrip("-").partition("=")[0].partition(".")[0] == "config" for a in arguments):
    config, arguments = configs.parse(arguments, verb="evaluate")
  options = _parser().parse_args(arguments)
  if (config is not None) + bool(options.suites) + bool(options.judge) != 1:
    raise ConfigError(
      "say what to evaluate: --suites NAME,... (--list names them), --config FILE, or --judge REWARD_MODEL"
    )
  _check_paths(options)
  if options.judge:
    from wam.cli import win_rates

    rows = win_rates.measure(options, assignments(options.set, ["prompts"])["prompts"])
    win_rates.show(rows)
  else:
    rows = _measure(options, _asked(options, config))
    _show(rows, options)
  _write(options.out, rows)
  return 0


class Asked(NamedTuple):
  """A task, the metrics of it that are shown (None: its own), and what a record says of it beside scores."""

  task: Any
  metrics: Sequence[str] | None
  settings: dict[str, Any]


def _asked(options: argparse.Namespace, config: dict[str, Any] | None) -> list[Asked]:
  """The tasks, with their data: everything that can be wrong with those is found before a model is loaded."""
  if config is not None:
    from wam.recipes import problems

    tasks = problems.make(config["problem"]).tasks[options.split]
    return [Asked(task, None, {"split": options.split}) for task in tasks]

  from wam.evaluation import suites

  paths = _suite_paths(options.suites)
  given = assignments(options.set, paths)
  found = []
  for name, path in paths.items():
    spec: dict[str, Any] = {"data_dir": options.data_dir} | ({"path": path} if path else {})
    spec |= {"few_shot": options.few_shot} if options.few_shot else {}
    spec |= {"limit": options.limit} if options.limit is not None else {}
    loaded = suites.load(name, spec | given[name])
    found.append(Asked(loaded.task, loaded.metrics, loaded.settings))
  return found


def _suite_paths(text: str) -> dict[str, str]:
  """Suites by name, each with its path or "": "arc_easy,squad=dev-v1.1.json"."""
  paths: dict[str, str] = {}
  for part in filter(None, (p.strip() for p in text.split(","))):
    name, _, path = part.partition("=")
    if name in paths:
      raise ConfigError(f"--suites names '{name}' twice")
    paths[name] = path
  return paths


def assignments(given: Sequence[str], names: Any) -> dict[str, dict[str, Any]]:
  """{name: {key: value}} of "NAME.KEY=VALUE"; values are JSON where they can be, else text.

  Raises:
    ConfigError: one has another form, or is for a name that is not asked.
  """
  found: dict[str, dict[str, Any]] = {name: {} for name in names}
  for text in given:
    left, equals, value = text.partition("=")
    name, dot, key = left.partition(".")
    if not equals or not dot or not key:
      raise ConfigError(f"--set {text}: expected NAME.KEY=VALUE, as in squad.max_new_tokens=32")
    if name not in found:
      raise ConfigError(
        f"--set {text}: '{name}' is not evaluated.{did_you_mean(name, found)} Evaluated: {', '.join(found)}"
      )
    try:
      found[name][key] = json.loads(value)
    except ValueError:
      found[name][key] = value
  return found


def _measure(options: argparse.Namespace, asked: Sequence[Asked]) -> list[dict[str, Any]]:
  import rich.console

  from wam.evaluation import metrics, scores, tasks

  rows: list[dict[str, Any]] = []
  console = rich.console.Console(stderr=True)
  for directory in options.models:
    loaded = load(directory)
    context = options.max_length or loaded.model.config.max_position_embeddings
    for task, shown, settings in asked:
      with console.status(f"{directory}: {task.name}"):
        prepared = tasks.prepare(
          task,
          loaded.tokenizer,
          batch_size=options.batch_size,
          max_length=context,
          context=context,
        )
        found = prepared.scores(loaded.model, loaded.params)
      for metric in shown or [getattr(task, "metric", found[0].metric)]:
        score = scores.first(found, metric)
        interval, method = scores.score_interval(score, level=options.level)
        rows.append(
          {
            "model": str(directory),
            "task": score.name,
            "metric": metric,
            "harness_name": metrics.HARNESS_NAMES.get(metric, metric),
            "value": score.value,
            "low": interval.low,
            "high": interval.high,
            "level": interval.level,
            "interval": method,
            "items": len(score.per_item),
            "context": context,
            **score.counts,
            **({"signature": score.signature} if score.signature else {}),
            **settings,
          }
        )
  return rows


def _show(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
  import rich.table

  from wam.evaluation import scores

  short = {scores.WILSON: "W", scores.BOOTSTRAP: "B", scores.NO_INTERVAL: "-"}
  several = len(options.models) > 1
  table = rich.table.Table(
    title=f"Scores with {100 * options.level:g}% intervals"
    + ("" if several else f": {options.models[0]}"),
    caption="W: Wilson. B: percentile bootstrap over items. cut: prompts that were too long for the context, and lost"
    " their left end.",
  )
  words = ["model", "task", "metric", ""]
  for name in (*words[not several : 3], "value", "interval", "", "items", "cut"):
    table.add_column(name, justify="left" if name in words else "right")
  for row in rows:
    theirs = row["harness_name"]
    table.add_row(
      *([row["model"]] if several else []),
      row["task"],
      row["metric"] + (f" ({theirs})" if theirs != row["metric"] else ""),
      f"{row['value']:.4g}",
      f"{row['low']:.4g} to {row['high']:.4g}",
      short[row["interval"]],
      str(row["items"]),
      str(row.get("truncated_prompts", 0) or ""),
    )
  wide_console().print(table)
  for signature in dict.fromkeys(row["signature"] for row in rows if "signature" in row):
    print(f"BLEU: {signature}")


def wide_console() -> Any:
  """Standard output; where that is no terminal, wide enough for a table."""
  import rich.console

  return rich.console.Console(width=None if sys.stdout.isatty() else 140)


def _list_suites() -> int:
  import rich.table

  from wam.evaluation.suites import SUITES

  table = rich.table.Table(
    title="Suites, and where under --data-dir (or WAM_DATA) they are looked for"
  )
  for name in ("suite", "what", "metrics", "split", "places"):
    table.add_column(name)
  for name, suite in SUITES.items():
    places = "\n".join(suite.places) or f"{name}=PATH"
    table.add_row(name, suite.about, "\n".join(suite.metrics), suite.split, places)
  wide_console().print(table)
  return 0


def _check_paths(options: argparse.Namespace) -> None:
  """Refuses, before anything is computed, models that are not there and results that could not be written."""
  from wam import pretrained

  for directory in options.models:
    pretrained.read_config(directory)
  if options.out and not options.out.absolute().parent.is_dir():
    raise MissingFile(f"--out {options.out}: the directory {options.out.parent} does not exist")
  if not 0 < options.level < 1:
    raise ConfigError(f"--level must lie between 0 and 1, found {options.level}; try 0.95")


def _write(out: pathlib.Path | None, rows: Sequence[dict[str, Any]]) -> None:
  """JSON, or where the file is called .jsonl one more object a line."""
  if out is None:
    return
  from wam.checkpoints.records import write_atomically, writing

  # NaN is no JSON: of one item there is no interval.
  plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]
  if out.suffix == ".jsonl":
    with writing(out.name, out), out.open("a", encoding="utf-8") as file:
      file.writelines(json.dumps({"kind": "score", **row}) + "\n" for row in plain)
  else:
    write_atomically(out, json.dumps(plain, indent=2) + "\n")
  print(f"written: {out}")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="wam evaluate",
    usage="wam evaluate MODEL [MODEL ...] --suites NAME[=PATH],... [options]\n"
    "       wam evaluate --config FILE [--config.KEY=VALUE ...] [options] MODEL [MODEL ...]\n"
    "       wam evaluate MODEL MODEL [MODEL ...] --judge REWARD_MODEL --prompts FILE [options]\n"
    "       wam evaluate --list",
    description="Scores models on benchmarks by name, on the tasks of a config's problem, or against the first of them"
    " by a reward model.",
  )
  add = parser.add_argument
  add("models", nargs="+", type=pathlib.Path, help="Hugging Face model directories")
  add(
    "--suites", default="", help="benchmarks, separated by commas; with =PATH where their data are"
  )
  add("--list", action="store_true", help="name the suites")
  add("--data-dir", help="where relative paths start; default: WAM_DATA")
  add("--limit", type=int, help="items of each suite, at most")
  add("--few-shot", type=int, default=0, help="solved examples before every question")
  add(
    "--set",
    action="append",
    default=[],
    metavar="NAME.KEY=VALUE",
    help="a key of a suite's spec, or of the prompts', such as boolq.split=validation or squad.max_new_tokens=32",
  )
  add("--split", choices=("validation", "test"), default="test", help="of a config's tasks")
  add(
    "--max-length",
    type=int,
    help="tokens that the model reads; default: its context. A prompt that is too long keeps its right end",
  )
  add("--batch-size", type=int, default=32, help="rows at a time")
  add("--level", type=float, default=0.95, help="of confidence")
  add("--judge", type=pathlib.Path, help="a reward model: win rates against the first model")
  add(
    "--prompts", help="what the models answer for the judge: a file, a directory or tfds:NAME:SPLIT"
  )
  add("--num-samples", type=int, default=1, help="judge: completions of each prompt")
  add("--max-new-tokens", type=int, default=128, help="judge: tokens of a completion")
  add("--temperature", type=float, default=1.0, help="judge: 0 is greedy")
  add("--top-p", type=float, default=1.0, help="judge")
  add("--seed", type=int, default=0, help="judge: of the samples")
  add("--out", type=pathlib.Path, help="write the scores there too: JSON, or appended to a .jsonl")
  return parser
