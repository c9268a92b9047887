"""The supervised stages of a recipe, from config sections to θ_0: pre-training and supervised fine-tuning.

Each turns strings into token rows and hands them to one algorithm. A stage is checked whole before the first one
trains. Leaves out reward models (reward_models.py) and RLHF (tuning.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.algorithms import sft as supervised_tuning
from wam.core import sections
from wam.core.errors import BadData, ConfigError
from wam.core.types import Params
from wam.data import encoding
from wam.data.batching import Batches
from wam.data.examples import Example
from wam.recipes.policies import Policy, sampling_settings
from wam.recipes.problems import Problem
from wam.training import durations, kept, optimizers, sharding
from wam.training.workdir import Run

# What the program itself passes to the functions that take a section.
GIVEN = ("policy", "params", "run", "stage", "keep_steps")


class Foundation(NamedTuple):
  """Where RLHF starts.

  Attributes:
    base: the pre-trained weights.
    reference: θ_0: those after supervised fine-tuning; `base` where there is none.
  """

  base: Params
  reference: Params


def check(
  *,
  pretrain: Mapping[str, Any] | None,
  sft: Mapping[str, Any] | None,
  sampling: Mapping[str, Any],
) -> None:
  """Checks the keys of the sections of training.

  Raises:
    ConfigError: names section and key.
  """
  for name, section in (("pretrain", pretrain), ("sft", sft)):
    if section is not None:
      check_section(_supervised, section, name, also=[supervised_tuning.run])
  sections.check(sampling_settings, sampling, "sampling")


def check_section(
  function: Any, section: Mapping[str, Any], name: str, *, also: Sequence[Any]
) -> None:
  """Checks the keys of a section of a trained stage, and of its "optimizer".

  Args:
    function: takes the section's keys.
    section, name: what is checked, and how it is called in messages.
    also: functions that `function` hands keys on to.
  """
  sections.check(function, section, name, given=GIVEN, also=also)
  check_optimizer(section["optimizer"], f"{name}.optimizer")


def check_optimizer(section: Mapping[str, Any], name: str) -> None:
  """Checks the keys of a section of `optimizers.make`."""
  sections.check(
    optimizers.make, section, name, given=["total_steps"], also=[optimizers.make_schedule]
  )


def foundation(
  policy: Policy,
  data: Problem,
  run: Run,
  *,
  pretrain: Mapping[str, Any] | None,
  sft: Mapping[str, Any] | None,
) -> Foundation:
  """Pre-training on the problem's corpus and fine-tuning on its demonstrations, where there are sections for them."""
  base = policy.params
  if pretrain is not None:
    base = supervised(policy, base, data.corpus, run, "pretrain", pretrain)
  reference = base
  if sft is not None:
    reference = supervised(policy, base, data.demonstrations, run, "sft", sft)
  return Foundation(base, reference)


def trajectory(found: Foundation, run: Run) -> list[Params]:
  """What supervised fine-tuning kept on its way (`sft.keep_percents`), in order, and θ_0 at the end."""
  steps = kept.steps(run, "sft")
  before = [kept.load(run, step, found.reference, stage="sft") for step in steps]
  return [*before, found.reference]


def supervised(
  policy: Policy,
  params: Params,
  examples: Sequence[Example],
  run: Run,
  stage: str,
  section: Mapping[str, Any],
) -> Params:
  """Pre-training or supervised fine-tuning, as a section says; see `_supervised` for its keys."""
  if not examples:
    raise BadData(
      f"{stage}: the problem has no texts for this stage; remove the section or add data"
    )
  return _supervised(examples, policy=policy, params=params, run=run, stage=stage, **section)


def _supervised(
  examples: Sequence[Example],
  *,
  policy: Policy,
  params: Params,
  run: Run,
  stage: str,
  batch_size: int,
  length: int,
  optimizer: Mapping[str, Any],
  num_steps: int | None = None,
  num_examples: int | None = None,
  num_epochs: float | None = None,
  prompt_loss: bool = False,
  keep_percents: Sequence[float] = (),
  **training: Any,
) -> Params:
  """Trains on prompts with completions.

  Args:
    examples: the data.
    policy, params, run, stage: what is trained, where, under which name.
    batch_size: rows a step.
    length: tokens a row; longer examples are cut.
    optimizer: keywords of `optimizers.make`.
    num_steps, num_examples, num_epochs: how long; exactly one.
    prompt_loss: whether prompts are trained on as well.
    keep_percents: after which shares of the steps the weights are kept, as Baklava needs them; see `kept_steps`.
    **training: keywords of `sft.run`: dtype, remat, logits_chunk, accumulate_steps, log_every.
  """
  rows = encoding.example_rows(
    policy.tokenizer, examples, length=length, prompt_loss=prompt_loss, trim=True
  )
  found = batches(rows.arrays, batch_size, run, stage)
  steps = {"num_steps": num_steps, "num_examples": num_examples, "num_epochs": num_epochs}
  total = to_steps(steps, found)
  return supervised_tuning.run(
    policy.model,
    params,
    found,
    run=run,
    stage=stage,
    optimizer=optimizer,
    num_steps=total,
    keep_steps=kept_steps(keep_percents, total, stage),
    **training,
  )


def once(run: Run, *, kind: str, stage: str, fields: Mapping[str, Any]) -> None:
  """Writes a record unless the run has one of this kind and stage already (it was killed after writing it)."""
  run.records.drop(lambda record: record["kind"] == kind and record["stage"] == stage)
  run.log(fields, kind=kind, stage=stage, step=0)


def batches(rows: Mapping[str, np.ndarray], batch_size: int, run: Run, stage: str) -> Batches:
  """Rows in batches whose order is the stage's own.

  Raises:
    ConfigError: if the batch size does not fit the rows or the devices.
  """
  sharding.check_batch_size(batch_size, run.mesh)
  return Batches(rows, batch_size=batch_size, seed=run.seed, stream=f"{stage}/batches")


def kept_steps(percents: Sequence[float], num_steps: int, stage: str) -> tuple[int, ...]:
  """Steps within a stage, from shares of its updates in percent; (67, 83) of 12 000 are about WARM's 8 k and 10 k.

  Raises:
    ConfigError: if a share is not between 0 and 100, or so small or large that no step lies there.
  """
  steps = tuple(sorted({round(percent / 100 * num_steps) for percent in percents}))
  if any(not 0 < step < num_steps for step in steps):
    raise ConfigError(
      f"{stage}.keep_percents: {list(percents)} of {num_steps} steps are {list(steps)}, expected steps from 1 to"
      f" {num_steps - 1}; the last one is kept anyway"
    )
  return steps


def to_steps(spec: Mapping[str, Any], batches: Batches) -> int:
  """Updates of a stage from {"num_steps", "num_examples", "num_epochs"}, of which exactly one is given."""
  return durations.to_steps(
    spec,
    "num",
    examples_per_step=batches.batch_size,
    examples_per_epoch=batches.num_rows,
  )
