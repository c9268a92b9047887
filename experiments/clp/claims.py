"""The claim of Conditional Language Policy (Wang et al. 2024, arXiv 2407.15762), fixed beforehand.

One value a seed: hypervolume by that of Rewarded Soups at equal compute (as many completions), less 1, and the gain in
expected utility; over preferences that training never saw.
"""

import functools
from collections.abc import Sequence

from experiments.studies import Claim, Study, compare
from experiments.verdicts import Finding, finding

KINDS = ("full", "attention", "logit", "prompt")


def against_soups(kind: str, runs: Sequence[Study]) -> Finding:
  """A kind of conditioning against Rewarded Soups."""

  def found(run: Study, name: str) -> float:
    return float(run.values("comparison", f"CLP {kind}", name)[0])

  parts = {
    "hypervolume ratio less 1": compare(runs, lambda run: found(run, "hypervolume_ratio") - 1),
    "gain in expected utility": compare(runs, lambda run: found(run, "expected_utility_gain")),
  }
  return finding(parts, "against Rewarded Soups")


CLAIMS = tuple(
  Claim(
    f"CLP-1 {kind}",
    "Conditional policies dominate multi-objective baselines, Rewarded Soups among them"
    f" (abstract); here conditioning by {kind}.",
    functools.partial(against_soups, kind),
  )
  for kind in KINDS
)
