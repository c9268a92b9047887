"""Trains six reward models a seed, averages them, and puts every claim into the ledger."""

import pathlib
from collections.abc import Sequence

from experiments import studies
from experiments.warm import claims, figure
from wam.recipes import warm


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    run=warm.run,
    make_config=lambda seed: studies.config("warm/tiny.py", seed),
    claims=claims.CLAIMS,
    draw=figure.draw,
  )
