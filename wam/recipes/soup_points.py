"""Measures the points of a Rewarded Soups study: all rewards, KL to θ_0, length and skills, and a few completions.

One record of kind "measurement" (study "front") a model and split, and one of kind "samples" a model. A model under two
names is measured once; a run that was killed goes on behind the last model that was measured whole. Leaves out which
models there are (soup_models.py) and what follows (soup_fronts.py).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from wam.checkpoints import records
from wam.core.types import Params
from wam.evaluation import metrics
from wam.evaluation.divergence import kl_to_reference
from wam.generation.sampling import Samples, generate
from wam.models import logit_mixture
from wam.models.policy_mixture import PolicyMixture
from wam.recipes import points, problems
from wam.recipes.points import Panel
from wam.recipes.policies import Policy
from wam.recipes.problems import Problem
from wam.rewards.scorers import RolloutScorer
from wam.training import sharding
from wam.training.progress import Progress
from wam.training.workdir import Run

STUDY = "front"
KINDS = ("measurement", "samples")
NUM_TEXTS = 4
# Half the width of a 95 % interval of a mean, in standard errors.
NORMAL = 1.959964


def make_panels(
  policy: Policy,
  reference: Params,
  data: Problem,
  run: Run,
  *,
  scorers: Mapping[str, RolloutScorer],
  sampling: Mapping[str, Any],
  evaluation: Mapping[str, Any],
) -> list[Panel]:
  """One for validation, which only chooses λ and has no skills, and one for test.

  Args:
    policy, reference, data, run, scorers, sampling: as in `points.make_panel`.
    evaluation: further keywords of it.
  """
  found = []
  for split in problems.SPLITS[1:]:
    keywords, content = dict(evaluation), data
    if split == "validation":
      keywords.pop("mean_of", None)
      content = dataclasses.replace(data, tasks={**data.tasks, split: []})
    found.append(
      points.make_panel(
        policy=policy,
        reference=reference,
        data=content,
        split=split,
        scorers=scorers,
        run=run,
        sampling=sampling,
        **keywords,
      )
    )
  return found


def decoding_panel(panel: Panel, model: PolicyMixture) -> Panel:
  """The panel of policies that `model` decodes together; its parameters are those of `logit_mixture.join`."""
  # θ_0 as the mixture's program reads it: alone, with the coefficient 1.
  alone = logit_mixture.join([panel.reference], jnp.ones(1))
  policy = dataclasses.replace(panel.policy, model=model)
  return dataclasses.replace(panel, policy=policy, reference=alone)


class Point(Protocol):
  """A model of the study."""

  @property
  def family(self) -> str:
    """Which line of the figure it belongs to."""

  @property
  def label(self) -> str:
    """Its name within the family."""

  @property
  def coefficients(self) -> Sequence[float]:
    """λ, in the order of the rewards; empty for θ_0."""

  @property
  def identity(self) -> str:
    """Equal for two names of one model, also where one of them was measured before the run was killed."""


Model = TypeVar("Model", bound=Point)


def measure(
  models: Sequence[Model],
  run: Run,
  *,
  names: Sequence[str],
  panels: Callable[[Model], Sequence[Panel]],
  weights: Callable[[Model], Params],
) -> None:
  """Writes the records of all models; those that are there already are kept.

  Args:
    models: in the order of the records.
    run: the open workdir.
    names: of the rewards, in the order of λ.
    panels: what a model is measured with, one a split; as many for every model.
    weights: makes the weights of a model, as its panels read them, when they are needed.

  Raises:
    Interrupted: after SIGTERM, once the model at hand is measured.
  """
  began = time.monotonic()
  done = _measured(run, len(models))
  progress = Progress(STUDY, len(models), start=done, enabled=run.show)
  with progress:
    for number, model in enumerate(models):
      if number < done:
        continue
      found = _known(run, model.identity) or _measure_all(panels(model), weights(model))
      _write(run, model, found, number=number, names=names)
      progress.update(number + 1, found[-2].get("values", {}))
      run.interrupts.check(f"{STUDY} after model {number + 1} of {len(models)}, which is recorded")
  if done < len(models):
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=STUDY, step=len(models))


def _write(
  run: Run,
  model: Point,
  found: Sequence[Mapping[str, Any]],
  *,
  number: int,
  names: Sequence[str],
) -> None:
  """The records of a model; that of its samples, which comes last, tells that it was measured whole."""
  coefficients = model.coefficients
  x = {f"lambda_{n}": v for n, v in zip(names, coefficients, strict=True)} if coefficients else {}
  about = {"study": STUDY, "family": model.family, "label": model.label, "x": x}
  for fields in found:
    kind = "samples" if "completions" in fields else "measurement"
    run.log(about | {"model": model.identity} | dict(fields), kind=kind, stage=STUDY, step=number)


def _measured(run: Run, num_models: int) -> int:
  """How many models have all their records, of which the samples come last; those of the next one are dropped."""
  whole = {record["step"] for record in _records(run) if record["kind"] == "samples"}
  done = next((i for i in range(num_models) if i not in whole), num_models)
  run.records.drop(lambda record: _own(record) and record["step"] >= done)
  return done


def _known(run: Run, identity: str) -> list[dict[str, Any]]:
  """What was measured of a model under another name."""
  found = [record for record in _records(run) if record["model"] == identity]
  first = [record for record in found if record["step"] == found[0]["step"]]
  own = ("kind", "stage", "step", "time", "study", "family", "label", "x", "model")
  return [{name: v for name, v in record.items() if name not in own} for record in first]


def _records(run: Run) -> list[dict[str, Any]]:
  return [r for r in records.read(run.directory / records.FILE_NAME) if _own(r)]


def _own(record: Mapping[str, Any]) -> bool:
  return record["kind"] in KINDS and record["stage"] == STUDY


def _measure_all(panels: Sequence[Panel], params: Params) -> list[dict[str, Any]]:
  """The fields of a model's records: a measurement a panel, and samples of the last panel."""
  fields, samples = [], None
  for panel in panels:
    values, samples = _measure(panel, params)
    fields.append(values)
  assert samples is not None
  return [*fields, _texts(panels[-1], samples)]


