"""The claims of the alignment-tax paper, each as a function from measured runs to what was found and a verdict.

What is compared, and when a claim counts as reproduced, is fixed here before anything is run: a quantity that the claim
says is positive, one value a seed, and `verdicts.verdict` of its 95 % intervals. Claims on averages of which the
best is taken choose on nothing: they compare whole fronts, or the mean over all ratios that were measured.

Skills stand for the paper's suites: facts for common sense, passages for reading, translation for translation.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from experiments import verdicts
from experiments.alignment_tax import measurements
from experiments.alignment_tax.measurements import MEAN, REWARD, Measured
from experiments.verdicts import Comparison, Finding, finding
from wam.merging import ratios
from wam.recipes import alignment_tax as recipe

# By algorithm: its runs, one a seed.
Runs = Mapping[str, Sequence[Measured]]


class Claim(NamedTuple):
  """A claim.

  Attributes:
    name: the key of the claim.
    paper: what the paper says, and where.
    algorithms: whose runs it needs, all of them.
    find: runs -> what was found.
  """

  name: str
  paper: str
  algorithms: tuple[str, ...]
  find: Callable[[Runs], Finding]


def compare(runs: Sequence[Measured], quantity: Callable[[Measured], float]) -> Comparison:
  """A quantity over the seeds."""
  return verdicts.over_seeds([quantity(run) for run in runs])


def falls_with_reward(skill: str) -> Callable[[Measured], float]:
  """Minus the rank correlation of reward and a skill along the run, θ_0 first, as far as the reward's peak.

  0 where the skill has not changed by then.
  """

  def quantity(run: Measured) -> float:
    path = [run.before, *run.of(recipe.STOPPED)]
    reward, score = run.column(REWARD)[path], run.column(skill)[path]
    peak = max(int(reward.argmax()) + 1, 3)
    if np.ptp(score[:peak]) == 0:
      return 0.0
    return -float(scipy.stats.spearmanr(reward[:peak], score[:peak]).statistic)

  return quantity


def tax(runs: Runs) -> Finding:
  """TAX-1."""
  skills = ("passages", "translation")
  return finding(
    {skill: compare(runs["rsf"], falls_with_reward(skill)) for skill in skills},
    "minus the rank correlation of reward and skill along RSF, up to the reward's peak",
  )


def rises_then_falls(runs: Runs) -> Finding:
  """TAX-1, common sense."""

  def rise(run: Measured) -> float:
    path = run.of(recipe.STOPPED)
    return float(run.column("facts")[path].max() - run.column("facts")[run.before])

  def fall(run: Measured) -> float:
    path = run.of(recipe.STOPPED)
    return float(run.column("facts")[path].max() - run.column("facts")[path[-1]])

  return finding(
    {"rise": compare(runs["rsf"], rise), "fall": compare(runs["rsf"], fall)},
    "facts: best iteration minus before RLHF, and best minus last iteration",
  )


def front_against(*families: str) -> Callable[[Measured, str], float]:
  """Hypervolume of model averaging minus the largest among single families."""

  def quantity(run: Measured, column: str) -> float:
    others = [f for f in families if run.of(f)]
    own = measurements.hypervolume(run, run.of(recipe.AVERAGED), column)
    return own - max(measurements.hypervolume(run, run.of(f), column) for f in others)

  return quantity


def averaging_beats(
  algorithm: str, *families: str, columns: Sequence[str] = (MEAN,)
) -> Callable[[Runs], Finding]:
  """Averaging has the larger hypervolume than every one of some families, against each of some columns."""
  difference = front_against(*families)

  def find(runs: Runs) -> Finding:
    parts = {c: compare(runs[algorithm], lambda run, c=c: difference(run, c)) for c in columns}
    return finding(
      parts, f"hypervolume of averaging minus the best of {', '.join(families)}, against"
    )

  return find


def replay(runs: Runs) -> Finding:
  """TAX-3."""
  difference = front_against("replay")
  skills = ("facts", "passages", "translation")
  parts = {s: compare(runs["rsf"], lambda run, s=s: difference(run, s)) for s in skills}
  wins = sum(part.low > 0 for part in parts.values())
  losses = sum(part.high < 0 for part in parts.values())
  verdict = "reproduced" if wins >= 2 else "not reproduced" if losses >= 2 else "inconclusive"
  listed = "; ".join(f"{skill} {part}" for skill, part in parts.items())
  return Finding(f"hypervolume of averaging minus that of experience replay: {listed}", verdict)


def input_part(runs: Runs) -> Finding:
  """TAX-5: the mean over the ratios that were measured, against θ."""

  def above(column: str) -> Callable[[Measured], float]:
    def quantity(run: Measured) -> float:
      rows = run.rows(
        lambda family, label, _: family == recipe.PARTWISE and label.startswith("input")
      )
      return float(run.column(column)[rows].mean() - run.column(column)[run.after])

    return quantity

  parts = {
    f"{algorithm} {column}": compare(members, above(column))
    for algorithm, members in runs.items()
    for column in (REWARD, MEAN)
  }
  return finding(parts, "averaging the input part alone, mean over its ratios, minus θ")


def patterns(runs: Runs) -> Finding:
  """TAX-6."""

  def above(run: Measured) -> float:
    rows = run.of(recipe.PATTERNS)
    return sum(gain(run, row) for row in rows) / len(rows)

  parts = {algorithm: compare(members, above) for algorithm, members in runs.items()}
  return finding(
    parts, "mean skill of unequal patterns above the front of equal ratios at the same reward"
  )


def algorithms(runs: Runs) -> Finding:
  """TAX-9: fronts of the two runs in one plane, so scaled by the points of both."""
  values = []
  for first, second in zip(runs["rsf"], runs["dpo"], strict=True):
    both = measurements.joined(first, second)
    own, other = (
      measurements.hypervolume(both, both.of(f"{name} {recipe.STOPPED}"), MEAN)
      for name in ("0", "1")
    )
    values.append(own - other)
  return finding(
    {"difference": verdicts.over_seeds(values)},
    "hypervolume of the checkpoints of RSF minus that of DPO, against the mean skill",
  )


def gain(run: Measured, row: int) -> float:
  """Mean skill of a point above the front of equal ratios, at the same reward."""
  curve = [run.before, *run.of(recipe.AVERAGED)]
  return measurements.at_equal_reward(run, row, curve, MEAN)


def adaptive_gain(run: Measured, num_parts: int, family: str = recipe.ADAPTIVE) -> float:
  """The mean gain of the adaptive averages with K parts."""
  rows = run.rows(lambda name, label, _: name == family and label.startswith(f"K = {num_parts},"))
  return sum(gain(run, row) for row in rows) / len(rows)


def adaptive(runs: Runs) -> Finding:
  """AMA-1."""
  parts = {
    algorithm: compare(members, lambda run: adaptive_gain(run, 3))
    for algorithm, members in runs.items()
  }
  return finding(
    parts,
    "mean skill of adaptive averages (K = 3) above the front of equal ratios at the same reward",
  )


def three_parts(runs: Runs) -> Finding:
  """AMA-2."""
  parts = {
    f"K = 3 minus K = {other}": compare(
      runs["rsf"], lambda run, other=other: adaptive_gain(run, 3) - adaptive_gain(run, other)
    )
    for other in (2, 6)
  }
  return finding(parts, "mean skill above the front of equal ratios at the same reward")


def objective(anchors: str | None) -> Callable[[Runs], Finding]:
  """Whether an objective ranks the ratios of one mean as the front does."""

  def agreement(run: Measured) -> float:
    rows = run.of(recipe.GRID)
    thought = [measurements.objective(run, row, anchors) for row in rows]
    gains = [gain(run, row) for row in rows]
    # Where no ratio costs any skill there is nothing to agree with.
    return float(scipy.stats.spearmanr(thought, gains).statistic) if np.ptp(gains) > 0 else 0.0

  def find(runs: Runs) -> Finding:
    return finding(
      {algorithm: compare(members, agreement) for algorithm, members in runs.items()},
      "rank correlation, over a grid of ratios with mean 0.6, of the objective and the mean skill above the front of"
      " equal ratios at the same reward (0 where no ratio has any)",
    )

  return find


def anchored(runs: Runs) -> Finding:
  """Whether ratios found with anchors are better than those found without."""
  parts = {
    f"{algorithm}, {anchors}": compare(
      members,
      lambda run, anchors=anchors: (
        adaptive_gain(run, 3, f"{recipe.ADAPTIVE}, anchored by {anchors}") - adaptive_gain(run, 3)
      ),
    )
    for algorithm, members in runs.items()
    for anchors in ("samples", "corpus")
  }
  return finding(
    parts, "mean skill at equal reward, ratios found with anchors minus without (K = 3)"
  )


def penalty_of_ppo(runs: Runs) -> Finding:
  """TAX-8: the main run has the coefficient 0.05."""

  def quantity(run: Measured) -> float:
    reward = run.column(REWARD)
    return float(reward[run.after] - reward[run.of("KL penalty")].max())

  return finding(
    {"difference": compare(runs["ppo"], quantity)},
    "reward at the end with a KL coefficient of 0.05 minus the best with 0, 0.02, 0.1 or 0.2",
  )


def printed_range(runs: Runs) -> Finding:
  """AMA-5: arithmetic, no run."""
  del runs
  alpha, num_parts = 0.4, 3
  # The ends of the range: sigmoids of 0 and 1.
  extremes = [np.array(s) for s in itertools.product((-50.0, 50.0), repeat=num_parts)]
  found = {}
  for kind in ("printed", "coded"):
    form = ratios.form(kind, num_parts, alpha, epsilon=1.0)
    found[kind] = np.array([form.ratios(s) for s in extremes]) / alpha
  listed = "; ".join(
    f"{kind} {x.min():.2g}α to {x.max():.2g}α, mean {x.mean():.2g}α" for kind, x in found.items()
  )
  printed = found["printed"]
  holds = np.allclose([printed.min(), printed.max()], [0.2, 0.5], atol=1e-4)
  return Finding(f"range of the ratios: {listed}", "reproduced" if holds else "not reproduced")


WITHOUT_DATA = (recipe.STOPPED, "L1", "L2", "distillation", "LoRA")
ONLINE = ("rsf", "ppo", "dpo")
CLAIMS = (
  Claim(
    "TAX-1 reading and translation",
    "Reading and translation fall as the reward rises (figure 12).",
    ("rsf",),
    tax,
  ),
  Claim(
    "TAX-1 common sense",
    "Common sense first rises with the reward, then falls (figure 12).",
    ("rsf",),
    rises_then_falls,
  ),
  Claim(
    "TAX-2",
    "Model averaging has the best front of reward and tax among the methods without pre-training data (figure 3).",
    ("rsf",),
    averaging_beats("rsf", *WITHOUT_DATA),
  ),
  Claim(
    "TAX-3",
    "Model averaging beats experience replay on two of three suites (figure 4).",
    ("rsf",),
    replay,
  ),
  Claim(
    "TAX-4",
    "Model averaging beats a KL penalty in the reward (PPO, figure 5).",
    ("ppo",),
    averaging_beats("ppo", "KL penalty"),
  ),
  Claim(
    "TAX-5",
    "Averaging the input part alone raises reward and skills (figures 7 and 13).",
    ONLINE,
    input_part,
  ),
  Claim(
    "TAX-6",
    "Unequal ratios of the parts beat equal ones (figure 8, α in 0.2, 0.3, 0.4).",
    ("rsf",),
    patterns,
  ),
  Claim(
    "TAX-8",
    "In PPO the KL coefficient 0.05 is the best; smaller ones collapse (appendix C).",
    ("ppo",),
    penalty_of_ppo,
  ),
  Claim("TAX-9", "RSF has a better front than DPO (figure 14).", ("rsf", "dpo"), algorithms),
  Claim("AMA-1", "Adaptive averaging beats averaging (figures 9 and 15).", ONLINE, adaptive),
  Claim(
    "AMA-2",
    "K = 3 is the best of 3, 6 and 9 (figure 10); here of 2, 3 and 6.",
    ("rsf",),
    three_parts,
  ),
  Claim(
    "AMA-5",
    "Eq. 13 keeps the ratios between 0.2α and 0.5α for K = 3, ε = 1 (section 5; elsewhere their mean is α).",
    (),
    printed_range,
  ),
  Claim(
    "AMA objective",
    "Ratios that make completions of θ more likely (eq. 8) improve the front (section 5).",
    ONLINE,
    objective(None),
  ),
  Claim(
    "AMA objective with completions of θ_0",
    "Not in the paper: an objective that also counts what θ_0 would say improves the front.",
    ONLINE,
    objective("samples"),
  ),
  Claim(
    "AMA objective with texts of pre-training",
    "Not in the paper: an objective that also counts the likelihood of texts of pre-training improves the front.",
    ONLINE,
    objective("corpus"),
  ),
  Claim(
    "AMA with anchors",
    "Not in the paper: ratios found by those two objectives are better than those of eq. 8.",
    ("rsf",),
    anchored,
  ),
)
