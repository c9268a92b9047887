"""The picture of `wam diff`: how far models moved from their base, in which layers and parts, and where they disagree.

Draws from the object that `Differences.to_json` writes, so that it can be redrawn anywhere.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam.checkpoints.records import writing

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX*"
_OUTSIDE = "outside layers"


def differences_figure(content: Mapping[str, Any], path: Path) -> None:
  """Draws relative norms, cosines and sign conflicts by layer, and the parts, as a PNG.

  Args:
    content: the parsed JSON of `Differences.to_json`.
    path: of the PNG.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  models = content["models"]
  several = len(models) > 1
  figure = Figure(figsize=(9.6, 6.4 if several else 3.6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  grid = figure.subplots(2 if several else 1, 2, squeeze=False)
  layers = {k: v for k, v in content["layers"].items() if k != _OUTSIDE}
  _lines(grid[0][0], layers, "relative_norms", models, "‖δ‖ / ‖base‖")
  _parts(grid[0][1], content["parts"], models)
  if several:
    pairs = [(i, j) for i in range(len(models)) for j in range(i)]
    names = [f"{models[j]}, {models[i]}" for i, j in pairs]
    _pairs(grid[1][0], layers, "cosines", pairs, names, "cosine of the task vectors")
    _pairs(grid[1][1], layers, "sign_conflicts", pairs, names, "opposite signs, share of moved")
    grid[1][1].axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
  figure.suptitle(f"Task vectors from {content['base']}", fontsize=11)
  with writing("a figure", path):
    figure.savefig(path)


def _lines(
  axes: "Axes",
  layers: Mapping[str, Any],
  key: str,
  models: Sequence[str],
  label: str,
) -> None:
  for m, model in enumerate(models):
    values = [_number(row[key][m]) for row in layers.values()]
    _line(axes, [int(x) for x in layers], values, m, model)
  moved = [x for row in layers.values() for x in map(_number, row[key]) if x > 0]
  # Decades apart in one layer and the next, or all alike: an axis for each.
  if moved and max(moved) > 10 * min(moved):
    axes.set_yscale("log")
  else:
    axes.set_ylim(bottom=0)
  _finish(axes, label)


def _pairs(
  axes: "Axes",
  layers: Mapping[str, Any],
  key: str,
  pairs: Sequence[tuple[int, int]],
  names: Sequence[str],
  label: str,
) -> None:
  for n, ((i, j), name) in enumerate(zip(pairs, names, strict=True)):
    values = [_number(row[key][i][j]) for row in layers.values()]
    _line(axes, [int(x) for x in layers], values, n, name)
  _finish(axes, label)


def _line(axes: "Axes", x: Sequence[int], y: Sequence[float], number: int, label: str) -> None:
  colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
  axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=label)


def _finish(axes: "Axes", label: str) -> None:
  from matplotlib.ticker import MaxNLocator

  axes.set_xlabel("layer")
  axes.set_ylabel(label)
  axes.grid(color="#dddddd", linewidth=0.6)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  if axes.lines:
    axes.legend(fontsize=7, frameon=False)


def _parts(axes: "Axes", parts: Mapping[str, Any], models: Sequence[str]) -> None:
  width = 0.8 / len(models)
  for m, model in enumerate(models):
    places = [p + (m - (len(models) - 1) / 2) * width for p in range(len(parts))]
    heights = [_number(row["relative_norms"][m]) for row in parts.values()]
    axes.bar(places, heights, width, color=_COLOURS[m % len(_COLOURS)], label=model)
  axes.set_xticks(range(len(parts)), list(parts), rotation=20, fontsize=8)
  axes.set_ylabel("‖δ‖ / ‖base‖")
  axes.grid(axis="y", color="#dddddd", linewidth=0.6)
  axes.legend(fontsize=7, frameon=False)


def _number(value: float | None) -> float:
  return float("nan") if value is None else value
