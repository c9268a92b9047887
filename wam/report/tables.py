"""The numbers of a report as rows: CSV files, the table in the terminal, the tables of the page.

Numbers in the CSV files are full precision; the other two round for reading.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam.checkpoints.records import write_atomically
from wam.report import fronts
from wam.report.points import MEAN, MEASURES, Estimate, Point, Points, collect
from wam.report.records import Record, finite, of_kind
from wam.report.story import half_width, number

if TYPE_CHECKING:
  from rich.table import Table

FRONT_COLUMNS = ("family", "x", "y", "reference", "hypervolume", "low", "high", "level")
Cell = dict[str, Any]  # "text" to show, "half" width of the interval as text, "value" to sort by
MEASURE_TITLES = {
  "reward_proxy": "proxy reward",
  "reward_gold": "gold reward",
  "reward_control": "control reward",
  "kl": "KL (nats)",
  "length": "length",
}


def value_columns(points: Points) -> list[tuple[str, str]]:
  """Returns (name, title) of the measures and scores that at least one point has."""
  titles = {name: MEASURE_TITLES[name] for name in MEASURES}
  titles |= {skill.name: skill.title for skill in points.skills}
  titles[MEAN] = "mean of skills" + (", relative" if points.relative else "")
  return [(n, t) for n, t in titles.items() if any(p.value(n) for p in points.every)]


def write_points(points: Points, path: Path) -> None:
  """Writes one row a point: labels, coefficients, and mean, low, high and number of seeds of every value."""
  parts = list(dict.fromkeys(part for p in points.every for part in p.coefficients))
  names = [name for name, _ in value_columns(points)]
  head = ["family", "series", "label", "split", "seeds"] + [f"coefficient_{p}" for p in parts]
  head += [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_seeds")]
  rows = []
  for point in points.every:
    row: list[Any] = [point.family, point.series, point.label, point.split, " ".join(point.seeds)]
    row += [point.coefficients.get(part, "") for part in parts]
    for name in names:
      row += ["" if v is None else v for v in point.value(name) or (None, None, None, 0)]
    rows.append(row)
  _write(path, head, rows)


def write_fronts(records: Sequence[Record], path: Path) -> None:
  """Writes the hypervolume records, one row each."""
  rows = []
  for record in of_kind(records, "front"):
    row = [record.get(column, "") for column in FRONT_COLUMNS]
    reference = record.get("reference")
    row[3] = " ".join(map(str, reference)) if isinstance(reference, list) else row[3]
    rows.append(["" if v is None else v for v in row])
  _write(path, list(FRONT_COLUMNS), rows)


def front_table(records: Sequence[Record], *, every_point: bool = True) -> "Table":
  """Builds the final table of a reward-tax front for a terminal (print it with rich).

  Args:
    records: of the run, e.g. `read_run(workdir).records`.
    every_point: also the points between the ends; else only the ends and the selected average.
  """
  from rich.markup import escape

  from wam.report.fitted_table import FittedTable

  points = collect(records)
  between, selection = fronts.ends(points.shown), fronts.select(points, records)
  names = [c for c in value_columns(points) if c[0] != "length"]
  skills = {skill.name for skill in points.skills}
  table = FittedTable(
    title=f"Evaluated models, means over sampling seeds ({escape(points.split)} split)",
    title_justify="left",
    caption_justify="left",
  )
  table.add_column("line")
  table.add_column("model")
  for name, title in names:
    table.add_column(escape(name if name in skills else title), justify="right")
  last = None
  for point in points.shown:
    special = role(point, between, selection)
    if not (every_point or special):
      continue
    label = point.label + (f" ({special})" if special and special != point.label else "")
    cells = [number(found.mean if (found := point.value(name)) else None) for name, _ in names]
    series = "" if point.series == last else point.series
    table.add_row(escape(series), escape(label), *cells, style="bold" if special else None)
    last = point.series
  if selection:
    table.caption = escape(f"selected by: {rule_text(selection)}")
  return table


def role(point: Point, between: fronts.Ends, selection: fronts.Selection | None) -> str:
  """Says what a point is beside a point: 'before RLHF', 'after RLHF', 'selected', or nothing."""
  if point is between.before:
    return "before RLHF"
  if point is between.after:
    return "after RLHF"
  return "selected" if selection and point is selection.point else ""


def rule_text(selection: fronts.Selection) -> str:
  """Writes the selection rule, the split it saw, and whether that makes it an oracle."""
  oracle = " [oracle: the rule saw what it is judged by, so this flatters it]"
  return f"{selection.rule}; on the {selection.split} split" + (oracle if selection.oracle else "")


def point_rows(points: Points, records: Sequence[Record], split: str) -> list[dict[str, Any]]:
  """Returns the rows of the page's table of one split: cells with the text to show and the value to sort by."""
  between, selection = fronts.ends(points.shown), fronts.select(points, records)
  names = value_columns(points)
  rows = []
  for point in points.every:
    if point.split != split:
      continue
    rows.append(
      {
        "series": point.series,
        "label": point.label,
        "role": "" if (special := role(point, between, selection)) == point.label else special,
        "special": bool(special),
        "coefficients": _ratios(point),
        "order": sum(point.coefficients.values()) if point.coefficients else "",
        "seeds": len(point.seeds),
        "cells": [_cell(point.value(name)) for name, _ in names],
      }
    )
  return rows


