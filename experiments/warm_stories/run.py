"""Trains six reward models a seed on labelled sentences, averages them, and puts every claim into the ledger."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import studies
from experiments.warm import claims, figure


def config(seed: int) -> dict[str, Any]:
  """With RL against a conservative ensemble, too; the seed also says which sentences are trained on."""
  made = studies.config("warm/stories.py", seed)
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
