"""RLHF of θ_0 by the algorithm whose section the config has, and again with mitigations or other settings, to compare.

Turns a problem into token rows and hands them to one algorithm. Leaves out how θ_0 and the rewards come about
(stages.py), and what is measured afterwards.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from wam.algorithms import rsf
from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.data import encoding
from wam.recipes.problems import Problem
from wam.recipes.stages import Policy, Rewards, check_optimizer, sampling_settings
from wam.training import iterations, mitigations
from wam.training.workdir import Run


@dataclasses.dataclass(frozen=True)
class Setting:
  """What every run of RLHF in a workdir shares."""

  policy: Policy
  reference: Params  # θ_0
  data: Problem
  rewards: Rewards
  run: Run
  sampling: Mapping[str, Any]


class Plan(NamedTuple):
  """One run of RLHF.

  Attributes:
    algorithm: a key of ALGORITHMS.
    family, label: what its result is called in figures; empty for the main run.
    section: keywords of the algorithm.
    mitigation: a section of `mitigations.make`.
  """

  algorithm: str
  family: str
  label: str
  section: Mapping[str, Any]
  mitigation: Mapping[str, Any]

  @property
  def stage(self) -> str:
    """Its name in records, and its folder among the checkpoints: the algorithm, for the main run."""
    words = [self.algorithm, self.family, self.label]
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_") for word in words if word)


def plans(
  *,
  algorithms: Mapping[str, Mapping[str, Any] | None],
  mitigation: Mapping[str, Any] | None,
  comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] | None,
) -> list[Plan]:
  """The main run, then those to compare it with.

  Args:
    algorithms: sections by algorithm, of which exactly one is given.
    mitigation: of the main run.
    comparisons: family -> label -> {"mitigation": section, "settings": keywords that differ from the main run's,
      "algorithm": another one than that of the main run}. Each is trained from θ_0.

  Raises:
    ConfigError: if there is not exactly one algorithm, or for a key that none of this has.
  """
  given = {name: section for name, section in algorithms.items() if section is not None}
  if len(given) != 1:
    raise ConfigError(
      f"expected the section of one algorithm ({', '.join(ALGORITHMS)}), found"
      f" {', '.join(given) or 'none'}"
    )
  ((algorithm, section),) = given.items()
  found = [Plan(algorithm, "", "", section, mitigation or {})]
  for family, labels in (comparisons or {}).items():
    for label, spec in labels.items():
      sections.check(_compared, spec, f"comparisons.{family}.{label}")
      found.append(_plan(found[0], family, label, **spec))
  stages = [plan.stage for plan in found]
  twice = sorted({name for name in stages if stages.count(name) > 1})
  if twice:
    raise ConfigError(f"comparisons: two of them are both called {', '.join(twice)}; rename one")
  return found


def _compared(
  *,
  mitigation: Mapping[str, Any] | None = None,
  settings: Mapping[str, Any] | None = None,
  algorithm: str | None = None,
) -> None:
  """The keys of a comparison."""


def _plan(
  main: Plan,
  family: str,
  label: str,
  *,
  mitigation: Mapping[str, Any] | None = None,
  settings: Mapping[str, Any] | None = None,
  algorithm: str | None = None,
) -> Plan:
  name = algorithm or main.algorithm
  base = dict(main.section) if name == main.algorithm else {}
  return Plan(name, family, label, base | dict(settings or {}), mitigation or {})


def check(every: Sequence[Plan], policy: Policy, sampling: Mapping[str, Any]) -> None:
  """Checks keys and values, where they can be seen before anything is trained.

  Raises:
    WamError: names the section.
  """
  for plan in every:
    if plan.algorithm not in ALGORITHMS:
      raise unknown_name("algorithm", plan.algorithm, ALGORITHMS)
    ALGORITHMS[plan.algorithm].check(plan.section, plan.stage, sampling)
    mitigations.make(policy.model, plan.mitigation)


def num_iterations(plan: Plan) -> int:
  """How many checkpoints the run leaves for early stopping."""
  return ALGORITHMS[plan.algorithm].num_iterations(plan.section)


def train(plan: Plan, setting: Setting) -> Params:
  """Carries a plan out, or what is left of it; the parameters after the last iteration."""
  mitigation = mitigations.make(setting.policy.model, plan.mitigation)
  return ALGORITHMS[plan.algorithm].train(plan, setting, mitigation)


def load(plan: Plan, setting: Setting, iteration: int | None = None) -> Params:
  """The parameters after an iteration (from 1) of a plan that was carried out; None: its result."""
  if iteration is not None:
    return iterations.load_iteration(setting.run, iteration, setting.reference, stage=plan.stage)
  found = iterations.load_result(setting.run, setting.reference, stage=plan.stage)
  assert found is not None
  return found


class Algorithm(NamedTuple):
  """How a recipe speaks to an algorithm.

  Attributes:
    check: (section, its name, the section "sampling") -> raises WamError for keys and values that cannot work.
    num_iterations: section -> how many checkpoints are kept.
    train: carries a plan out.
  """

  check: Callable[[Mapping[str, Any], str, Mapping[str, Any]], None]
  num_iterations: Callable[[Mapping[str, Any]], int]
  train: Callable[[Plan, Setting, mitigations.Mitigation], Params]


def _online(module: Any) -> Algorithm:
  """An algorithm that samples from the policy and is scored by the proxy reward."""
  given = ("params", "run", "stage", "sampling", "other_scorers", "on_iteration", "mitigation")

  def check_online(section: Mapping[str, Any], name: str, sampling: Mapping[str, Any]) -> None:
    sections.check(module.run, section, name, given=(*given, "critic"), also=[module.Settings])
    check_optimizer(section["optimizer"], f"{name}.optimizer")
    # The schedule must fit the steps.
    module.Settings(sampling=sampling_settings(**sampling)[1], **section).make_optimizer()

  def train_online(plan: Plan, setting: Setting, mitigation: mitigations.Mitigation) -> Params:
    policy, scorers = setting.policy, setting.rewards.scorers
    prompt_length, settings = sampling_settings(**setting.sampling)
    texts = setting.data.prompts["train"]
    rows = encoding.prompt_rows(policy.tokenizer, texts, length=prompt_length).arrays
    more = {"critic": (setting.rewards.model, setting.rewards.params)} if module is None else {}
    return module.run(
      policy.model,
      setting.reference,
      (rows["tokens"], rows["mask"]),
      scorers["proxy"],
      run=setting.run,
      stage=plan.stage,
      sampling=settings | policy.ends,
      other_scorers={name: s for name, s in scorers.items() if name != "proxy"},
      mitigation=mitigation,
      **more,
      **plan.section,
    )

  return Algorithm(check_online, lambda section: int(section["num_iterations"]), train_online)


ALGORITHMS = {"rsf": _online(rsf)}
