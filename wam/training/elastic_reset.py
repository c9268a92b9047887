"""Elastic Reset (Noukhovitch et al. 2023): every n updates the policy goes back to its moving average, and that to θ_0.

Rewards are kept at less drift, with a small KL penalty or none: the average forgets what a policy only briefly was. The
state of the optimizer is kept, and so, in PPO, is the value function, which is no part of the policy's weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wam.core.errors import ConfigError
from wam.core.types import PyTree
from wam.training import anchors
from wam.training.state import Frozen


class ElasticResetState(NamedTuple):
  """State of `elastic_reset`."""

  num_updates: jax.Array  # [] int32
  ema: PyTree  # float32 leaves
  start: PyTree  # what the average goes back to; () where frozen["init"] has it
  inner: Any


def elastic_reset(
  inner: optax.GradientTransformation,
  *,
  every: int,
  decay: float = 0.995,
  keep_start: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """After each update of `inner` θ̄ ← decay·θ̄ + (1 - decay)·θ, from θ̄ = θ_0; after every n-th, θ ← θ̄ and θ̄ ← θ_0.

  A reset holds up to one rounding of float32, since what an optimizer returns is added to the parameters.

  Args:
    inner: the optimizer; its state is never reset.
    every: n, in updates (the authors count batches of PPO: 260 of them for StackLLaMA).
    decay: of the average, in [0, 1]; 0 never moves θ, 1 sets it back to θ_0.
    keep_start: whether θ_0 is what `init` is given, held in the state, as for adapters; otherwise frozen["init"].

  Raises:
    ConfigError: if a number makes no sense.
  """
  if every < 1:
    raise ConfigError(f"elastic_reset: every is {every}, expected at least 1 update")
  if not 0 <= decay <= 1:
    raise ConfigError(f"elastic_reset: decay is {decay}, expected 0 to 1")
  accepting = optax.with_extra_args_support(inner)

  def init(params: PyTree) -> ElasticResetState:
    start = jax.tree.map(jnp.copy, params) if keep_start else ()
    return ElasticResetState(
      jnp.zeros((), jnp.int32), anchors.start(params), start, inner.init(params)
    )

  def update(
    grads: PyTree,
    state: ElasticResetState,
    params: PyTree | None = None,
    *,
    frozen: Frozen,
    **extra: Any,
  ) -> tuple[PyTree, ElasticResetState]:
    assert params is not None
    updates, inner_state = accepting.update(grads, state.inner, params, frozen=frozen, **extra)
    count = state.num_updates + 1
    moved = anchors.move(state.ema, optax.apply_updates(params, updates), 1 - decay)
    due = count % every == 0
    back = jax.tree.map(
      lambda mean, x, u: jnp.where(due, (mean - x.astype(mean.dtype)).astype(u.dtype), u),
      moved,
      params,
      updates,
    )
    start = state.start if keep_start else frozen["init"]
    ema = jax.tree.map(lambda mean, x: jnp.where(due, x.astype(mean.dtype), mean), moved, start)
    return back, ElasticResetState(count, ema, state.start, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)
