"""The figures of blocks: as plotly's JSON for the page, and as PNGs by matplotlib for READMEs.

Both are drawn from the same lines. Text is escaped, since plotly reads a part of HTML and matplotlib mathematics.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam.report import blocks
from wam.report.figures import empty_figure, plain, save
from wam.report.palette import INK, Style, ranked_styles
from wam.report.panels import Panel, base_layout

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Styles = Mapping[str, tuple[Style, str]]
_MATPLOTLIB_DASHES = {"solid": "-", "dash": "--", "dot": ":"}
_HEIGHT, _WIDE_HEIGHT = 340, 430


def all_figures(page: blocks.Page) -> list[blocks.Figures]:
  """The figures of a page, those of explorers too, in order."""
  found: list[blocks.Figures] = []
  for section in page.sections:
    for block in section.blocks:
      if isinstance(block, blocks.Figures):
        found.append(block)
      elif isinstance(block, blocks.Explorer) and block.figures is not None:
        found.append(block.figures)
  return found


def page_styles(page: blocks.Page) -> Styles:
  """One style a family for the whole page."""
  names = [
    drawn.name
    for figures in all_figures(page)
    for panel in figures.panels
    for drawn in panel.lines
    if drawn.form != "curve"
  ]
  curves = [d.name for f in all_figures(page) for p in f.panels for d in p.lines]
  return ranked_styles([*names, *curves], main=page.main)


def panels(
  figures: blocks.Figures, styles: Styles, *, here: Sequence[tuple[float, float] | None] = ()
) -> list[Panel]:
  """The panels as plotly's JSON, with ids "<name of the figures>-<number>".

  Args:
    figures: what is drawn.
    styles: of `page_styles`.
    here: where the marker of an explorer starts, one a panel; empty for no marker.
  """
  found: list[Panel] = []
  for number, panel in enumerate(figures.panels):
    height = _WIDE_HEIGHT if panel.wide else _HEIGHT
    layout = base_layout(html.escape(panel.x_title), "", height=height)
    if panel.log_ticks:
      layout["xaxis"] |= {
        "type": "log",
        "tickvals": list(panel.log_ticks),
        "ticktext": [f"{tick:g}" for tick in panel.log_ticks],
      }
    data = [_trace(drawn, *styles[drawn.name]) for drawn in panel.lines]
    if here:
      data.append(_marker(here[number]))
    identifier = f"{figures.name}-{number}"
    figure = {"data": data, "layout": layout}
    found.append({"id": identifier, "title": panel.title, "figure": figure, "wide": panel.wide})
  return found


def legend(figures: blocks.Figures, styles: Styles) -> list[dict[str, str]]:
  """Entries of the legend that the panels share."""
  return [
    {"name": name, "colour": styles[name][0].colour, "glyph": styles[name][0].glyph}
    for name in line_names(figures)
  ]


def line_names(figures: blocks.Figures) -> list[str]:
  """The names of the lines in the order of the legend."""
  return list(dict.fromkeys(drawn.name for panel in figures.panels for drawn in panel.lines))


def write_picture(figures: blocks.Figures, styles: Styles, path: Path) -> None:
  """Draws all panels into one PNG, with one legend.

  Raises:
    CannotWrite: on a full disk or without permission.
  """
  count = len(figures.panels)
  columns = 2 if count in (2, 4) else min(count, 3)
  rows = -(-count // columns)
  names = line_names(figures)
  legend_columns = max(1, min(len(names), int(1.4 * columns) + 1))
  legend_rows = -(-len(names) // legend_columns)
  figure = empty_figure(max(3.9 * columns, 5.4), 3.0 * rows + 0.24 * legend_rows + 0.3)
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid[count:]:
    axes.axis("off")
  handles: dict[str, Any] = {}
  for axes, panel in zip(grid, figures.panels, strict=False):
    for name, handle in _draw(axes, panel, styles):
      handles.setdefault(name, handle)
  if handles:
    labels = [plain(name) for name in handles]
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=legend_columns)
  save(figure, path)


def _trace(drawn: blocks.Line, style: Style, dash: str) -> dict[str, Any]:
  trace: dict[str, Any] = {
    "type": "scatter",
    "name": html.escape(drawn.name),
    "meta": drawn.name,
    "x": list(drawn.x),
    "y": list(drawn.y),
    "mode": {"both": "lines+markers", "markers": "markers", "curve": "lines"}[drawn.form],
    "line": {"color": style.colour, "width": 2, "dash": dash},
  }
  if drawn.form == "curve":
    trace["line"] |= {"dash": "dot", "width": 1.5}
    return trace | {"hoverinfo": "skip"}
  trace["marker"] = {"color": style.colour, "symbol": style.marker, "size": 9}
  for axis, halves in (("error_x", drawn.x_half), ("error_y", drawn.y_half)):
    if any(halves):
      trace[axis] = {
        "type": "data", "array": list(halves), "color": style.colour, "thickness": 1, "width": 2,
      }  # fmt: skip
  if drawn.notes:
    trace["hovertext"] = [_hover(note) for note in drawn.notes]
    trace["hoverinfo"] = "text"
  if drawn.marks:
    trace["mode"] += "+text"
    trace["text"] = [html.escape(mark) for mark in drawn.marks]
    trace["textposition"] = "top right"
    trace["textfont"] = {"size": 11, "color": style.colour}
  return trace


def _hover(note: str) -> str:
  first, *rest = note.split("\n")
  return "<br>".join([f"<b>{html.escape(first)}</b>", *map(html.escape, rest)])


def _marker(place: tuple[float, float] | None) -> dict[str, Any]:
  return {
    "type": "scatter",
    "mode": "markers",
    "name": blocks.HERE,
    "meta": blocks.HERE,
    "x": [place[0] if place else None],
    "y": [place[1] if place else None],
    "marker": {
      "color": INK, "symbol": "circle-open", "size": 20, "line": {"width": 3, "color": INK},
    },
    "hoverinfo": "skip",
  }  # fmt: skip


def _draw(axes: "Axes", panel: blocks.Figure, styles: Styles) -> Iterable[tuple[str, Any]]:
  """Draws the lines of one panel; returns a legend handle for each line that has markers."""
  found = []
  for drawn in panel.lines:
    style, dash = styles[drawn.name]
    colour = style.matplotlib_colour
    if drawn.form == "curve":
      axes.plot(drawn.x, drawn.y, ":", color=colour, lw=1.2)
      continue
    handle = axes.errorbar(
      drawn.x, drawn.y,
      xerr=list(drawn.x_half) if any(drawn.x_half) else None,
      yerr=list(drawn.y_half) if any(drawn.y_half) else None,
      color=colour, marker=style.matplotlib_marker, ms=4.5, lw=1.3, elinewidth=0.7,
      ls=_MATPLOTLIB_DASHES[dash] if drawn.form == "both" else "none",
    )  # fmt: skip
    found.append((drawn.name, handle))
    for x, y, mark in zip(drawn.x, drawn.y, drawn.marks, strict=False):
      axes.annotate(
        plain(mark), (x, y), (4, 3), textcoords="offset points", fontsize=6.5, color=colour
      )
  axes.set_title(plain(panel.title))
  axes.set_xlabel(plain(panel.x_title))
  if panel.log_ticks:
    axes.set_xscale("log")
    axes.set_xticks(list(panel.log_ticks), [f"{tick:g}" for tick in panel.log_ticks], fontsize=7.5)
    axes.minorticks_off()
  return found
