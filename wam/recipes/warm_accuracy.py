"""How often reward models prefer the chosen completion: members, averages of M of them, ensembles, split by split.

Ramé et al. 2024, WARM (arXiv 2401.12187), observations 2 and 3, figures 4, 5 and 10. Accuracy is against the labels
that the pairs have: on swapped training pairs it says how much of the noise was learnt. Each value comes with both
conventions for ties: "accuracy" counts them 1/2, "accuracy_ties_correct" counts them 1, as the paper's >= does.

Leaves out where pairs come from (warm_setting.py), and the lines between models (warm_lines.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wam.core import sections
from wam.core.errors import unknown_name
from wam.core.types import Params
from wam.evaluation import pair_accuracy, statistics
from wam.merging.averages import uniform_mean
from wam.recipes import measurements
from wam.recipes.measurements import point
from wam.recipes.reward_populations import RULES, RewardPopulation, score_pairs
from wam.recipes.warm_setting import OOD, Setting
from wam.rewards import ensembles

Rows = Mapping[str, np.ndarray]
ORDERS: dict[str, Callable[[Sequence[int]], list[int]]] = {
  "best_first": list,
  "worst_first": lambda order: list(order)[::-1],
  # As trained: their numbers have nothing to do with how good they are.
  "random": sorted,
}
FAMILIES = {"best_first": "WARM", "worst_first": "WARM, worst first", "random": "WARM, any order"}
TRAIN = ("clean_train", "corrupt_train")


def pair_sets(
  population: RewardPopulation, shifted: Rows | None, *, max_pairs: int | None = None
) -> dict[str, Rows]:
  """The pairs to test on by split: "clean_train", "corrupt_train", "validation", "out_of_distribution".

  Args:
    population: gives the first three; a split without pairs is left out.
    shifted: the last; None: there are none.
    max_pairs: the first so many of each at most.
  """
  train = population.rows["train"].arrays
  found: dict[str, Rows] = {
    name: {key: array[population.groups[name][:max_pairs]] for key, array in train.items()}
    for name in TRAIN
    if len(population.groups[name])
  }
  held_out = population.rows["validation"].arrays
  found["validation"] = {key: array[:max_pairs] for key, array in held_out.items()}
  if shifted is not None:
    found[OOD] = {key: array[:max_pairs] for key, array in shifted.items()}
  return found


def check(section: Mapping[str, Any]) -> None:
  """Checks the section "accuracy"; see `accuracy`.

  Raises:
    ConfigError: names the key; UnknownName: for another order.
  """
  sections.check(accuracy, section, "accuracy")
  for order in section.get("orders", ()):
    if order not in ORDERS:
      raise unknown_name("order of members", order, ORDERS)


def accuracy(
  setting: Setting,
  shifted: Rows | None,
  *,
  orders: Sequence[str] = ("best_first",),
  max_pairs: int | None = None,
) -> None:
  """Accuracy of members, averages of M = 1, 2, ... of them, and ensembles, on every split; writes the measurements.

  Members are ordered by their accuracy on the validation pairs, which are therefore no test for what they select.

  Args:
    setting: the models.
    shifted: pairs of another distribution, or None.
    orders: of ORDERS: which members are averaged first.
    max_pairs: of each split at most.
  """

  def make() -> list[dict[str, Any]]:
    sets = pair_sets(setting.population, shifted, max_pairs=max_pairs)
    return [
      fields for split, rows in sets.items() for fields in _of_split(setting, split, rows, orders)
    ]

  measurements.once(setting.run, "accuracy", make)


def _of_split(
  setting: Setting, split: str, rows: Rows, orders: Sequence[str]
) -> list[dict[str, Any]]:
  found = setting.population

  def score(params: Params) -> np.ndarray:
    return score_pairs(found.model, params, rows, setting.run, "float32")

  members = np.stack([score(params) for params in found.members])
  size = len(members)
  single = members[found.order[0]]
  every = [measured("best single", f"best of {size} on validation", split, single)]
  every += [measured("members", f"member {m}", split, scores) for m, scores in enumerate(members)]
  for order in orders:
    chosen = ORDERS[order](found.order)
    for count in range(1, size + 1):
      own = members[chosen[0]] if count == 1 else score(_mean(found, chosen[:count]))
      every.append(measured(FAMILIES[order], f"M = {count}", split, own, x={"M": count}))
      if order != "best_first":
        continue
      for name, rule in RULES.items():
        weight = setting.variance_coefficient if rule == "uncertainty_weighted" else None
        together = ensembles.combine(
          members[chosen[:count]], rule=rule, variance_coefficient=weight
        )
        every.append(measured(name, f"M = {count}", split, together, x={"M": count}))
        if rule == "mean" and count > 1:
          every.append(_difference(count, split, own, together))
  if found.along:
    along = score(found.normalise(uniform_mean(found.along)))
    every.append(
      measured("run average", f"{len(found.along)} checkpoints of member 0", split, along)
    )
  return every


def _mean(found: RewardPopulation, chosen: Sequence[int]) -> Params:
  return found.normalise(uniform_mean([found.raw[m] for m in chosen]))


def measured(
  family: str, label: str, split: str, scores: np.ndarray, x: Mapping[str, float] | None = None
) -> dict[str, Any]:
  """Scores [2, N] of pairs, chosen first, as a measurement with both rules for ties."""
  half = pair_accuracy.accuracy(*scores)
  values = {
    "accuracy": half.value,
    "accuracy_ties_correct": pair_accuracy.accuracy(*scores, ties="correct").value,
  }
  halves = {"accuracy": (half.high - half.low) / 2}
  pairs = {"pairs": scores.shape[1]}
  return point("accuracy", family, label, values, split=split, x=x, halves=halves, **pairs)


def _difference(
  count: int, split: str, averaged: np.ndarray, together: np.ndarray
) -> dict[str, Any]:
  """Accuracy of the average less that of the mean of predictions, on the same pairs."""
  credits = [pair_accuracy.credit(*scores) for scores in (averaged, together)]
  found = statistics.paired_difference(*credits).difference
  return point(
    "averaging_gain",
    "WARM less ensemble mean",
    f"M = {count}",
    {"difference": found.value},
    split=split,
    x={"M": count},
    halves={"difference": (found.high - found.low) / 2},
  )
