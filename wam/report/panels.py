"""The interactive figures of the page, as plotly's JSON: the front, rewards along the RLHF run, training curves.

Text from records is escaped, since plotly reads a part of HTML in labels. The page's script draws these and adds
the colours of its theme.
Leaves out: the legend of the fronts, which all panels share and the page draws.
"""

import html
from collections.abc import Sequence
from typing import Any

from wam.report import curves, fronts
from wam.report.figures import half_widths, line_points, marker_texts, panel_names, panel_title
from wam.report.palette import INK, styles
from wam.report.points import (
  EARLY_STOPPING,
  INIT,
  MEAN,
  MEASURES,
  Estimate,
  Point,
  Points,
  by_series,
  describe,
)
from wam.report.records import Record
from wam.report.story import interval
from wam.report.tables import MEASURE_TITLES

Panel = dict[str, Any]  # {"id": str, "title": str, "figure": {"data": [...], "layout": {...}}}
PARETO = "Pareto front"
SELECTED = "selected average"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def front_panels(points: Points, records: Sequence[Record]) -> list[Panel]:
  """One panel for the mean of the skills and one for each skill; empty while no point was evaluated."""
  selection = fronts.select(points, records)
  found: list[Panel] = []
  for name in panel_names(points):
    if fronts.coordinates(points.shown, points.x, name):
      data = _front_traces(points, name, selection.point if selection else None)
      layout = base_layout(MEASURE_TITLES[points.x], "", height=430 if name == MEAN else 360)
      if not points.skill(name).higher_is_better:
        layout["yaxis"]["autorange"] = "reversed"
      title = panel_title(points, name)
      found.append(_panel(f"front-{len(found)}", title, data, layout))
  return found


def reward_panels(points: Points) -> list[Panel]:
  """Proxy and judge's reward against KL along the RLHF run, and against each other."""
  path = fronts.trajectory(points.shown)
  pairs = [("reward_proxy", "kl", "#D55E00")]
  if points.x != "reward_proxy":
    pairs += [(points.x, "kl", "#0072B2"), (points.x, "reward_proxy", "#009E73")]
  found: list[Panel] = []
  for up, across, colour in pairs:
    if len(fronts.coordinates(path, across, up)) < 2:
      continue
    data = [_trace(points, path, across, up, colour=colour, symbol="square", name=up)]
    title = f"{MEASURE_TITLES[up]} against {MEASURE_TITLES[across]}"
    layout = base_layout(MEASURE_TITLES[across], "", height=300)
    found.append(_panel(f"reward-{len(found)}", title, data, layout))
  return found


def curve_panels(records: Sequence[Record]) -> list[Panel]:
  """Training curves, stage by stage."""
  found: list[Panel] = []
  for i, panel in enumerate(curves.panels(records)):
    data = [
      {
        "type": "scatter",
        "mode": "lines+markers" if len(line.steps) < 20 else "lines",
        "name": html.escape(line.name),
        "x": line.steps,
        "y": line.values,
        "line": {"color": _LINES[n % len(_LINES)], "width": 1.8},
      }
      for n, line in enumerate(panel.lines)
    ]
    layout = base_layout("step", "", height=240)
    layout["showlegend"] = len(data) > 1
    title = panel.title if len(data) > 1 else panel.lines[0].name
    found.append(_panel(f"curve-{i}", f"{panel.stage}: {title}", data, layout))
  return found


def legend(points: Points, records: Sequence[Record]) -> list[dict[str, str]]:
  """Entries of the legend that all front panels share."""
  entries = [
    {"name": name, "colour": style.colour, "glyph": style.glyph}
    for name, style in styles(by_series(points.shown)).items()
  ]
  if fronts.select(points, records):
    entries.append({"name": SELECTED, "colour": INK, "glyph": "◯"})
  return [*entries, {"name": PARETO, "colour": "#999999", "glyph": "▬"}]


def hover(point: Point, points: Points) -> str:
  """What a point says under the pointer: all that was measured of it, escaped."""
  lines = [f"<b>{html.escape(point.series)}</b>: {html.escape(point.label)}"]
  if point.coefficients:
    lines.append(f"coefficients: {html.escape(describe(point.coefficients))}")
  for name in MEASURES:
    if name in point.measures:
      lines.append(f"{MEASURE_TITLES[name]}: {interval(point.measures[name])}")
  for name, value in point.scores.items():
    title = "mean of skills" if name == MEAN else points.skill(name).title
    lines.append(f"{html.escape(title)}: {interval(value)}")
  lines.append(f"sampling seeds: {len(point.seeds)}")
  return "<br>".join(lines)


