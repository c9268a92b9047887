"""The figure of the experiment: one reward against the other, seed by seed."""

import pathlib
from collections.abc import Sequence

from experiments import figures
from experiments.figures import Panel
from experiments.rewarded_soups import claims
from experiments.studies import Study

FAMILIES = (claims.SOUPS, claims.MORL, claims.MOD, claims.PERSONALISED)


def draw(runs: Sequence[Study], results: pathlib.Path, families: Sequence[str] = FAMILIES) -> None:
  """Writes fronts.png, with a panel a seed."""
  across, up = claims.rewards(runs[0])[:2]
  panels = [
    Panel(
      f"seed {run.seed}",
      across.replace("_", " "),
      up.replace("_", " "),
      {
        family: [tuple(run.values("front", family, f"reward_{r}") for r in (across, up))]
        for family in families
      },
    )
    for run in runs
  ]
  figures.draw(panels, results / "fronts.png", main=claims.SOUPS)
