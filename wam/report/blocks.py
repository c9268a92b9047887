"""What a page of a study is made of: text, tables, figures, and explorers that slide along a front.

Blocks are plain values without HTML. `charts` draws the figures, on the page and as a picture; `blocks_page` makes the
page. Leaves out which blocks a study has (`studies`).
"""

from collections.abc import Sequence
from typing import NamedTuple

from wam.report.measurements import Measurement, Sample, reading, texts, title_of
from wam.report.points import Estimate

HERE = "where the explorer is"  # the marker in a figure that an explorer moves


class Text(NamedTuple):
  """Paragraphs; `fine` for remarks in small print."""

  paragraphs: Sequence[str]
  fine: bool = False


class Cell(NamedTuple):
  """One cell: the text, the half width of the interval as text, and the value to sort by ("" for what is absent)."""

  text: str
  half: str = ""
  value: float | str = ""


class Table(NamedTuple):
  """Rows that can be sorted by their heads.

  Attributes:
    heads: one a column.
    rows: of cells, as many as heads.
    num_texts: how many of the first columns hold text; the others hold numbers.
    title: above it; "" for none.
    num_places: how many of the numbers, the first ones, only place what the others measure: they are left out first
      where there is no room for all.
  """

  heads: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  num_texts: int = 1
  title: str = ""
  num_places: int = 0


class Line(NamedTuple):
  """A line of a figure; lines of one name have one colour on the whole page.

  Attributes:
    name: of the family, which the legend shows.
    x, y: of the points.
    x_half, y_half: half widths of intervals, 0 where there is none; empty for no intervals at all.
    notes: what each point says under the pointer; empty for nothing.
    marks: short texts beside markers; empty for none.
    form: "both", "markers", or "curve" (a fitted curve: dashed, without markers).
  """

  name: str
  x: Sequence[float]
  y: Sequence[float]
  x_half: Sequence[float] = ()
  y_half: Sequence[float] = ()
  notes: Sequence[str] = ()
  marks: Sequence[str] = ()
  form: str = "both"


class Figure(NamedTuple):
  """One small panel; x is logarithmic with these ticks where `log_ticks` is not empty."""

  title: str
  x_title: str
  lines: Sequence[Line]
  log_ticks: Sequence[float] = ()
  wide: bool = False


class Figures(NamedTuple):
  """Panels that share a legend, and a picture file.

  Attributes:
    name: of the picture, without ending; letters, digits and underscores, unique on a page.
    panels: at least one.
  """

  name: str
  panels: Sequence[Figure]


class Position(NamedTuple):
  """A place where an explorer can stand.

  Attributes:
    label: what it is called.
    weights: its λ, one a corner, or its η alone.
    scores: by name of the explorer's `scores`; None where it was not measured.
    samples: completions.
    places: its (x, y) in every panel of the explorer's figures; None where it is not drawn there.
  """

  label: str
  weights: tuple[float, ...]
  scores: Sequence[Estimate | None]
  samples: Sequence[Sample]
  places: Sequence[tuple[float, float] | None]


class Path(NamedTuple):
  """The positions of one family, in order along the slider."""

  name: str
  positions: Sequence[Position]


class Explorer(NamedTuple):
  """A slider along a front, or a triangle of points where there are three corners.

  Attributes:
    name: of its element, unique on a page.
    symbol: "λ" or "η".
    corners: what the ends of the slider, or the corners of the triangle, are called.
    scores: names of the scores, as in the records.
    paths: one or more families to slide along.
    figures: drawn beside it, where the position is marked; None for none.
  """

  name: str
  symbol: str
  corners: Sequence[str]
  scores: Sequence[str]
  paths: Sequence[Path]
  figures: Figures | None

  @property
  def is_triangle(self) -> bool:
    """Whether the positions lie in a triangle rather than on a line."""
    return len(self.corners) == 3


Block = Text | Table | Figures | Explorer


class Section(NamedTuple):
  """A part of the page with a heading."""

  name: str
  title: str
  blocks: Sequence[Block]


class Page(NamedTuple):
  """A whole report.

  Attributes:
    title: what the page is about.
    headline: sentences made from the measured numbers.
    sections: in order.
    missing: what the records do not hold (yet).
    words: terms and what they mean.
    main: the family that the recipe is about, drawn as the blue line.
  """

  title: str
  headline: Sequence[str]
  sections: Sequence[Section]
  missing: Sequence[str]
  words: Sequence[tuple[str, str]]
  main: str | None = None


def text_cell(text: str) -> Cell:
  """A cell of text, sorted as text."""
  return Cell(text, "", text)


def value_cell(name: str, found: Estimate | None) -> Cell:
  """A cell of a measured value."""
  text, half = texts(name, found)
  return Cell(text, half, "" if found is None else found.mean)


def line(
  name: str,
  points: Sequence[Measurement],
  x: str,
  y: str,
  *,
  marks: Sequence[str] = (),
  form: str = "both",
) -> Line:
  """The line through the points that have both values, with the intervals of both and all values in the notes."""
  kept = [
    (point, across, up, mark)
    for point, mark in zip(points, marks or [""] * len(points), strict=True)
    if (across := point.estimate(x)) is not None and (up := point.estimate(y)) is not None
  ]
  return Line(
    name=name,
    x=[across.mean for _, across, _, _ in kept],
    y=[up.mean for _, _, up, _ in kept],
    x_half=[_half(across) for _, across, _, _ in kept],
    y_half=[_half(up) for _, _, up, _ in kept],
    notes=[note(point) for point, *_ in kept],
    marks=[mark for *_, mark in kept] if any(mark for *_, mark in kept) else (),
    form=form,
  )


def note(point: Measurement) -> str:
  """All that was measured of a point, one value a row of text."""
  rows = [f"{point.family}: {point.label}" + (f" ({point.split})" if point.split else "")]
  rows += [f"{title_of(k)}: {v:g}" for k, v in point.x.items() if k not in point.values]
  rows += [f"{title_of(name)}: {reading(name, found)}" for name, found in point.values.items()]
  return "\n".join(rows)


def _half(found: Estimate) -> float:
  return 0.0 if found.high is None else found.high - found.mean