def _front_traces(points: Points, name: str, selected: Point | None) -> list[dict[str, Any]]:
  everything = fronts.coordinates(points.shown, points.x, name)
  steps = fronts.staircase(
    [(x, y) for _, x, y in everything],
    higher_is_better=points.skill(name).higher_is_better,
  )
  traces: list[dict[str, Any]] = [
    {
      "type": "scatter",
      "mode": "lines",
      "name": PARETO,
      "meta": PARETO,
      "x": [x for x, _ in steps],
      "y": [y for _, y in steps],
      # A staircase: up to the reward of the next point, its skill is what one can have.
      "line": {"shape": "vh", "color": "rgba(140,140,140,0.35)", "width": 7},
      "hoverinfo": "skip",
    }
  ]
  lines = by_series(points.shown)
  chosen = styles(lines)
  for series, members in lines.items():
    path = line_points(points, series, members)
    style = chosen[series]
    trace = _trace(
      points, path, points.x, name, colour=style.colour, symbol=style.marker, name=series
    )
    if series == INIT:
      trace["marker"]["size"] = 16
    if name == MEAN:
      trace |= _marker_text([p for p, _, _ in fronts.coordinates(path, points.x, name)], series)
    if trace["x"]:
      traces.append(trace)
  # The start is drawn over the lines that begin in it.
  traces.sort(key=lambda trace: trace["meta"] == INIT)
  if selected is not None and fronts.coordinates([selected], points.x, name):
    trace = _trace(
      points, [selected], points.x, name, colour=INK, symbol="circle-open", name=SELECTED
    )
    trace["marker"] |= {"size": 19, "line": {"width": 2.5, "color": INK}}
    traces.append(trace)
  return traces


def _marker_text(path: Sequence[Point], series: str) -> dict[str, Any]:
  """Numbers beside the markers of the large panel: alpha, or the checkpoint; not so many that they collide."""
  texts = marker_texts(path, series)
  if not any(texts):
    return {}
  below = series == EARLY_STOPPING
  return {
    "mode": "lines+markers+text",
    "text": [html.escape(text) for text in texts],
    "textposition": "bottom left" if below else "top right",
    "textfont": {"size": 11, "color": styles([series])[series].colour},
  }


def _trace(
  points: Points, path: Sequence[Point], x: str, y: str, *, colour: str, symbol: str, name: str
) -> dict[str, Any]:
  found = fronts.coordinates(path, x, y)
  return {
    "type": "scatter",
    "mode": "lines+markers",
    "name": html.escape(name),
    "meta": name,
    "x": [value for _, value, _ in found],
    "y": [value for _, _, value in found],
    "error_x": _error_bars([p.value(x) for p, _, _ in found], colour),
    "error_y": _error_bars([p.value(y) for p, _, _ in found], colour),
    "marker": {"color": colour, "symbol": symbol, "size": 9},
    "line": {"color": colour, "width": 2},
    "hovertext": [hover(p, points) for p, _, _ in found],
    "hoverinfo": "text",
  }


def _error_bars(estimates: Sequence[Estimate | None], colour: str) -> dict[str, Any]:
  widths = [half_widths(e) if e else (0.0, 0.0) for e in estimates]
  return {
    "type": "data",
    "symmetric": False,
    "arrayminus": [below for below, _ in widths],
    "array": [above for _, above in widths],
    "visible": any(above > 0 for _, above in widths),
    "color": colour,
    "thickness": 1,
    "width": 2,
  }


def base_layout(x: str, y: str, *, height: int) -> dict[str, Any]:
  """Plotly's layout in the look of the page, with the titles of the axes (already escaped) and a height in pixels."""
  axis = {"automargin": True, "zeroline": False, "gridcolor": "GRID", "linecolor": "GRID"}
  return {
    "height": height,
    "margin": {"l": 46, "r": 12, "t": 8, "b": 44},
    "xaxis": axis | {"title": {"text": x, "standoff": 8}},
    "yaxis": axis | {"title": {"text": y}},
    "showlegend": False,
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    "hovermode": "closest",
    "hoverlabel": {"align": "left", "font": {"size": 12}},
    "dragmode": False,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {
      "color": INK,
      "size": 12,
      "family": "system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif",
    },
  }


def _panel(identifier: str, title: str, data: list[dict[str, Any]], layout: Any) -> Panel:
  return {"id": identifier, "title": title, "figure": {"data": data, "layout": layout}}
