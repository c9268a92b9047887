"""RLHF of θ_0 by the algorithm whose section the config has, and again with mitigations or other settings, to compare.

Turns a problem into token rows and hands them to one algorithm. Leaves out how θ_0 and the rewards come about
(stages.py), and what is measured afterwards.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.algorithms import distillation, dpo, ppo, reinforce, rsf, sampled_pairs
from wam.core import sections
from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params
from wam.data import encoding
from wam.generation import kept_samples
from wam.recipes.policies import Policy, sampling_settings
from wam.recipes.problems import Problem
from wam.recipes.reward_models import Rewards
from wam.recipes.stages import check_optimizer
from wam.training import iterations, mitigations
from wam.training.mitigations import Mitigation
from wam.training.workdir import Run


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


@dataclasses.dataclass(frozen=True)
class Setting:
  """What every run of RLHF in a workdir shares."""

  policy: Policy
  reference: Params  # θ_0
  base: Params  # what θ_0 was fine-tuned from
  data: Problem
  rewards: Rewards
  run: Run
  sampling: Mapping[str, Any]
  main: Plan


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


def check(
  every: Sequence[Plan], policy: Policy, data: Problem, sampling: Mapping[str, Any]
) -> None:
  """Checks keys and values, where they can be seen before anything is trained.

  Raises:
    WamError: names the section.
  """
  for plan in every:
    if plan.algorithm not in ALGORITHMS:
      raise unknown_name("algorithm", plan.algorithm, ALGORITHMS)
    ALGORITHMS[plan.algorithm].check(plan.section, plan.stage, sampling)
    needed = mitigations.check(policy.model, plan.mitigation, name=f"{plan.stage}.mitigation")
    if "replayed" in needed and not data.corpus:
      raise ConfigError(
        f"{plan.stage}.mitigation.replay: the problem has no corpus to replay; give problem.corpus"
      )
  if any(plan.algorithm == "distillation" for plan in every):
    main = every[0]
    if main.algorithm != "rsf" or not main.section.get("keep_samples"):
      raise ConfigError(
        "comparisons: distillation learns from the samples of the main run; that must be rsf with keep_samples=True"
      )


def num_iterations(plan: Plan) -> int:
  """How many checkpoints the run leaves for early stopping."""
  return ALGORITHMS[plan.algorithm].num_iterations(plan.section)


def train(plan: Plan, setting: Setting) -> Params:
  """Carries a plan out, or what is left of it; returns its result."""
  name = f"{plan.stage}.mitigation"
  needed = mitigations.check(setting.policy.model, plan.mitigation, name=name)
  mitigation = mitigations.make(
    setting.policy.model,
    plan.mitigation,
    base=setting.base if "base" in needed else None,
    replayed=replayed(setting) if "replayed" in needed else None,
    seed=setting.run.seed,
    name=name,
  )
  return ALGORITHMS[plan.algorithm].train(plan, setting, mitigation)


def replayed(setting: Setting, *, limit: int = 20_000) -> Mapping[str, np.ndarray]:
  """Rows of the first texts of the pre-training corpus, as long as those of RLHF; the loss is on completions."""
  prompt_length, settings = sampling_settings(**setting.sampling)
  return encoding.example_rows(
    setting.policy.tokenizer,
    setting.data.corpus[:limit],
    length=prompt_length + settings["max_new_tokens"],
    trim=True,
  ).arrays


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
  train: Callable[[Plan, Setting, Mitigation], Params]


# What the program passes to algorithms itself.
_GIVEN = ("params", "run", "stage", "sampling", "other_scorers", "on_iteration", "mitigation")


def prompts(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and mask of the training prompts."""
  length, _ = sampling_settings(**setting.sampling)
  texts = setting.data.prompts["train"]
  rows = encoding.prompt_rows(setting.policy.tokenizer, texts, length=length).arrays
  return rows["tokens"], rows["mask"]


def _check_online(
  module: Any, section: Mapping[str, Any], name: str, sampling: Mapping[str, Any]
) -> None:
  sections.check(module.run, section, name, given=(*_GIVEN, "critic"), also=[module.Settings])
  for key in ("optimizer", "critic_optimizer"):
    if section.get(key) is not None:
      check_optimizer(section[key], f"{name}.{key}")
  # The schedule must fit the steps.
  module.Settings(sampling=sampling_settings(**sampling)[1], **section).make_optimizer()


