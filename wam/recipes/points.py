"""Measures the points of a trade-off: rewards, KL and skills of many models.

One record a model, split and sampling seed. Everything is tokenised and compiled once for all models. A run that was
killed goes on behind the last model that was measured whole. Leaves out which models there are (the recipe) and what
follows from them (fronts, report).
"""

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from wam.checkpoints import records
from wam.core import rng
from wam.core.errors import unknown_name
from wam.core.types import Params
from wam.data import encoding
from wam.evaluation import metrics, tasks
from wam.evaluation.divergence import kl_to_reference
from wam.generation.sampling import generate
from wam.recipes.policies import Policy, sampling_settings
from wam.recipes.problems import Problem
from wam.rewards.scorers import RolloutScorer
from wam.training import sharding
from wam.training.progress import Progress
from wam.training.workdir import Run

STAGE = "evaluation"
# What the program passes to `make_panel` itself.
GIVEN = ("policy", "reference", "data", "split", "scorers", "run", "sampling")
# Digits of the scores of single items, which are kept to be resampled.
DIGITS = 5
# What the mean of the skills is called among the scores: that of the shares of what the reference has.
MEAN = "mean"


class Model(Protocol):
  """What a point measures."""

  @property
  def family(self) -> str:
    """Which line of the figure it belongs to."""

  @property
  def label(self) -> str:
    """Its name within the family."""

  @property
  def coefficients(self) -> Mapping[str, float]:
    """The ratio of each part; empty where it is no average."""

  @property
  def identity(self) -> Hashable:
    """Equal for two names of one model."""


@dataclasses.dataclass(frozen=True)
class Panel:
  """What every model is measured with on one split."""

  split: str
  policy: Policy
  reference: Params
  scorers: Mapping[str, RolloutScorer]
  skills: Sequence[tasks.Prepared]
  before: Sequence[tasks.TaskScore]  # of the reference
  in_mean: Sequence[bool]  # whether each skill counts in the mean
  prompts: tuple[
    jax.Array, jax.Array
  ]  # tokens, mask: [P, T], filled up to a multiple of the devices
  num_prompts: int  # that count
  settings: Mapping[str, Any]  # of `generate`
  keys: tuple[jax.Array, ...]  # one a sampling seed


def make_panel(
  *,
  policy: Policy,
  reference: Params,
  data: Problem,
  split: str,
  scorers: Mapping[str, RolloutScorer],
  run: Run,
  sampling: Mapping[str, Any],
  num_seeds: int = 3,
  num_prompts: int | None = None,
  batch_size: int = 128,
  max_length: int = 1024,
  mean_of: Sequence[str] | None = None,
) -> Panel:
  """Tokenises prompts and tasks.

  Args:
    policy: model and tokenizer. reference: θ_0, which the KL is measured to. data: prompts and tasks. split:
    "validation" or "test". scorers: rewards by name. run: the open workdir. sampling: the section "sampling";
    completions are drawn with it. num_seeds: sampling seeds on the test split; the validation split, which only
    selects, has one. num_prompts: at most so many prompts; default all. batch_size: rows of the tasks at a time.
    max_length: tokens of a task's prompt; longer ones keep their right end. mean_of: the skills that the mean is
    over; default all. Leave out one that the model does not have: a share of a score
      near zero is noise.

  Raises:
    UnknownName: if `mean_of` names a task that does not exist.
  """
  prompt_length, settings = sampling_settings(**sampling)
  prepared = [
    tasks.prepare(task, policy.tokenizer, batch_size=batch_size, max_length=max_length)
    for task in data.tasks[split]
  ]
  rows = encoding.prompt_rows(
    policy.tokenizer, data.prompts[split][:num_prompts], length=prompt_length
  ).arrays
  names = [task.name for task in data.tasks[split]]
  for name in mean_of or ():
    if name not in names:
      raise unknown_name("task in evaluation.mean_of", name, names)
  count = len(rows["tokens"])
  filled = sharding.filled_rows(count, run.mesh)
  return Panel(
    split=split,
    policy=policy,
    reference=reference,
    scorers=scorers,
    skills=prepared,
    before=[task.evaluate(policy.model, reference) for task in prepared],
    in_mean=[mean_of is None or name in mean_of for name in names],
    prompts=sharding.put_whole_batch((rows["tokens"][filled], rows["mask"][filled]), run.mesh),
    num_prompts=count,
    settings=settings | policy.ends,
    keys=tuple(
      rng.key(run.seed, f"{STAGE}/{split}", i) for i in range(num_seeds if split == "test" else 1)
    ),
  )


