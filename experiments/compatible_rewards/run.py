"""Rewarded Soups with rewards that do not exclude one another, for each seed, and every claim in the ledger."""

import pathlib
from collections.abc import Sequence

from experiments import studies
from experiments.rewarded_soups import claims, figure


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=lambda seed: studies.config("rewarded_soups/tiny.py:compatible", seed),
    claims=(*claims.CLAIMS, *claims.JUDGED),
    draw=figure.draw,
  )
