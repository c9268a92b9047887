"""What a run found, for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

from wam.report import blocks_page, studies, tables
from wam.report.records import Record, Run

if TYPE_CHECKING:
  from rich.console import Group
  from rich.table import Table


def summary(source: Run | Sequence[Record], *, every_point: bool = True) -> Union["Table", "Group"]:
  """Builds what a terminal shows of a run (print it with rich): headline and tables of its study, or the final table.

  Args:
    source: of `read_run`; or its records alone, of which the recipe is guessed.
    every_point: everything; else of a front only the ends and the selected average, of a study only short tables.
  """
  run = source if isinstance(source, Run) else _unnamed(list(source))
  study = studies.page_of(run)
  if study is None:
    return tables.front_table(run.records, every_point=every_point)
  return blocks_page.terminal(study, every_table=every_point)


def _unnamed(records: list[Any]) -> Run:
  return Run(name="", config={}, command=None, versions={}, records=records, notices=[])
