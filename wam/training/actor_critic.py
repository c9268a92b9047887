"""A policy and its critic under training in iterations, and the way back to an earlier policy.

Two networks, two losses, two optimizers, one state: killed inside an iteration, the run does it again and ends with the
same bits. Leaves out what an iteration learns from: the algorithm hands over losses and batches.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import optax

from wam.checkpoints import orbax
from wam.core import rng
from wam.core.types import Params, PyTree
from wam.training import collapse, iterations, kl_control, loop, sharding
from wam.training.iterations import Iterations
from wam.training.mitigations import Mitigation
from wam.training.state import LossFn, Pair, TrainState, init
from wam.training.step import make_update
from wam.training.workdir import Run


class Network(NamedTuple):
  """What trains a network.

  Attributes:
    start: weights, float32; not consumed.
    loss_fn: of the weights; sums, not means.
    tx: the optimizer.
  """

  start: Params
  loss_fn: LossFn
  tx: optax.GradientTransformation


class State(NamedTuple):
  """What an iteration saves."""

  policy: TrainState
  critic: TrainState
  kl: kl_control.State
  branch: collapse.State


class ActorCritic:
  """A policy, perhaps under a mitigation, and a critic, committed together after every iteration."""

  def __init__(
    self,
    policy: Network,
    critic: Network,
    *,
    mitigation: Mitigation,
    run: Run,
    stage: str,
    num_iterations: int,
    kl: kl_control.Rule,
    restart: collapse.Rule | None = None,
    accumulate_steps: int = 1,
  ):
    """Starts from the networks' weights, or from the last iteration that was committed.

    Args:
      policy: its loss is of the policy's weights, its optimizer of what the mitigation trains.
      critic: its names differ from the policy's.
      mitigation: of the alignment tax, for the policy alone.
      run: the open workdir.
      stage: names the stage and its random streams, <stage>/start and <stage>/loss/<iteration>.
      num_iterations: of the whole stage.
      kl: the coefficient of the KL penalty.
      restart: when a policy has collapsed; None: never.
      accumulate_steps: microbatches per update.
    """
    self._run, self._stage, self._mitigation = run, stage, mitigation
    self._starts = (policy.start, critic.start)
    self._rule, self._kl = restart, kl
    tx, critic_tx = mitigation.optimizer(policy.tx), critic.tx
    key = rng.key(run.seed, f"{stage}/start")

    def start_policy(weights: Params) -> TrainState:
      return init(mitigation.start(weights, key), tx)

    def start_critic(weights: Params) -> TrainState:
      return init(weights, critic_tx)

    def start(both: Params) -> State:
      return State(
        start_policy({name: both[name] for name in policy.start}),
        start_critic({name: both[name] for name in critic.start}),
        kl_control.init(kl),
        collapse.init(num_iterations),
      )

    # In one tree, so that the leaves of the critic are placed by name as well.
    both = {**policy.start, **critic.start}
    assert len(both) == len(policy.start) + len(critic.start)
    self._steps = Iterations(start, both, run=run, stage=stage, num_iterations=num_iterations)
    where = self._steps.where
    self._start_policy = jax.jit(start_policy, out_shardings=where.policy)
    self._start_critic = jax.jit(start_critic, out_shardings=where.critic)
    placed = iterations.parameter_shardings(policy.start, run)
    self._frozen = mitigation.freeze(sharding.put(policy.start, placed, copy=False))
    self._full = jax.jit(mitigation.full, out_shardings=placed)
    self._update_policy = jax.jit(
      make_update(mitigation.loss(policy.loss_fn), tx, accumulate_steps=accumulate_steps),
      donate_argnums=0,
      out_shardings=(where.policy, None),
    )
    self._update_critic = jax.jit(
      make_update(critic.loss_fn, critic_tx, accumulate_steps=accumulate_steps),
      donate_argnums=0,
      out_shardings=(where.critic, None),
    )

  @property
  def iteration(self) -> int:
    """Iterations that are committed."""
    return self._steps.iteration

  @property
  def done(self) -> bool:
    """Whether all are."""
    return self._steps.done

  @property
  def policy(self) -> Params:
    """The weights of the policy; the next update takes them away."""
    trained = self._steps.state.policy.params
    return trained if self._mitigation.trains_weights else self._full(trained, self._frozen)

  @property
  def critic(self) -> Params:
    """The weights of the critic; the next update takes them away."""
    return self._steps.state.critic.params

  @property
  def kl_coef(self) -> float:
    """The coefficient of the KL penalty now."""
    return float(sharding.fetch(kl_control.value(self._steps.state.kl)))

  @property
  def paused(self) -> bool:
    """Whether the policy is not to be updated in this iteration: a fresh critic is warming up."""
    return int(sharding.fetch(self._steps.state.branch.pause)) > 0

  def train(self, batches: Iterable[PyTree]) -> dict[str, float]:
    """One update of both networks a batch, each held as a whole by every process; of the critic alone in a pause.

    The mitigation adds what its losses want beside the algorithm's own rows; the critic does not look at it.

    Returns:
      Averages of the losses' metrics, the critic's as "value_<name>"; "ratio_max", a metric of the policy if it has it,
      as the largest of the updates'.

    Raises:
      NonFinite: if a loss or a parameter is not finite; names stage and iteration.
    """
    paused, i = self.paused, self.iteration + 1
    of_policy: list[dict[str, Pair]] = []
    of_critic: list[dict[str, Pair]] = []
    for number, batch in enumerate(batches):
      state = self._steps.state
      key = rng.key(self._run.seed, f"{self._stage}/loss/{i}", number)
      augmented = self._mitigation.augment(batch, i, number)
      placed = sharding.put_whole_batch(augmented, self._run.mesh)
      if not paused:
        policy, metrics = self._update_policy(state.policy, placed, key, self._frozen)
        of_policy.append(metrics)
        state = state._replace(policy=policy)
      critic, metrics = self._update_critic(state.critic, placed, key, {})
      of_critic.append(metrics)
      self._steps.state = state._replace(critic=critic)
    found = self._averaged(of_policy, self._steps.state.policy.params)
    values = self._averaged(of_critic, self._steps.state.critic.params)
    return found | {f"value_{name}": x for name, x in values.items()}

  def _averaged(self, history: list[dict[str, Pair]], params: PyTree) -> dict[str, float]:
    """Averages over the updates of an iteration; of "ratio_max" the largest."""
    found = iterations.averaged(history, params, stage=self._stage, iteration=self.iteration + 1)
    if "ratio_max" in found:
      pairs = sharding.fetch([metrics["ratio_max"] for metrics in history])
      found["ratio_max"] = float(max(total / weight for total, weight in pairs))
    return found

  def collapsed(self, now: collapse.Measurement) -> tuple[str, ...]:
    """Which signals say that the policy which sampled has collapsed."""
    if self._rule is None:
      return ()
    return collapse.value(sharding.fetch(self._steps.state.branch), now, self._rule)

  def go_back(self) -> int:
    """Takes up an earlier policy again, with a fresh critic; returns the iteration that left it (0: the start).

    What is trained (weights or adapters) is as it was saved, bit for bit. The state of the policy's optimizer is that
    of the start, but its schedule goes on; the critic and its optimizer are as before the first iteration.
    """
    assert self._rule is not None
    state, where = self._steps.state, self._steps.where
    branch = collapse.back(sharding.fetch(state.branch), self._rule)
    origin = collapse.origin(branch)
    weights, critic = self._starts
    placed = sharding.put(weights, iterations.parameter_shardings(weights, self._run))
    # The optimizer is started from the start and not from what is taken up: some remember what they started from.
    fresh = self._start_policy(placed)
    trained = fresh.params
    if origin:
      trained = orbax.load(self._saved(origin), sharding.abstract(trained, where.policy.params))
    self._steps.state = State(
      TrainState(
        state.policy.step, trained, _same_schedule(fresh.opt_state, state.policy.opt_state)
      ),
      self._start_critic(sharding.put(critic, where.critic.params)),
      state.kl,
      sharding.put(branch, where.branch),
    )
    return origin

  def end(self, now: collapse.Measurement, *, kl: float, samples: int) -> None:
    """After the updates of an iteration: remembers what its policy measured, and steers the KL coefficient.

    In a pause the coefficient stays: the policy did not move.

    Args:
      now: of the policy that sampled.
      kl: mean nats a completion from θ_0.
      samples: completions that they are of.
    """
    state, where = self._steps.state, self._steps.where
    coefficient = state.kl if self.paused else kl_control.update(state.kl, kl, samples, self._kl)
    branch = collapse.update(sharding.fetch(state.branch), now, self.iteration + 1)
    self._steps.state = state._replace(
      kl=sharding.put(sharding.fetch(coefficient), where.kl),
      branch=sharding.put(branch, where.branch),
    )

  def commit(self) -> None:
    """Ends the iteration: saves the policy's weights for good, and the state to go on from.

    Raises:
      Interrupted: after SIGTERM or Ctrl-C; the iteration is saved.
    """
    if self._rule is not None and not self._mitigation.trains_weights:
      orbax.save(self._saved(self.iteration + 1), self._steps.state.policy.params)
    self._steps.commit(self.policy)

  def finish(self) -> Params:
    """Saves the policy's weights as the stage's result, removes what was there for going on, and returns them."""
    directory, policy = self._run.stage_directory(self._stage), self.policy
    loop.save_result(directory, policy, run=self._run)
    orbax.remove(directory / "trained")
    return policy

  def close(self) -> None:
    """Ends background threads."""
    self._steps.close()

  def _saved(self, iteration: int) -> Any:
    """Where what is trained lies as an iteration left it: the policy's weights themselves, or adapters beside them."""
    directory = self._run.stage_directory(self._stage)
    if self._mitigation.trains_weights:
      return iterations.iteration_path(directory, iteration)
    return directory / "trained" / str(iteration)


def _same_schedule(fresh: Any, old: Any) -> Any:
  """A fresh state of an optimizer, but for the counts of learning-rate schedules."""

  def is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

  return jax.tree.map(
    lambda new, was: was if is_schedule(new) else new, fresh, old, is_leaf=is_schedule
  )
