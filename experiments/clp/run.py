"""Trains every kind of conditional policy and Rewarded Soups at equal compute, and puts the claims into the ledger."""

import pathlib
from collections.abc import Sequence

from experiments import studies
from experiments.clp import claims
from experiments.rewarded_soups import figure
from wam.recipes.soup_models import SOUPS

FAMILIES = (SOUPS, *(f"CLP {kind}" for kind in claims.KINDS))


def draw(runs: Sequence[studies.Study], results: pathlib.Path) -> None:
  """As for Rewarded Soups."""
  figure.draw(runs, results, FAMILIES)


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=lambda seed: studies.config("clp/tiny.py", seed),
    claims=claims.CLAIMS,
    draw=draw,
  )
