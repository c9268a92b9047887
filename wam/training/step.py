"""One update: gradients over microbatches, normalised by the global weight, then the optimizer.

Leaves out jit, placement and randomness: the loop (or an algorithm) compiles what `make_update` returns.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam.core.errors import ConfigError
from wam.core.types import Params, PyTree
from wam.training.state import Frozen, LossFn, Pair, TrainState

Update = Callable[[TrainState, PyTree, jax.Array, PyTree], tuple[TrainState, dict[str, Pair]]]


def make_update(
  loss_fn: LossFn, tx: optax.GradientTransformation, *, accumulate_steps: int = 1
) -> Update:
  """A pure function (state, batch, key, frozen) -> (state, metrics), to be compiled with the state donated.

  The gradient is that of Σ loss / Σ weight over the whole global batch, so that microbatches, or devices, with fewer
  trained tokens weigh less; a mean of means would not do that.

  Args:
    loss_fn: (params, batch, key, frozen) -> (Σ loss, Σ weight, metrics). Sums, not means.
    tx: the optimizer; one that takes extra arguments is given `frozen`.
    accumulate_steps: microbatches per update; divides the batch.

  Returns:
    The update. Its metrics are (sum, weight) pairs: those of the loss function, "loss" and "grad_norm" (before
    clipping). A batch without any weight leaves a zero gradient.
  """

  def total(params: Params, batch: PyTree, key: jax.Array, frozen: Frozen) -> tuple[jax.Array, Any]:
    loss, weight, metrics = loss_fn(params, batch, key, frozen)
    return loss.astype(jnp.float32), (weight.astype(jnp.float32), dict(metrics))

  accepting = optax.with_extra_args_support(tx)
  gradient = jax.value_and_grad(total, has_aux=True)

  def over_microbatches(params: Params, batch: PyTree, key: jax.Array, frozen: Frozen) -> Any:
    microbatches = jax.tree.map(lambda x: _split(x, accumulate_steps), batch)
    keys = jax.random.split(key, accumulate_steps)

    def add(sums: Any, xs: tuple[PyTree, jax.Array]) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, sums, gradient(params, *xs, frozen)), None

    first = jax.tree.map(lambda x: x[0], (microbatches, keys))
    shapes = jax.eval_shape(gradient, params, *first, frozen)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (microbatches, keys))[0]

  def update(
    state: TrainState, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[TrainState, dict[str, Pair]]:
    held = frozen or {}
    compute = gradient if accumulate_steps == 1 else over_microbatches
    (loss, (weight, metrics)), grads = compute(state.params, batch, key, held)
    scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
    grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    updates, opt_state = accepting.update(grads, state.opt_state, state.params, frozen=held)
    params = optax.apply_updates(state.params, updates)
    one = jnp.ones((), jnp.float32)
    metrics = {"loss": (loss, weight), **metrics, "grad_norm": (optax.tree.norm(grads), one)}
    return TrainState(state.step + 1, params, opt_state), metrics

  return update


def averages(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Floats from (sum, weight) pairs; 0 where the weight is 0."""
  pairs = {name: (float(total), float(weight)) for name, (total, weight) in metrics.items()}
  return {name: total / weight if weight else 0.0 for name, (total, weight) in pairs.items()}


def _split(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B/parts, ...], every part taking each `parts`-th row.

  Strided, as contiguous parts would each lie on a few of the devices that the batch is split over.
  """
  if x.shape[0] % parts:
    raise ConfigError(f"a batch of {x.shape[0]} cannot be split into accumulate_steps={parts}")
  return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *np.shape(x)[1:]), 0, 1)
