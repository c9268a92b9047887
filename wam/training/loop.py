"""The one training loop: steps, records, progress, checkpoints, resume.

A stage's directory holds `steps/<n>` (what the last steps left, for resuming) while it runs and `result` (its
parameters) once it is done. Leaves out losses, data and everything that differs between algorithms.
"""

import dataclasses
import math
import pathlib
import signal
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from wam.checkpoints import orbax
from wam.core import rng, trees
from wam.core.errors import NonFinite
from wam.core.types import Params, PyTree
from wam.training import kept, sharding
from wam.training.interrupts import Interrupted
from wam.training.progress import Progress
from wam.training.state import Frozen, LossFn, Pair, TrainState, init
from wam.training.step import Update, make_update
from wam.training.workdir import Run

# How many steps the host may be ahead of the device: enough to hide its own work, without piling up batches.
MAX_IN_FLIGHT = 2
KeyedUpdate = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, dict[str, Pair]]]


class Batches(Protocol):
  """An endless iterator of batches whose position can be saved; each process gets its slice of the same batches."""

  def __next__(self) -> PyTree: ...

  def get_state(self) -> Any:
    """Its position, as JSON."""

  def set_state(self, state: Any) -> None:
    """Goes to a position."""


class Interval(NamedTuple):
  """Sums since the last record, on the device: fetching every step would make the host wait for it."""

  sums: jax.Array  # [K, 2] float32, (sum, weight) of each metric
  first_bad: jax.Array  # [] int32, the first step with a loss that is not finite, or -1


class Carry(NamedTuple):
  """What goes from step to step, and into the checkpoint."""

  train: TrainState
  interval: Interval


def fit(
  params: Params,
  batches: Batches,
  *,
  run: Run,
  stage: str,
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  num_steps: int,
  accumulate_steps: int = 1,
  log_every: int = 50,
  count_tokens: Callable[[PyTree], int] | None = None,
  frozen: Frozen | None = None,
  keep_steps: Collection[int] = (),
) -> Params:
  """Trains for `num_steps` updates, or for what is left of them; returns the parameters.

  Killed at any moment and called again with the same arguments it returns the same bits, and `records.jsonl` holds the
  same records up to the fields that depend on the clock. A stage that is done is loaded and not run again.

  Args:
    params: where training starts; not consumed.
    batches: dicts of arrays [B, ...]; its position is part of the checkpoint.
    run: the open workdir.
    stage: names the stage: in the records, its directory and its random stream "<stage>/loss".
    loss_fn: sums, not means; see `state.LossFn`. Compiled once.
    tx: the optimizer.
    num_steps: updates of the whole stage.
    accumulate_steps: microbatches per update.
    log_every: steps between two records, each the average over them.
    count_tokens: tokens of a batch, for tokens_per_second.
    frozen: weights that the loss looks at and no step changes; the run's sharding rules hold for them, too.
    keep_steps: numbers of updates after which the parameters are kept for good; see `kept.load`.

  Raises:
    NonFinite: if a loss or the result is NaN or infinite; names stage and step. No such state is ever saved.
    Interrupted: after SIGTERM or Ctrl-C, once the step is done and saved.
    CannotWrite: on a full disk; the checkpoint before is intact.
  """
  directory = run.stage_directory(stage)
  where = sharding.shardings(params, params, run.rules, run.mesh, uneven=run.uneven)
  with jax.set_mesh(run.mesh):
    finished = load_result(directory, params, where)
    if finished is not None:
      # Where the stage left it: a stage after this one may go on with the same input.
      batches.set_state(orbax.load_extra(directory / "result"))
      return finished
    began = time.monotonic()
    trainer = _start(
      params,
      batches,
      run=run,
      stage=stage,
      loss_fn=loss_fn,
      tx=tx,
      accumulate_steps=accumulate_steps,
      frozen=frozen or {},
    )
    first_step = trainer.step
    progress = Progress(stage, num_steps, start=first_step, enabled=run.show)
    try:
      with progress:
        trainer.steps(
          num_steps,
          log_every=log_every,
          count_tokens=count_tokens,
          progress=progress,
          keep_steps=keep_steps,
        )
    finally:
      trainer.checkpoints.close()
    result = trainer.carry.train.params
    check_finite(result, stage=stage, step=num_steps)
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=num_steps)
    save_result(directory, result, run=run, extra=batches.get_state())
  return result


def check_finite(params: Params, *, stage: str, step: int) -> None:
  """Raises NonFinite, naming the leaves, if some parameter is NaN or infinite."""
  finite = jax.device_get(jax.jit(_finite)(params))
  bad = [name for name, ok in trees.flatten(finite).items() if not ok]
  if bad:
    raise NonFinite(f"{stage}: the parameters {', '.join(bad)} are not finite after step {step}")


def _finite(params: Params) -> PyTree:
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)


