"""Sections that pages share: tables of any study, values over a placing number, hypervolumes, what no page knows.

A page takes what it knows and passes the rest to `others`, so that nothing a recipe measured stays unshown.
"""

from collections.abc import Collection, Sequence
from typing import Any

from wam.report.blocks import (
  Cell,
  Figure,
  Figures,
  Section,
  Table,
  Text,
  line,
  text_cell,
  value_cell,
)
from wam.report.measurements import (
  Measurement,
  by_family,
  numbers,
  of_study,
  splits,
  texts,
  title_of,
  value_names,
  x_names,
)
from wam.report.points import Estimate
from wam.report.records import Record, finite, of_kind
from wam.report.story import number
from wam.report.studies import wording

_FRONT_FIELDS = ("kind", "stage", "step", "family", "x", "y", "reference")
_MAX_PANELS = 6
_FEWEST = 3  # points that make a curve


def table(points: Sequence[Measurement], *, title: str = "") -> Table:
  """One row a point: family, label, split where there are several, what places it, and all values."""
  several = len(splits(points)) > 1
  values = value_names(points)
  placed = [name for name in x_names(points) if name not in values]
  heads = ["line", "model", *(["split"] if several else [])]
  rows = []
  for point in points:
    cells = [text_cell(point.family), text_cell(point.label)]
    cells += [text_cell(point.split)] if several else []
    cells += [_place_cell(point.x.get(name)) for name in placed]
    cells += [value_cell(name, point.values.get(name)) for name in values]
    rows.append(cells)
  titles = [*heads, *map(title_of, placed), *map(title_of, values)]
  return Table(titles, rows, len(heads), title, len(placed))


def crossed(points: Sequence[Measurement], value: str, *, title: str = "") -> Table:
  """One value of every model (row) on every split (column)."""
  columns = splits(points)
  rows: dict[tuple[str, str], dict[str, Estimate]] = {}
  for point in points:
    if value in point.values:
      rows.setdefault((point.family, point.label), {})[point.split] = point.values[value]
  return Table(
    ["line", "model", *(split.replace("_", " ") or "all" for split in columns)],
    [
      [
        text_cell(family),
        text_cell("" if label == family else label),
        *(value_cell(value, found.get(split)) for split in columns),
      ]
      for (family, label), found in rows.items()
    ],
    2,
    title,
  )


def panel(
  points: Sequence[Measurement],
  x: str,
  y: str,
  *,
  title: str | None = None,
  ticks: bool = False,
  form: str = "both",
  wide: bool = False,
) -> Figure | None:
  """One value over a placing number or another value, one line a family; None where nothing has both."""
  lines = []
  for family, members in by_family(points).items():
    drawn = line(family, members, x, y, form=form)
    if drawn.x:
      lines.append(drawn)
  if not lines:
    return None
  places = sorted({value for drawn in lines for value in drawn.x})
  log = places if ticks and places[0] > 0 else []
  return Figure(
    title or f"{title_of(y)} over {title_of(x)}", title_of(x), lines, thinned(log), wide
  )


def thinned(ticks: Sequence[float]) -> Sequence[float]:
  """At most nine of the ticks, the first and last among them."""
  stride = max(1, -(-(len(ticks) - 1) // 8))
  return list(ticks[::-1][::stride][::-1])


def hypervolumes(records: Sequence[Record]) -> list[Table | Text]:
  """The table of the records of kind "front", largest first within the same axes; a remark where there are none."""
  found = of_kind(records, "front")
  if not found:
    return [Text(["The run has not recorded hypervolumes (yet)."], fine=True)]
  more = [n for n in dict.fromkeys(k for r in found for k in numbers(r)) if n not in _FRONT_FIELDS]
  more = [n for n in more if n not in ("hypervolume", "low", "high", "level")]
  axes = list(dict.fromkeys(wording.axes_of(r) for r in found))
  found.sort(key=lambda r: (axes.index(wording.axes_of(r)), -r["hypervolume"]))
  rows = []
  for record in found:
    fields = numbers(record)
    low, high = fields.get("low"), fields.get("high")
    interval = "–" if low is None or high is None else f"{low:#.3g} to {high:#.3g}"
    reference = record.get("reference")
    rows.append(
      [
        text_cell(", ".join(map(title_of, wording.axes_of(record)))),
        text_cell(record["family"]),
        Cell(f"{fields.get('hypervolume', 0.0):#.3g}", "", fields.get("hypervolume", "")),
        Cell(interval, "", "" if low is None else low),
        Cell(_reference(reference)),
        *(Cell(_count_or_value(n, record.get(n)), "", fields.get(n, "")) for n in more),
      ]
    )
  heads = ["axes", "line", "hypervolume", "95% interval", "reference point", *map(title_of, more)]
  explanation = (
    "The volume that the models of a line cover beyond the reference point: larger is a better front. It depends on"
    " the reference point, so it compares lines of one table, not of two runs."
  )
  return [Text([explanation]), Table(heads, rows, 2)]


def _count_or_value(name: str, value: Any) -> str:
  """Whole numbers as they are; others as values of that name."""
  return str(value) if isinstance(value, int) else texts(name, _plain(finite(value)))[0]


def others(points: Sequence[Measurement], known: Collection[str]) -> list[Section]:
  """A section for every study that a page does not know: a figure where something places its points, and the table."""
  sections = []
  for study in dict.fromkeys(point.study for point in points):
    if study in known:
      continue
    found = of_study(points, study)
    drawn: list[Figure] = []
    for x in x_names(found):
      if len({point.x[x] for point in found if x in point.x}) >= _FEWEST:
        panels = (panel(found, x, y) for y in value_names(found) if y != x)
        drawn = [p for p in panels if p is not None][:_MAX_PANELS]
        break
    name = "".join(c if c.isalnum() else "_" for c in study.lower())
    blocks = [Figures(f"study_{name}", drawn)] if drawn else []
    title = study.replace("_", " ")
    sections.append(
      Section(f"study-{name}", title[:1].upper() + title[1:], [*blocks, table(found)])
    )
  return sections


def cosines(records: Sequence[Record]) -> Table | None:
  """The records of kind "cosines": cosines of task vectors, one row a merge."""
  found = of_kind(records, "cosines")
  if not found:
    return None
  names = list(dict.fromkeys(name for record in found for name in numbers(record["values"])))
  rows = []
  for record in found:
    values = numbers(record["values"])
    title = ", ".join(str(record[k]) for k in ("family", "label") if record.get(k))
    title = title or str(record["stage"])
    cells = [Cell(_cosine(values.get(n)), "", values.get(n, "")) for n in names]
    rows.append([text_cell(title.replace("_", " ")), *cells])
  return Table(["task vectors", *(n.replace("_", " ") for n in names)], rows, 1)


def of_test_split(points: Sequence[Measurement]) -> list[Measurement]:
  """The points of the test split where there is one, else all of the last split."""
  found = splits(points)
  split = "test" if "test" in found else found[-1] if found else ""
  return [point for point in points if point.split == split]


def _cosine(value: float | None) -> str:
  return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _place_cell(value: float | None) -> Cell:
  return Cell("–") if value is None else Cell(f"{value:.4g}".replace("-", "−"), "", value)


def _reference(reference: object) -> str:
  if not isinstance(reference, list):
    return "–"
  read = [numbers({"v": value}).get("v") for value in reference]
  return ", ".join(number(value) for value in read)


def _plain(value: float | None) -> Estimate | None:
  return None if value is None else Estimate(value, None, None, 1)
