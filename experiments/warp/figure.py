"""The figure of the experiment: reward against KL, seed by seed."""

import pathlib
from collections.abc import Sequence

from experiments import figures
from experiments.figures import Line, Panel
from experiments.studies import Study
from experiments.warp import claims

LINES = (claims.LAST, claims.FIRST, claims.LONG, claims.WIDE, *claims.MEMBERS)


def draw(runs: Sequence[Study], results: pathlib.Path) -> None:
  """Writes a PNG for each judge, with a panel a seed."""
  for judge in (runs[0].judge, claims.PROXY):
    panels = [
      Panel(
        f"seed {run.seed}",
        "KL to the SFT policy, nats",
        f"{judge} reward",
        {family: [_line(run, family, judge)] for family in (*LINES, *claims.static(run))},
      )
      for run in runs
    ]
    figures.draw(panels, results / f"fronts_{judge}.png", main=claims.LAST)


def _line(run: Study, family: str, judge: str) -> Line:
  return run.values("front", family, "kl"), run.values("front", family, f"reward_{judge}")
