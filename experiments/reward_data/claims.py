"""A claim of Gao et al. 2023 (scaling laws for reward model over-optimisation), fixed before it is measured.

Each quantity is one that the claim says is positive, one value a seed; `verdicts.verdict` of their 95 % intervals says
what became of it.
"""

import itertools
from collections.abc import Sequence

from experiments.studies import Claim, Study, compare
from experiments.verdicts import Finding, finding
from experiments.warm.claims import SINGLE, peak

SIZES = (500, 1_500, 6_000)
# An accuracy below which a reward model is called near chance.
CHANCE = 0.55


def part(size: int) -> str:
  """What the run with so many pairs is called."""
  return f"{size} pairs"


def peak_kl(run: Study, name: str) -> float:
  """The KL to the SFT policy, in nats, at which gold reward is largest along RL."""
  family = f"{name}: {SINGLE}"
  at = int(run.values("over_optimisation", family, run.judge).argmax())
  return float(run.places("over_optimisation", family, "kl")[at])


def accuracy(run: Study, size: int) -> float:
  """On validation pairs."""
  return run.at("members", f"{part(size)}: members", "member 0", "accuracy", "validation")


def later(runs: Sequence[Study]) -> Finding:
  """GAO-2, the peak's place."""
  parts = {
    f"{more} less {less} pairs": compare(
      runs, lambda run, a=less, b=more: peak_kl(run, part(b)) - peak_kl(run, part(a))
    )
    for less, more in itertools.pairwise(SIZES)
  }
  return finding(parts, "nats of KL at which gold peaks")


def higher(runs: Sequence[Study]) -> Finding:
  """GAO-2, the peak's height."""

  def height(run: Study, size: int) -> float:
    return peak(run, f"{part(size)}: {SINGLE}")

  parts = {
    f"{more} less {less} pairs": compare(
      runs, lambda run, a=less, b=more: height(run, b) - height(run, a)
    )
    for less, more in itertools.pairwise(SIZES)
  }
  return finding(parts, "gold reward at the peak")


def chance(runs: Sequence[Study]) -> Finding:
  """GAO-2, few pairs."""
  parts = {
    part(size): compare(runs, lambda run, s=size: CHANCE - accuracy(run, s)) for size in SIZES[:2]
  }
  return finding(parts, f"{CHANCE:g} less the accuracy on validation pairs")


CLAIMS = (
  Claim("GAO-2 later", "With more data the gold reward peaks later (Gao et al. 2023).", later),
  Claim("GAO-2 higher", "And higher (Gao et al. 2023).", higher),
  Claim(
    "GAO-2 chance",
    "With less than some 2 000 comparisons reward models are near chance (Gao et al. 2023).",
    chance,
  ),
)
