"""The claim of Elastic Reset (Noukhovitch et al. 2023), fixed before it is measured.

The quantity is what the claim says is positive, one value a seed; `verdicts.verdict` of its 95 % interval says what
became of it. It is judged by the true reward of the world ("gold") and by the reward model that is optimised ("proxy").
"""

import functools
from collections.abc import Sequence

import numpy as np

from experiments.studies import Claim, Study, compare
from experiments.verdicts import Finding, finding

STUDY = "front"
START, RESET, PENALTY = "init", "Elastic Reset", "KL penalty"


def penalised(run: Study, judge: str) -> tuple[np.ndarray, np.ndarray]:
  """KL and reward of θ_0 and of the ends of all runs with a KL penalty, by rising KL: [P] each."""
  points = [*run.of(STUDY, START), *run.of(STUDY, PENALTY)]
  kl, reward = (np.array([p.values[n] for p in points]) for n in ("kl", f"reward_{judge}"))
  order = np.argsort(kl)
  return kl[order], reward[order]


def above(run: Study, label: str, judge: str) -> float:
  """Reward at the end of a run with resets, less that of KL penalties at its KL, on the path through their ends."""
  found = {p.label: p for p in run.of(STUDY, RESET)}[label]
  kl, reward = penalised(run, judge)
  return float(found.values[f"reward_{judge}"] - np.interp(found.values["kl"], kl, reward))


def higher(judge: str, runs: Sequence[Study]) -> Finding:
  """ER-1."""
  parts = {
    p.label: compare(runs, lambda run, label=p.label: above(run, label, judge))
    for p in runs[0].of(STUDY, RESET)
  }
  return finding(parts, f"{judge} reward less that of KL penalties at the same KL")


CLAIMS = tuple(
  Claim(
    f"ER-1 ({judge})",
    "Elastic Reset has more reward at the same drift than a KL penalty (abstract); here in PPO.",
    functools.partial(higher, judge),
  )
  for judge in ("gold", "proxy")
)
