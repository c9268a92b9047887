"""Floor 4: the records of a run become tables, figures and one self-contained HTML page; a ledger becomes a page, too.

Reads `config.json` and `records.jsonl` of a run directory and nothing else, so a report can be redrawn on any machine.
Imports no JAX; matplotlib and plotly are loaded only when something is drawn, so importing this package is cheap.
"""

from wam.report.figures import connectivity_figure
from wam.report.ledger_page import write_ledger_report
from wam.report.page import write_report
from wam.report.records import Run, read_run
from wam.report.terminal import summary

__all__ = [
  "Run",
  "connectivity_figure",
  "read_run",
  "summary",
  "write_ledger_report",
  "write_report",
]
