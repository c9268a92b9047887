"""Trains a policy for every reward and every mixture, for each seed, and puts every claim into the ledger."""

import pathlib
from collections.abc import Sequence

from experiments import studies
from experiments.rewarded_soups import claims, figure


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=lambda seed: studies.config("rewarded_soups/tiny.py", seed),
    claims=claims.CLAIMS,
    draw=figure.draw,
  )
