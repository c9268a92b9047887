"""The figure of the experiment: the points of every run, reward against mean skill. Agg only, no pyplot."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.alignment_tax.measurements import MEAN, REWARD, Measured
from wam.recipes import alignment_tax as recipe
from wam.report.palette import Style, styles

# What is drawn, in this order; the others would hide these.
FAMILIES = (
  recipe.INIT,
  recipe.STOPPED,
  recipe.AVERAGED,
  recipe.ADAPTIVE,
  "L1",
  "L2",
  "distillation",
  "LoRA",
  "replay",
  "KL penalty",
)
LINES = (recipe.STOPPED, recipe.AVERAGED)


def draw(runs: Mapping[str, Sequence[Measured]], judge: str, path: pathlib.Path) -> None:
  """One panel an algorithm and seed."""
  columns = max(len(members) for members in runs.values())
  figure = Figure(figsize=(3.0 * columns + 0.3, 2.5 * len(runs) + 0.9), layout="constrained")
  FigureCanvasAgg(figure)
  grid = figure.subplots(len(runs), columns, squeeze=False)
  chosen = styles(FAMILIES)
  handles: dict[str, Any] = {}
  for row, (algorithm, members) in zip(grid, runs.items(), strict=True):
    for axes in row[len(members) :]:
      axes.axis("off")
    for axes, run in zip(row, members, strict=False):
      for family in FAMILIES:
        handles |= _family(axes, run, family, chosen[family])
      axes.set_title(f"{algorithm.upper()}, seed {run.seed}", loc="left", fontsize=9)
      axes.spines[["top", "right"]].set_visible(False)
      axes.tick_params(labelsize=7)
    row[0].set_ylabel("mean skill kept", fontsize=8)
  for axes in grid[-1]:
    axes.set_xlabel(f"{judge} reward", fontsize=8)
  figure.legend(
    handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8
  )
  figure.savefig(path, dpi=90)


def _family(axes: Any, run: Measured, family: str, style: Style) -> dict[str, Any]:
  """The points of a family; its ends, the model before RLHF included, joined where it is a path."""
  rows = run.of(family)
  if not rows:
    return {}
  joined = family in LINES
  rows = [run.before, *rows] if joined else rows
  (handle,) = axes.plot(
    run.column(REWARD)[rows],
    run.column(MEAN)[rows],
    marker=style.matplotlib_marker,
    ls="-" if joined else "",
    lw=1,
    ms=3.5 if joined else 4.5,
    color=style.matplotlib_colour,
    zorder=3 if joined else 2,
  )
  return {family: handle}