def load_result(directory: pathlib.Path, like: Params, where: PyTree) -> Params | None:
  """The parameters of a finished stage, laid out as `where` says; None if the stage is not done."""
  path = directory / "result"
  if not orbax.exists(path):
    return None
  return orbax.load(path, sharding.abstract(like, where))


def save_result(directory: pathlib.Path, params: Params, *, run: Run, extra: Any = None) -> None:
  """Marks a stage as done: its records are safe, its result is there, what was for resuming goes."""
  run.records.sync()
  orbax.save(directory / "result", params, extra)
  orbax.remove(directory / "steps")


@dataclasses.dataclass
class Trainer:
  """The state of one call of `fit`."""

  run: Run
  stage: str
  batches: Batches
  carry: Carry
  names: tuple[str, ...]  # of the metrics, in the order of Interval.sums
  compiled: Callable[[Carry, PyTree, PyTree], tuple[Carry, jax.Array]]
  checkpoints: orbax.Checkpoints
  step: int
  frozen: Frozen

  def steps(
    self,
    num_steps: int,
    *,
    log_every: int,
    count_tokens: Callable[[PyTree], int] | None,
    progress: Progress,
    keep_steps: Collection[int] = (),
  ) -> None:
    """Runs the steps that are left, logging, keeping and saving."""
    in_flight: deque[jax.Array] = deque()
    clock = Clock()
    saved = time.monotonic()
    while self.step < num_steps:
      batch = next(self.batches)
      placed = sharding.put_batch(batch, self.run.mesh)
      self.carry, done = self.compiled(self.carry, placed, self.frozen)
      self.step += 1
      in_flight.append(done)
      if len(in_flight) > MAX_IN_FLIGHT:
        in_flight.popleft().block_until_ready()
      clock.count(count_tokens(batch) if count_tokens else 0)
      if clock.warming:
        # The first step is compilation, which is no part of the speed.
        done.block_until_ready()
        clock.start()
      boundary = self.step % log_every == 0
      if boundary or self.step == num_steps:
        self.log(clock, progress)
      else:
        progress.update(self.step)
      if self.step in keep_steps:
        # Before the checkpoint of this step: what a later run resumes behind is kept.
        self.check()
        kept.save(self.run.stage_directory(self.stage), self.step, self.carry.train.params)
      now = time.monotonic()
      decision = self.decide(now - saved, boundary)
      if decision and self.step < num_steps:
        self.save()
        clock.pause(time.monotonic() - now)
        saved = time.monotonic()
      if decision > 1 and self.step < num_steps:
        raise Interrupted(
          f"{self.stage}: stopped by {signal.Signals(decision).name} after step {self.step} of {num_steps}, which is"
          " saved; the same command goes on from there",
          signal_number=decision,
        )

  def log(self, clock: "Clock", progress: Progress) -> None:
    """Writes the averages since the last record and starts anew."""
    sums = self.check()
    fields = {
      name: float(total / weight) if weight else 0.0
      for name, (total, weight) in zip(self.names, sums, strict=True)
    }
    speed = clock.tokens_per_second()
    if speed is not None:
      fields["tokens_per_second"] = speed
    self.run.log(fields, stage=self.stage, step=self.step)
    shown = {n: v for n, v in fields.items() if n in ("loss", "accuracy", "tokens_per_second")}
    progress.update(self.step, shown)
    self.carry = self.carry._replace(interval=_empty(len(self.names), self.run))

  def check(self) -> np.ndarray:
    """Fetches the sums since the last record [K, 2]; raises NonFinite if a loss among them was not finite."""
    sums, first_bad = jax.device_get((self.carry.interval.sums, self.carry.interval.first_bad))
    if first_bad >= 0:
      raise NonFinite(
        f"{self.stage}: the loss of step {int(first_bad)} is not finite. The last saved step is"
        f" {self.checkpoints.latest or 0}; a lower learning rate, clipping or a longer warm-up may help, or a look at"
        " the data of that step"
      )
    return np.asarray(sums)

  def decide(self, since_saved: float, boundary: bool) -> int:
    """0 to go on, 1 to save, a signal's number to save and leave; the same in every process."""
    run = self.run
    due = bool(run.save_every_seconds is not None and since_saved >= run.save_every_seconds)
    decision = run.interrupts.requested or int(due)
    if jax.process_count() > 1:
      # Clocks and signals differ between processes: they agree where they meet anyway, when they log.
      decision = (
        int(np.max(multihost_utils.process_allgather(np.int32(decision)))) if boundary else 0
      )
    every = run.save_every_steps
    return decision or int(every is not None and self.step % every == 0)

  def save(self) -> None:
    """Writes the checkpoint of this step; the records that it relies on are on the disk first."""
    self.check()
    self.run.records.sync()
    self.checkpoints.save(self.step, self.carry, self.batches.get_state())


