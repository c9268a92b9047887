"""`wam report WORKDIR`: the report of a run, drawn again from its records."""

import argparse
import pathlib
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
  """Writes the page, the pictures and the tables; prints the table."""
  parser = argparse.ArgumentParser(prog="wam report", description=__doc__)
  parser.add_argument("workdir", type=pathlib.Path, help="a directory that `wam run` wrote")
  options = parser.parse_args(arguments)

  import rich

  from wam import report

  page = report.write_report(options.workdir)
  rich.print(report.summary(report.read_run(options.workdir).records))
  print(f"report: {page}")
  return 0
