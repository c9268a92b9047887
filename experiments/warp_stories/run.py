"""Trains WARP and what it is compared with, on a pre-trained model, for each seed, and fills the ledger."""

import pathlib
from collections.abc import Sequence

from experiments import studies
from experiments.warp import claims, figure

# A step back of another η, and a penalty on the length: completions here are all as long as they may be.
WITHOUT = ("WARP-10", "WARP-11")


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=lambda seed: studies.config("warp/stories.py", seed),
    claims=claims.of("control", without=WITHOUT),
    draw=figure.draw,
  )