def _train_online(
  module: Any, plan: Plan, setting: Setting, mitigation: Mitigation, **more: Any
) -> Params:
  scorers = setting.rewards.scorers
  return module.run(
    setting.policy.model,
    setting.reference,
    prompts(setting),
    scorers["proxy"],
    run=setting.run,
    stage=plan.stage,
    sampling=sampling_settings(**setting.sampling)[1] | setting.policy.ends,
    other_scorers={name: s for name, s in scorers.items() if name != "proxy"},
    mitigation=mitigation,
    **more,
    **plan.section,
  )


def _online(module: Any) -> Algorithm:
  """An algorithm that samples from the policy and is scored by the proxy reward."""
  return Algorithm(
    functools.partial(_check_online, module),
    lambda section: int(section["num_iterations"]),
    functools.partial(_train_online, module),
  )


def _train_ppo(plan: Plan, setting: Setting, mitigation: Mitigation) -> Params:
  """PPO, its critic starting from the proxy reward model."""
  critic = (setting.rewards.model, setting.rewards.params)
  return _train_online(ppo, plan, setting, mitigation, critic=critic)


def _preference_keys(
  *,
  length: int | None = None,
  pairs: Mapping[str, Any] | None = None,
  **training: Any,
) -> tuple[int | None, Mapping[str, Any] | None, dict[str, Any]]:
  """The section "dpo".

  Args:
    length: tokens of prompt and completion of the problem's pairs; longer ones are dropped.
    pairs: keywords of `sampled_pairs.run`: the pairs are drawn from θ_0 and labelled by the proxy reward; None: they
      are the problem's.
    **training: the fields of `dpo.Settings`.
  """
  if (length is None) == (pairs is None):
    raise ConfigError("dpo: give either length (the problem's pairs) or pairs (drawn from θ_0)")
  return length, pairs, training


def _check_dpo(section: Mapping[str, Any], name: str, sampling: Mapping[str, Any]) -> None:
  sections.check(_preference_keys, section, name, also=[dpo.Settings])
  _, drawn, training = _preference_keys(**section)
  if drawn is not None:
    given = ("model", "params", "prompts", "scorer", "run", "stage", "sampling")
    sections.check(sampled_pairs.run, drawn, f"{name}.pairs", given=given)
  check_optimizer(training["optimizer"], f"{name}.optimizer")
  dpo.Settings(**training).make_optimizer()


def _train_dpo(plan: Plan, setting: Setting, mitigation: Mitigation) -> Params:
  length, drawn, training = _preference_keys(**plan.section)
  policy = setting.policy
  if drawn is not None:
    rows = sampled_pairs.run(
      policy.model,
      setting.reference,
      prompts(setting),
      setting.rewards.scorers["proxy"],
      run=setting.run,
      stage=f"{plan.stage}-pairs",
      sampling=sampling_settings(**setting.sampling)[1] | policy.ends,
      **drawn,
    )
    held_out = None
  else:
    assert length is not None
    rows, held_out = (
      encoding.pair_rows(
        policy.tokenizer, setting.data.pairs[split], length=length, trim=True
      ).arrays
      for split in ("train", "validation")
    )
    if not len(rows["chosen"]):
      raise BadData(f"{plan.stage}: all pairs are longer than {length} tokens; raise dpo.length")
  return dpo.run(
    policy.model,
    setting.reference,
    rows,
    run=setting.run,
    stage=plan.stage,
    evaluation_rows=held_out,
    mitigation=mitigation,
    **training,
  )


def _check_distillation(section: Mapping[str, Any], name: str, sampling: Mapping[str, Any]) -> None:
  del sampling
  given = ("params", "rows", "run", "stage", "on_iteration", "mitigation")
  sections.check(distillation.run, section, name, given=given, also=[distillation.Settings])
  check_optimizer(section["optimizer"], f"{name}.optimizer")
  distillation.Settings(**section).make_optimizer(num_rows=10**9)


def _train_distillation(plan: Plan, setting: Setting, mitigation: Mitigation) -> Params:
  """Learns what the main run, by RSF, kept in all its iterations."""
  done = range(1, num_iterations(setting.main) + 1)
  rows = kept_samples.load(setting.run.stage_directory(setting.main.stage), done)
  return distillation.run(
    setting.policy.model,
    setting.reference,
    rows,
    run=setting.run,
    stage=plan.stage,
    mitigation=mitigation,
    **plan.section,
  )


ALGORITHMS = {
  "rsf": _online(rsf),
  "ppo": _online(ppo)._replace(train=_train_ppo),
  "reinforce": _online(reinforce),
  "dpo": Algorithm(
    _check_dpo, lambda section: round(2 * section.get("num_epochs", 1.0)), _train_dpo
  ),
  # Of the samples of a main run by RSF; only to compare with.
  "distillation": Algorithm(
    _check_distillation,
    lambda section: distillation.Settings(**section).num_iterations,
    _train_distillation,
  ),
}
