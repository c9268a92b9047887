"""Figures of experiments: panels of lines, every seed thin and their mean thick. Agg only, no pyplot."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from wam.report.palette import ranked_styles

Line = tuple[np.ndarray, np.ndarray]  # x and y, [P] each


class Panel(NamedTuple):
  """A panel.

  Attributes:
    title, across, up: what it shows, and the names of the axes.
    lines: by family, one line a seed.
    log: whether x is drawn by its logarithm.
    mean: whether the seeds of a family share their x, so that their mean is a line.
  """

  title: str
  across: str
  up: str
  lines: Mapping[str, Sequence[Line]]
  log: bool = False
  mean: bool = True


def draw(panels: Sequence[Panel], path: pathlib.Path, *, main: str | None = None) -> None:
  """Writes a PNG with the panels in a row; `main` is the family that stands out."""
  figure = Figure(figsize=(4.2 * len(panels) + 0.3, 3.9), layout="constrained")
  FigureCanvasAgg(figure)
  families = list(dict.fromkeys(name for panel in panels for name in panel.lines))
  chosen = ranked_styles(families, main=main)
  dashes = {"solid": "-", "dash": "--", "dot": ":"}
  handles = {}
  for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
    for family, lines in panel.lines.items():
      style, dash = chosen[family]
      look = {"color": style.matplotlib_colour, "ls": dashes[dash]}
      alone = len(lines) == 1
      # A line of one run shows its points.
      own = (
        {"lw": 1.4, "marker": style.matplotlib_marker, "ms": 4.5}
        if alone
        else {"lw": 0.7, "alpha": 0.6}
      )
      for x, y in lines:
        axes.plot(x, y, **own, **look)
      if panel.mean and not alone:
        middle = np.mean([y for _, y in lines], axis=0)
        axes.plot(lines[0][0], middle, lw=2.2, **look)
      handles[family] = Line2D([], [], **own | {"lw": 2.2, "alpha": 1}, **look)
    if panel.log:
      axes.set_xscale("log")
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xlabel(panel.across, fontsize=9)
    axes.set_ylabel(panel.up, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
  figure.legend(
    handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9
  )
  figure.savefig(path, dpi=90)
