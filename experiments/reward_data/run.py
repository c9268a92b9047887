"""RL against reward models of few and of many pairs, for each seed, and the ledger."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import figures, studies
from experiments.figures import Panel
from experiments.reward_data import claims
from experiments.studies import Study
from experiments.warm.claims import SINGLE


def configs(seed: int) -> dict[str, dict[str, Any]]:
  """A run a size: one reward model as `experiments.warm` trains them, and RL against it."""
  found = {}
  for size in claims.SIZES:
    made = studies.config("warm/tiny.py:near", seed)
    for study in ("accuracy", "interpolation", "best_of_n", "ood"):
      del made[study]
    made["problem"]["num_pairs"] = size
    made["warm"]["members"] = made["warm"]["members"][:1]
    made["over_optimisation"] |= {"proxies": [SINGLE]}
    found[claims.part(size)] = made
  return found


def draw(runs: Sequence[Study], results: pathlib.Path) -> None:
  """Writes peaks.png: gold reward against the KL, seed by seed."""
  panels = [
    Panel(
      f"seed {run.seed}",
      "KL to the SFT policy, nats",
      "gold reward",
      {
        claims.part(size): [
          (
            run.places("over_optimisation", f"{claims.part(size)}: {SINGLE}", "kl"),
            run.values("over_optimisation", f"{claims.part(size)}: {SINGLE}", run.judge),
          )
        ]
        for size in claims.SIZES
      },
    )
    for run in runs
  ]
  figures.draw(panels, results / "peaks.png")


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=configs,
    claims=claims.CLAIMS,
    draw=draw,
  )
