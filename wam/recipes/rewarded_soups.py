"""Rewarded Soups (Ramé et al. 2023, arXiv 2306.04488): one run of RL a reward, and all trade-offs by averaging.

The stages, each resumable: pre-training and supervised fine-tuning (where the config asks for them) -> θ_0; the rewards
(recipes/reward_specs.py), on one scale; RL from θ_0 on each reward -> θ_i. Then θ_λ = Σ λ_i θ_i over a grid of the
simplex, and what it is held against: MORL (one run for each mixture Σ μ_i r_i), multi-objective decoding of the θ_i
(MOD, which reads N models a token), and personalised soups (runs with LoRA, their fused matrices averaged). Measured
are all rewards, KL to θ_0, length and skills; from these follow fronts with hypervolumes, coverage and expected
utility, linear mode connectivity, and λ for given users, chosen on the validation split and judged on the test split.
Judges are further rewards, which nothing is trained on: whether a soup beats both of its ends there.
The θ_i and the users' soups are left as Hugging Face directories in `models/`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from wam.core import sections
from wam.core.errors import ConfigError
from wam.models.policy_mixture import PolicyMixture
from wam.recipes import (
  panels,
  policies,
  problems,
  reward_specs,
  soup_fronts,
  soup_models,
  soup_points,
  stages,
  tuning,
)
from wam.recipes.policies import Policy
from wam.recipes.soup_models import SOUPS, Candidate, Lambda, Runs, Weights
from wam.rewards.scorers import RolloutScorer
from wam.training import sharding
from wam.training.workdir import Start

JUDGES = "judges"


def recipe(
  *,
  seed: int,
  problem: Mapping[str, Any],
  model: Mapping[str, Any],
  rewards: Mapping[str, Mapping[str, Any]],
  soups: Mapping[str, Any],
  sampling: Mapping[str, Any],
  evaluation: Mapping[str, Any],
  morl: Mapping[str, Any] | None = None,
  decoding: Mapping[str, Any] | None = None,
  personalised: Mapping[str, Any] | None = None,
  preferences: Mapping[str, Mapping[str, float]] | None = None,
  judges: Mapping[str, Mapping[str, Any]] | None = None,
  fronts: Mapping[str, Any] | None = None,
  pretrain: Mapping[str, Any] | None = None,
  sft: Mapping[str, Any] | None = None,
  rsf: Mapping[str, Any] | None = None,
  ppo: Mapping[str, Any] | None = None,
  reinforce: Mapping[str, Any] | None = None,
  mitigation: Mapping[str, Any] | None = None,
  mesh: Mapping[str, int] | None = None,
  checkpoints: Mapping[str, Any] | None = None,
  start: Start,
) -> None:
  """The recipe, top to bottom; every argument but the last is a section of the config.

  Those that are this recipe's own: "rewards" and "judges", see `reward_specs`; "soups" and "morl": keys of
  `soup_models.grid`; "decoding": the same, and `alpha` of `PolicyMixture`; "personalised": fields of `Lora`;
  "preferences": μ by reward, by the name of a user; "fronts": fields of `soup_fronts.Settings`. Without "morl",
  "decoding" or "personalised" there is none. "rsf", "ppo", "reinforce": exactly one, and the runs differ in their
  reward only.
  """
  stages.check(pretrain=pretrain, sft=sft, sampling=sampling)
  judges = judges or {}
  reward_specs.check(rewards, least=2)
  reward_specs.check(judges, least=0, taken=rewards, where=JUDGES)
  names = list(rewards)
  settings = sections.call(soup_fronts.Settings, fronts or {}, "fronts")
  settings.check(names)
  users = soup_models.users(preferences, names, taken=[single(name) for name in names])
  every, models = _plan(
    names,
    algorithms={"rsf": rsf, "ppo": ppo, "reinforce": reinforce},
    mitigation=mitigation,
    soups=soups,
    morl=morl,
    decoding=decoding,
    personalised=personalised,
  )
  panels.check(evaluation)
  data = problems.make(problem)
  reward_specs.check(rewards, data=data)
  reward_specs.check(judges, data=data, least=0, where=JUDGES)
  policy = policies.load_or_make(data.tokenizer(), seed=seed, section=model)
  alpha = (decoding or {}).get("alpha", 0.0)
  decoder = PolicyMixture(policy.model.config, policy.model, len(names), alpha)
  tuning.check([trained.plan for trained in every.every], policy, data, sampling)
  devices = sharding.make_mesh(mesh)
  with start.open(seed=seed, mesh=devices, checkpoints=checkpoints) as current:
    # θ_0
    base, reference = stages.foundation(policy, data, current, pretrain=pretrain, sft=sft)

    # the rewards, and others that are only looked at
    made = functools.partial(reward_specs.make, policy, reference, data, current, sampling=sampling)
    scorers = made(section=rewards)
    judged = made(section=judges, where=JUDGES) if judges else {}

    # θ_i, and the runs to compare their soups with
    setting = tuning.Setting(
      policy=policy,
      reference=reference,
      base=base,
      data=data,
      rewards=soup_models.optimised(scorers, every.single[0].preference, policy, reference),
      run=current,
      sampling=sampling,
      main=every.single[0].plan,
    )
    train(every, setting, scorers)

    # what each λ is worth
    both = panels.make_panels(
      data=data,
      evaluation=evaluation,
      validation_skills=False,
      policy=policy,
      reference=reference,
      scorers=scorers | judged,
      run=current,
      sampling=sampling,
    )
    mixed = [soup_points.decoding_panel(panel, decoder) for panel in both]
    weights = soup_models.Weights(setting)
    soup_points.measure(
      models,
      current,
      names=names,
      weights=weights,
      panels=lambda model: mixed if model.decoded else both,
    )
    chosen = soup_fronts.write(
      current, names=names, judges=list(judges), settings=settings, preferences=users
    )
    export(chosen, every, weights, policy, current.directory / "models")


def train(every: Runs, setting: tuning.Setting, scorers: Mapping[str, RolloutScorer]) -> None:
  """Carries out all runs, or what is left of them; each is rewarded with its own mixture, and records all rewards."""
  for trained in every.every:
    rewards = soup_models.optimised(scorers, trained.preference, setting.policy, setting.reference)
    tuning.train(trained.plan, dataclasses.replace(setting, rewards=rewards))


def single(reward: str) -> str:
  """The directory of a reward's own model."""
  return f"reward_{reward}"