def measure(
  models: Sequence[Model],
  panels: Sequence[Panel],
  run: Run,
  *,
  weights: Callable[[Any], Params],
) -> None:
  """Writes the records of kind "point": every model on every panel, those that are there already excepted.

  Args:
    models: in the order of the records.
    panels: one a split.
    run: the open workdir.
    weights: makes the weights of a model, when they are needed.

  Raises:
    Interrupted: after SIGTERM, once the model at hand is measured.
  """
  began = time.monotonic()
  done = _measured(run, models, panels)
  progress = Progress(STAGE, len(models), start=done, enabled=run.show)
  # Two names for one model (α = 1 and the last iteration) are measured once.
  known: dict[Hashable, list[dict[str, Any]]] = {}
  with progress:
    for number, model in enumerate(models):
      if number < done:
        continue
      name = model.identity
      if name not in known:
        params = weights(model)
        known[name] = [fields for panel in panels for fields in _measure(panel, params)]
      about = {"family": model.family, "label": model.label, "coefficients": model.coefficients}
      for fields in known[name]:
        run.log(about | fields, kind="point", stage=STAGE, step=number)
      shown = {n: v for n, v in known[name][-1].items() if n.startswith("reward")}
      progress.update(number + 1, shown)
      run.interrupts.check(f"{STAGE} after model {number + 1} of {len(models)}, which is recorded")
  if done < len(models):
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=STAGE, step=len(models))


def describe(panel: Panel, run: Run) -> None:
  """Writes the records of kind "task": what the scores of a panel mean."""
  run.records.drop(lambda record: record["kind"] == "task")
  for step, score in enumerate(panel.before):
    fields = {
      "name": score.name,
      "metric": score.metric,
      "higher_is_better": score.metric not in metrics.LOSSES,
      "items": len(score.per_item),
      "in_mean": panel.in_mean[step],
    }
    run.log(fields, kind="task", stage=STAGE, step=step)


def _measured(run: Run, models: Sequence[Model], panels: Sequence[Panel]) -> int:
  """How many models have all their records; those of the one that was under way are dropped."""
  expected = sum(len(panel.keys) for panel in panels)
  counts = [0] * len(models)
  for record in records.read(run.directory / records.FILE_NAME):
    if record["kind"] == "point":
      counts[record["step"]] += 1
  done = next((i for i, count in enumerate(counts) if count < expected), len(models))
  run.records.drop(lambda record: record["kind"] == "point" and record["step"] >= done)
  return done


def _measure(panel: Panel, params: Params) -> list[dict[str, Any]]:
  """The fields of a model's records on one panel, one a sampling seed.

  "items" holds what can be resampled: rewards of prompts, and the statistics of the tasks' items. Those do not depend
  on the sampling seed, so that only the first record has them.
  """
  policy = panel.policy
  scores = [task.evaluate(policy.model, params) for task in panel.skills]
  items = {score.name: score.statistics for score in scores}
  counted = [i for i, counts in enumerate(panel.in_mean) if counts]
  retained = metrics.retained(
    np.array([scores[i].value for i in counted]),
    np.array([panel.before[i].value for i in counted]),
    [scores[i].metric in metrics.LOSSES for i in counted],
  )
  fields = []
  for seed, key in enumerate(panel.keys):
    samples = generate(policy.model, params, *panel.prompts, key, **panel.settings)
    host = jax.tree.map(lambda x: x[: panel.num_prompts], sharding.fetch(samples))
    kl = kl_to_reference(policy.model, params, panel.reference, host).per_sequence
    arrays = (host.prompt_tokens, host.prompt_mask, host.completions, host.completion_mask)
    rewards = {f"reward_{name}": score(*arrays) for name, score in panel.scorers.items()}
    items |= rewards
    fields.append(
      {
        "seed": seed,
        "split": panel.split,
        **{name: float(values.mean()) for name, values in rewards.items()},
        "kl": float(np.mean(kl)),
        "length": float(host.completion_mask.sum(axis=1).mean()),
        "scores": {score.name: score.value for score in scores} | {MEAN: float(retained)},
        "items": {name: np.round(values, DIGITS).tolist() for name, values in items.items()},
      }
    )
    items = {}
  return fields
