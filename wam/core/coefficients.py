"""Coefficients that broadcast: a scalar, or a tree with one number, or one per layer, for every leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import trees
from wam.core.errors import MismatchedTrees
from wam.core.types import PyTree


def broadcast(coefficient: Any, leaf: Any) -> jax.Array:
  """A coefficient that multiplies `leaf`: [] stays, [L] becomes [L, 1, ...] for a stacked leaf [L, ...].

  Raises:
    MismatchedTrees: if the coefficient's axes are not the first axes of the leaf.
  """
  factor, shape = jnp.asarray(coefficient), np.shape(leaf)
  fits = factor.ndim <= len(shape) and all(
    c in (1, n) for c, n in zip(factor.shape, shape, strict=False)
  )
  if not fits:
    raise MismatchedTrees(
      f"a coefficient of shape {factor.shape} does not broadcast against a leaf of shape {shape};"
      " expected a scalar, or one number per layer of a stacked leaf"
    )
  return factor.reshape(factor.shape + (1,) * (len(shape) - factor.ndim)) if factor.ndim else factor


def spread(coefficient: Any, tree: PyTree) -> PyTree:
  """A tree of coefficients: a scalar is repeated for every leaf, a tree must have the leaves of `tree`.

  Raises:
    MismatchedTrees: names the leaves that have no coefficient, and coefficients that do not broadcast.
  """
  structures: list[Any] = [jax.tree.structure(x) for x in (tree, coefficient)]
  if structures[0] == structures[1]:
    named = zip(trees.flatten(tree).items(), jax.tree.leaves(coefficient), strict=True)
  elif jax.tree_util.all_leaves([coefficient]) and np.ndim(coefficient) == 0:
    return jax.tree.map(lambda _: coefficient, tree)
  else:
    wanted, found = set(trees.names(tree)), set(trees.names(coefficient))
    raise MismatchedTrees(
      "coefficients must be a scalar or a tree like the weights; without a coefficient:"
      f" {', '.join(sorted(wanted - found)) or '-'}; without a leaf: {', '.join(sorted(found - wanted)) or '-'}"
    )
  for (name, leaf), factor in named:
    try:
      broadcast(factor, leaf)
    except MismatchedTrees as error:
      raise MismatchedTrees(f"'{name}': {error}") from None
  return coefficient
