"""The figure of the experiment: what averaging buys against how many features are shared. Agg only, no pyplot."""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = {
  "single": "#222222",
  "ensemble": "#D55E00",
  "average": "#0072B2",
  "average, other labels": "#009E73",
}
_NAMES = {
  "single": "single model",
  "ensemble": "prediction ensemble",
  "average": "weight average, case 1",
  "average, other labels": "weight average, case 2",
}


def draw(summary: Mapping[str, Any], path: pathlib.Path) -> None:
  """Accuracies on the left, ξ⁽¹⁾ - ξ⁽²⁾ on the right: simulated (points), exact (lines), in the limit (dashes)."""
  figure = Figure(figsize=(9.0, 3.9), layout="constrained")
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2)
  curves = summary["curves"]
  overlaps = [point["overlap"] for point in curves]
  for name, colour in _COLOURS.items():
    _one(left, overlaps, [point["accuracy"][name] for point in curves], colour, _NAMES[name])
  left.set_ylabel("accuracy on a task")
  left.set_title("accuracy", loc="left")
  differences = {"ensemble": "prediction ensemble", "xi1 - xi2": "weight average"}
  for name, label in differences.items():
    colour = _COLOURS["ensemble" if name == "ensemble" else "average"]
    _one(right, overlaps, [point["gain"][name] for point in curves], colour, label)
  printed = [point["printed"] for point in curves]
  right.plot(overlaps, printed, "x", color="#222222", ms=5, label="as printed in the paper")
  right.axhline(0.0, color="#777777", lw=0.8)
  right.set_title("ξ⁽¹⁾ - ξ⁽²⁾", loc="left")
  settings = summary["settings"]
  for axes in (left, right):
    axes.set_xlabel(f"shared features of {settings['n']}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
  figure.suptitle(
    f"K = {settings['num_classes']}, p = {settings['p']:g}; points simulated, lines exact, dashes in the limit",
    fontsize=9,
  )
  figure.savefig(path, dpi=110)


def _one(axes: Any, x: list[int], values: list[Mapping[str, Any]], colour: str, label: str) -> None:
  """One quantity in its three forms."""
  middle, low, high = (
    list(column) for column in zip(*(v["simulated"] for v in values), strict=True)
  )
  errors = [
    [m - a for m, a in zip(middle, low, strict=True)],
    [b - m for m, b in zip(middle, high, strict=True)],
  ]
  axes.errorbar(x, middle, errors, fmt="o", ms=3, color=colour, label=label)
  axes.plot(x, [v["exact"] for v in values], color=colour, lw=1)
  axes.plot(x, [v["limit"] for v in values], "--", color=colour, lw=1)
