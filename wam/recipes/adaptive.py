"""The section "adaptive" of a recipe: Adaptive Model Averaging between θ_0 and θ, for several mean ratios and K.

Completions of θ are drawn once for all searches. Leaves out the search itself (algorithms/adaptive_averaging.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wam.algorithms import adaptive_averaging
from wam.core import sections
from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.generation.rollouts import Rollout
from wam.merging import adaptive
from wam.recipes.stages import sampling_settings
from wam.recipes.tuning import Setting, prompts

# What the program passes itself.
_GIVEN = ("alpha",)
_DRAWN = ("model", "tuned", "prompts", "scorer", "run", "sampling", "stage")


class Search(NamedTuple):
  """One search: a mean ratio and a number of parts."""

  alpha: float
  num_parts: int

  @property
  def label(self) -> str:
    """What its result is called in figures."""
    return f"K = {self.num_parts}, α = {self.alpha:g}"

  @property
  def stage(self) -> str:
    """Its name in records and among the checkpoints."""
    return f"adaptive-{self.num_parts}-{self.alpha:g}"


def read(
  *,
  examples: Mapping[str, Any],
  alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
  num_parts: Sequence[int] = (3,),
  **settings: Any,
) -> tuple[list[Search], Mapping[str, Any], dict[str, Any]]:
  """The section.

  Args:
    examples: keywords of `adaptive_averaging.distillation_set`: num_prompts, samples_per_prompt, pool, size, ...
    alphas: mean ratios, which θ is multiplied with.
    num_parts: numbers of parts K; each goes with each α.
    **settings: the fields of `adaptive_averaging.Settings`.
  """
  searches = [Search(alpha, parts) for parts in num_parts for alpha in alphas]
  return searches, examples, settings


def check(section: Mapping[str, Any], params: Params) -> list[Search]:
  """The searches of a section; refuses what cannot work before anything is trained.

  Raises:
    ConfigError, UnknownName: names the key.
  """
  sections.check(read, section, "adaptive", given=_GIVEN, also=[adaptive_averaging.Settings])
  searches, examples, settings = read(**section)
  sections.check(adaptive_averaging.distillation_set, examples, "adaptive.examples", given=_DRAWN)
  if not searches:
    raise ConfigError("adaptive: alphas and num_parts must name at least one search")
  for search in searches:
    made = adaptive_averaging.Settings(**search._asdict(), **settings)
    adaptive.layout(params, search.num_parts, **made.parts)
  return searches


def draw(section: Mapping[str, Any], tuned: Params, setting: Setting) -> Rollout:
  """The completions of θ whose likelihood the ratios maximise, scored by the proxy reward."""
  _, examples, _ = read(**section)
  return adaptive_averaging.distillation_set(
    setting.policy.model,
    tuned,
    prompts(setting),
    setting.rewards.scorers["proxy"],
    run=setting.run,
    sampling=sampling_settings(**setting.sampling)[1] | setting.policy.ends,
    stage="adaptive-examples",
    **examples,
  )


def find(
  search: Search,
  section: Mapping[str, Any],
  examples: Rollout,
  tuned: Params,
  setting: Setting,
) -> adaptive_averaging.Averaged:
  """Carries a search out, or loads what it found."""
  _, _, settings = read(**section)
  return adaptive_averaging.run(
    setting.policy.model,
    setting.reference,
    tuned,
    examples,
    run=setting.run,
    stage=search.stage,
    **search._asdict(),
    **settings,
  )
