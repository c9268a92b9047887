"""Distillation of RSF: fine-tuning of θ_0 on the best samples that a run of RSF kept along its way.

The alignment-tax paper (Lin et al. 2024) compares mitigations on it: one data set for all of them, with nothing sampled
anew. The data come from `kept_samples.load`; an iteration is a part of an epoch, so that early stopping has its points.
Leaves out where the samples come from.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from wam.core import rng
from wam.core.errors import BadData, ConfigError, check_same_shape
from wam.core.types import Params
from wam.models.decoder import LanguageModel
from wam.training import iterations, loop, objectives, optimizers
from wam.training.mitigations import NONE, Mitigation
from wam.training.progress import Progress
from wam.training.trained_policy import TrainedPolicy
from wam.training.workdir import Run

NAMES = ("tokens", "mask", "loss_mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The numbers of a run.

  Attributes:
    optimizer: keywords of `optimizers.make`, without `total_steps`: the schedule spans the whole stage.
    batch_size: rows of an update; the last of an epoch is filled up with rows that have no weight.
    epochs: passes over the samples.
    iterations_per_epoch: in so many parts, about equally long, an epoch is divided; the parameters after each are kept.
    accumulate_steps, dtype, remat: as in `sft.run`.
  """

  optimizer: Mapping[str, Any]
  batch_size: int
  epochs: int = 1
  iterations_per_epoch: int = 2
  accumulate_steps: int = 1
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    """Raises ConfigError for numbers that make no sense."""
    for field in ("batch_size", "epochs", "iterations_per_epoch", "accumulate_steps"):
      if getattr(self, field) < 1:
        raise ConfigError(f"{field}: expected at least 1, found {getattr(self, field)}")

  @property
  def num_iterations(self) -> int:
    """Iterations of the whole stage."""
    return self.epochs * self.iterations_per_epoch

  def steps_per_epoch(self, num_rows: int) -> int:
    """Updates of an epoch."""
    return -(-num_rows // self.batch_size)

  def make_optimizer(self, num_rows: int) -> optax.GradientTransformation:
    """The optimizer, its schedule as long as the stage on so many rows."""
    total = self.epochs * self.steps_per_epoch(num_rows)
    return optimizers.make(total_steps=total, **self.optimizer)


def run(
  model: LanguageModel,
  params: Params,
  rows: Mapping[str, np.ndarray],
  *,
  run: Run,
  stage: str = "distillation",
  on_iteration: Callable[[int, Params], Mapping[str, float] | None] | None = None,
  mitigation: Mitigation = NONE,
  **settings: Any,
) -> Params:
  """Fine-tunes `params` on kept samples; returns the last parameters.

  The parameters after every iteration (from 1) are kept: see `iterations.load_iteration`. Killed at any moment and
  called again, the run ends with the same bits.

  Args:
    model: the decoder.
    params: θ_0, float32; not consumed.
    rows: "tokens" [K, T] int32, "mask" and "loss_mask" [K, T] bool, as `kept_samples.load` gives them; what else it
      gives is not looked at.
    run: the open workdir.
    stage: names the stage.
    on_iteration, mitigation: as in `rsf.run`.
    **settings: the fields of `Settings`.

  Raises:
    BadData: if there is nothing to train on. ConfigError: if an iteration would have no update.
    NonFinite: if a loss or a parameter is not finite; names stage and iteration.
    Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  arrays = {name: np.asarray(rows[name]) for name in NAMES}
  check_same_shape(**arrays)
  if not arrays["loss_mask"].any():
    raise BadData(f"{stage}: the {len(arrays['tokens'])} samples have no token to train on")
  steps = config.steps_per_epoch(len(arrays["tokens"]))
  if steps < config.iterations_per_epoch:
    raise ConfigError(
      f"{stage}: an epoch has {steps} updates, fewer than iterations_per_epoch={config.iterations_per_epoch}; lower"
      " that or batch_size"
    )
  with jax.set_mesh(run.mesh):
    done = iterations.load_result(run, params, stage=stage)
    if done is not None:
      return done
    began = time.monotonic()
    trainer = TrainedPolicy(
      params,
      loss_fn=objectives.next_token(model, dtype=config.dtype, remat=config.remat),
      tx=config.make_optimizer(len(arrays["tokens"])),
      mitigation=mitigation,
      run=run,
      stage=stage,
      num_iterations=config.num_iterations,
      accumulate_steps=config.accumulate_steps,
    )
    progress = Progress(stage, config.num_iterations, start=trainer.iteration, enabled=run.show)
    with contextlib.closing(trainer), progress as bar:
      while not trainer.done:
        i = trainer.iteration + 1
        clock = time.monotonic()
        batches = _batches(arrays, config, i, seed=run.seed, stage=stage)
        record = trainer.train(batches) | {"epoch": i / config.iterations_per_epoch}
        if on_iteration is not None:
          record |= dict(on_iteration(i, trainer.weights) or {})
        record["seconds"] = time.monotonic() - clock
        run.log(record, stage=stage, step=i)
        trainer.commit()
        bar.update(i, {"loss": record["loss"]})
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=config.num_iterations)
    loop.save_result(run.stage_directory(stage), trainer.weights, run=run)
    return trainer.weights


def _batches(
  arrays: Mapping[str, np.ndarray], config: Settings, iteration: int, *, seed: int, stage: str
) -> Iterator[dict[str, np.ndarray]]:
  """The updates of an iteration: its part of an epoch that is shuffled as a whole."""
  epoch, part = divmod(iteration - 1, config.iterations_per_epoch)
  count, size = len(arrays["tokens"]), config.batch_size
  order = rng.generator(seed, f"{stage}/shuffle/{epoch}").permutation(count)
  steps = config.steps_per_epoch(count)
  first, end = (steps * p // config.iterations_per_epoch for p in (part, part + 1))
  for step in range(first, end):
    real = order[step * size : (step + 1) * size]
    # One shape for all; what fills up the last has no weight.
    chosen = np.concatenate([real, np.full(size - len(real), order[0])])
    batch = {name: array[chosen] for name, array in arrays.items()}
    batch["loss_mask"] = batch["loss_mask"] & (np.arange(size) < len(real))[:, None]
    yield batch
