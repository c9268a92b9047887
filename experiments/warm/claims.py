"""The claims of WARM (Ramé et al. 2024, arXiv 2401.12187) and of its neighbours, fixed before they are measured.

Each is a quantity that the claim says is positive, one value a seed; `verdicts.verdict` of their 95 % intervals says
what became of it. Accuracy counts ties 1/2. The judge is the true reward of the world, "gold", or "control", a reward
model that learnt from other pairs and that nothing is optimised against.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from experiments.studies import Claim, Study, compare
from experiments.verdicts import Finding, finding

WARM, ENSEMBLE, SINGLE, ALONG = "WARM", "ensemble mean", "best single", "run average"
CONSERVATIVE = ("ensemble worst case", "ensemble uncertainty weighted")
OOD, VALIDATION = "out_of_distribution", "validation"
CLEAN, CORRUPT = "clean_train", "corrupt_train"
ALL = "M = 6"
# How near two accuracies must be to be called equal.
NEAR = 0.01
# Best-of-n where the choice matters.
FROM_N = 8


def accuracy(run: Study, family: str, split: str, label: str = ALL) -> float:
  """Of a model."""
  return run.at("accuracy", family, label, "accuracy", split)


def gain(run: Study, split: str) -> float:
  """Accuracy of WARM of all members less that of the mean of their predictions."""
  return accuracy(run, WARM, split) - accuracy(run, ENSEMBLE, split)


def connected(runs: Sequence[Study]) -> Finding:
  """WARM-1."""

  def above(kind: str) -> Callable[[Study], float]:
    def quantity(run: Study) -> float:
      path = run.values("interpolation", kind, "accuracy", OOD)
      at = run.places("interpolation", kind, "lambda", OOD)
      line = (1 - at) * path[0] + at * path[-1]
      return float((path - line)[1:-1].mean())

    return quantity

  kinds = ("same configuration", "different learning rates", "Baklava")
  parts = {kind: compare(runs, above(kind)) for kind in kinds}
  return finding(parts, "accuracy (OOD) along the line less the mean of its ends, mean over λ")


def near(runs: Sequence[Study]) -> Finding:
  """WARM-2."""
  parts = {
    split: compare(runs, lambda run, split=split: NEAR - abs(gain(run, split)))
    for split in (VALIDATION, OOD)
  }
  return finding(parts, f"{NEAR:g} less the distance of the accuracies of WARM and the ensemble")


def diversity(runs: Sequence[Study]) -> Finding:
  """WARM-3."""

  def gain_of(run: Study, kind: str) -> float:
    return run.at("connectivity_summary", kind, "whole line", "gain", OOD)

  kinds = ("same run", "same configuration", "different learning rates", "Baklava")
  parts = {
    f"{more} over {less}": compare(
      runs, lambda run, a=less, b=more: gain_of(run, b) - gain_of(run, a)
    )
    for less, more in itertools.pairwise(kinds)
  }
  return finding(parts, "gain of averaging two (OOD accuracy at λ = 1/2 less the mean of the ends)")


def memorises_less(runs: Sequence[Study]) -> Finding:
  """WARM-4, the labels that were swapped."""
  parts = {
    "swapped pairs": compare(runs, lambda run: -gain(run, CORRUPT)),
    "clean pairs": compare(runs, lambda run: -gain(run, CLEAN)),
  }
  return finding(parts, "accuracy on training pairs, ensemble less WARM")


def generalises(runs: Sequence[Study]) -> Finding:
  """WARM-4, pairs that were not trained on."""
  parts = {split: compare(runs, lambda run, s=split: gain(run, s)) for split in (VALIDATION, OOD)}
  return finding(parts, "accuracy, WARM less ensemble")


def away(runs: Sequence[Study]) -> Finding:
  """WARM-4, the trend."""
  parts = {
    f"{far} over {close}": compare(
      runs, lambda run, a=close, b=far: float(gain(run, b) - gain(run, a))
    )
    for close, far in ((CORRUPT, CLEAN), (CLEAN, VALIDATION), (VALIDATION, OOD))
  }
  return finding(parts, "WARM less ensemble, the farther split less the nearer one")


def curve(run: Study, family: str, name: str = "") -> np.ndarray:
  """A value of best-of-n, from FROM_N on; by default what the judge says."""
  keep = run.places("best_of_n", family, "n") >= FROM_N
  return run.values("best_of_n", family, name or run.judge)[keep]


def best_of_n(*others: str, own: str = WARM) -> Callable[[Sequence[Study]], Finding]:
  """One selector's reward, by the judge, is larger than others', mean over n."""

  def find(runs: Sequence[Study]) -> Finding:
    parts = {
      other: compare(runs, lambda run, o=other: float((curve(run, own) - curve(run, o)).mean()))
      for other in others
    }
    return finding(
      parts, f"{runs[0].judge} reward of best-of-n, {own} less, mean over n >= {FROM_N}"
    )

  return find


def wins(runs: Sequence[Study]) -> Finding:
  """WARM-6, against θ_SFT."""
  part = compare(runs, lambda run: float(curve(run, WARM, "win_rate").max() - 0.9))
  return finding({"difference": part}, "largest win rate of best-of-n by WARM less 0.9")


def peak(run: Study, family: str) -> float:
  """The largest reward along a run of RL, by the judge."""
  return float(run.values("over_optimisation", family, run.judge).max())


def last(run: Study, family: str) -> float:
  """The reward at the end of a run of RL, by the judge."""
  return float(run.values("over_optimisation", family, run.judge)[-1])


def rl(own: str, *others: str) -> Callable[[Sequence[Study]], Finding]:
  """RL against one proxy ends with more of the judge's reward than against others, and has the higher peak."""

  def find(runs: Sequence[Study]) -> Finding:
    parts = {}
    for other in others:
      parts[f"peak, {other}"] = compare(runs, lambda run, o=other: peak(run, own) - peak(run, o))
      parts[f"end, {other}"] = compare(runs, lambda run, o=other: last(run, own) - last(run, o))
    return finding(parts, f"{runs[0].judge} reward of RL against {own} less that against")

  return find


