"""M reward models from one probed head: the members of WARM (Ramé et al. 2024, arXiv 2401.12187, algorithm 1).

The head is trained alone on the frozen trunk, once, and given to all members, which then differ in learning rate,
weight decay, dropout, seed, the order and the labels of their pairs, and the checkpoint that their trunk comes from
(Baklava). Leaves out the average and the ensembles (merging, rewards), and one model alone (reward_model.py).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.merging.shared_init import unequal_leaves
from wam.models.heads import ScalarModel
from wam.training import loop, member_axis, member_runs, optimizers, pair_objectives, population
from wam.training.members import Member, Population
from wam.training.workdir import Run

HEAD = r"head/.*"
MODES = ("together", "sequential")


def run(
  model: ScalarModel,
  params: Params | Sequence[Params],
  batches: Sequence[loop.Batches],
  *,
  run: Run,
  stage: str,
  num_steps: int,
  optimizer: Mapping[str, Any],
  members: Sequence[Mapping[str, Any]],
  mode: str = "together",
  vectorize: bool | None = None,
  probe_batches: loop.Batches | None = None,
  probe_params: Params | None = None,
  probe_steps: int = 0,
  probe_optimizer: Mapping[str, Any] | None = None,
  allow_unrelated: bool = False,
  **objective: Any,
) -> Params:
  """Trains M reward models on pair batches as `reward_model.run` does one; returns them with a leading axis [M].

  Args:
    model: trunk and head.
    params: {"decoder", "head"}, float32; one tree for all members, or M trees whose trunks are checkpoints of one
      trajectory. The probe starts from the last of them, which ought to be the one fine-tuned for longest.
    batches: M inputs; data order and swapped labels are theirs (`batching.Batches`, `corruption.swap_arrays`).
    run: the open workdir.
    stage: names the stage; the probe is the stage "<stage>_probe".
    num_steps: updates of every member.
    optimizer: keywords of `optimizers.make` that all members have, without `total_steps`.
    members: M sections, see `member`.
    mode: "together", in one program; or "sequential", one after the other, where members may have optimizers and
      schedules of different kinds. Both give the same members; see `population`.
    vectorize: as in `population.fit`.
    probe_batches: the input of the probe.
    probe_params: where the probe starts, if not from the last of `params`.
    probe_steps: updates of the head alone before; 0 for none: then all members must have one head already.
    probe_optimizer: for the probe; default `optimizer`.
    allow_unrelated: as in `population.fit`.
    **objective: see `recipe`.

  Raises:
    UnknownName: for another mode; ConfigError: for heads that differ, or a probe without input; and what
    `population.fit` raises.
  """
  if mode not in MODES:
    raise unknown_name("mode of a population", mode, MODES)
  stage_of_all = recipe(
    model, stage=stage, num_steps=num_steps, optimizer=optimizer, members=members, **objective
  )
  if mode == "together":
    stage_of_all.check_traceable()
  starts = member_axis.check_starts(stage_of_all, params, allow_unrelated=allow_unrelated)
  if probe_steps:
    if probe_batches is None:
      raise ConfigError(f"{stage}: probe_steps is {probe_steps}, and there are no probe_batches")
    keywords = dict(optimizer if probe_optimizer is None else probe_optimizer)
    probed = loop.fit(
      starts[-1] if probe_params is None else probe_params,
      probe_batches,
      run=run,
      stage=f"{stage}_probe",
      loss_fn=stage_of_all.loss_fn,
      tx=optimizers.make(total_steps=probe_steps, trainable=HEAD, **keywords),
      num_steps=probe_steps,
      accumulate_steps=stage_of_all.accumulate_steps,
      log_every=stage_of_all.log_every,
      count_tokens=pair_objectives.count_tokens,
    )
    starts = with_head(starts, probed["head"])
  different = unequal_leaves(starts, HEAD)
  if different:
    raise ConfigError(
      f"{stage}: the members start from different heads ({', '.join(different)}); heads that were drawn or probed apart"
      " cannot be averaged. Give all the same head, or probe_steps to train one for all"
    )
  if mode == "together":
    return population.fit(
      stage_of_all,
      starts,
      batches,
      run=run,
      vectorize=vectorize,
      allow_unrelated=allow_unrelated,
    )
  return member_runs.fit(stage_of_all, starts, batches, run=run, allow_unrelated=allow_unrelated)


def recipe(
  model: ScalarModel,
  *,
  stage: str,
  num_steps: int,
  optimizer: Mapping[str, Any],
  members: Sequence[Mapping[str, Any]],
  center_rewards_coefficient: float = 0.0,
  margin: float = 0.0,
  dtype: str = "float32",
  remat: bool = False,
  accumulate_steps: int = 1,
  log_every: int = 50,
  keep_steps: Collection[int] = (),
) -> Population:
  """The population of `run` without its probe: what a job that trains one member hands to `member_runs.fit_member`.

  Args:
    model, stage, num_steps, optimizer, members: as in `run`.
    center_rewards_coefficient, margin, dtype, remat: of the objective; see `pair_objectives.bradley_terry`.
    accumulate_steps, log_every, keep_steps: as in `sft.run`.

  Raises:
    ConfigError: for a key or a value that makes no sense, or M = 0.
  """
  return Population(
    stage=stage,
    members=[
      sections.call(member, section, f"{stage}.members[{m}]", shared=optimizer)
      for m, section in enumerate(members)
    ],
    loss_fn=pair_objectives.bradley_terry(
      model,
      center_rewards_coefficient=center_rewards_coefficient,
      margin=margin,
      dtype=dtype,
      remat=remat,
    ),
    num_steps=num_steps,
    accumulate_steps=accumulate_steps,
    log_every=log_every,
    keep_steps=keep_steps,
    count_tokens=pair_objectives.count_tokens,
  )


def member(
  *,
  shared: Mapping[str, Any],
  learning_rate: float | None = None,
  weight_decay: float | None = None,
  dropout: float = 0.0,
  seed: int = 0,
  optimizer: Mapping[str, Any] | None = None,
) -> Member:
  """A member from its section; the paper's grid is learning_rate in {1e-5, 4e-5, 1e-4}, dropout in {0.05, 0.1}.

  Args:
    shared: the optimizer's keywords that all members have.
    learning_rate, weight_decay: in place of the shared ones.
    dropout: of the features that the head reads; the decoders have none of their own (`pair_objectives`).
    seed: of the dropout masks.
    optimizer: more keywords in place of shared ones ("name", "schedule"); mode "sequential" only, where they differ.

  Raises:
    ConfigError: if the dropout is not in [0, 1).
  """
  pair_objectives.check_dropout(dropout)
  own = {"learning_rate": learning_rate, "weight_decay": weight_decay}
  section = {**shared, **(optimizer or {}), **{n: x for n, x in own.items() if x is not None}}
  return Member(section, seed=seed, settings={"dropout": dropout})


def with_head(starts: Sequence[Params], head: Params) -> list[Params]:
  """The starts with one head for all; starts that are one tree stay one."""
  one: dict[int, Params] = {}
  return [one.setdefault(id(start), {**start, "head": head}) for start in starts]
