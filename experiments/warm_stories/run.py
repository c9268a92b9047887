"""Trains six reward models a seed on labelled sentences, averages them, and puts every claim into the ledger."""

import pathlib
from collections.abc import Sequence

from experiments import studies
from experiments.warm import claims, figure, run


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=lambda seed: run.config(seed, "warm/stories.py"),
    claims=claims.CLAIMS,
    draw=figure.draw,
  )
