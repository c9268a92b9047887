"""The figures of the experiment: over-optimisation by best-of-n and by RL, and accuracy split by split."""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments import figures
from experiments.figures import Panel
from experiments.studies import Study
from experiments.warm import claims

FAMILIES = (claims.WARM, claims.ENSEMBLE, *claims.CONSERVATIVE, claims.ALONG, claims.SINGLE)
SPLITS = (claims.CORRUPT, claims.CLEAN, claims.VALIDATION, claims.OOD)


def draw(runs: Sequence[Study], results: pathlib.Path) -> None:
  """Writes over_optimisation.png and accuracy.png."""
  selected = {
    family: [
      (run.places("best_of_n", family, "n"), run.values("best_of_n", family, run.judge))
      for run in runs
    ]
    for family in FAMILIES
  }
  tuned = {
    family: [
      (
        np.sqrt(np.maximum(run.places("over_optimisation", family, "kl"), 0)),
        run.values("over_optimisation", family, run.judge),
      )
      for run in runs
    ]
    for family in FAMILIES
    if any((p.study, p.family) == ("over_optimisation", family) for p in runs[0].points)
  }
  figures.draw(
    [
      Panel("best-of-n", "n", f"{runs[0].judge} reward", selected, log=True),
      Panel("RL, each seed", "√KL to the SFT policy", f"{runs[0].judge} reward", tuned, mean=False),
    ],
    results / "over_optimisation.png",
    main=claims.WARM,
  )
  figures.draw(
    [
      Panel(
        split.replace("_", " "),
        "members M",
        "accuracy",
        {
          family: [
            (run.places("accuracy", family, "M", split), run.values("accuracy", family, "accuracy", split))
            for run in runs
          ]
          for family in (claims.WARM, claims.ENSEMBLE)
        },
      )
      for split in SPLITS
    ],
    results / "accuracy.png",
    main=claims.WARM,
  )  # fmt: skip
