"""The figure of the experiment: one reward against the other, seed by seed."""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments import figures
from experiments.figures import Line, Panel
from experiments.rewarded_soups import claims
from experiments.studies import Study

FAMILIES = (claims.SOUPS, claims.MORL, claims.MOD)


def draw(runs: Sequence[Study], results: pathlib.Path, families: Sequence[str] = FAMILIES) -> None:
  """Writes fronts.png, with a panel a seed."""
  across, up = claims.rewards(runs[0])[:2]
  panels = [
    Panel(
      f"seed {run.seed}",
      across.replace("_", " "),
      up.replace("_", " "),
      {family: [_line(run, family, across, up)] for family in families},
    )
    for run in runs
  ]
  figures.draw(panels, results / "fronts.png", main=claims.SOUPS)


def _line(run: Study, family: str, across: str, up: str) -> Line:
  """The points of a family along λ, whatever the order of measuring was."""
  order = np.argsort(run.places("front", family, f"lambda_{up}"), kind="stable")
  x, y = (run.values("front", family, f"reward_{reward}")[order] for reward in (across, up))
  return x, y
