"""`wam report DIR`: the report of a run, drawn again from its records, or the page of an experiment's ledger."""

import argparse
import pathlib
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
  """Writes the page, and for a run pictures and tables; prints the table."""
  parser = argparse.ArgumentParser(prog="wam report", description=__doc__)
  parser.add_argument(
    "workdir",
    type=pathlib.Path,
    metavar="DIR",
    help="a directory that `wam run` wrote, or one with a ledger.json",
  )
  options = parser.parse_args(arguments)

  import rich

  from wam import report
  from wam.report import ledgers

  if (options.workdir / ledgers.FILE_NAME).is_file():
    print(ledgers.table(ledgers.read(options.workdir)))
    print(f"report: {report.write_ledger_report(options.workdir)}")
    return 0
  page = report.write_report(options.workdir)
  rich.print(report.summary(report.read_run(options.workdir)))
  print(f"report: {page}")
  return 0
