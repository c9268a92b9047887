"""The figures as PNG files, by matplotlib: the front, the training curves, the line between two models.

Uses Figure objects on the Agg canvas only, never pyplot: no display, no global state, nothing to close.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam.checkpoints.records import writing
from wam.core.errors import BadData
from wam.report import fronts
from wam.report.curves import panels
from wam.report.palette import Style, styles
from wam.report.points import (
  AVERAGING,
  EARLY_STOPPING,
  INIT,
  MEAN,
  Estimate,
  Point,
  Points,
  by_series,
  describe,
)
from wam.report.records import Record
from wam.report.story import number
from wam.report.tables import MEASURE_TITLES

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_DPI = 150
_GREY = "#777777"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def front_figure(points: Points, records: Sequence[Record], path: Path) -> None:
  """Draws reward against the mean of the skills and against each skill, one small panel each."""
  names = [n for n in panel_names(points) if fronts.coordinates(points.shown, points.x, n)]
  if not names:
    return
  columns = 2 if len(names) in (2, 4) else min(len(names), 3)  # legible at the width of a README
  rows = -(-len(names) // columns)
  figure = empty_figure(3.6 * columns + 0.2, 2.8 * rows + 0.8)
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid[len(names) :]:
    axes.axis("off")
  chosen = styles(by_series(points.shown))
  selection = fronts.select(points, records)
  handles: dict[str, Any] = {}
  for axes, name in zip(grid, names, strict=False):
    handles |= _front_panel(axes, points, name, chosen)
    if selection:
      handles |= _ring(axes, selection.point, points.x, name)
    axes.set_xlabel(MEASURE_TITLES[points.x])
  figure.legend(
    handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 4)
  )
  save(figure, path)


def curves_figure(records: Sequence[Record], path: Path, *, most: int | None = None) -> None:
  """Draws every training curve (or the first `most` panels), a small panel for each stage and kind of measure."""
  found = panels(records)[:most]
  if not found:
    return
  columns = min(len(found), 4)
  rows = -(-len(found) // columns)
  figure = empty_figure(3.1 * columns, 2.3 * rows)
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid[len(found) :]:
    axes.axis("off")
  for axes, panel in zip(grid, found, strict=False):
    for i, line in enumerate(panel.lines):
      mark = "o" if len(line.steps) < 20 else None
      colour = _LINES[i % len(_LINES)]
      axes.plot(
        line.steps, line.values, color=colour, marker=mark, ms=3, lw=1.3, label=plain(line.name)
      )
    title = panel.title if len(panel.lines) > 1 else panel.lines[0].name
    axes.set_title(plain(f"{panel.stage}: {title}"))
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True, nbins=5)
    if len(panel.lines) > 1:
      axes.legend()
  save(figure, path)


def connectivity_figure(result: Mapping[str, Any], path: Path | str) -> None:
  """Draws a metric along the straight line between two models.

  Args:
    result: "lambdas" [n] (0: first model, 1: second) and "values" [n]; optional "low" and "high" [n]
      (interval), "level", "metric" (name), "higher_is_better", "names" (of the two models), "barriers" (name -> number,
      written into the picture).
    path: of the PNG.

  Raises:
    BadData: the lists differ in length or hold fewer than two entries.
    CannotWrite: on a full disk or without permission.
  """
  lambdas, values = list(result["lambdas"]), list(result["values"])
  bands = [list(result[k]) for k in ("low", "high") if result.get(k) is not None]
  if len(lambdas) < 2 or {len(lambdas)} != {len(values), *map(len, bands)}:
    raise BadData(
      f"connectivity: expected as many values (found {len(values)}) as lambdas ({len(lambdas)}),"
      " at least two, and intervals of the same length"
    )
  order = sorted(range(len(lambdas)), key=lambdas.__getitem__)
  lambdas, values, *bands = ([column[i] for i in order] for column in (lambdas, values, *bands))
  figure = empty_figure(6.4, 4.2)
  axes = figure.subplots()
  if len(bands) == 2:
    label = f"{result['level']:.0%} interval" if "level" in result else "interval"
    axes.fill_between(lambdas, bands[0], bands[1], color=_LINES[0], alpha=0.18, lw=0, label=label)
  axes.plot(lambdas, values, "o-", color=_LINES[0], ms=4, lw=1.6, label="interpolated model")
  axes.plot(
    [lambdas[0], lambdas[-1]], [values[0], values[-1]], "--", color=_GREY, lw=1.2,
    label="line between the end points",
  )  # fmt: skip
  mean = (values[0] + values[-1]) / 2
  axes.axhline(mean, color=_GREY, ls=":", lw=1.2, label="mean of the end points")
  first, second = result.get("names", ("first model", "second model"))
  axes.set_xlabel(f"λ  (0: {plain(first)},  1: {plain(second)})")
  metric = plain(result.get("metric", "metric"))
  direction = {True: ", higher is better", False: ", lower is better"}
  axes.set_ylabel(metric + direction.get(result.get("higher_is_better"), ""))  # type: ignore[arg-type]
  barriers = [f"barrier ({plain(n)}): {number(v)}" for n, v in result.get("barriers", {}).items()]
  axes.set_title("\n".join(barriers), loc="left")
  figure.legend(loc="outside lower center", ncols=2)
  save(figure, path)


def panel_names(points: Points) -> list[str]:
  """The vertical axes of the front: the mean of the skills, then each skill."""
  names = [skill.name for skill in points.skills]
  return [MEAN, *names] if len(names) != 1 else names


def panel_title(points: Points, name: str) -> str:
  """Title of one front panel, with unit and direction."""
  if name == MEAN:
    return "mean of the skills" + (", relative" if points.relative else "")
  skill = points.skill(name)
  return skill.title + ("" if skill.higher_is_better else ", lower is better")


def line_points(points: Points, series: str, members: Sequence[Point]) -> list[Point]:
  """Points of a line; the RLHF trajectory starts at the model before it."""
  if series != EARLY_STOPPING:
    return list(members)
  return [p for p in fronts.trajectory(points.shown) if p.family == INIT or p in members]


def marker_texts(path: Sequence[Point], series: str) -> list[str]:
  """Numbers to write beside markers: alpha of every average, the checkpoint after 1, 2, 4, 8, ... of the RLHF run."""
  texts = []
  for i, point in enumerate(path):
    text = ""
    if series == AVERAGING and 0 < sum(point.coefficients.values()) < len(point.coefficients):
      text = describe(point.coefficients)
    elif point.family == EARLY_STOPPING and i & (i - 1) == 0:
      text = (re.findall(r"\d+", point.label) or [""])[-1]
    texts.append(text)
  return texts


def half_widths(estimate: Estimate) -> tuple[float, float]:
  """Distances from the mean to the ends of the interval, 0 without one."""
  if estimate.low is None or estimate.high is None:
    return 0.0, 0.0
  return estimate.mean - estimate.low, estimate.high - estimate.mean


def _front_panel(
  axes: "Axes", points: Points, name: str, chosen: Mapping[str, Style]
) -> dict[str, Any]:
  """Draws the lines of one panel; returns a legend handle for each series."""
  better_up = points.skill(name).higher_is_better
  handles: dict[str, Any] = {}
  everything = fronts.coordinates(points.shown, points.x, name)
  steps = fronts.staircase([(x, y) for _, x, y in everything], higher_is_better=better_up)
  (handles["Pareto front"],) = axes.step(
    *zip(*steps, strict=True), where="pre", color="#BBBBBB", lw=5, alpha=0.55, zorder=1,
    solid_capstyle="round",
  )  # fmt: skip
  for series, members in by_series(points.shown).items():
    found = fronts.coordinates(line_points(points, series, members), points.x, name)
    if not found:
      continue
    style = chosen[series]
    across = [half_widths(p.value(points.x)) for p, _, _ in found]  # type: ignore[arg-type]
    up = [half_widths(p.value(name)) for p, _, _ in found]  # type: ignore[arg-type]
    handles[series] = axes.errorbar(
      [x for _, x, _ in found], [y for _, _, y in found],
      xerr=list(zip(*across, strict=True)), yerr=list(zip(*up, strict=True)),
      color=style.matplotlib_colour, marker=style.matplotlib_marker,
      ms=11 if series == INIT else 4.5, lw=1.3, elinewidth=0.7, zorder=4 if series == INIT else 3,
    )  # fmt: skip
    if name == MEAN:
      texts = marker_texts([p for p, _, _ in found], series)
      for (_, x, y), text in zip(found, texts, strict=True):
        axes.annotate(
          text, (x, y), (-4, -8) if series == EARLY_STOPPING else (4, 3), fontsize=6.5,
          textcoords="offset points", zorder=6, color=style.matplotlib_colour,
          ha="right" if series == EARLY_STOPPING else "left",
        )  # fmt: skip
  axes.set_title(plain(panel_title(points, name)))
  if not better_up:
    axes.invert_yaxis()
  return handles


def _ring(axes: "Axes", point: Point, x: str, y: str) -> dict[str, Any]:
  found = fronts.coordinates([point], x, y)
  if not found:
    return {}
  (handle,) = axes.plot(
    *found[0][1:], "o", ms=13, mfc="none", mec="#222222", mew=1.5, ls="none", zorder=5
  )
  return {"selected average": handle}


def plain(text: Any) -> str:
  """Text from records: a dollar sign is no mathematics."""
  return str(text).replace("$", r"\$")


def save(figure: "Figure", path: Path | str) -> None:
  """Writes a figure as PNG; `CannotWrite` on a full disk or without permission."""
  path = Path(path)
  with writing(path.name, path):
    figure.savefig(path, dpi=_DPI)


def empty_figure(width: float, height: float) -> "Figure":
  """Makes an empty figure of a size in inches, with the house style."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  matplotlib.rcParams.update(
    {
      "font.size": 9,
      "axes.titlesize": 9.5,
      "axes.titleweight": "bold",
      "axes.spines.top": False,
      "axes.spines.right": False,
      "axes.grid": True,
      "grid.color": "#E6E6E6",
      "axes.axisbelow": True,
      "legend.frameon": False,
      "legend.fontsize": 8.5,
    }
  )
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure
