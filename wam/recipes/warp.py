"""WARP: weight-averaged rewarded policies (Ramé et al. 2024, arXiv 2406.16768): episodes, comparisons, fronts.

The stages, each resumable: pre-training and supervised fine-tuning (where the config asks for them) -> θ_SFT; the proxy
reward, one reward model or the average of a population (WARM), and its judge; algorithm 1: in every episode M policies
by REINFORCE against a moving average of themselves, their merge on the sphere, and an interpolation towards where the
episode started; what it is compared with, at the same compute or with one thing changed. Then every policy is measured
along its line: rewards, KL to θ_SFT and skills of θ_SFT, the trajectories and the output sets over η. Three models are
left as Hugging Face directories in `models/`: "sft", "merged" (the last θ_slerp) and "selected", which a rule chose of
the last output set on the validation split.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from wam.core import sections
from wam.data import encoding
from wam.recipes import (
  fronts,
  kl_fronts,
  panels,
  policies,
  policy_points,
  problems,
  proxies,
  stages,
  warp_plans,
)
from wam.recipes import warp_episodes as episodes
from wam.recipes.policies import sampling_settings
from wam.recipes.warp_plans import INIT, Candidate
from wam.training import sharding
from wam.training.workdir import Start


def recipe(
  *,
  seed: int,
  problem: Mapping[str, Any],
  model: Mapping[str, Any],
  warp: Mapping[str, Any],
  reinforce: Mapping[str, Any],
  evaluation: Mapping[str, Any],
  sampling: Mapping[str, Any],
  reward_model: Mapping[str, Any] | None = None,
  warm: Mapping[str, Any] | None = None,
  pretrain: Mapping[str, Any] | None = None,
  sft: Mapping[str, Any] | None = None,
  comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
  front: Mapping[str, Any] | None = None,
  mesh: Mapping[str, int] | None = None,
  checkpoints: Mapping[str, Any] | None = None,
  start: Start,
) -> None:
  """The recipe, top to bottom; every argument but the last is a section of the config."""
  stages.check(pretrain=pretrain, sft=sft, sampling=sampling)
  plans = warp_plans.plans(warp=warp, reinforce=reinforce, comparisons=comparisons)
  prompt_length, settings = sampling_settings(**sampling)
  for plan in plans:
    plan.check(settings)
  panels.check(evaluation)
  sections.check(_front, front or {}, "front")
  measure_every, limit, budgets = _front(**(front or {}))
  models = warp_plans.candidates(plans, measure_every=measure_every)
  data = problems.make(problem)
  proxies.check(reward_model=reward_model, warm=warm, data=data)
  policy = policies.load_or_make(data.tokenizer(), seed=seed, section=model)
  devices = sharding.make_mesh(mesh)
  with start.open(seed=seed, mesh=devices, checkpoints=checkpoints) as current:
    # θ_SFT
    found = stages.foundation(policy, data, current, pretrain=pretrain, sft=sft)

    # the rewards
    references = stages.trajectory(found, current)
    scorers = proxies.make(
      policy,
      references,
      data,
      current,
      reward_model=reward_model,
      warm=warm,
      sampling=sampling,
    )

    # the policies
    texts = data.prompts["train"]
    rows = encoding.prompt_rows(policy.tokenizer, texts, length=prompt_length).arrays
    prompts = (rows["tokens"], rows["mask"])
    ends = settings | policy.ends
    setting = episodes.Setting(policy, found.reference, prompts, scorers, current, ends, plans)
    for plan in plans:
      episodes.train(plan, setting)

    # what they are worth
    both = panels.make_panels(
      data=data,
      evaluation=evaluation,
      policy=policy,
      reference=found.reference,
      scorers=scorers,
      run=current,
      sampling=sampling,
    )
    policy_points.measure(models, both, current, weights=lambda m: m.make(setting))
    families = [f for f in dict.fromkeys(m.family for m in models) if f != INIT]
    if both[-1].skills:
      fronts.write(current, families=families, anchor=INIT)
    kl_fronts.write(current, lines=lines(models), anchor=INIT, limit=limit, budgets=budgets)

    # what is left of it
    last = [model for model in models if model.selectable and model.family != INIT]
    chosen = kl_fronts.select(current, family=last[0].family, limit=limit)
    named: dict[str, float | None] = {"sft": 0.0, "merged": 1.0}
    named["selected"] = next((m.x["eta"] for m in last if m.label == chosen), None)
    for name, eta in named.items():
      if eta is None:
        continue
      weights = episodes.output(plans[0], setting, plans[0].settings.num_episodes, eta)
      policies.export(policy, weights, current.directory / "models" / name)


def _front(
  *,
  measure_every: int | None = None,
  kl_limit: float | None = None,
  budgets: Sequence[float] = (),
) -> tuple[int | None, float | None, Sequence[float]]:
  """The section "front".

  Args:
    measure_every: trajectories are measured after every so many iterations and at their end; None: at their end.
    kl_limit: the largest KL to θ_SFT, in nats of a completion, that fronts count and the selection allows; None: the
      largest of the output sets of all episodes.
    budgets: KLs, in nats of a completion, within which the largest reward of every line is recorded.
  """
  kl_fronts.check_limits(kl_limit, budgets)
  return measure_every, kl_limit, budgets


def lines(models: Sequence[Candidate]) -> dict[str, list[str]]:
  """Lines of the figures: families by name; first the output sets of all episodes, then what belongs together.

  "static anchor" has all of "static anchor: β = 0.1", "static anchor: β = 0.02", ...: the front of whoever tunes it.
  """
  families = [f for f in dict.fromkeys(model.family for model in models) if f != INIT]
  found = {episodes.MAIN: [f for f in families if f.startswith(f"{episodes.MAIN}, ")]}
  for family in families:
    head, separator, rest = family.partition(": ")
    if separator:
      kind = f"{head}, LITI" if rest.endswith(", LITI") else head
      found.setdefault(kind, []).append(family)
  return found | {family: [family] for family in families}