def export(
  chosen: Mapping[str, Lambda],
  every: Runs,
  weights: Weights,
  policy: Policy,
  directory: pathlib.Path,
) -> None:
  """Writes θ_i as `single` calls it, and each user's soup by the user's name."""
  for trained in every.single:
    alone = Candidate(SOUPS, trained.preference, (trained.plan,))
    policies.export(policy, weights(alone), directory / single(trained.plan.label))
  for user, coefficients in chosen.items():
    policies.export(policy, weights(soup_models.soup(every, coefficients)), directory / user)


def _plan(
  names: Sequence[str],
  *,
  algorithms: Mapping[str, Mapping[str, Any] | None],
  mitigation: Mapping[str, Any] | None,
  soups: Mapping[str, Any],
  morl: Mapping[str, Any] | None,
  decoding: Mapping[str, Any] | None,
  personalised: Mapping[str, Any] | None,
) -> tuple[Runs, list[Candidate]]:
  """What is trained, and what is measured.

  Raises:
    ConfigError: names section and key.
  """
  main, *_ = tuning.plans(algorithms=algorithms, mitigation=mitigation, comparisons=None)
  grids: dict[str, list[Lambda]] = {}
  for name, section in (("soups", soups), ("morl", morl), ("decoding", decoding)):
    also = [_decoding] if name == "decoding" else []
    sections.check(soup_models.grid, section or {}, name, given=("where",), also=also)
    keywords = {key: value for key, value in (section or {}).items() if key != "alpha"}
    grids[name] = [] if section is None else soup_models.grid(names, where=name, **keywords)
  if personalised is not None and "lora" in main.mitigation:
    raise ConfigError("personalised: mitigation.lora trains adapters already; give one of the two")
  every = soup_models.runs(
    names,
    algorithm=main.algorithm,
    section=main.section,
    mitigation=main.mitigation,
    mixtures=grids["morl"],
    adapters=personalised,
  )
  models = soup_models.candidates(
    every, soups=grids["soups"], decoded=grids["decoding"], mixtures=grids["morl"]
  )
  return every, models


def _decoding(*, alpha: float = 0.0) -> float:
  """The keys of the section "decoding" beside the grid."""
  return alpha
