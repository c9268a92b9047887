"""Panels: what every model of a study is measured with on one split, and what it shows there.

Prompts and tasks are tokenised and compiled once for all models. Leaves out which models there are (the recipe), the
records that are made of what they show (points.py, policy_points.py, soup_points.py) and what follows from those.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import scipy.stats

from wam.core import rng, sections
from wam.core.errors import unknown_name
from wam.core.types import Params
from wam.data import encoding
from wam.evaluation import metrics, tasks
from wam.evaluation.divergence import kl_to_reference
from wam.generation.sampling import Samples, generate
from wam.recipes import problems
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
# Completions that are shown of a model.
NUM_TEXTS = 4


@dataclasses.dataclass(frozen=True)
class Measured:
  """What a model showed on a panel.

  Attributes:
    rows: "reward_<name>", "kl" to the reference and "length", each [S, N] of S sampling seeds and N prompts.
    scores: of the tasks, in order.
    retained: the mean of the shares of the reference's scores, over the tasks that count; NaN where none has a share.
    samples: completions of the first seed, on the host.
  """

  rows: Mapping[str, np.ndarray]
  scores: Sequence[tasks.TaskScore]
  retained: float
  samples: Samples

  def values(self) -> dict[str, float]:
    """Means over prompts and seeds."""
    return {name: float(x.mean(dtype=np.float64)) for name, x in self.rows.items()}

  def halves(self) -> dict[str, float]:
    """Half-widths of their 95 % intervals; none of a single prompt."""
    return {n: half_width(x) for n, x in self.rows.items() if x.shape[1] > 1}


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
  prompts: tuple[jax.Array, jax.Array]  # tokens, mask: [P, T]; P a multiple of the devices
  num_prompts: int  # that count
  settings: Mapping[str, Any]  # of `generate`
  keys: tuple[jax.Array, ...]  # one a sampling seed

  def measure(self, params: Params) -> Measured:
    """Samples completions of every prompt with every seed, and carries out the tasks."""
    policy = self.policy
    rows: list[dict[str, np.ndarray]] = []
    first = None
    for key in self.keys:
      drawn = generate(policy.model, params, *self.prompts, key, **self.settings)
      host = jax.tree.map(lambda x: x[: self.num_prompts], sharding.fetch(drawn))
      first = first or host
      arrays = (host.prompt_tokens, host.prompt_mask, host.completions, host.completion_mask)
      row = {f"reward_{name}": score(*arrays) for name, score in self.scorers.items()}
      row["kl"] = kl_to_reference(policy.model, params, self.reference, host).per_sequence
      row["length"] = host.completion_mask.sum(axis=1)
      rows.append(row)
    assert first is not None
    scores = [task.evaluate(policy.model, params) for task in self.skills]
    counted = [i for i, counts in enumerate(self.in_mean) if counts]
    retained = metrics.retained(
      np.array([scores[i].value for i in counted]),
      np.array([self.before[i].value for i in counted]),
      [scores[i].metric in metrics.LOSSES for i in counted],
    )
    joined = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    return Measured(joined, scores, float(retained), first)

  def texts(self, samples: Samples) -> dict[str, list[str]]:
    """The first few prompts and completions as strings."""
    shown = jax.tree.map(lambda x: np.asarray(x[:NUM_TEXTS]), samples)
    pairs = {
      "prompts": (shown.prompt_tokens, shown.prompt_mask),
      "completions": (shown.completions, shown.completion_mask),
    }
    return {
      name: [self.policy.decode(row[real].tolist()) for row, real in zip(*pair, strict=True)]
      for name, pair in pairs.items()
    }


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
    policy: model and tokenizer.
    reference: θ_0, which the KL is measured to.
    data: prompts and tasks.
    split: "validation" or "test".
    scorers: rewards by name.
    run: the open workdir.
    sampling: the section "sampling"; completions are drawn with it.
    num_seeds: sampling seeds on the test split; the validation split, which only selects, has one.
    num_prompts: at most so many prompts; default all.
    batch_size: rows of the tasks at a time.
    max_length: tokens of a task's prompt; longer ones keep their right end.
    mean_of: the skills that the mean is over; default all. Leave out one that the model does not have: a share of a
      score near zero is noise.

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


def check(evaluation: Mapping[str, Any]) -> None:
  """Checks the keys of the section "evaluation".

  Raises:
    ConfigError: names the key.
  """
  sections.check(make_panel, evaluation, "evaluation", given=GIVEN)


def make_panels(
  *, data: Problem, evaluation: Mapping[str, Any], validation_skills: bool = True, **given: Any
) -> list[Panel]:
  """One for the validation split, which only selects, and one for the test split, which is described and reported.

  Args:
    data: prompts and tasks.
    evaluation: the section "evaluation".
    validation_skills: whether tasks are measured on the validation split too.
    **given: further keywords of `make_panel`: policy, reference, scorers, run, sampling.
  """
  found = []
  for split in problems.SPLITS[1:]:
    keywords, content = dict(evaluation), data
    if split == "validation" and not validation_skills:
      keywords.pop("mean_of", None)
      content = dataclasses.replace(data, tasks={**data.tasks, split: []})
    found.append(make_panel(data=content, split=split, **keywords, **given))
  describe(found[-1], given["run"])
  return found


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


Model = TypeVar("Model")


def walk(
  models: Sequence[Model],
  run: Run,
  stage: str,
  *,
  done: int,
  record: Callable[[int, Model], Mapping[str, float]],
) -> None:
  """Measures models one after the other, behind those that are there already, and shows how far it is.

  Args:
    models: in the order of the records.
    run: the open workdir.
    stage: of the records.
    done: how many models have all their records.
    record: measures a model, writes its records, and returns numbers to show.

  Raises:
    Interrupted: after SIGTERM, once the model at hand is measured.
  """
  began = time.monotonic()
  with Progress(stage, len(models), start=done, enabled=run.show) as progress:
    for number in range(done, len(models)):
      progress.update(number + 1, record(number, models[number]))
      run.interrupts.check(f"{stage} after model {number + 1} of {len(models)}, which is recorded")
  if done < len(models):
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=len(models))


def half_width(values: np.ndarray) -> float:
  """Of the 95 % interval of the mean of [S, N], N > 1: a prompt, with all its seeds, is the unit that was drawn.

  Student's t over the prompts' own means.
  """
  means = np.asarray(values, np.float64).mean(axis=0)
  count = len(means)
  return float(scipy.stats.t.ppf(0.975, count - 1) * means.std(ddof=1) / np.sqrt(count))


def rounded(rows: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
  """Scores of single items, to be kept in records."""
  return {name: np.round(values, DIGITS).tolist() for name, values in rows.items()}
