"""Mitigating the Alignment Tax of RLHF (Lin et al. 2024, arXiv 2309.06256): train, tax, average, measure.

The stages, each resumable: pre-training and supervised fine-tuning (where the config asks for them) -> θ_0; a
Bradley-Terry reward model from θ_0 (proxy), and a second one on other pairs (control) where there is no gold reward;
RLHF by one algorithm (rejection-sampling fine-tuning, PPO, DPO, REINFORCE) -> θ after every iteration, and again from
θ_0 with the mitigations to compare with; then every point of the trade-off is measured: θ_0, the early-stopped
checkpoints, model averaging (1 - α)·θ_0 + α·θ, part-wise averaging (one third of the depth with α, the rest of θ),
adaptive averages (ratios by part that make the policy's best completions most likely), and what the mitigations ended
with. The models before and after RLHF and the average that a rule selects on the validation
split are left as Hugging Face directories in `models/`.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from wam.core import parts, sections
from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.merging.averages import lerp
from wam.recipes import adaptive as adaptive_averages
from wam.recipes import fronts, panels, points, policies, problems, reward_models, stages, tuning
from wam.training import sharding
from wam.training.workdir import Start

INIT, STOPPED, AVERAGED, PARTWISE = "init", "early stopping", "model averaging", "part-wise"
BEYOND = "extrapolation"
PATTERNS, ADAPTIVE, GRID = "patterns", adaptive_averages.FAMILY, adaptive_averages.GRID
AFTER = "α = 1"


class Candidate(NamedTuple):
  """A model of the trade-off: how it is called, and how its weights come about."""

  family: str
  label: str
  coefficients: Mapping[str, float]  # α of each part; empty where nothing is averaged
  iteration: (
    int | None
  )  # of the main run of RLHF; None: averaged with `coefficients`, or the end of `plan`
  plan: tuning.Plan | None = None  # another run
  average: adaptive_averages.Average | None = None  # by ratios that the section "adaptive" brought

  @property
  def identity(self) -> Hashable:
    """Equal for two names of one model."""
    other = self.plan or self.average
    if other is not None:
      return other.stage
    return tuple(self.coefficients.items()) if self.iteration is None else self.iteration


def recipe(
  *,
  seed: int,
  problem: Mapping[str, Any],
  model: Mapping[str, Any],
  reward_model: Mapping[str, Any],
  averaging: Mapping[str, Any],
  evaluation: Mapping[str, Any],
  sampling: Mapping[str, Any],
  pretrain: Mapping[str, Any] | None = None,
  sft: Mapping[str, Any] | None = None,
  rsf: Mapping[str, Any] | None = None,
  ppo: Mapping[str, Any] | None = None,
  dpo: Mapping[str, Any] | None = None,
  reinforce: Mapping[str, Any] | None = None,
  mitigation: Mapping[str, Any] | None = None,
  comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
  adaptive: Mapping[str, Any] | None = None,
  mesh: Mapping[str, int] | None = None,
  checkpoints: Mapping[str, Any] | None = None,
  start: Start,
) -> None:
  """The recipe, top to bottom; every argument but the last is a section of the config."""
  stages.check(pretrain=pretrain, sft=sft, sampling=sampling)
  reward_models.check(reward_model)
  plans = tuning.plans(
    algorithms={"rsf": rsf, "ppo": ppo, "dpo": dpo, "reinforce": reinforce},
    mitigation=mitigation,
    comparisons=comparisons,
  )
  sections.check(candidates, averaging, "averaging", given=["params", "plans"])
  panels.check(evaluation)
  data = problems.make(problem)
  policy = policies.load_or_make(data.tokenizer(), seed=seed, section=model)
  tuning.check(plans, policy, data, sampling)
  models = candidates(params=policy.params, plans=plans, **averaging)
  if adaptive is not None:
    ratios = adaptive_averages.check(adaptive, policy.params, has_corpus=bool(data.corpus))
  devices = sharding.make_mesh(mesh)
  with start.open(seed=seed, mesh=devices, checkpoints=checkpoints) as current:
    # θ_0
    base, reference = stages.foundation(policy, data, current, pretrain=pretrain, sft=sft)

    # the rewards
    rewards = reward_models.train(
      policy, reference, data, current, section=reward_model, sampling=sampling
    )

    # θ, and the runs to compare it with
    setting = tuning.Setting(policy, reference, base, data, rewards, current, sampling, plans[0])
    tuned, *_ = [tuning.train(plan, setting) for plan in plans]

    # ratios by part
    if adaptive is not None:
      models += [
        Candidate(found.family, found.label, found.ratios, None, average=found)
        for found in adaptive_averages.averages(ratios, tuned, setting)
      ]

    # what it bought and what it cost
    both = panels.make_panels(
      data=data,
      evaluation=evaluation,
      policy=policy,
      reference=reference,
      scorers=rewards.scorers,
      run=current,
      sampling=sampling,
    )

    make = functools.partial(weights, tuned=tuned, setting=setting)
    points.measure(models, both, current, weights=make)
    families = dict.fromkeys([STOPPED, AVERAGED, PARTWISE, *(model.family for model in models)])
    fronts.write(current, families=[f for f in families if f != INIT], anchor=INIT)
    best = fronts.select(current, families=(AVERAGED, PARTWISE), before=INIT, after=AFTER)
    named = {"before": models[0].label, "after": AFTER, "selected": best}
    for name, label in named.items():
      chosen = next((model for model in models if model.label == label), None)
      if chosen is not None:
        policies.export(policy, make(chosen), current.directory / "models" / name)


def candidates(
  *,
  params: Params,
  plans: Sequence[tuning.Plan],
  alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
  extrapolations: Sequence[float] = (),
  num_parts: int = 3,
  part_alphas: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
  patterns: Sequence[Sequence[float]] = (),
  pattern_alphas: Sequence[float] = (0.2, 0.3, 0.4),
) -> list[Candidate]:
  """All points to measure, in order.

  Args:
    params: for the names of the parts.
    plans: the main run of RLHF, each iteration of which is an early-stopping point, and those to compare with.
    alphas: ratios of model averaging; α multiplies the post-RLHF weights, as in the paper. 0 and 1 are the end points
      that are measured anyway, and need not be given.
    extrapolations: ratios above 1, beyond the model after RLHF: ExPO (Zheng et al. 2024, arXiv 2404.16792).
    num_parts: groups of layers from input to output; 1 for no part-wise averaging.
    part_alphas: ratios of the part that is averaged; the others keep the weights of θ (paper, section 5.1).
    patterns: what is added to α in every part, such as (0, 0, -0.1) for the paper's (α|α|α-0.1) (figure 8).
    pattern_alphas: the α of the patterns.

  Raises:
    ConfigError: if a ratio is not in [0, 1] (above 1 for extrapolations), or a pattern has not `num_parts` numbers.
  """
  for name, values in (("alphas", alphas), ("part_alphas", part_alphas)):
    outside = [a for a in values if not 0 <= a <= 1]
    if outside:
      raise ConfigError(f"averaging.{name}: expected ratios from 0 to 1, found {outside}")
  inside = [a for a in extrapolations if not 1 < a < float("inf")]
  if inside:
    raise ConfigError(f"averaging.extrapolations: expected ratios above 1, found {inside}")
  names = _groups(params, num_parts).names
  num_iterations = tuning.num_iterations(plans[0])
  # The end points of the path were measured already: they are the same models.
  same = {0.0: 0, 1.0: num_iterations}
  found = [Candidate(INIT, "before RLHF", dict.fromkeys(names, 0.0), 0)]
  found += [Candidate(STOPPED, f"iteration {i}", {}, i) for i in range(1, num_iterations + 1)]
  found += [
    Candidate(AVERAGED, f"α = {alpha:g}", dict.fromkeys(names, alpha), same.get(alpha))
    for alpha in sorted({0.0, 1.0, *alphas})
  ]
  found += [
    Candidate(BEYOND, f"α = {alpha:g}", dict.fromkeys(names, alpha), None)
    for alpha in extrapolations
  ]
  if len(names) > 1:
    found += [
      Candidate(PARTWISE, f"{name}, α = {alpha:g}", dict.fromkeys(names, 1.0) | {name: alpha}, None)
      for name in names
      for alpha in part_alphas
    ]
  found += [_patterned(alpha, pattern, names) for alpha in pattern_alphas for pattern in patterns]
  return found + [Candidate(plan.family, plan.label, {}, None, plan) for plan in plans[1:]]


def _patterned(alpha: float, pattern: Sequence[float], names: Sequence[str]) -> Candidate:
  """The average with α and what a pattern adds to it in each part."""
  if len(pattern) != len(names):
    raise ConfigError(
      f"averaging.patterns: expected {len(names)} numbers, one a part, found {tuple(pattern)}"
    )
  # To 10 digits: 0.3 - 0.1 is not 0.2 in floating point.
  ratios = [round(alpha + more, 10) for more in pattern]
  if not all(0 <= ratio <= 1 for ratio in ratios):
    raise ConfigError(f"averaging.patterns: expected ratios from 0 to 1, found {ratios}")
  label = f"({'|'.join(f'{ratio:g}' for ratio in ratios)})"
  return Candidate(PATTERNS, label, dict(zip(names, ratios, strict=True)), None)


def weights(candidate: Candidate, tuned: Params, setting: tuning.Setting) -> Params:
  """The weights of a candidate; `tuned` are those after the main run."""
  if candidate.iteration == 0:
    return setting.reference
  if candidate.iteration is not None:
    return tuning.load(setting.main, setting, candidate.iteration)
  if candidate.plan is not None:
    return tuning.load(candidate.plan, setting)
  if candidate.average is not None:
    return candidate.average.make()
  groups = _groups(tuned, len(candidate.coefficients))
  ratios = parts.coefficients(groups, candidate.coefficients)
  return lerp(setting.reference, tuned, ratios, extrapolate=candidate.family == BEYOND)


def _groups(params: Params, num_parts: int) -> parts.Parts:
  """Thirds (or so) of the depth, from input to output; one part that holds everything for less than two."""
  return parts.by_depth(params, num_parts) if num_parts > 1 else parts.whole(params)
