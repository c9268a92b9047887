"""Populations of reward models, from a config section: members, their average (WARM), their ensembles, as scorers.

Ramé et al. 2024, WARM (arXiv 2401.12187), algorithm 1: one head probed on the trunk of θ_0, M fine-tunings that differ
in learning rate, dropout, seed, data order and, with Baklava, in the checkpoint of supervised fine-tuning that their
trunk comes from; the average of their last weights. Labels are swapped in an exact share of the pairs where the section
says so. Rewards are normalised on samples of θ_0 (mean 0, standard deviation 1): an average after averaging, every
member by itself before ensembles are made of them.

Leaves out what the models are good for (the recipes), and the judge (`reward_models`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wam.algorithms import reward_model as single
from wam.algorithms import reward_model_population as algorithm
from wam.core import sections
from wam.core.types import Params
from wam.data import corruption, encoding
from wam.merging.averages import uniform_mean
from wam.models.heads import ScalarModel
from wam.recipes import measurements, reward_members, reward_models, stages
from wam.recipes.policies import Policy
from wam.recipes.problems import Problem
from wam.recipes.reward_members import STAGE
from wam.rewards import ensembles
from wam.rewards.scorers import RolloutScorer, score_tokens
from wam.training import iterations, kept, member_axis, sharding
from wam.training.workdir import Run

MEMBERS = "members"
# What scorers are called.
WARM, BEST, ALONG = "warm", "best single", "run average"
RULES = {f"ensemble {rule.replace('_', ' ')}": rule for rule in ensembles.RULES}
# What the program passes to the functions that take the section.
_GIVEN = (
  "policy",
  "references",
  "data",
  "run",
  "stage",
  "samples",
  "probe_batches",
  "probe_params",
  "keep_steps",
)


class RewardPopulation(NamedTuple):
  """M reward models and what is made of them.

  Attributes:
    model: of all of them.
    average: the average of all members, normalised.
    members: normalised, in the order of the section.
    order: the members' numbers from best to worst by accuracy on the validation pairs.
    scorers: "warm", "ensemble mean", "ensemble worst case", "ensemble uncertainty weighted", "best single",
      "member 0", ...; and "run average", of one run's checkpoints, where the section keeps some.
    raw: the members as they were trained, not normalised: what averages are made of.
    along: the checkpoints of member 0's run, in order, its last weights at the end; as in `raw`.
    sections: the members' settings.
    rows: tokenised pairs by split; "train" has the labels that the members saw.
    groups: rows of "train" by whether their label is right: "clean_train", "corrupt_train".
    normalise: makes a model's rewards of samples of θ_0 have mean 0 and standard deviation 1.
    scorer: (normalised parameters, name) -> RolloutScorer.
  """

  model: ScalarModel
  average: Params
  members: list[Params]
  order: list[int]
  scorers: dict[str, RolloutScorer]
  raw: list[Params]
  along: list[Params]
  sections: list[dict[str, Any]]
  rows: dict[str, encoding.Rows]
  groups: dict[str, np.ndarray]
  normalise: Callable[[Params], Params]
  scorer: Callable[[Params, str], RolloutScorer]

  def of_best(self, count: int) -> Params:
    """WARM of the `count` members that are best on the validation pairs, normalised; of one, that member."""
    return self.normalise(uniform_mean([self.raw[m] for m in self.order[:count]]))


def check(section: Mapping[str, Any]) -> None:
  """Checks keys and values of the section "warm"; see `train`.

  Raises:
    ConfigError, UnknownName: names the key.
  """
  sections.check(_train, section, STAGE, given=_GIVEN, also=[algorithm.recipe, algorithm.run])
  for name in ("optimizer", "probe_optimizer"):
    if section.get(name) is not None:
      stages.check_optimizer(section[name], f"{STAGE}.{name}")
  ensembles.check_rule("uncertainty_weighted", section.get("variance_coefficient", 0.5))
  corruption.swapped_rows(1, section.get("label_noise", 0.0), seed=0)
  every = reward_members.member_sections(section["members"])
  # What a member or an optimizer refuses is refused now; neither the shape nor the steps matter for that.
  own = [{k: v for k, v in each.items() if k != "start"} for each in every]
  shared = section["optimizer"]
  [
    sections.call(algorithm.member, o, f"{STAGE}.members[{m}]", shared=shared)
    for m, o in enumerate(own)
  ]


def train(
  policy: Policy,
  references: Sequence[Params],
  data: Problem,
  run: Run,
  *,
  section: Mapping[str, Any],
  sampling: Mapping[str, Any],
) -> RewardPopulation:
  """Trains the members, or what is left to do, and makes scorers of them.

  Args:
    policy: the language model.
    references: checkpoints of one trajectory of supervised fine-tuning, in order; the last one is θ_0.
    data: the pairs "train" and "validation".
    run: the open workdir; the stages are "warm_probe" and "warm".
    section: see `_train` for its keys.
    sampling: the section "sampling", for the samples of θ_0 that rewards are normalised on.

  Raises:
    BadData: if no pair is short enough; ConfigError: if a member starts from a checkpoint that is not there.
  """
  dtype = section.get("dtype", "float32")
  samples = reward_models.reference_samples(policy, references[-1], data, run, sampling, dtype)
  return _train(
    policy=policy, references=references, data=data, run=run, samples=samples, **section
  )


def _train(
  *,
  policy: Policy,
  references: Sequence[Params],
  data: Problem,
  run: Run,
  samples: Mapping[str, np.ndarray],
  members: Sequence[Mapping[str, Any]] | Mapping[str, Any],
  batch_size: int,
  length: int,
  optimizer: Mapping[str, Any],
  num_steps: int | None = None,
  num_examples: int | None = None,
  num_epochs: float | None = None,
  label_noise: float = 0.0,
  keep_percents: Sequence[float] = (),
  variance_coefficient: float = 0.5,
  dtype: str = "float32",
  **training: Any,
) -> RewardPopulation:
  """The section "warm".

  Args:
    policy, references, data, run: as in `train`.
    samples: prompt and completion arrays to normalise on.
    members: sections of `reward_model_population.member`, each with "start", which of the references its trunk comes
      from (default -1, θ_0), and by default the seed m; or the keys of `grid`.
    batch_size: pairs a step, for each member.
    length: tokens of prompt and completion; longer pairs are dropped, and counted in the record.
    optimizer: keywords of `optimizers.make` that all members have.
    num_steps, num_examples, num_epochs: how long each member trains; exactly one.
    label_noise: share of the training pairs whose labels are swapped, for the probe and all members alike.
    keep_percents: after which shares of the steps the members' weights are kept, for the average along one run.
    variance_coefficient: λ of the uncertainty-weighted ensemble.
    dtype: of the computation.
    **training: more keywords of `reward_model_population.run`: mode, vectorize, probe_steps, probe_optimizer,
      center_rewards_coefficient, margin, ...
  """
  model = ScalarModel(policy.model.config)
  every = reward_members.member_sections(members)
  rows, groups = reward_members.pair_rows(
    data.pairs, policy, run, length=length, label_noise=label_noise
  )
  inputs = [
    reward_members.batches(rows["train"].arrays, batch_size, run, each["seed"]) for each in every
  ]
  steps = stages.to_steps(
    {"num_steps": num_steps, "num_examples": num_examples, "num_epochs": num_epochs}, inputs[0]
  )
  keep = stages.kept_steps(keep_percents, steps, STAGE)
  starts = reward_members.starts(model, references, [each["start"] for each in every], run)
  stacked = algorithm.run(
    model,
    starts,
    inputs,
    run=run,
    stage=STAGE,
    num_steps=steps,
    optimizer=optimizer,
    members=[
      {k: v for k, v in each.items() if k != "start"}
      | {"seed": reward_members.seed(run, each["seed"])}
      for each in every
    ],
    probe_batches=reward_members.batches(rows["train"].arrays, batch_size, run, "probe"),
    probe_params=reward_members.starts(model, references, [-1], run),
    keep_steps=keep,
    dtype=dtype,
    **training,
  )
  raw = [_member(stacked, m, run) for m in range(len(every))]

  def scorer(params: Params, name: str) -> RolloutScorer:
    return reward_models.scorer(model, params, run, dtype, name)

  def normalise(params: Params) -> Params:
    return single.normalise(params, scorer(params, STAGE)(**samples))

  normalised = [normalise(params) for params in raw]
  along = [_member(_kept(step, stacked, run), 0, run) for step in keep]
  along += raw[:1] if keep else []
  average = normalise(uniform_mean(raw))
  named = {f"member {m}": params for m, params in enumerate(normalised)}
  order = _heldout(model, named | {f"M = {len(raw)}": average}, every, rows["validation"], run)
  found = RewardPopulation(
    model, average, normalised, order, {}, raw, along, every, rows, groups, normalise, scorer
  )
  found.scorers.update(_scorers(found, variance_coefficient))
  return found


def score_pairs(
  model: ScalarModel, params: Params, rows: Mapping[str, np.ndarray], run: Run, dtype: str
) -> np.ndarray:
  """Rewards of both completions of every pair: [2, N] float32, chosen first."""
  both = score_tokens(
    model,
    params,
    np.concatenate([rows["chosen"], rows["rejected"]]),
    np.concatenate([rows["chosen_mask"], rows["rejected_mask"]]),
    chunk=len(sharding.filled_rows(256, run.mesh)),
    dtype=dtype,
    place=functools.partial(sharding.put_whole_batch, mesh=run.mesh),
    fetch=sharding.fetch,
  )
  return both.reshape(2, -1)


def _member(stacked: Params, m: int, run: Run) -> Params:
  """Member m, lying as a model of its own does."""
  like = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[m], tree), stacked)
  where = iterations.parameter_shardings(like, run)
  return jax.jit(lambda tree: jax.tree.map(lambda x: x[m], tree), out_shardings=where)(stacked)


def _kept(step: int, stacked: Params, run: Run) -> Params:
  """All members after a step of theirs."""
  like = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), stacked)
  size = len(jax.tree.leaves(stacked)[0])
  where = member_axis.shardings(like, like, size, run)
  return kept.load(run, step, stacked, stage=STAGE, where=where)


def _heldout(
  model: ScalarModel,
  models: Mapping[str, Params],
  every: Sequence[Mapping[str, Any]],
  rows: encoding.Rows,
  run: Run,
) -> list[int]:
  """Measures members and average on the validation pairs, once; returns the members from best to worst."""

  def make() -> list[dict[str, Any]]:
    found = []
    for m, (name, params) in enumerate(models.items()):
      values = single.evaluate(model, params, rows.arrays, run=run)
      x = {k: v for k, v in every[m].items() if k != "optimizer"} if m < len(every) else {}
      family = "members" if x else "WARM"
      found.append(measurements.point(MEMBERS, family, name, values, split="validation", x=x))
    return found

  measurements.once(run, MEMBERS, make)
  scores = [r["values"]["accuracy"] for r in measurements.read(run, MEMBERS)][: len(every)]
  return sorted(range(len(every)), key=lambda m: -scores[m])


def _scorers(found: RewardPopulation, variance_coefficient: float) -> dict[str, RolloutScorer]:
  """All of them by name; an ensemble costs as many passes as it has members."""
  single_models = {f"member {m}": params for m, params in enumerate(found.members)}
  named = {WARM: found.average, BEST: found.members[found.order[0]]}
  if found.along:
    named[ALONG] = found.normalise(uniform_mean(found.along))
  every = {name: found.scorer(params, name) for name, params in (named | single_models).items()}
  members = [every[name] for name in single_models]
  for name, rule in RULES.items():
    weight = variance_coefficient if rule == "uncertainty_weighted" else None
    every[name] = ensembles.ensemble(members, rule=rule, variance_coefficient=weight, name=name)
  return every
