"""A policy under training in iterations: its mitigation, its updates, and a moving average where one is wanted.

Leaves out what an iteration learns from: algorithms hand over a loss and batches.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import optax

from wam.core import rng
from wam.core.types import Params, PyTree
from wam.training import anchors, iterations, sharding
from wam.training.iterations import Iterations
from wam.training.mitigations import Mitigation
from wam.training.state import Frozen, LossFn, Pair, TrainState, init
from wam.training.step import make_update
from wam.training.workdir import Run


class State(NamedTuple):
  """What an iteration saves: the training, and the moving average of the policy's weights ({} where none is kept)."""

  train: TrainState
  ema: Params


class TrainedPolicy:
  """The policy, committed after every iteration: killed inside one, the run does it again and ends the same."""

  def __init__(
    self,
    params: Params,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    mitigation: Mitigation,
    run: Run,
    stage: str,
    num_iterations: int,
    accumulate_steps: int = 1,
    ema_rate: float | None = None,
  ):
    """Starts from `params`, or from the last iteration that was committed.

    Args:
      params: θ_0, float32; not consumed.
      loss_fn: of the policy's weights; sums, not means.
      tx: the optimizer of what the mitigation trains.
      mitigation: of the alignment tax.
      run: the open workdir.
      stage: names the stage and its random streams, <stage>/start and <stage>/loss/<iteration>.
      num_iterations: of the whole stage.
      accumulate_steps: microbatches per update.
      ema_rate: μ of the moving average that follows every update; None: none is kept.
    """
    self._run, self._stage, self._mitigation = run, stage, mitigation
    wrapped = mitigation.optimizer(tx)
    key = rng.key(run.seed, f"{stage}/start")

    def start(weights: Params) -> State:
      trained = mitigation.start(weights, key)
      policy = mitigation.full(trained, mitigation.freeze(weights))
      return State(init(trained, wrapped), {} if ema_rate is None else anchors.start(policy))

    self._steps = Iterations(start, params, run=run, stage=stage, num_iterations=num_iterations)
    where = self._steps.where
    self._restart = jax.jit(lambda trained: init(trained, wrapped), out_shardings=where.train)
    placed = sharding.put(params, iterations.parameter_shardings(params, run), copy=False)
    self._frozen = mitigation.freeze(placed)
    self._full = jax.jit(mitigation.full, out_shardings=iterations.parameter_shardings(params, run))
    self._trains_weights = mitigation.trains_weights
    update = make_update(mitigation.loss(loss_fn), wrapped, accumulate_steps=accumulate_steps)

    def update_both(state: State, batch: PyTree, key: jax.Array, frozen: Frozen) -> Any:
      train, metrics = update(state.train, batch, key, frozen)
      if ema_rate is None:
        return State(train, state.ema), metrics
      policy = mitigation.full(train.params, frozen)
      return State(train, anchors.move(state.ema, policy, ema_rate)), metrics

    self._update = jax.jit(update_both, donate_argnums=0, out_shardings=(where, None))

  @property
  def iteration(self) -> int:
    """Iterations that are committed."""
    return self._steps.iteration

  @property
  def done(self) -> bool:
    """Whether all are."""
    return self._steps.done

  @property
  def weights(self) -> Params:
    """The weights of the policy; the next update takes them away."""
    trained = self._steps.state.train.params
    return trained if self._trains_weights else self._full(trained, self._frozen)

  @property
  def ema(self) -> Params:
    """The moving average of the weights, float32; {} where none is kept."""
    return self._steps.state.ema

  def restart_optimizer(self) -> None:
    """Forgets the moments of the optimizer, and begins its schedule anew; not for mitigations that carry it on."""
    state = self._steps.state
    self._steps.state = State(self._restart(state.train.params), state.ema)

  def train(self, batches: Iterable[PyTree]) -> dict[str, float]:
    """One update a batch, each held as a whole by every process; returns the averages of the loss's metrics.

    The mitigation adds what its losses want beside the algorithm's own rows.

    Raises:
      NonFinite: if a loss or a parameter is not finite; names stage and iteration.
    """
    i, steps = self.iteration + 1, self._steps
    history: list[dict[str, Pair]] = []
    for batch in batches:
      key = rng.key(self._run.seed, f"{self._stage}/loss/{i}", len(history))
      augmented = self._mitigation.augment(batch, i, len(history))
      placed = sharding.put_whole_batch(augmented, self._run.mesh)
      steps.state, metrics = self._update(steps.state, placed, key, self._frozen)
      history.append(metrics)
    trained = steps.state.train.params
    return iterations.averaged(history, trained, stage=self._stage, iteration=i)

  def commit(self, *, keep: bool = True) -> None:
    """Ends the iteration: saves the weights for good, and the state to go on from; see `Iterations.commit` for `keep`.

    Raises:
      Interrupted: after SIGTERM or Ctrl-C; the iteration is saved.
    """
    self._steps.commit(self.weights, keep=keep)

  def close(self) -> None:
    """Ends background threads."""
    self._steps.close()