def front_rows(records: Sequence[Record]) -> list[dict[str, str]]:
  """Returns the rows of the page's hypervolume table, the largest first within a skill."""
  found = of_kind(records, "front")
  order = list(dict.fromkeys(r["y"] for r in found))
  order.sort(key=lambda y: y != MEAN)
  found.sort(key=lambda r: (order.index(r["y"]), -r["hypervolume"]))
  rows = []
  for record in found:
    low, high = finite(record.get("low")), finite(record.get("high"))
    reference = record.get("reference")
    rows.append(
      {
        "family": record["family"],
        "y": record["y"],
        "x": MEASURE_TITLES.get(record["x"], record["x"]),
        "hypervolume": f"{record['hypervolume']:#.3g}",
        "interval": f"{low:#.3g} to {high:#.3g}" if low is not None and high is not None else "–",
        "level": f"{level:.0%}" if (level := finite(record.get("level"))) else "",
        "reference": ", ".join(number(finite(v)) for v in reference)
        if isinstance(reference, list)
        else "–",
      }
    )
  return rows


def headline_rows(
  points: Points, records: Sequence[Record]
) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
  """Returns heads and rows of the small table on top: the ends and the selected average side by side."""
  between, selection = fronts.ends(points.shown), fronts.select(points, records)
  columns = [
    ("before RLHF", between.before),
    ("after RLHF", between.after),
    ("selected average", selection.point if selection else None),
  ]
  present = [(title, point) for title, point in columns if point is not None]
  rows = [
    (title, [_cell(point.value(name)) for _, point in present])
    for name, title in value_columns(points)
    if name != "length"
  ]
  return [title for title, _ in present], rows


def coefficient_parts(points: Points) -> str:
  """Names of the parts in the order in which the page's table writes their coefficients."""
  longest: list[str] = []
  for point in points.every:
    if len(point.coefficients) > len(longest):
      longest = list(point.coefficients)
  return " / ".join(longest)


def _ratios(point: Point) -> str:
  values = [f"{value:g}" for value in point.coefficients.values()]
  return (values[0] if len(set(values)) == 1 else " / ".join(values)) if values else "–"


def _cell(found: Estimate | None) -> Cell:
  return {
    "text": number(found.mean if found else None),
    "half": half_width(found),
    "value": found.mean if found else "",
  }


def _write(path: Path, head: list[str], rows: list[list[Any]]) -> None:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(head)
  writer.writerows(rows)
  write_atomically(path, text.getvalue())