def _measure(panel: Panel, params: Params) -> tuple[dict[str, Any], Samples]:
  """The fields of a measurement, and the samples of the first seed.

  "items" holds the rewards of prompts, [S, N] of S sampling seeds and N prompts, which can be resampled.
  """
  policy = panel.policy
  items: dict[str, list[np.ndarray]] = {name: [] for name in panel.scorers}
  kls, lengths, first = [], [], None
  for key in panel.keys:
    drawn = generate(policy.model, params, *panel.prompts, key, **panel.settings)
    host = jax.tree.map(lambda x: x[: panel.num_prompts], sharding.fetch(drawn))
    first = host if first is None else first
    arrays = (host.prompt_tokens, host.prompt_mask, host.completions, host.completion_mask)
    for name, score in panel.scorers.items():
      items[name].append(score(*arrays))
    kls.append(kl_to_reference(policy.model, params, panel.reference, host).per_sequence)
    lengths.append(host.completion_mask.sum(axis=1))
  assert first is not None
  per_prompt = {f"reward_{name}": np.array(values) for name, values in items.items()}
  per_prompt |= {"kl": np.array(kls), "length": np.array(lengths)}
  values = {name: float(x.mean(dtype=np.float64)) for name, x in per_prompt.items()}
  fields = {
    "split": panel.split,
    "values": values | _skills(panel, params),
    "halves": {name: half_width(x) for name, x in per_prompt.items()},
    "seeds": len(panel.keys),
    "items": {n: np.round(np.array(x), points.DIGITS).tolist() for n, x in items.items()},
  }
  return fields, first


def half_width(values: np.ndarray) -> float:
  """Of the 95 % interval of the mean of [S, N]: a prompt, with all its seeds, is the unit that was drawn."""
  means = np.asarray(values, np.float64).mean(axis=0)
  return float(NORMAL * means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0


def _skills(panel: Panel, params: Params) -> dict[str, float]:
  """Scores by task, and "skills": the mean share of what θ_0 has, where it has something of each."""
  if not panel.skills:
    return {}
  scores = [task.evaluate(panel.policy.model, params) for task in panel.skills]
  found = {score.name: float(score.value) for score in scores}
  counted = [i for i, counts in enumerate(panel.in_mean) if counts]
  retained = metrics.retained(
    np.array([scores[i].value for i in counted]),
    np.array([panel.before[i].value for i in counted]),
    [scores[i].metric in metrics.LOSSES for i in counted],
  )
  return found | ({"skills": float(retained)} if np.isfinite(retained) else {})


def _texts(panel: Panel, samples: Samples) -> dict[str, Any]:
  """The fields of a record of samples: the first prompts, and what followed."""

  def texts(tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    rows = zip(tokens[:NUM_TEXTS], mask[:NUM_TEXTS], strict=True)
    return [panel.policy.decode(row[real].tolist()) for row, real in rows]

  return {
    "split": panel.split,
    "prompts": texts(np.asarray(samples.prompt_tokens), np.asarray(samples.prompt_mask)),
    "completions": texts(np.asarray(samples.completions), np.asarray(samples.completion_mask)),
  }
