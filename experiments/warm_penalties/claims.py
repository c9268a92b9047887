"""Claims on the KL coefficient of RL against averaged and ensembled reward models, fixed before they are measured.

Ramé et al. 2024 (WARM, arXiv 2401.12187), figure 8c; Coste et al. 2024. Each is a quantity that the claim says is
positive, one value a seed; `verdicts.verdict` of their 95 % intervals says what became of it.
"""

from collections.abc import Sequence

from experiments.studies import Claim, Study, compare
from experiments.verdicts import Finding, finding
from experiments.warm.claims import CONSERVATIVE, SINGLE, WARM, last, peak

PENALTIES = (0.0, 0.05, 0.2)
SMALL, LARGE = PENALTIES[1:]
# How much gold reward may be lost behind the peak where nothing is over-optimised.
NEAR = 0.02


def line(proxy: str, beta: float) -> str:
  """What a run of RL is called."""
  return f"{proxy}, β = {beta:g}"


def best(run: Study, proxy: str) -> float:
  """The coefficient with which RL ends with the largest gold reward."""
  return max(PENALTIES, key=lambda beta: last(run, line(proxy, beta)))


def lost(run: Study, proxy: str, beta: float) -> float:
  """Gold reward at the peak less that at the end."""
  return peak(run, line(proxy, beta)) - last(run, line(proxy, beta))


def lower(runs: Sequence[Study]) -> Finding:
  """WARM-9."""
  part = compare(runs, lambda run: best(run, SINGLE) - best(run, WARM))
  return finding(
    {"difference": part}, f"best β of {PENALTIES} by gold at the end, single less WARM"
  )


def prevents(runs: Sequence[Study]) -> Finding:
  """COSTE-2."""
  worst = CONSERVATIVE[0]
  parts = {
    f"{NEAR:g} less what the ensemble loses behind its peak": compare(
      runs, lambda run: NEAR - lost(run, worst, SMALL)
    ),
    "what a single model loses less that": compare(
      runs, lambda run: lost(run, SINGLE, SMALL) - lost(run, worst, SMALL)
    ),
    f"the ensemble's end less that of a single model with β = {LARGE:g}": compare(
      runs, lambda run: last(run, line(worst, SMALL)) - last(run, line(SINGLE, LARGE))
    ),
  }
  return finding(parts, f"gold reward of RL with β = {SMALL:g}")


CLAIMS = (
  Claim(
    "WARM-9",
    "The best KL coefficient is lower with WARM than with a single reward model (figure 8c).",
    lower,
  ),
  Claim(
    "COSTE-2",
    "A small KL penalty and a conservative ensemble prevent over-optimisation by RL, at no cost in reward, where a"
    " single reward model needs a penalty 20 times as large (Coste et al. 2024).",
    prevents,
  ),
)
