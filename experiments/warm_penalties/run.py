"""RL against one, averaged and ensembled reward models with several KL coefficients, for each seed, and the ledger."""

import pathlib
from collections.abc import Sequence
from typing import Any

from experiments import figures, studies
from experiments.figures import Panel
from experiments.studies import Study
from experiments.warm.claims import CONSERVATIVE, SINGLE, WARM
from experiments.warm_penalties import claims

PROXIES = (SINGLE, CONSERVATIVE[0], WARM)


def config(seed: int) -> dict[str, Any]:
  """The reward models of `experiments.warm`, without its other studies."""
  made = studies.config("warm/tiny.py:near", seed)
  for study in ("accuracy", "interpolation", "best_of_n", "ood"):
    del made[study]
  made["over_optimisation"] |= {
    "proxies": [proxy if proxy != WARM else "warm" for proxy in PROXIES],
    "kl_coefs": list(claims.PENALTIES),
  }
  return made


def draw(runs: Sequence[Study], results: pathlib.Path) -> None:
  """Writes penalties.png: gold reward along RL, a panel a proxy."""
  panels = []
  for proxy in PROXIES:
    lines = {}
    for beta in claims.PENALTIES:
      family = claims.line(proxy, beta)
      lines[f"β = {beta:g}"] = [
        (
          run.places("over_optimisation", family, "iteration"),
          run.values("over_optimisation", family, run.judge),
        )
        for run in runs
      ]
    panels.append(Panel(f"RL against {proxy}", "iteration", "gold reward", lines))
  figures.draw(panels, results / "penalties.png")


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=config,
    claims=claims.CLAIMS,
    draw=draw,
  )
