"""Members of a merge, leaf by leaf, and the one weighted sum on which all merges stand.

Members come as a sequence of trees, or as one tree whose leaves have a leading member axis. They must agree in names,
shapes and dtypes; leaves that are not floating point (counters, masks) must be equal in all and pass through untouched.

Arithmetic is float32 (float64 where the leaves are), with one cast at the end. Leaves out any file access.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import trees
from wam.core.coefficients import broadcast, spread
from wam.core.errors import ConfigError, MismatchedTrees, check_same_trees
from wam.core.types import PyTree


class Columns(NamedTuple):
  """The members turned round: for every leaf name its value in each member."""

  structure: Any  # PyTreeDef of one member
  leaves: dict[str, tuple[jax.Array, ...]]

  def rebuild(self, leaves: Sequence[jax.Array]) -> PyTree:
    """The tree of a member with other leaves."""
    return self.structure.unflatten(leaves)


def is_traced(value: Any) -> bool:
  """Whether the value is known only when the compiled program runs, so that it cannot be checked now."""
  return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value))


def listed(members: PyTree) -> list[PyTree]:
  """The members as a list of trees; a stacked tree (leaves [M, ...]) is taken apart.

  Raises:
    MismatchedTrees: if the leading axes of a stacked tree differ.
    ConfigError: if there is no member.
  """
  if isinstance(members, list) or (isinstance(members, tuple) and not hasattr(members, "_fields")):
    if not members:
      raise ConfigError("a merge needs at least one member, found none")
    return list(members)
  sizes = {name: np.shape(leaf)[:1] for name, leaf in trees.flatten(members).items()}
  if len(set(sizes.values())) != 1 or () in sizes.values():
    raise MismatchedTrees(
      f"a stacked tree of members needs one leading member axis, found {sizes}; pass several"
      " members as a list"
    )
  return trees.unstack(members)


def columns(members: PyTree, *, names: Sequence[str] | None = None) -> Columns:
  """Aligns the members by leaf name and checks them.

  Args:
    members: a sequence of trees, or one tree with a leading member axis.
    names: what to call the members in errors.

  Raises:
    MismatchedTrees: names every leaf that is missing, extra, or of another shape or dtype, and every leaf that is not
      floating point and differs (values are checked outside jit only).
    ConfigError: if there is no member.
  """
  every = listed(members)
  labels = list(names) if names else [f"member {i}" for i in range(len(every))]
  check_same_trees(*every, names=labels)
  flat = [trees.flatten(member) for member in every]
  leaves = {name: tuple(tree[name] for tree in flat) for name in flat[0]}
  problems = []
  for name, values in leaves.items():
    first = jnp.result_type(values[0])
    for label, value in zip(labels[1:], values[1:], strict=True):
      if jnp.result_type(value) != first:
        problems.append(
          f"'{name}' is {jnp.result_type(value)} in {label} but {first} in {labels[0]}"
        )
      elif not is_floating(value) and not is_traced(values) and not _equal(values[0], value):
        problems.append(
          f"'{name}' ({first}) cannot be averaged and differs between {labels[0]} and {label}"
        )
  if problems:
    raise MismatchedTrees(f"{len(problems)} leaves do not agree: {'; '.join(problems)}")
  return Columns(jax.tree.structure(every[0]), leaves)


def is_floating(leaf: Any) -> bool:
  """Whether a leaf holds numbers that can be averaged."""
  return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _equal(x: Any, y: Any) -> bool:
  if x is y:
    return True
  # Under a trace, too, values that are known are compared now.
  with jax.ensure_compile_time_eval():
    return bool(jnp.all(jnp.asarray(x) == jnp.asarray(y)))


def accumulator(dtype: Any) -> Any:
  """The dtype in which leaves of `dtype` are added up: at least float32."""
  return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def member_coefficients(
  coefficients: Any, every: Columns, num_members: int, *, default: float
) -> dict[str, Any]:
  """Coefficients by leaf name: float32 [M], or [M, L] where they differ by layer of a stacked leaf.

  Args:
    coefficients: None for `default` each; numbers [M]; a sequence of M scalars or trees; or a tree with leaves [M] or
      [M, L].
    every: the aligned members.
    num_members: M.
    default: the coefficient of every member where none are given.

  Returns:
    numpy arrays where the coefficients are known, else traced ones.

  Raises:
    ConfigError: if their number is not that of the members, or one is not finite.
    MismatchedTrees: if a tree does not fit the members.
  """
  names = list(every.leaves)
  template = every.rebuild([values[0] for values in every.leaves.values()])
  if coefficients is None:
    coefficients = [default] * num_members
  is_array = isinstance(coefficients, jax.Array | np.ndarray)
  if is_array or (isinstance(coefficients, list | tuple) and not hasattr(coefficients, "_fields")):
    if len(coefficients) != num_members:
      raise ConfigError(
        f"expected one coefficient for each of {num_members} members, found {len(coefficients)}"
      )
    rows = [jax.tree.leaves(spread(c, template)) for c in coefficients]
    table = {n: _stacked([row[i] for row in rows]) for i, n in enumerate(names)}
  else:
    flat = trees.flatten(coefficients)
    if flat.keys() != set(names):
      raise MismatchedTrees(
        "coefficients must be one per member or a tree like the weights; leaves that only one of the"
        f" two has: {', '.join(sorted(flat.keys() ^ set(names)))}"
      )
    table = {n: _float32(flat[n]) for n in names}
  for name, values in table.items():
    if values.shape[:1] != (num_members,):
      raise ConfigError(
        f"'{name}': expected coefficients [{num_members}, ...], found shape {values.shape}"
      )
    if not is_traced(values) and not np.isfinite(np.asarray(values)).all():
      raise ConfigError(f"'{name}': coefficients must be finite, found {np.asarray(values)}")
  return table


def normalized(coefficients: Any) -> Any:
  """Coefficients [M, ...] divided by their sum over members.

  Known values are divided now, so that a merge inside a larger jitted function has the bits of one outside.
  """
  if is_traced(coefficients):
    return coefficients / coefficients.sum(0, keepdims=True)
  values = np.asarray(coefficients, np.float32)
  return values / values.sum(0, keepdims=True)


def _stacked(values: Sequence[Any]) -> Any:
  """Stacks scalars and [L] vectors; a scalar among vectors is repeated."""
  shape = np.broadcast_shapes(*(np.shape(v) for v in values))
  library = jnp if is_traced(list(values)) else np
  return library.stack([library.broadcast_to(_float32(v), shape) for v in values])


def _float32(value: Any) -> Any:
  """As float32, by numpy where the value is known: jax would make it unknown inside a trace."""
  return value.astype(jnp.float32) if is_traced(value) else np.asarray(value, np.float32)


@functools.partial(jax.jit, static_argnames=("dtype",))
def combine_leaf(
  leaves: tuple[jax.Array, ...],
  coefficients: jax.Array,
  *,
  dtype: Any,
  base: jax.Array | None = None,
  affine: jax.Array | bool = False,
) -> jax.Array:
  """base + Σ_m c_m (x_m - base), or Σ_m c_m x_m without a base; accumulated in float32 and cast once.

  A member with coefficient 0 is never read into the sum (it may hold infinities). All the coefficient on one member
  returns it bit for bit, and so do equal members where `affine`: there the result is chosen and not computed, since
  (x - base) + base rounds and 1·x flushes subnormal numbers. Derivatives are those of the formula everywhere.

  Args:
    leaves: M arrays of one shape and dtype.
    coefficients: [M], or [M, L] for stacked leaves [L, ...].
    dtype: of the result.
    base: the array that deltas are taken from.
    affine: whether the coefficients are known to sum to 1; [] or [L].
  """
  # Otherwise a larger program folds known coefficients into the sum and rounds in another order than this one.
  coefficients = jax.lax.optimization_barrier(jnp.asarray(coefficients))
  return _combine(tuple(leaves), coefficients, base, jnp.asarray(affine), dtype)


def _formula(
  leaves: Sequence[jax.Array], factors: Sequence[jax.Array], base: jax.Array | None
) -> jax.Array:
  wide = accumulator(leaves[0].dtype)
  origin = None if base is None else base.astype(wide)
  total = None
  for x, c in zip(leaves, factors, strict=True):
    step = x.astype(wide) if origin is None else x.astype(wide) - origin
    total = c * step if total is None else total + c * step
  assert total is not None
  return total if origin is None else origin + total


def _factors(coefficients: jax.Array, leaf: jax.Array) -> list[jax.Array]:
  return [broadcast(c.astype(accumulator(leaf.dtype)), leaf) for c in coefficients]


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _combine(
  leaves: tuple[jax.Array, ...],
  coefficients: jax.Array,
  base: jax.Array | None,
  affine: jax.Array,
  dtype: Any,
) -> jax.Array:
  factors = _factors(coefficients, leaves[0])
  # A member that does not count is replaced by one that is certainly finite; the product makes it nothing.
  neutral = jnp.zeros_like(leaves[0]) if base is None else base
  used = [jnp.where(c == 0, neutral, x) for c, x in zip(factors, leaves, strict=True)]
  result = _formula(used, factors, base).astype(dtype)
  agree = broadcast(affine, leaves[0])
  for x in leaves[1:]:
    agree = agree & (x == leaves[0])
  result = jnp.where(agree, leaves[0].astype(dtype), result)
  for m, x in enumerate(leaves):
    only = factors[m] == 1
    for other in factors[:m] + factors[m + 1 :]:
      only = only & (other == 0)
    result = jnp.where(only, x.astype(dtype), result)
  return result


@_combine.defjvp
def _combine_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  """The choices above change no value of the formula, but would hide its slope at c = 0 and c = 1."""

  def plain(leaves: Any, coefficients: Any, base: Any) -> jax.Array:
    return _formula(leaves, _factors(coefficients, leaves[0]), base).astype(dtype)

  return _combine(*primals, dtype), jax.jvp(plain, primals[:3], tangents[:3])[1]
