"""A moving average of weights that are trained: what a KL is taken to (WARP), or where a policy is set back to.

Float32 always: in bfloat16 an average with a rate of 0.01 does not move at all. Leaves out who looks at it.
"""

import jax
import jax.numpy as jnp
import optax

from wam.core import trees
from wam.core.types import Params


def start(params: Params) -> Params:
  """The average before the first update: a copy in float32, which shares no memory with `params`."""
  return jax.tree.map(jnp.copy, trees.cast(params, jnp.float32))


def move(anchor: Params, params: Params, rate: float | jax.Array) -> Params:
  """(1 - μ)·anchor + μ·params in float32 (Ramé et al. 2024, algorithm 1, line 8).

  Args:
    anchor: float32.
    params: the weights after an update, of any floating-point dtype.
    rate: μ in [0, 1]; 1 gives the weights themselves and 0 the anchor, bit for bit. Others call 1 - μ the decay.
  """
  moved: Params = optax.incremental_update(trees.cast(params, jnp.float32), anchor, rate)
  return moved
