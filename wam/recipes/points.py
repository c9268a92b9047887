"""Measures the points of a trade-off: rewards, KL and skills of many models.

One record a model, split and sampling seed. A run that was killed goes on behind the last model that was measured
whole. Leaves out which models there are (the recipe) and what follows from them (fronts, report).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

from wam.checkpoints import records
from wam.core.types import Params
from wam.recipes.panels import MEAN, STAGE, Measured, Panel, rounded, walk
from wam.training.workdir import Run


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
  # Two names for one model (α = 1 and the last iteration) are measured once.
  known: dict[Hashable, list[dict[str, Any]]] = {}

  def record(number: int, model: Model) -> Mapping[str, float]:
    name = model.identity
    if name not in known:
      params = weights(model)
      known[name] = [f for panel in panels for f in fields(panel.split, panel.measure(params))]
    about = {"family": model.family, "label": model.label, "coefficients": model.coefficients}
    for found in known[name]:
      run.log(about | found, kind="point", stage=STAGE, step=number)
    return {n: v for n, v in known[name][-1].items() if n.startswith("reward")}

  walk(models, run, STAGE, done=_measured(run, models, panels), record=record)


def fields(split: str, found: Measured) -> list[dict[str, Any]]:
  """The fields of a model's records on one panel, one a sampling seed: means, scores, and "items" to be resampled.

  Statistics of the tasks' items do not depend on the sampling seed, so that only the first record has them.
  """
  scores = {score.name: score.value for score in found.scores} | {MEAN: found.retained}
  statistics = {score.name: score.statistics for score in found.scores}
  return [
    {
      "seed": seed,
      "split": split,
      **{name: float(values[seed].mean()) for name, values in found.rows.items()},
      "scores": scores,
      "items": rounded(
        ({} if seed else statistics) | {name: x[seed] for name, x in found.rows.items()}
      ),
    }
    for seed in range(len(found.rows["kl"]))
  ]


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
