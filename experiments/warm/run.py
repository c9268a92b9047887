"""Trains six reward models a seed, averages them, and puts every claim into the ledger."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import studies
from experiments.warm import claims, figure


def config(seed: int, name: str = "warm/tiny.py:near") -> dict[str, Any]:
  """Members that are linearly connected, and RL against a conservative ensemble, too."""
  made = studies.config(name, seed)
  made["over_optimisation"]["proxies"].append("ensemble worst case")
  return made


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=config,
    claims=claims.CLAIMS,
    draw=figure.draw,
  )
