"""Trains WARP and what it is compared with, for each seed, and puts every claim into the ledger."""

import pathlib
from collections.abc import Sequence

from experiments import studies
from experiments.warp import claims, figure


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=lambda seed: studies.config("warp/tiny.py", seed),
    claims=claims.of("gold"),
    draw=figure.draw,
  )
