"""Spherical averages of task vectors: slerp, WARP's iterated slerp, and the order-free Karcher mean.

Every result is init + Σ_m c_m δ_m with δ_m = θ_m - θ_init: the merge lies in the span of the task vectors, so the
sphere is worked out on their Gram matrix alone, one M x M matrix for every group of leaves. `slerp_blend` and
`karcher_blend` return those coefficients with the norms and cosines behind them; `apply_blend` makes the weights.

Angles between full weights are useless (their cosine is above 0.999, slerp is lerp there); that variant, and other
means that follow from the Gram matrix, are rules in directions.py. The mathematics of both is in gram.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import parts as partitions
from wam.core.coefficients import broadcast
from wam.core.errors import ConfigError, MismatchedTrees, unknown_name
from wam.core.parts import Parts
from wam.core.types import PyTree
from wam.merging import gram as gram_rules
from wam.merging import pace
from wam.merging.gram import REASONS, SPHERICAL
from wam.merging.members import (
  Columns,
  accumulator,
  columns,
  combine_leaf,
  is_floating,
  is_traced,
  listed,
)

GROUPS = {
  "leaf": partitions.by_leaf,
  "layer": partitions.by_layer,
  "global": partitions.whole,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blend:
  """Coefficients of the task vectors, group by group, and what they were worked out from."""

  parts: Parts = dataclasses.field(metadata={"static": True})
  coefficients: jax.Array  # [G, M] float32
  norms: jax.Array  # [G, M] norms of the task vectors
  cosines: jax.Array  # [G, M, M] between the task vectors; 0 where one is zero
  fallback: jax.Array  # [G] int32, index into REASONS

  @property
  def angles(self) -> jax.Array:
    """Angles between the task vectors in radians, [G, M, M]."""
    return jnp.arccos(jnp.clip(self.cosines, -1.0, 1.0))

  def flagged(self) -> dict[str, str]:
    """Groups that were averaged linearly, and why; look here for "antiparallel" (outside jit only)."""
    codes = np.asarray(self.fallback)
    return {n: REASONS[c] for n, c in zip(self.parts.names, codes, strict=True) if c != SPHERICAL}


def partition(tree: PyTree, group: str | Parts) -> Parts:
  """The groups of leaves whose task vectors are one vector each.

  "leaf": every tensor (every layer of a stacked one) for itself. "layer": all leaves of a layer together, as in WARP;
  leaves outside the layers (embedding, final norm, head), of which WARP says nothing, are a group each. "global": one
  vector. A `Parts` gives any other grouping; its untouched leaves stay those of the init.

  Raises:
    UnknownName: if there is no such grouping.
    MismatchedTrees: if the `Parts` are of another tree.
  """
  if isinstance(group, Parts):
    if [n for n, _ in group.assignment] != [n for n, _ in partitions.whole(tree).assignment]:
      raise MismatchedTrees("the parts given as `group` are of another tree: leaf names differ")
    return group
  if group not in GROUPS:
    raise unknown_name("group", group, GROUPS)
  return GROUPS[group](tree)


def gram(init: PyTree, members: PyTree, parts: Parts) -> jax.Array:
  """⟨δ_i, δ_j⟩ of the task vectors in every group: float32 [G, M, M]."""
  base, every = _aligned(init, members)
  return _gram(base, every, parts)


def _aligned(init: PyTree, members: PyTree) -> tuple[dict[str, jax.Array], Columns]:
  """The leaves of the init, and the members aligned with it."""
  trees = listed(members)
  # With the init first, so that errors speak of what the members should look like.
  names = ["init", *(f"member {i}" for i in range(len(trees)))]
  together = columns([init, *trees], names=names)
  base = {name: leaves[0] for name, leaves in together.leaves.items()}
  return base, Columns(together.structure, {n: x[1:] for n, x in together.leaves.items()})


def _gram(base: dict[str, jax.Array], every: Columns, parts: Parts) -> jax.Array:
  floating = [name for name, leaf in base.items() if is_floating(leaf)]
  indices = parts.indices()
  products = []
  for number, name in enumerate(floating):
    products.append(_leaf_gram(base[name], every.leaves[name], stacked=indices[name].ndim))
    pace.keep(number, products[-1])
  num_members = len(next(iter(every.leaves.values())))
  places = [indices[name] for name in floating]
  return _sum_groups(products, places, num_groups=len(parts.names), num_members=num_members)


@functools.partial(jax.jit, static_argnames=("num_groups", "num_members"))
def _sum_groups(
  products: list[jax.Array], places: list[jax.Array], *, num_groups: int, num_members: int
) -> jax.Array:
  """Adds up leaf matrices [M, M] or [L, M, M] by the group of each: [G, M, M]."""
  # The last row collects the untouched leaves (index -1) and is dropped.
  total = jnp.zeros((num_groups + 1, num_members, num_members), jnp.float32)
  for product, place in zip(products, places, strict=True):
    total = total.at[place].add(product)
  return total[:-1]


@functools.partial(jax.jit, static_argnames=("stacked",))
def _leaf_gram(base: Any, leaves: tuple[Any, ...], *, stacked: int) -> jax.Array:
  """[M, M], or [L, M, M] for a stacked leaf. Products and sums, not a matrix product: full precision on any device."""
  axes = tuple(range(stacked, base.ndim))

  def product(left: Any, right: Any) -> jax.Array:
    # Behind the barrier the products share no delta: one that several of them read would be written to memory first.
    start, left, right = jax.lax.optimization_barrier((base, left, right))
    wide = accumulator(start.dtype)
    start = start.astype(wide)
    return jnp.sum((left.astype(wide) - start) * (right.astype(wide) - start), axes)

  products = {
    (i, j): product(leaves[i], leaves[j]).astype(jnp.float32)
    for i in range(len(leaves))
    for j in range(i + 1)
  }
  order = range(len(leaves))
  rows = [jnp.stack([products[max(i, j), min(i, j)] for j in order], -1) for i in order]
  return jnp.stack(rows, -2)


def _coefficients(coefficients: Any, num_members: int) -> jax.Array:
  """Coefficients [M] that sum to 1."""
  if coefficients is None:
    coefficients = np.full(num_members, 1 / num_members, np.float32)
  values = jnp.asarray(coefficients, jnp.float32)
  if values.shape != (num_members,):
    raise ConfigError(
      f"expected one coefficient for each of {num_members} members, found shape {values.shape}; on"
      " the sphere coefficients are numbers, not trees"
    )
  if not is_traced(values):
    found = np.asarray(values)
    if not np.isfinite(found).all() or found.min() < 0 or found.sum() <= 0:
      raise ConfigError(f"coefficients must be non-negative with a positive sum, found {found}")
  return values / values.sum()


def slerp_blend(
  init: PyTree,
  members: PyTree,
  coefficients: Any = None,
  *,
  group: str | Parts = "layer",
  dot_threshold: float | None = None,
) -> Blend:
  """WARP's iterated slerp (Ramé et al. 2024, eq. 26): the merge of the first m - 1 is slerped towards member m.

  With equal coefficients t = 1/m at member m; in general t = c_m / Σ_{j≤m} c_j. Not a symmetric mean: for orthogonal
  task vectors of equal norm M = 3 gives (.61, .61, .50), where the sphere's mean is 1/√3 each; see `karcher_blend`.

  A group falls back to the linear step where the angle is below 1e-3 (parallel), a task vector is zero, or the two are
  opposite (antiparallel: the great circle between them is not defined; lerp passes through zero). `flagged` tells.

  Args:
    init: the common start of the members.
    members: M trees, or one tree with a leading member axis.
    coefficients: M non-negative numbers; default equal.
    group: see `partition`.
    dot_threshold: linear where the cosine is beyond it on either side, in place of the angles above.
  """
  base, every = _aligned(init, members)
  parts = partition(init, group)
  products = _gram(base, every, parts)
  shares = _coefficients(coefficients, products.shape[-1])
  return Blend(parts, *_slerp(products, shares, dot_threshold=dot_threshold))


@functools.partial(jax.jit, static_argnames=("dot_threshold",))
def _slerp(
  products: jax.Array, shares: jax.Array, *, dot_threshold: float | None
) -> tuple[jax.Array, ...]:
  """Coefficients, norms, cosines and fallbacks of `slerp_blend` from Gram matrices [G, M, M]."""
  rows, fallback = gram_rules.slerp_rows(jnp, products, shares, dot_threshold=dot_threshold)
  return rows, *gram_rules.measures(jnp, products), fallback


def karcher_blend(
  init: PyTree,
  members: PyTree,
  coefficients: Any = None,
  *,
  group: str | Parts = "layer",
  num_steps: int = 20,
  tolerance: float = 0.0,
) -> Blend:
  """The Karcher mean of the directions of the task vectors, with the mean of their norms: no order among members.

  Starts at the normalised linear mean m of the unit vectors u_i and repeats m ← exp_m(Σ w_i log_m(u_i)). For two
  members of equal norm it is slerp. A group with a zero or with opposite task vectors falls back to the linear mean.

  Args:
    init: the common start of the members.
    members: M trees, or one tree with a leading member axis.
    coefficients: M non-negative numbers; default equal.
    group: see `partition`.
    num_steps: of the fixed-point iteration; converges to float32 in about ten.
    tolerance: a step shorter than this, in radians, ends it.
  """
  base, every = _aligned(init, members)
  parts = partition(init, group)
  products = _gram(base, every, parts)
  shares = _coefficients(coefficients, products.shape[-1])
  return Blend(parts, *_karcher(products, shares, num_steps=num_steps, tolerance=tolerance))


@functools.partial(jax.jit, static_argnames=("num_steps", "tolerance"))
def _karcher(
  products: jax.Array, shares: jax.Array, *, num_steps: int, tolerance: float
) -> tuple[jax.Array, ...]:
  """Coefficients, norms, cosines and fallbacks of `karcher_blend` from Gram matrices [G, M, M]."""
  rows, fallback = gram_rules.karcher_rows(
    jnp, products, shares, num_steps=num_steps, tolerance=tolerance
  )
  return rows, *gram_rules.measures(jnp, products), fallback


def apply_blend(init: PyTree, members: PyTree, blend: Blend, *, out_dtype: Any = None) -> PyTree:
  """init + Σ_m c_m δ_m with the coefficients of every group; leaves in no group are those of the init.

  Raises:
    MismatchedTrees: names the leaves of the members that do not agree with the init's.
  """
  base, every = _aligned(init, members)
  # One more row for the untouched leaves, which index -1 finds.
  table = jnp.pad(blend.coefficients, ((0, 1), (0, 0)))
  # Where the coefficients sum to 1, members that agree are already the answer.
  affine = jnp.abs(table.sum(-1) - 1) < 1e-6
  merged = []
  for name, index in blend.parts.indices().items():
    start, leaves = base[name], every.leaves[name]
    if not is_floating(start):
      merged.append(start)
      continue
    dtype = np.dtype(out_dtype or start.dtype)
    result = combine_leaf(
      leaves,
      jnp.moveaxis(table[index], -1, 0),
      dtype=dtype,
      base=start,
      affine=affine[index],
    )
    if (index < 0).any():
      keep = broadcast(jnp.asarray(index < 0), start)
      result = jnp.where(keep, jnp.asarray(start).astype(dtype), result)
    merged.append(result)
  return every.rebuild(merged)


def slerp(
  init: PyTree,
  a: PyTree,
  b: PyTree,
  t: float | jax.Array,
  *,
  group: str | Parts = "layer",
  out_dtype: Any = None,
) -> PyTree:
  """init + [sin((1-t)Ω)/sinΩ]·δ_a + [sin(tΩ)/sinΩ]·δ_b, Ω the angle between the task vectors of a group.

  WARP (Ramé et al. 2024, arXiv 2406.16768). t = 0 and t = 1 return the end points bit for bit. Equal norms are kept;
  unequal ones are not interpolated (3 and 1, orthogonal, t = ½: 2.236). See `slerp_blend` for the fallbacks and for
  the angles.

  Args:
    init: the common start of a and b.
    a: weights at t = 0.
    b: weights at t = 1.
    t: a number in [0, 1], possibly traced.
    group: "leaf", "layer", "global" or a `Parts`; see `partition`.
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.

  Raises:
    MismatchedTrees: names the leaves that do not agree, or integer leaves that differ.
    ConfigError: if t is outside [0, 1].
  """
  if not is_traced(t) and not 0 <= float(t) <= 1:
    raise ConfigError(f"slerp: t must lie in [0, 1], found {float(t)}")
  t = jnp.asarray(t, jnp.float32)
  blend = slerp_blend(init, [a, b], jnp.stack([1 - t, t]), group=group)
  return apply_blend(init, [a, b], blend, out_dtype=out_dtype)


def slerp_iterative(
  init: PyTree,
  members: PyTree,
  coefficients: Any = None,
  *,
  group: str | Parts = "layer",
  dot_threshold: float | None = None,
  out_dtype: Any = None,
) -> PyTree:
  """WARP's merge of M members, one after the other; see `slerp_blend`."""
  blend = slerp_blend(init, members, coefficients, group=group, dot_threshold=dot_threshold)
  return apply_blend(init, members, blend, out_dtype=out_dtype)


def karcher_mean(
  init: PyTree,
  members: PyTree,
  coefficients: Any = None,
  *,
  group: str | Parts = "layer",
  num_steps: int = 20,
  tolerance: float = 0.0,
  out_dtype: Any = None,
) -> PyTree:
  """The order-free spherical mean of M members; see `karcher_blend`."""
  blend = karcher_blend(
    init, members, coefficients, group=group, num_steps=num_steps, tolerance=tolerance
  )
  return apply_blend(init, members, blend, out_dtype=out_dtype)
