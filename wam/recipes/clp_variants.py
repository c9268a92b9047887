"""The runs of CLP that a recipe compares, from the section "clp", and their points.

Leaves out what they are compared with (clp.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from wam.algorithms import clp as algorithm
from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.models.conditioning import KINDS, Conditioning
from wam.recipes import soup_models, stages, tuning
from wam.recipes.policies import Policy, sampling_settings
from wam.recipes.soup_models import Lambda
from wam.rewards.scorers import RolloutScorer
from wam.training import sharding


class Variant(NamedTuple):
  """A run of CLP.

  Attributes:
    kind: of the conditioning.
    settings: keywords of `algorithm.run`, but for the sampling.
  """

  kind: str
  settings: Mapping[str, Any]

  @property
  def family(self) -> str:
    """What its points are called."""
    return f"CLP {self.kind}"

  @property
  def stage(self) -> str:
    """Its name in records, and its folder among the checkpoints."""
    return f"clp-{self.kind}"

  @property
  def completions(self) -> int:
    """How many it draws."""
    names = ("num_iterations", "preferences_per_iteration", "prompts_per_preference", "samples_per_prompt")  # fmt: skip
    return int(np.prod([self.settings[name] for name in names]))


@dataclasses.dataclass(frozen=True)
class Point:
  """A conditioned policy with a preference; see `soup_points.Point`."""

  variant: Variant
  coefficients: Lambda

  @property
  def family(self) -> str:
    """Which line of the figure it belongs to."""
    return self.variant.family

  @property
  def label(self) -> str:
    """Within its family."""
    return f"λ = {soup_models.name_of(self.coefficients)}"

  @property
  def identity(self) -> str:
    """No other name of the same model."""
    return f"{self.variant.stage}: {soup_models.name_of(self.coefficients)}"


def variants(
  section: Mapping[str, Any],
  names: Sequence[str],
  reinforce: Mapping[str, Any],
  sampling: Mapping[str, Any],
) -> list[Variant]:
  """The runs of CLP from the section "clp".

  Keys are those of `_variants` and of `algorithm.Settings`, for all kinds.

  Args:
    section: the section "clp".
    names: of the rewards.
    reinforce: the section of the runs that CLP is compared with.
    sampling: the section "sampling".

  Raises:
    ConfigError: names key and value; UnknownName: if there is no such kind.
  """
  given = ("names", "reinforce", "conditioning", "sampling")
  sections.check(_variants, section, "clp", given=given, also=[algorithm.Settings])
  stages.check_optimizer(section["optimizer"], "clp.optimizer")
  found = _variants(names=names, reinforce=reinforce, **section)
  for variant in found:
    name = f"clp.overrides.{variant.kind}"
    stages.check_optimizer(variant.settings["optimizer"], f"{name}.optimizer")
    config = algorithm.Settings(sampling=sampling_settings(**sampling)[1], **variant.settings)
    if config.make_objectives(len(names)).steers_kl:
      raise ConfigError("clp.kl_weight: the recipe measures a single α; give one number")
    config.make_optimizer()
  return found


def _variants(
  *,
  names: Sequence[str],
  reinforce: Mapping[str, Any],
  kinds: Sequence[str] = KINDS,
  overrides: Mapping[str, Mapping[str, Any]] | None = None,
  num_iterations: int | None = None,
  kl_weight: float | None = None,
  **training: Any,
) -> list[Variant]:
  """The section "clp".

  Args:
    names, reinforce: as in `variants`.
    kinds: of conditioning, each a run; see `models.conditioning`.
    overrides: by kind, keywords that differ.
    num_iterations: None: as many as draw the completions of all runs with a single reward together.
    kl_weight: α; None: that of the runs with a single reward, α/(1 - α) = their kl_coef.
    **training: other fields of `algorithm.Settings`.
  """
  beta = reinforce.get("kl_coef", 0.1)
  alpha = beta / (1 + beta) if kl_weight is None else kl_weight
  for kind in (*kinds, *(overrides or {})):
    if kind not in KINDS:
      raise unknown_name("conditioning in clp", kind, KINDS)
  found = []
  for kind in kinds:
    settings = {"kl_weight": alpha} | training | dict((overrides or {}).get(kind, {}))
    each = ("preferences_per_iteration", "prompts_per_preference", "samples_per_prompt")
    size = int(np.prod([settings[name] for name in each]))
    budget = len(names) * completions_of(reinforce)
    count = settings.pop("num_iterations", num_iterations)
    if count is None:
      count, rest = divmod(budget, size)
      if rest or not count:
        raise ConfigError(
          f"clp: {size} completions an iteration do not divide the {budget} of the {len(names)} runs of"
          " section 'reinforce'; change one of them, or give clp.num_iterations"
        )
    found.append(Variant(kind, settings | {"conditioning": kind, "num_iterations": count}))
  return found


def check_batches(every: Sequence[Variant], mesh: Mesh) -> None:
  """Raises ConfigError, naming the kind, unless the devices divide what each variant samples and reads at a time."""
  for variant in every:
    config = algorithm.Settings(sampling={"max_new_tokens": 1}, **variant.settings)
    prompts = config.prompts_per_call or config.prompts_per_preference
    for what, size in {"completions": config.rows_per_call, "prompts": prompts}.items():
      try:
        sharding.check_batch_size(size, mesh)
      except ConfigError as error:
        raise ConfigError(f"clp, '{variant.kind}', {what} of one preference: {error}") from error


def completions_of(reinforce: Mapping[str, Any]) -> int:
  """How many completions a run with a single reward draws."""
  names = ("num_iterations", "prompts_per_iteration", "samples_per_prompt")
  return int(np.prod([reinforce[name] for name in names]))


def conditioning(variant: Variant, policy: Policy, names: Sequence[str]) -> Conditioning:
  """How a preference steers the policy of a variant."""
  levels = {n: v for n, v in variant.settings.items() if n == "levels"}
  return Conditioning(variant.kind, len(names), policy.model, **levels)


def train(
  variant: Variant, setting: tuning.Setting, scorers: Mapping[str, RolloutScorer]
) -> Params:
  """Carries a run of CLP out, or what is left of it; its conditioned weights."""
  return algorithm.run(
    setting.policy.model,
    setting.reference,
    tuning.prompts(setting),
    scorers,
    run=setting.run,
    stage=variant.stage,
    sampling=sampling_settings(**setting.sampling)[1] | setting.policy.ends,
    **variant.settings,
  )
