"""Measures the points of a Rewarded Soups study: all rewards, KL to θ_0, length and skills, and a few completions.

One record of kind "measurement" (study "front") a model and split, and one of kind "samples" a model. A model under two
names is measured once; a run that was killed goes on behind the last model that was measured whole. Leaves out which
models there are (soup_models.py) and what follows (soup_fronts.py).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax.numpy as jnp
import numpy as np

from wam.checkpoints import records
from wam.core.types import Params
from wam.models import logit_mixture
from wam.models.policy_mixture import PolicyMixture
from wam.recipes.panels import Measured, Panel, rounded, walk
from wam.training.workdir import Run

STUDY = "front"
KINDS = ("measurement", "samples")


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

  def record(number: int, model: Model) -> Mapping[str, float]:
    found = _known(run, model.identity) or _fields(panels(model), weights(model))
    _write(run, model, found, number=number, names=names)
    shown: Mapping[str, float] = found[-2].get("values", {})
    return shown

  walk(models, run, STUDY, done=_measured(run, len(models)), record=record)


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


def _fields(panels: Sequence[Panel], params: Params) -> list[dict[str, Any]]:
  """The fields of a model's records: a measurement a panel, and samples of the last panel.

  "items" holds the rewards of prompts, [S, N] of S sampling seeds and N prompts, which can be resampled.
  """
  measured = [panel.measure(params) for panel in panels]
  fields: list[dict[str, Any]] = [
    {
      "split": panel.split,
      "values": found.values() | _skills(found),
      "halves": found.halves(),
      "seeds": len(panel.keys),
      "items": rounded({name: found.rows[f"reward_{name}"] for name in panel.scorers}),
    }
    for panel, found in zip(panels, measured, strict=True)
  ]
  last = panels[-1]
  return [*fields, {"split": last.split} | last.texts(measured[-1].samples)]


def _skills(found: Measured) -> dict[str, float]:
  """Scores by task, and "skills": the mean share of what θ_0 has, where it has something of each."""
  scores = {score.name: float(score.value) for score in found.scores}
  share = {"skills": found.retained} if scores and np.isfinite(found.retained) else {}
  return scores | share
