"""Measures policies along lines of a figure: rewards, KL to θ_SFT, lengths and skills, and samples of some.

Writes a record of kind "point" for every policy, split and sampling seed, as points.py does, with the KL of every
completion beside its rewards, so that fronts of reward against KL can be resampled; a summary of kind "measurement";
and samples where a policy is shown. A run that was killed goes on behind the last policy that was measured whole.
Leaves out which policies there are, and what follows from them (kl_fronts.py).
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import scipy.stats

from wam.checkpoints import records
from wam.core.types import Params
from wam.evaluation import metrics
from wam.evaluation.divergence import kl_to_reference
from wam.generation.sampling import generate
from wam.recipes.points import DIGITS, MEAN, STAGE, Panel
from wam.training import sharding
from wam.training.progress import Progress
from wam.training.workdir import Run

STUDY = "front"
NUM_SAMPLES = 4


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


class Found(NamedTuple):
  """What a policy showed on one panel.

  Attributes:
    split: of the panel.
    points: the fields of its records of kind "point", one a sampling seed.
    values, halves: means over prompts and seeds by name, and half the width of their 95 % intervals over prompts.
    samples: prompts and completions of the first seed.
  """

  split: str
  points: list[dict[str, Any]]
  values: dict[str, float]
  halves: dict[str, float]
  samples: dict[str, list[str]]


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
  began = time.monotonic()
  done = _measured(run, models, panels)
  progress = Progress(STAGE, len(models), start=done, enabled=run.show)
  # Two names for one policy (η = 1 and the last iteration) are measured once.
  known: dict[Hashable, dict[str, Found]] = {}
  with progress:
    for number, model in enumerate(models):
      if number < done:
        continue
      cache = known.setdefault(model.identity, {})
      wanted = _panels(model, panels)
      missing = [panel for panel in wanted if panel.split not in cache]
      if missing:
        params = weights(model)
        cache |= {panel.split: _measure(panel, params) for panel in missing}
      for panel in wanted:
        _write(run, model, cache[panel.split], number)
      shown = {n: v for n, v in cache[wanted[-1].split].values.items() if n.startswith("reward")}
      progress.update(number + 1, shown)
      run.interrupts.check(f"{STAGE} after model {number + 1} of {len(models)}, which is recorded")
  if done < len(models):
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=STAGE, step=len(models))


def _panels(model: Model, panels: Sequence[Panel]) -> Sequence[Panel]:
  return panels if model.selectable else panels[-1:]


def _write(run: Run, model: Model, found: Found, number: int) -> None:
  """The records of a model on one panel; the measurement last, which says that all are there."""
  about = {"family": model.family, "label": model.label}
  for fields in found.points:
    fields = about | {"coefficients": dict(model.coefficients)} | fields
    run.log(fields, kind="point", stage=STAGE, step=number)
  about |= {"split": found.split}
  if model.shown:
    fields = about | {"x": dict(model.x)} | found.samples
    run.log(fields, kind="samples", stage=STAGE, step=number)
  fields = about | {
    "study": STUDY,
    "x": dict(model.x) | {"kl": found.values["kl"]},
    "values": found.values,
    "halves": found.halves,
    "seeds": len(found.points),
  }
  run.log(fields, kind="measurement", stage=STAGE, step=number)


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


def _measure(panel: Panel, params: Params) -> Found:
  """A policy on one panel."""
  policy = panel.policy
  scores = [task.evaluate(policy.model, params) for task in panel.skills]
  counted = [i for i, counts in enumerate(panel.in_mean) if counts]
  retained = metrics.retained(
    np.array([scores[i].value for i in counted]),
    np.array([panel.before[i].value for i in counted]),
    [scores[i].metric in metrics.LOSSES for i in counted],
  )
  skills = {score.name: score.value for score in scores} | {MEAN: float(retained)}
  # Those do not depend on the sampling seed, so that only the first record has them.
  items = {score.name: score.statistics for score in scores}
  rows: list[dict[str, np.ndarray]] = []
  points: list[dict[str, Any]] = []
  shown: dict[str, list[str]] = {}
  for seed, key in enumerate(panel.keys):
    samples = generate(policy.model, params, *panel.prompts, key, **panel.settings)
    host = jax.tree.map(lambda x: x[: panel.num_prompts], sharding.fetch(samples))
    arrays = (host.prompt_tokens, host.prompt_mask, host.completions, host.completion_mask)
    row = {f"reward_{name}": score(*arrays) for name, score in panel.scorers.items()}
    row |= {
      "kl": kl_to_reference(policy.model, params, panel.reference, host).per_sequence,
      "length": host.completion_mask.sum(axis=1),
    }
    rows.append(row)
    items |= row
    points.append(
      {
        "seed": seed,
        "split": panel.split,
        **{name: float(np.mean(values)) for name, values in row.items()},
        "scores": skills,
        "items": {name: np.round(values, DIGITS).tolist() for name, values in items.items()},
      }
    )
    items = {}
    shown = shown or _texts(panel, host)
  values, halves = _summary(rows)
  values |= {"kl_per_token": values["kl"] / max(values["length"], 1e-9)}
  values |= {f"skill_{name}": value for name, value in skills.items() if np.isfinite(value)}
  return Found(panel.split, points, values, halves, shown)


def _summary(rows: Sequence[Mapping[str, np.ndarray]]) -> tuple[dict[str, float], dict[str, float]]:
  """Means over prompts and seeds, and half the 95 % interval of Student's t over the prompts' own means."""
  values, halves = {}, {}
  for name in rows[0]:
    by_prompt = np.mean([np.asarray(row[name], np.float64) for row in rows], axis=0)
    values[name] = float(by_prompt.mean())
    count = len(by_prompt)
    if count > 1:
      width = scipy.stats.t.ppf(0.975, count - 1)
      halves[name] = float(width * by_prompt.std(ddof=1) / np.sqrt(count))
  return values, halves


def _texts(panel: Panel, host: Any) -> dict[str, list[str]]:
  """The first few prompts and completions as strings."""
  decode, end = panel.policy.decode, panel.policy.ends["eos_id"]

  def texts(tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    return [
      decode(row[real].tolist())
      for row, real in zip(tokens[:NUM_SAMPLES], mask[:NUM_SAMPLES], strict=True)
    ]

  said = host.completion_mask & ~np.isin(host.completions, end)
  return {
    "prompts": texts(host.prompt_tokens, host.prompt_mask),
    "completions": texts(host.completions, said),
  }
