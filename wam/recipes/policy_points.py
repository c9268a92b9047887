"""Measures policies along lines of a figure: rewards, KL to θ_SFT, lengths and skills, and samples of some.

Writes a record of kind "point" for every policy, split and sampling seed, as points.py does; a summary of kind
"measurement"; and samples where a policy is shown. A run that was killed goes on behind the last policy that was
measured whole. Leaves out which policies there are, and what follows from them (kl_fronts.py).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from wam.checkpoints import records
from wam.core.types import Params
from wam.recipes import points
from wam.recipes.panels import MEAN, STAGE, Measured, Panel, walk
from wam.training.workdir import Run

STUDY = "front"


class Model(Protocol):
  """What a point measures."""

  @property
  def family(self) -> str:
    """Which line of the figure it belongs to."""

  @property
  def label(self) -> str:
    """Its name within the family."""

  @property
  def x(self) -> Mapping[str, float]:
    """Numbers that place it on the line."""

  @property
  def coefficients(self) -> Mapping[str, float]:
    """The ratio of each part; empty where it is no average."""

  @property
  def identity(self) -> Hashable:
    """Equal for two names of one model."""

  @property
  def selectable(self) -> bool:
    """Whether it is measured on every panel; others on the last one only."""

  @property
  def shown(self) -> bool:
    """Whether samples of it are kept."""


def measure(
  models: Sequence[Model],
  panels: Sequence[Panel],
  run: Run,
  *,
  weights: Callable[[Any], Params],
) -> None:
  """Writes the records of all models, those that are there already excepted.

  Args:
    models: in the order of the records.
    panels: one a split; the last is that of the figures.
    run: the open workdir.
    weights: makes the weights of a model, when they are needed.

  Raises:
    Interrupted: after SIGTERM, once the model at hand is measured.
  """
  # Two names for one policy (η = 1 and the last iteration) are measured once.
  known: dict[Hashable, dict[str, Measured]] = {}

  def record(number: int, model: Model) -> Mapping[str, float]:
    cache = known.setdefault(model.identity, {})
    wanted = _panels(model, panels)
    missing = [panel for panel in wanted if panel.split not in cache]
    if missing:
      params = weights(model)
      cache |= {panel.split: panel.measure(params) for panel in missing}
    for panel in wanted:
      _write(run, model, panel, cache[panel.split], number)
    return {n: v for n, v in cache[wanted[-1].split].values().items() if n.startswith("reward")}

  walk(models, run, STAGE, done=_measured(run, models, panels), record=record)


def _write(run: Run, model: Model, panel: Panel, found: Measured, number: int) -> None:
  """The records of a model on one panel; the measurement last, which says that all are there."""
  about: dict[str, Any] = {"family": model.family, "label": model.label}
  for fields in points.fields(panel.split, found):
    fields = about | {"coefficients": dict(model.coefficients)} | fields
    run.log(fields, kind="point", stage=STAGE, step=number)
  about |= {"split": panel.split}
  if model.shown:
    fields = about | {"x": dict(model.x)} | panel.texts(found.samples)
    run.log(fields, kind="samples", stage=STAGE, step=number)
  values = found.values()
  skills = {score.name: score.value for score in found.scores} | {MEAN: found.retained}
  more = {f"skill_{name}": value for name, value in skills.items() if np.isfinite(value)}
  more["kl_per_token"] = values["kl"] / max(values["length"], 1e-9)
  fields = about | {
    "study": STUDY,
    "x": dict(model.x) | {"kl": values["kl"]},
    "values": values | more,
    "halves": found.halves(),
    "seeds": len(panel.keys),
  }
  run.log(fields, kind="measurement", stage=STAGE, step=number)


def _panels(model: Model, panels: Sequence[Panel]) -> Sequence[Panel]:
  return panels if model.selectable else panels[-1:]


def _measured(run: Run, models: Sequence[Model], panels: Sequence[Panel]) -> int:
  """How many models have all their records; those of the one that was under way are dropped."""
  counts = [0] * len(models)
  for record in records.read(run.directory / records.FILE_NAME):
    if record["kind"] == "measurement" and record["stage"] == STAGE:
      counts[record["step"]] += 1
  expected = [len(_panels(model, panels)) for model in models]
  done = next((i for i in range(len(models)) if counts[i] < expected[i]), len(models))
  kinds = ("point", "samples", "measurement")
  run.records.drop(lambda r: r["kind"] in kinds and r["stage"] == STAGE and r["step"] >= done)
  return done
