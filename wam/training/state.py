"""What a training step carries. Leaves out the position of the input, which the loop's checkpoint holds beside it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wam.core.types import Params, PyTree

# (sum, weight): averages over microbatches, devices and steps are sums of both.
Pair = tuple[jax.Array, jax.Array]
# Trees of weights, by name, that no step changes. An argument of what looks at them, since what a jitted function
# closes over becomes a constant of its program.
Frozen = Mapping[str, Params]
# (params, batch, key, frozen) -> (sum of the masked losses, sum of the mask, metrics by name as pairs).
LossFn = Callable[
  [Params, PyTree, jax.Array, Frozen], tuple[jax.Array, jax.Array, Mapping[str, Pair]]
]


class TrainState(NamedTuple):
  """The state between two steps: everything that an update changes."""

  step: jax.Array  # [] int32, updates done
  params: Params
  opt_state: Any


def init(params: Params, tx: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
