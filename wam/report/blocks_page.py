"""The report of a study: the blocks of its page as one self-contained HTML file, a picture a figure, and two tables.

The page loads nothing from anywhere, as that of `page`, whose look and script it shares.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam.checkpoints.records import write_atomically, writing
from wam.report import charts, explorers, figures, measurements, panels, tables
from wam.report.assets import asset, data_url, template
from wam.report.blocks import (
  Cell,
  Explorer,
  Figures,
  Page,
  Section,
  Table,
  Text,
  text_cell,
  value_cell,
)
from wam.report.records import Run
from wam.report.run_facts import heldout_rows, note_text, plain_text, stage_rows

if TYPE_CHECKING:
  from rich.console import Group

FOLDER = "report"
PAGE = "index.html"
MEASUREMENTS_TABLE, FRONTS_TABLE = "measurements.csv", "fronts.csv"
CURVES_PICTURE = "curves"
_MOST_CURVES = 24  # panels of the picture
_SHORT = 12  # rows of a table that a terminal shows in any case


def write(run: Run, page: Page, folder: Path) -> Path:
  """Writes the report into `folder`, which is made if need be.

  Args:
    run: whose records the page is of.
    page: its blocks.
    folder: e.g. `workdir/report`. Pictures of an earlier report are removed.

  Returns:
    The path of the page. It replaces an older one only when it is complete.

  Raises:
    CannotWrite: on a full disk or without permission.
  """
  with writing(FOLDER, folder):
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
      old.unlink()
  styles = charts.page_styles(page)
  for drawn in charts.all_figures(page):
    charts.write_picture(drawn, styles, folder / f"{drawn.name}.png")
  # Runs of many members have hundreds of panels: all on the page, not all in one picture.
  figures.curves_figure(run.records, folder / f"{CURVES_PICTURE}.png", most=_MOST_CURVES)
  _write_measurements(run, folder / MEASUREMENTS_TABLE)
  tables.write_fronts(run.records, folder / FRONTS_TABLE)
  write_atomically(folder / PAGE, _render(run, page, styles, folder))
  return folder / PAGE


def terminal(page: Page, *, every_table: bool = True) -> "Group":
  """The headline and the tables for a terminal (print it with rich).

  Args:
    page: of a study.
    every_table: also long tables.
  """
  from rich.console import Group
  from rich.padding import Padding

  shown: list[Any] = [Padding(_text(sentence), (0, 0, 1, 0)) for sentence in page.headline]
  if page.missing:
    shown.append(_text(f"Not in the records (yet): {'; '.join(page.missing)}."))
  for section in page.sections:
    for block in section.blocks:
      if isinstance(block, Table) and (every_table or len(block.rows) <= _SHORT):
        shown.append(_rich_table(block, block.title or section.title))
  return Group(*shown)


def position_table(explorer: Explorer) -> Table:
  """All positions of an explorer, for readers without scripts."""
  rows = [
    [
      text_cell(path.name),
      text_cell(position.label),
      *(value_cell(n, s) for n, s in zip(explorer.scores, position.scores, strict=True)),
    ]
    for path in explorer.paths
    for position in path.positions
  ]
  return Table(["line", "position", *explorers.score_titles(explorer)], rows, 2)


def _render(run: Run, page: Page, styles: charts.Styles, folder: Path) -> str:
  from plotly.offline import get_plotlyjs

  sections = [_section(section, styles) for section in page.sections]
  items = [item for section in sections for item in section["blocks"]]
  curves = _curves(run)
  drawn = [panel for item in items for panel in item.get("panels", [])]
  drawn += [panel for _, group in curves for panel in group]
  pictures = sorted(folder.glob("*.png"))
  recipe = run.config.get("recipe")
  return template("blocks.html.jinja").render(
    run=run,
    page=page,
    recipe=recipe if isinstance(recipe, str) else "",
    style=asset("page.css") + asset("blocks.css"),
    script=asset("page.js"),
    explorer_script=asset("explorer.js"),
    plotly=get_plotlyjs() if drawn else "",
    drawn={panel["id"]: panel["figure"] for panel in drawn},
    explorers={i["block"].name: i["payload"] for i in items if i["kind"] == "explorer"},
    sections=sections,
    curves=curves,
    heldout=heldout_rows(run),
    config=json.dumps(run.config, indent=2, ensure_ascii=False),
    stages=stage_rows(run),
    notes=[note_text(record) for record in run.of_kind("note")],
    seeds=f"seed of the run {plain_text(run.config['seed'])}" if "seed" in run.config else "",
    pictures={path.name: data_url(path) for path in pictures},
    files=[MEASUREMENTS_TABLE, FRONTS_TABLE, *(path.name for path in pictures)],
  )


def _section(section: Section, styles: charts.Styles) -> dict[str, Any]:
  """What the template needs of a section."""
  items: list[dict[str, Any]] = []
  for block in section.blocks:
    if isinstance(block, Text):
      items.append({"kind": "text", "block": block})
    elif isinstance(block, Table):
      items.append({"kind": "table", "block": block})
    elif isinstance(block, Figures):
      items.append({"kind": "figures", "block": block, **_drawn(block, styles, ())})
    else:
      items.append(_explorer(block, styles))
  return {"name": section.name, "title": section.title, "blocks": items}


def _explorer(block: Explorer, styles: charts.Styles) -> dict[str, Any]:
  position, start = explorers.start(block), explorers.start_index(block)
  drawn = _drawn(block.figures, styles, position.places)
  return {
    "kind": "explorer",
    "block": block,
    "position": position,
    "start": start,
    "titles": explorers.score_titles(block),
    "table": position_table(block),
    "payload": explorers.payload(block) | {"start": start},
    **drawn,
  }


def _drawn(
  block: Figures | None, styles: charts.Styles, here: Sequence[tuple[float, float] | None]
) -> dict[str, Any]:
  if block is None:
    return {"panels": [], "legend": [], "figures": ""}
  return {
    "panels": charts.panels(block, styles, here=here),
    "legend": charts.legend(block, styles),
    "figures": block.name,
  }


def _curves(run: Run) -> list[tuple[str, list[panels.Panel]]]:
  """Training curves by the first word of their stage, so that a page of many runs stays readable."""
  groups: dict[str, list[panels.Panel]] = {}
  for panel in panels.curve_panels(run.records):
    stage = panel["title"].rsplit(": ", 1)[0]
    groups.setdefault(re.split(r"[/:-]", stage)[0], []).append(panel | {"wide": False})
  return list(groups.items())


def _write_measurements(run: Run, path: Path) -> None:
  """One row a measurement: what it is, what places it, mean, low and high of every value."""
  points = measurements.collect(run.records)
  placed, names = measurements.x_names(points), measurements.value_names(points)
  head = ["study", "family", "label", "split", *(f"x_{name}" for name in placed)]
  head += [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_seeds")]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(head)
  for point in points:
    row: list[Any] = [point.study, point.family, point.label, point.split]
    row += [point.x.get(name, "") for name in placed]
    for name in names:
      row += ["" if v is None else v for v in point.values.get(name) or (None, None, None, None)]
    writer.writerow(row)
  write_atomically(path, text.getvalue())


def _text(text: str) -> Any:
  from rich.text import Text as RichText

  return RichText(text)


def _rich_table(block: Table, title: str) -> Any:
  from wam.report.fitted_table import FittedTable

  table = FittedTable(title=_text(title), title_justify="left")
  table.num_spare = block.num_places
  for i, head in enumerate(block.heads):
    table.add_column(_text(head), justify="left" if i < block.num_texts else "right")
  for row in block.rows:
    table.add_row(*(_text(_cell_text(cell)) for cell in row))
  return table


def _cell_text(cell: Cell) -> str:
  return f"{cell.text} ±{cell.half}" if cell.half else cell.text
