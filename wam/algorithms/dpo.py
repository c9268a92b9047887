"""Direct preference optimisation on pairs of completions.

Rafailov et al. 2023 and its relatives (losses/direct.py). The reference θ_0 is looked at once, before the training. An
iteration is half an epoch: the loss on held-out pairs is recorded then, and the parameters are kept, as the points at
which one may stop early. Leaves out where pairs come from, and references that move (TR-DPO).
"""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam.checkpoints import orbax
from wam.core import rng
from wam.core.errors import ConfigError, NonFinite, unknown_name
from wam.core.types import Params, PyTree
from wam.data.batching import Batches
from wam.losses import direct, preference
from wam.models.decoder import LanguageModel
from wam.training import completions, iterations, loop, optimizers, pairs, sharding
from wam.training.iterations import Iterations
from wam.training.mitigations import NONE, Mitigation
from wam.training.progress import Progress
from wam.training.state import Frozen, LossFn, Pair, TrainState, init
from wam.training.step import averages, make_update
from wam.training.workdir import Run

SELECTIONS = ("last", "best")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The numbers of a run of DPO.

  Attributes:
    optimizer: keywords of `optimizers.make`, without `total_steps`: the schedule spans the whole stage.
    batch_size: pairs a step.
    num_epochs: a multiple of 1/2.
    loss: its name in `direct.make`.
    beta: how strongly the policy is held to the reference, in the loss and in the recorded rewards.
    label_smoothing: share of labels taken to be wrong.
    selection: whose parameters `run` returns: those of the "last" iteration, or of the one whose loss on the evaluation
      rows is lowest ("best", the first of equals).
    chunk: pairs at a time where there are no gradients; default batch_size.
    logits_chunk: positions whose logits are held at a time; None for all.
    accumulate_steps, dtype, remat: as in `sft.run`.

  Raises:
    ConfigError, UnknownName: for what is out of range.
  """

  optimizer: Mapping[str, Any]
  batch_size: int
  num_epochs: float = 1.0
  loss: str = "sigmoid"
  beta: float = 0.1
  label_smoothing: float = 0.0
  selection: str = "last"
  chunk: int | None = None
  logits_chunk: int | None = None
  accumulate_steps: int = 1
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    if self.num_epochs <= 0 or self.num_epochs * 2 != round(self.num_epochs * 2):
      raise ConfigError(f"num_epochs: expected a multiple of 0.5, found {self.num_epochs}")
    if self.selection not in SELECTIONS:
      raise unknown_name("selection", self.selection, SELECTIONS)
    self.make_loss()

  @property
  def num_iterations(self) -> int:
    """Half epochs."""
    return round(self.num_epochs * 2)

  def boundaries(self, num_pairs: int) -> list[int]:
    """Updates done after iterations 0, 1, ...: half an epoch each, to the nearest update and never none."""
    half = num_pairs / self.batch_size / 2
    return [max(i, math.floor(i * half + 0.5)) for i in range(self.num_iterations + 1)]

  def make_loss(self) -> direct.PairLoss:
    """The loss of log-ratios."""
    return direct.make(self.loss, beta=self.beta, label_smoothing=self.label_smoothing)

  def make_optimizer(self, total_steps: int | None = None) -> optax.GradientTransformation:
    """The optimizer for so many updates; without a number, to check its keywords before the pairs are known."""
    return optimizers.make(total_steps=total_steps or 10**9, **self.optimizer)


def run(
  model: LanguageModel,
  params: Params,
  rows: Mapping[str, np.ndarray],
  *,
  run: Run,
  stage: str = "dpo",
  evaluation_rows: Mapping[str, np.ndarray] | None = None,
  mitigation: Mitigation = NONE,
  **settings: Any,
) -> Params:
  """Trains on preference pairs; returns the parameters that `selection` says.

  The parameters after every iteration (from 1) are kept: see `iterations.load_iteration`. Killed at any moment and
  called again, the run goes on from the last step that was saved (as `run.save_every_steps` and `save_every_seconds`
  say) and ends with the same bits. Its records have "loss", "accuracy", "margin", "chosen_reward", "rejected_reward"
  (implied rewards: β times log-ratios), averages over the iteration, and the same as "evaluation_..." after it.

  Pairs whose completions are equal cannot teach anything and are dropped; the record of the stage counts them. Whether
  completions end by EOS is decided where rows are made.

  Args:
    model: the decoder.
    params: θ_0, float32: where training starts, and the reference. Not consumed; no copy of it is held while training.
    rows: what `encoding.pair_rows` or `sampled_pairs.run` makes: "chosen", "rejected" [R, T] int32, and for both
      "…_mask" (real tokens) and "…_loss_mask" (the completion) [R, T] bool.
    run: the open workdir.
    stage: names the stage.
    evaluation_rows: pairs to select by, of the same form; not test data.
    mitigation: of the alignment tax, while training.
    **settings: the fields of `Settings`.

  Raises:
    BadData: if no pair is left, or a completion has no token at all.
    ConfigError: if `selection` is "best" without evaluation rows.
    NonFinite, Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  if config.selection == "best" and not evaluation_rows:
    raise ConfigError(f"{stage}: selection='best' needs evaluation_rows; give them, or use 'last'")
  sharding.check_batch_size(config.batch_size, run.mesh)
  usable, equal = pairs.usable(rows, f"{stage}: rows")
  held_out = None
  if evaluation_rows:
    held_out, _ = pairs.usable(evaluation_rows, f"{stage}: evaluation_rows")
  with jax.set_mesh(run.mesh):
    done = iterations.load_result(run, params, stage=stage)
    if done is not None:
      return done
    began = time.monotonic()
    cache = run.stage_directory(stage) / "reference"
    keywords: dict[str, Any] = {
      "run": run,
      "chunk": config.chunk or config.batch_size,
      "dtype": config.dtype,
      "logits_chunk": config.logits_chunk,
    }
    usable = pairs.with_reference(model, params, usable, path=cache / "rows", **keywords)
    if held_out is not None:
      held_out = pairs.with_reference(
        model, params, held_out, path=cache / "evaluation_rows", **keywords
      )
    trainer = _Trainer(
      model, params, usable, held_out, config, mitigation=mitigation, run=run, stage=stage
    )
    progress = Progress(stage, trainer.total_steps, start=trainer.step, enabled=run.show)
    with contextlib.closing(trainer), progress as bar:
      while trainer.iteration < config.num_iterations:
        clock = time.monotonic()
        record = trainer.iterate(bar)
        record["seconds"] = time.monotonic() - clock
        run.log(record, stage=stage, step=trainer.iteration + 1)
        trainer.commit()
    selected, result = trainer.select()
    fields = {"pairs": len(usable["chosen"]), "equal_pairs": equal, "selected_iteration": selected}
    seconds = time.monotonic() - began
    run.log(fields | {"seconds": seconds}, kind="stage", stage=stage, step=config.num_iterations)
    loop.save_result(run.stage_directory(stage), result, run=run)
    orbax.remove(run.stage_directory(stage) / "within")
    return result


