"""`wam run --config FILE --workdir DIR`: a recipe from its config to its report."""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from wam.cli import configs


def main(arguments: Sequence[str]) -> int:
  """Runs the recipe that the config names, then writes the report; see `--help`."""
  config, rest = _arguments(arguments)
  options = _parser().parse_args(rest)

  # Imported late: help does not need JAX.
  from wam.recipes import runs

  command = shlex.join(["wam", "run", *arguments])
  runs.run(config, options.workdir, command=command, show=not options.quiet)

  # Imported late: the run does not need it, and a report can be drawn again where it failed.
  import rich

  from wam import report

  page = report.write_report(options.workdir)
  print()
  rich.print(report.summary(report.read_run(options.workdir), every_point=False))
  print(f"report: {page}")
  return 0


def _arguments(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
  if {"-h", "--help"} & set(arguments):
    _parser().print_help()
    sys.exit(0)
  return configs.parse(arguments, verb="run")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="wam run",
    usage="wam run --config FILE [--config.KEY=VALUE ...] --workdir DIR",
    description="Trains, merges and measures as the config says. Killed and started again with the"
    " same command, it goes on where it was.",
    epilog="--config FILE names the config; --config.section.key=value changes one of its values.",
  )
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
    required=True,
    help="where everything goes: records, checkpoints, report",
  )
  parser.add_argument("--quiet", action="store_true", help="no progress")
  return parser