def delays(runs: Sequence[Study]) -> Finding:
  """WARM-8."""

  def peak_kl(run: Study, family: str) -> float:
    at = int(run.values("over_optimisation", family, run.judge).argmax())
    return float(run.places("over_optimisation", family, "kl")[at])

  part = compare(runs, lambda run: peak_kl(run, WARM) - peak_kl(run, SINGLE))
  return finding(
    {"difference": part}, f"nats of KL at which {runs[0].judge} peaks, WARM less best single"
  )


def worst_first(runs: Sequence[Study]) -> Finding:
  """WARM-10: averaging the best members first, against the worst; M from 1 to 5."""

  def quantity(run: Study) -> float:
    names = (WARM, "WARM, worst first")
    own, other = (run.values("accuracy", name, "accuracy", OOD)[:-1] for name in names)
    return float((own - other).mean())

  part = compare(runs, quantity)
  return finding({"difference": part}, "accuracy (OOD), best first less worst first, mean, M < 6")


def fits(name: str, family: str) -> Callable[[Sequence[Study]], Finding]:
  """GAO-1: the functional form explains nine tenths of the variance."""

  def find(runs: Sequence[Study]) -> Finding:
    part = compare(runs, lambda run: run.fits[family, name]["r2"] - 0.9)
    return finding({"difference": part}, f"R² of Gao's form on {name} with {family}, less 0.9")

  return find


def drop(run: Study, family: str) -> float:
  """How much reward best-of-n loses behind its best n, by the judge."""
  found = run.values("best_of_n", family, run.judge)
  return float(found.max() - found[-1])


def conservative(runs: Sequence[Study]) -> Finding:
  """COSTE-1."""
  parts = {
    f: compare(runs, lambda run, f=f: drop(run, SINGLE) - drop(run, f)) for f in CONSERVATIVE
  }
  return finding(parts, f"{runs[0].judge} reward lost behind the best n, best single less")


CLAIMS = (
  Claim(
    "WARM-1",
    "Members from one init are linearly connected: accuracy along the line is at least that of its ends "
    "(observation 1, figure 3).",
    connected,
  ),
  Claim(
    "WARM-2",
    "Averaged weights are about as accurate as averaged predictions (observation 2).",
    near,
  ),
  Claim(
    "WARM-3",
    "The gain of averaging grows from checkpoints of a run to seeds, learning rates, Baklava (figure 3).",
    diversity,
  ),
  Claim(
    "WARM-4 training pairs",
    "With 25 % of the labels swapped, averaged weights fit the training pairs less than averaged predictions, "
    "swapped ones above all (observation 3, figure 4).",
    memorises_less,
  ),
  Claim(
    "WARM-4 held-out pairs",
    "And they are as good or better on validation and out-of-distribution pairs (observation 3, figure 4).",
    generalises,
  ),
  Claim(
    "WARM-4 trend",
    "The gain over the ensemble grows away from the training distribution (figure 5).",
    away,
  ),
  Claim(
    "WARM-6 against SFT",
    "Best-of-n by WARM of six wins up to 92.5 % against the SFT policy (section 5.1).",
    wins,
  ),
  Claim(
    "WARM-6 against others",
    "WARM of six is the best selector of best-of-n (section 5.1).",
    best_of_n(SINGLE, ALONG, ENSEMBLE),
  ),
  Claim(
    "WARM-7",
    "RL against WARM of six is preferred to RL against the best single reward model (section 5.2: 79.4 %).",
    rl(WARM, SINGLE),
  ),
  Claim(
    "WARM-8",
    "Averaging more members delays the collapse of the control reward (figures 8 and 9).",
    delays,
  ),
  Claim(
    "WARM-10",
    "Averaging the best members first beats averaging the worst first (figure 10).",
    worst_first,
  ),
  Claim(
    "WARM-11 best-of-n",
    "WARM of two beats the ensemble of two in best-of-n (figure 6).",
    best_of_n("ensemble mean, M = 2", own="WARM, M = 2"),
  ),
  Claim(
    "WARM-11 RL",
    "WARM beats prediction ensembles in RL (figure 8; here six members).",
    rl(WARM, ENSEMBLE),
  ),
  Claim(
    "GAO-1 best-of-n",
    "Gold reward of best-of-n follows d(α - βd), d = √KL (Gao et al. 2023).",
    fits("best_of_n", SINGLE),
  ),
  Claim(
    "GAO-1 RL",
    "Gold reward of RL follows d(α - β log d) (Gao et al. 2023).",
    fits("rl", SINGLE),
  ),
  Claim(
    "COSTE-1",
    "Worst-case and uncertainty-weighted ensembles practically end over-optimisation in best-of-n (Coste et "
    "al. 2024).",
    conservative,
  ),
  Claim(
    "COSTE-1 RL",
    "A conservative ensemble mitigates over-optimisation in RL (Coste et al. 2024).",
    rl(CONSERVATIVE[0], SINGLE),
  ),
)