def _start(
  params: Params,
  batches: Batches,
  *,
  run: Run,
  stage: str,
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  accumulate_steps: int,
  frozen: Frozen,
) -> Trainer:
  """The trainer at its first step, or at the last one that was saved."""
  update = _keyed(make_update(loss_fn, tx, accumulate_steps=accumulate_steps), run.seed, stage)
  checkpoints = orbax.Checkpoints(run.stage_directory(stage) / "steps")
  step = checkpoints.latest
  run.records.drop_after(stage, -1 if step is None else step)
  # The metrics' names come from a batch; taking it must not move the input.
  position = batches.get_state() if step is None else checkpoints.extra(step)
  batches.set_state(position)
  example = next(batches)
  batches.set_state(position)

  state_shapes = jax.eval_shape(lambda p: init(p, tx), params)
  train_shardings = sharding.shardings(state_shapes, params, run.rules, run.mesh, uneven=run.uneven)
  whole = NamedSharding(run.mesh, PartitionSpec())
  # Asked with the placements that the step will see: then the two trace the loss once together.
  placed_shapes = sharding.abstract(state_shapes, train_shardings)
  frozen_shardings = sharding.shardings(frozen, frozen, run.rules, run.mesh, uneven=run.uneven)
  frozen = sharding.put(frozen, frozen_shardings, copy=False)
  placed_batch = sharding.put_batch(example, run.mesh)
  names = tuple(jax.eval_shape(update, placed_shapes, placed_batch, frozen)[1])
  interval_shapes = jax.eval_shape(lambda: _zeros(len(names)))
  carry_shardings = Carry(train_shardings, jax.tree.map(lambda _: whole, interval_shapes))
  compiled = jax.jit(
    _accumulating(update), donate_argnums=0, out_shardings=(carry_shardings, whole)
  )
  if step is None:
    placed = sharding.put(params, train_shardings.params)
    train = jax.jit(lambda p: init(p, tx), out_shardings=train_shardings)(placed)
    carry = Carry(train, _empty(len(names), run))
  else:
    shapes = Carry(state_shapes, interval_shapes)
    carry = checkpoints.load(step, sharding.abstract(shapes, carry_shardings))
  return Trainer(run, stage, batches, carry, names, compiled, checkpoints, step or 0, frozen)


def _keyed(update: Update, seed: int, stage: str) -> KeyedUpdate:
  """The update with its key drawn from the stage's stream; a jit inside the step's, so that its trace is kept."""

  def keyed(train: TrainState, batch: PyTree, frozen: Frozen) -> tuple[TrainState, dict[str, Pair]]:
    return update(train, batch, rng.key(seed, f"{stage}/loss", train.step), frozen)

  return jax.jit(keyed)


def _accumulating(
  update: KeyedUpdate,
) -> Callable[[Carry, PyTree, PyTree], tuple[Carry, jax.Array]]:
  """The update with its metrics added to the interval's.

  The second result is the step's number: something to wait for that the next step does not take away.
  """

  def step_fn(carry: Carry, batch: PyTree, frozen: Frozen) -> tuple[Carry, jax.Array]:
    train, interval = carry
    after, metrics = update(train, batch, frozen)
    sums = interval.sums + jnp.stack([jnp.stack(pair) for pair in metrics.values()])
    bad = ~jnp.isfinite(metrics["loss"][0])
    first_bad = jnp.where(bad & (interval.first_bad < 0), after.step, interval.first_bad)
    return Carry(after, Interval(sums, first_bad)), after.step

  return step_fn


def _zeros(num_metrics: int) -> Interval:
  return Interval(jnp.zeros((num_metrics, 2), jnp.float32), jnp.full((), -1, jnp.int32))


def _empty(num_metrics: int, run: Run) -> Interval:
  """An interval without steps, in every process."""
  whole = NamedSharding(run.mesh, PartitionSpec())
  zeros = jax.tree.map(np.asarray, _zeros(num_metrics))
  return sharding.put(zeros, jax.tree.map(lambda _: whole, zeros))


class Clock:
  """Tokens a second since the last record, without compilation and saving."""

  def __init__(self) -> None:
    self.warming = True
    self._tokens = 0
    self._began = math.nan

  def count(self, tokens: int) -> None:
    """More tokens of the interval."""
    self._tokens += tokens

  def start(self) -> None:
    """A new interval begins."""
    self.warming = False
    self._tokens, self._began = 0, time.monotonic()

  def pause(self, seconds: float) -> None:
    """Leaves time out that was not spent on steps."""
    self._began += seconds

  def tokens_per_second(self) -> float | None:
    """The speed since the last call; None without tokens."""
    tokens, seconds = self._tokens, time.monotonic() - self._began
    self.start()
    return tokens / seconds if tokens and seconds > 0 else None
