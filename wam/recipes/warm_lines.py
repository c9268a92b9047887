"""Models on straight lines: between two members (linear mode connectivity), and to a model of the domain (DogeRM).

Ramé et al. 2024, WARM (arXiv 2401.12187), observation 1 and figure 3; DogeRM (Lin et al. 2024, arXiv 2407.01470).
Leaves out where pairs come from (warm_setting.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam import pretrained
from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.evaluation import curves, pair_accuracy
from wam.merging.averages import lerp, uniform_mean
from wam.models import stacking
from wam.recipes import measurements
from wam.recipes.measurements import point
from wam.recipes.reward_populations import RewardPopulation, score_pairs
from wam.recipes.warm_accuracy import TRAIN, Rows, measured, pair_sets
from wam.recipes.warm_setting import OOD, Setting

KINDS = ("same run", "same configuration", "different learning rates", "Baklava")


def check_interpolation(section: Mapping[str, Any]) -> None:
  """Checks the section "interpolation"; see `interpolation`.

  Raises:
    ConfigError: names the key, or if there is no middle; UnknownName: for another split.
  """
  sections.check(interpolation, section, "interpolation")
  points = section.get("num_points", 3)
  if points < 3 or points % 2 == 0:
    raise ConfigError(f"interpolation.num_points: expected an odd number from 3, found {points}")
  for split in section.get("splits", ()):
    if split not in (*TRAIN, "validation", OOD):
      raise unknown_name("split", split, [*TRAIN, "validation", OOD])


def check_domain_model(section: Mapping[str, Any]) -> None:
  """Checks the section "domain_model"; see `domain_model`.

  Raises:
    ConfigError: names the key, or coefficients that are not in [0, 1].
  """
  sections.check(domain_model, section, "domain_model")
  outside = [t for t in section.get("coefficients", ()) if not 0 <= t <= 1]
  if outside:
    raise ConfigError(f"domain_model.coefficients: expected numbers from 0 to 1, found {outside}")


def kinds_of_pairs(found: RewardPopulation) -> dict[str, tuple[Params, Params]]:
  """The first pair of models of each kind: by how the two differ, from the least to the most (WARM, figure 3).

  "same run": the first and the last checkpoint of one run; "same configuration": another seed, dropout and order;
  "different learning rates"; "Baklava": trunks from other checkpoints of supervised fine-tuning. Kinds of which there
  is no pair are left out.
  """
  pairs: dict[str, tuple[Params, Params]] = {}
  if len(found.along) > 1:
    pairs["same run"] = (found.along[0], found.along[-1])
  for a, first in enumerate(found.sections):
    for b, second in enumerate(found.sections[:a]):
      same = {k for k in {*first, *second} - {"seed"} if first.get(k) == second.get(k)}
      if "start" not in same:
        kind = "Baklava"
      elif "learning_rate" not in same:
        kind = "different learning rates"
      elif same == {*first, *second} - {"seed"}:
        kind = "same configuration"
      else:
        continue
      pairs.setdefault(kind, (found.raw[b], found.raw[a]))
  return {kind: pairs[kind] for kind in KINDS if kind in pairs}


def interpolation(
  setting: Setting,
  shifted: Rows | None,
  *,
  num_points: int = 11,
  splits: Sequence[str] = ("validation", OOD),
  max_pairs: int | None = None,
) -> None:
  """Accuracy along the line between two models, of weights and of predictions (WARM, equation 2); for `kinds_of_pairs`.

  Args:
    setting: the models.
    shifted: pairs of another distribution, or None.
    num_points: λ from 0 to 1, evenly spread.
    splits: to measure on; those that do not exist are passed over.
    max_pairs: of each split at most.
  """

  def make() -> list[dict[str, Any]]:
    sets = pair_sets(setting.population, shifted, max_pairs=max_pairs)
    kinds = kinds_of_pairs(setting.population)
    return [
      fields
      for kind, ends in kinds.items()
      for split in splits
      if split in sets
      for fields in _line(setting, kind, ends, split, sets[split], num_points)
    ]

  measurements.once(setting.run, "interpolation", make)


def _line(
  setting: Setting, kind: str, ends: tuple[Params, Params], split: str, rows: Rows, num_points: int
) -> list[dict[str, Any]]:
  model = setting.population.model

  def score(params: Params) -> np.ndarray:
    return score_pairs(model, params, rows, setting.run, "float32")

  grid = np.linspace(0, 1, num_points)
  first, second = (score(end) for end in ends)
  found, path = [], []
  for t in grid:
    scores = score(lerp(*ends, float(t)))
    together = (1 - t) * first.astype(np.float64) + t * second
    averaged = pair_accuracy.accuracy(*scores)
    path.append(averaged.value)
    values = {
      "accuracy": averaged.value,
      "accuracy_of_predictions": pair_accuracy.accuracy(*together).value,
    }
    halves = {"accuracy": (averaged.high - averaged.low) / 2}
    label, x = f"λ = {t:.2g}", {"lambda": float(t)}
    found.append(point("interpolation", kind, label, values, split=split, x=x, halves=halves))
  summary = {
    "barrier": float(curves.barrier(grid, np.asarray(path), kind="interpolated", maximize=True)),
    "gain": path[len(path) // 2] - (path[0] + path[-1]) / 2,
  }
  return [*found, point("connectivity_summary", kind, "whole line", summary, split=split)]


def domain_model(
  setting: Setting,
  shifted: Rows | None,
  *,
  path: str | None = None,
  coefficients: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
  max_pairs: int | None = None,
) -> None:
  """DogeRM: the averaged reward model's trunk merged with a language model of the domain, λ·θ_RM + (1 - λ)·θ_LM.

  The head stays the reward model's; the language model's output matrix is left out. λ = 1 is the reward model itself.

  Args:
    setting: the models.
    shifted: pairs of another distribution, or None.
    path: a Hugging Face directory with the shape and the vocabulary of the policy; None: what θ_0 was fine-tuned from.
    coefficients: λ.
    max_pairs: of each split at most.

  Raises:
    MismatchedTrees: if the domain model has another shape.
  """
  found = setting.population
  average = uniform_mean(found.raw)

  def make() -> list[dict[str, Any]]:
    domain = setting.base if path is None else _load(path, average)
    trunk = {name: leaf for name, leaf in domain.items() if name != "lm_head"}
    points = []
    for split, rows in pair_sets(found, shifted, max_pairs=max_pairs).items():
      for t in coefficients:
        merged = {"decoder": lerp(trunk, average["decoder"], t), "head": average["head"]}
        scores = score_pairs(found.model, merged, rows, setting.run, "float32")
        own = measured("DogeRM", f"λ = {t:g}", split, scores, x={"lambda": t})
        points.append(own | {"study": "domain_model"})
    return points

  measurements.once(setting.run, "domain_model", make)


def _load(path: str, average: Params) -> Params:
  """A language model with its layers lying as those of the reward models do."""
  return pretrained.load(path, stacked=stacking.is_stacked(average["decoder"])).params