def make_loss(model: LanguageModel, config: Settings, *, positions: int | None = None) -> LossFn:
  """Σ over pairs of the loss, and the number of pairs.

  Args:
    model: the decoder.
    config: the loss and its numbers, dtype, remat and logits_chunk.
    positions: see `completions.logprobs`.

  Returns:
    A loss of batches with the columns of `pairs.with_reference` and, if some are filling, "weight" [B] float32, 0 for
    those. Metrics: "accuracy" (ties count 1/2), "margin", "chosen_reward", "rejected_reward".
  """
  loss = config.make_loss()

  def loss_fn(
    params: Params, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    del key, frozen  # nothing random in the forward pass; the reference is in the batch
    both = pairs.side_by_side(batch)
    logprobs = completions.logprobs(
      model,
      params,
      both,
      positions=positions,
      dtype=jnp.dtype(config.dtype),
      remat=config.remat,
      logits_chunk=config.logits_chunk,
    )
    lengths = jnp.sum(both.loss_mask, axis=1).astype(jnp.float32)
    chosen = logprobs[0::2] - batch["chosen_reference"]
    rejected = logprobs[1::2] - batch["rejected_reference"]
    weight = batch.get("weight", jnp.ones_like(chosen))
    count = jnp.sum(weight)
    losses = loss(chosen, rejected, lengths[0::2], lengths[1::2])
    metrics = {
      "accuracy": preference.correct(chosen, rejected),
      "margin": config.beta * (chosen - rejected),
      "chosen_reward": config.beta * chosen,
      "rejected_reward": config.beta * rejected,
    }
    sums = {name: (jnp.sum(weight * values), count) for name, values in metrics.items()}
    return jnp.sum(weight * losses), count, sums

  return loss_fn


class _State(NamedTuple):
  """What a step changes, and an iteration leaves."""

  train: TrainState
  sums: dict[str, Pair]  # of the metrics, since the iteration began
  evaluation_losses: jax.Array  # [iterations] float32, infinite where not measured yet


class _Trainer:
  """The policy under training."""

  def __init__(
    self,
    model: LanguageModel,
    params: Params,
    rows: pairs.Rows,
    evaluation_rows: pairs.Rows | None,
    config: Settings,
    *,
    mitigation: Mitigation,
    run: Run,
    stage: str,
  ):
    """Starts from `params`, or from the last step that was saved."""
    self._config, self._run, self._stage = config, run, stage
    count = config.num_iterations
    self._boundaries = config.boundaries(len(rows["chosen"]))
    self.total_steps = self._boundaries[-1]
    self._batches = Batches(
      rows, batch_size=config.batch_size, seed=run.seed, stream=f"{stage}/batches"
    )
    self._evaluation_rows = evaluation_rows
    weights = iterations.parameter_shardings(params, run)
    self._frozen = mitigation.freeze(sharding.put(params, weights, copy=False))
    self._augment = mitigation.augment
    key = rng.key(run.seed, f"{stage}/start")
    tx = mitigation.optimizer(config.make_optimizer(self.total_steps))
    update = make_update(
      mitigation.loss(_loss_of(model, config, rows)), tx, accumulate_steps=config.accumulate_steps
    )
    example = sharding.put_whole_batch(self._augment(next(self._batches), 0, 0), run.mesh)

    def start(params: Params) -> _State:
      train = init(mitigation.start(params, key), tx)
      metrics = jax.eval_shape(update, train, example, key, self._frozen)[1]
      sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
      return _State(train, sums, jnp.full(count, jnp.inf))

    def step(state: _State, batch: PyTree, frozen: Frozen) -> tuple[_State, jax.Array]:
      key = rng.key(run.seed, f"{stage}/loss", state.train.step)
      train, metrics = update(state.train, batch, key, frozen)
      sums = jax.tree.map(jnp.add, state.sums, metrics)
      # The number of the step is something to wait for that the next step does not take away.
      return state._replace(train=train, sums=sums), train.step

    def finish(state: _State, iteration: int, evaluation_loss: float) -> _State:
      losses = state.evaluation_losses.at[iteration].set(evaluation_loss)
      return _State(state.train, jax.tree.map(jnp.zeros_like, state.sums), losses)

    self._steps = Iterations(start, params, run=run, stage=stage, num_iterations=count)
    where = self._steps.where
    self._step = jax.jit(step, donate_argnums=0, out_shardings=(where, None))
    self._finish = jax.jit(finish, donate_argnums=0, out_shardings=where)
    self._full = jax.jit(mitigation.full, out_shardings=weights)
    self._trains_weights = mitigation.trains_weights
    self._evaluate = jax.jit(_loss_of(model, config, evaluation_rows or rows))
    self._within = orbax.Checkpoints(run.stage_directory(stage) / "within", keep=1)
    self._shapes = jax.eval_shape(lambda p: p, params)
    self.step = self._boundaries[self.iteration]
    inside = self._within.latest
    if inside is not None and inside > self.step:
      self.step = inside
      self._steps.state = self._within.load(inside, sharding.abstract(self._steps.state, where))
    self._batches.set_state(self._batches.get_state() | {"next_index": self.step})

  @property
  def iteration(self) -> int:
    """Iterations that are committed."""
    return self._steps.iteration

  @property
  def policy(self) -> Params:
    """The weights of the policy."""
    trained = self._steps.state.train.params
    return trained if self._trains_weights else self._full(trained, self._frozen)

  def iterate(self, bar: Progress) -> dict[str, float]:
    """Trains up to the next boundary and evaluates; returns what is recorded of it."""
    steps, run, i = self._steps, self._run, self.iteration
    in_flight: deque[jax.Array] = deque()
    saved = time.monotonic()
    while self.step < self._boundaries[i + 1]:
      rows = self._augment(next(self._batches), 0, self.step)
      batch = sharding.put_whole_batch(rows, run.mesh)
      steps.state, finished = self._step(steps.state, batch, self._frozen)
      self.step += 1
      in_flight.append(finished)
      if len(in_flight) > loop.MAX_IN_FLIGHT:
        in_flight.popleft().block_until_ready()
      bar.update(self.step)
      if self.step < self._boundaries[i + 1] and self._due(time.monotonic() - saved):
        self._averages()
        self._within.save(self.step, steps.state)
        run.interrupts.check(f"iteration {i + 1} of {self._stage}; step {self.step} is saved")
        saved = time.monotonic()
    record = {"updates": float(self.step)} | self._averages()
    if self._evaluation_rows is not None:
      record |= {f"evaluation_{name}": value for name, value in self._measure().items()}
    steps.state = self._finish(steps.state, i, record.get("evaluation_loss", math.inf))
    bar.update(self.step, {n: record[n] for n in ("loss", "accuracy")})
    return record

  def commit(self) -> None:
    """Saves what the iteration left."""
    self._steps.commit(self.policy)

  def select(self) -> tuple[int, Params]:
    """The iteration (from 1) that the settings select, and its parameters."""
    chosen = self._config.num_iterations
    if self._config.selection == "best":
      chosen = int(np.argmin(sharding.fetch(self._steps.state.evaluation_losses))) + 1
    if chosen == self.iteration:
      return chosen, self.policy
    return chosen, iterations.load_iteration(self._run, chosen, self._shapes, stage=self._stage)

  def close(self) -> None:
    """Ends background threads."""
    self._steps.close()
    self._within.close()

  def _due(self, since_saved: float) -> bool:
    """Whether to save within an iteration; the same in every process (clocks and signals are not)."""
    run = self._run
    every = run.save_every_steps
    if every is not None and self.step % every == 0:
      return True
    if jax.process_count() > 1:
      return False
    seconds = run.save_every_seconds
    return run.interrupts.requested is not None or (seconds is not None and since_saved >= seconds)

  def _averages(self) -> dict[str, float]:
    """Averages since the iteration began; raises NonFinite if a loss or a parameter is not finite."""
    state = self._steps.state
    return iterations.averaged(
      [state.sums], state.train.params, stage=self._stage, iteration=self.iteration + 1
    )

  def _measure(self) -> dict[str, float]:
    """Loss and metrics on the evaluation rows, without what a mitigation adds.

    Raises:
      NonFinite: if the loss is not finite.
    """
    config, policy = self._config, self.policy
    assert self._evaluation_rows is not None
    totals: dict[str, np.ndarray] = {}
    for part, real in completions.chunks(self._evaluation_rows, config.chunk or config.batch_size):
      part["weight"] = real.astype(np.float32)
      batch = sharding.put_whole_batch(part, self._run.mesh)
      loss, weight, metrics = self._evaluate(policy, batch, jax.random.key(0), {})
      sums = sharding.fetch({"loss": (loss, weight)} | metrics)
      totals = {name: totals.get(name, 0.0) + np.asarray(pair) for name, pair in sums.items()}
    found = averages(totals)
    if not math.isfinite(found["loss"]):
      where = f"{self._stage}: the evaluation loss after iteration {self.iteration + 1}"
      raise NonFinite(f"{where} is not finite")
    return found


def _loss_of(model: LanguageModel, config: Settings, rows: pairs.Rows) -> LossFn:
  """The loss at the positions that some completion of these rows needs."""
  positions = completions.width(*(rows[f"{side}_loss_mask"] for side in pairs.SIDES))
  return make_loss(model, config, positions=positions)
