"""Trees of arrays with names: "layers/attention/q/kernel" and the like.

Works on any pytree; names join the keys of the path with "/". Leaves out everything that knows about models.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import MismatchedTrees, check_same_trees
from wam.core.types import Params, PyTree


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by name, in the order of the tree.

  Raises:
    MismatchedTrees: if two leaves have one name, as in {"a/b": x, "a": {"b": y}}.

  >>> flatten({"b": {"x": 1}, "a": 2})
  {'a': 2, 'b/x': 1}
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  flat = {_name(path): leaf for path, leaf in leaves}
  if len(flat) < len(leaves):
    every = [_name(path) for path, _ in leaves]
    twice = sorted({name for name in every if every.count(name) > 1})
    raise MismatchedTrees(
      f"several leaves are called {', '.join(twice)}; rename the keys of the tree"
    )
  return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
  """The nested dict whose leaves have these names; the inverse of `flatten` on nested dicts.

  >>> unflatten({"b/x": 1, "a": 2})
  {'b': {'x': 1}, 'a': 2}
  """
  tree: Params = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def names(tree: PyTree) -> list[str]:
  """The names of the leaves, in the order of the tree."""
  return list(flatten(tree))


def map_named(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """Like `jax.tree.map`, with the leaf's name as the function's first argument."""
  return jax.tree_util.tree_map_with_path(lambda path, *x: function(_name(path), *x), tree, *rest)


def cast(tree: PyTree, dtype: Any) -> PyTree:
  """Casts the floating-point leaves to `dtype`; integer and boolean leaves stay as they are."""
  return jax.tree.map(
    lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
  )


def num_params(tree: PyTree) -> int:
  """How many numbers the leaves hold together."""
  return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
  """How many bytes the leaves take together."""
  return sum(int(np.prod(np.shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def stack(trees: Sequence[PyTree]) -> PyTree:
  """One tree with a leading member axis: leaves [M, ...].

  Raises:
    MismatchedTrees: if names or shapes differ.
    ValueError: if there is no tree.
  """
  if not trees:
    raise ValueError("stack: expected at least one tree, found none")
  check_same_trees(*trees)
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: PyTree) -> list[PyTree]:
  """The members of a tree whose leaves are [M, ...]; the inverse of `stack`."""
  leaves, structure = jax.tree.flatten(tree)
  return [jax.tree.unflatten(structure, [x[m] for x in leaves]) for m in range(len(leaves[0]))]


def non_finite(tree: PyTree) -> list[str]:
  """Names of the floating-point leaves that hold NaN or infinity."""
  flat = {n: x for n, x in flatten(tree).items() if jnp.issubdtype(x.dtype, jnp.floating)}
  finite = {n: np.isfinite(x).all() for n, x in flat.items() if not isinstance(x, jax.Array)}
  # Arrays on the host are looked at there, one by one: a whole model need not fit on the device.
  finite |= jax.device_get(_all_finite({n: x for n, x in flat.items() if n not in finite}))
  # In the order of the tree: what comes out of a program has its keys sorted.
  return [n for n in flat if not finite[n]]


@jax.jit
def _all_finite(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """One program: dispatched leaf by leaf, the collectives of sharded leaves could meet out of order."""
  return {n: jnp.isfinite(x).all() for n, x in flat.items()}
