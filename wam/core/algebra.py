"""Weights and deltas.

A `Delta` (task vector) is θ - θ_init in float32. It is a type of its own, so that adding two sets of weights, or
loading a difference as a model, is an error and not a silent mistake. Arithmetic is float32 with one cast at the end:
subtracting in bfloat16 destroys the small steps of RLHF.
"""

import dataclasses

import jax
import jax.numpy as jnp

from wam.core.errors import check_same_trees
from wam.core.types import Params


def _wide(leaf: jax.Array) -> jax.Array:
  """Floating-point leaves in float32; counters and masks are no weights and do not move."""
  is_weight = jnp.issubdtype(leaf.dtype, jnp.floating)
  return leaf.astype(jnp.float32) if is_weight else jnp.zeros_like(leaf, jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Delta:
  """θ - θ_init: a tree of float32 leaves, named as the weights are."""

  tree: Params


def subtract(params: Params, init: Params) -> Delta:
  """The task vector θ - θ_init in float32 (Ilharco et al. 2023, eq. 1).

  Raises:
    MismatchedTrees: if names or shapes differ.
  """
  check_same_trees(init, params, names=["init", "params"])
  return Delta(jax.tree.map(lambda x, y: _wide(x) - _wide(y), params, init))


def apply_delta(init: Params, delta: Delta, scale: float | jax.Array = 1.0) -> Params:
  """θ_init + scale·δ, computed in float32 and cast once to the dtypes of `init`; integer leaves stay the init's.

  Raises:
    TypeError: if `delta` is a set of weights.
    MismatchedTrees: if names or shapes differ.
  """
  if not isinstance(delta, Delta):
    raise TypeError(
      f"apply_delta: expected a Delta, found {type(delta).__name__}; weights cannot be added to"
      " weights: use subtract(params, init) first"
    )
  check_same_trees(init, delta.tree, names=["init", "delta"])

  def add(x: jax.Array, d: jax.Array) -> jax.Array:
    # A counter does not survive the way through float32.
    is_weight = jnp.issubdtype(x.dtype, jnp.floating)
    return (x.astype(jnp.float32) + scale * d).astype(x.dtype) if is_weight else x

  return jax.tree.map(add, init, delta.tree)


def scale(delta: Delta, factor: float | jax.Array) -> Delta:
  """factor·δ."""
  return Delta(jax.tree.map(lambda d: factor * d, delta.tree))


def dot(a: Delta, b: Delta) -> jax.Array:
  """⟨a, b⟩ over all leaves, a float32 scalar."""
  # Not a matrix product: those are not float32 by default on every device.
  products = jax.tree.map(lambda x, y: jnp.sum(x * y), a.tree, b.tree)
  return jax.tree.reduce(jnp.add, products, jnp.zeros((), jnp.float32))


def norm(delta: Delta) -> jax.Array:
  """The Euclidean norm over all leaves, a float32 scalar."""
  return jnp.sqrt(dot(delta, delta))
