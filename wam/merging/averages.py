"""Averages of weights: lerp, weighted and uniform mean, and the running mean and EMA along a run.

All are pure and work under jit. Arithmetic is float32 with one cast at the end (an EMA kept in bfloat16 with mu = 0.01
does not move at all). Leaves out everything that is relative to a common init but `liti`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import trees
from wam.core.coefficients import broadcast, spread
from wam.core.errors import ConfigError, check_same_trees
from wam.core.types import PyTree
from wam.merging.members import (
  accumulator,
  columns,
  combine_leaf,
  is_floating,
  is_traced,
  listed,
  member_coefficients,
  normalized,
)


def _between(x: jax.Array, y: jax.Array, t: jax.Array, dtype: Any) -> jax.Array:
  """x + t·(y - x): equal end points give themselves, and the step is exact where x and y are close."""
  wide = accumulator(x.dtype)
  start, end = x.astype(wide), y.astype(wide)
  return (start + broadcast(t.astype(wide), x) * (end - start)).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _exact_ends(x: jax.Array, y: jax.Array, t: jax.Array, dtype: Any) -> jax.Array:
  """The end points are chosen, not computed: the other one may hold infinities, and 1·y flushes subnormals."""
  step = broadcast(t, x)
  middle = _between(x, y, t, dtype)
  return jnp.where(step == 0, x.astype(dtype), jnp.where(step == 1, y.astype(dtype), middle))


@_exact_ends.defjvp
def _exact_ends_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  """The slope of the formula, which choosing the end points would hide at t = 0 and t = 1."""
  slope = jax.jvp(lambda x, y, t: _between(x, y, t, dtype), primals, tangents)[1]
  return _exact_ends(*primals, dtype), slope


@functools.partial(jax.jit, static_argnames=("dtype",))
def _lerp_leaf(x: jax.Array, y: jax.Array, t: jax.Array, *, dtype: Any) -> jax.Array:
  # Otherwise a larger program folds a known t into the sum and rounds in another order than this one.
  return _exact_ends(x, y, jax.lax.optimization_barrier(jnp.asarray(t)), dtype)


def lerp(
  a: PyTree, b: PyTree, t: Any, *, extrapolate: bool = False, out_dtype: Any = None
) -> PyTree:
  """(1 - t)·a + t·b, leaf by leaf; t = 0 and t = 1 return the end points bit for bit.

  Args:
    a: weights at t = 0.
    b: weights at t = 1, with the same names, shapes and dtypes.
    t: a number, possibly traced, or a tree that broadcasts against the leaves (`parts.coefficients`).
    extrapolate: allows t outside [0, 1], as in ExPO (a = SFT, b = RLHF, t = 1.3). A traced t is not checked.
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.

  Raises:
    MismatchedTrees: names the leaves that do not agree, integer leaves that differ, or a t that does not broadcast.
    ConfigError: if t is outside [0, 1] and `extrapolate` is not set, or is not finite.
  """
  every = columns([a, b], names=["a", "b"])
  steps = trees.flatten(spread(t, a))
  for name, step in steps.items():
    if is_traced(step):
      continue
    value = np.asarray(step)
    if not np.isfinite(value).all() or (not extrapolate and (value.min() < 0 or value.max() > 1)):
      raise ConfigError(
        f"lerp: t must lie in [0, 1], found {value} for '{name}'; pass extrapolate=True to go beyond"
        " the end points"
      )
  merged = [
    _lerp_leaf(x, y, jnp.asarray(steps[name]), dtype=np.dtype(out_dtype or x.dtype))
    if is_floating(x)
    else x
    for name, (x, y) in every.leaves.items()
  ]
  return every.rebuild(merged)


def liti(
  init: PyTree, merged: PyTree, eta: Any, *, extrapolate: bool = False, out_dtype: Any = None
) -> PyTree:
  """Linear interpolation towards the initialisation: (1 - η)·init + η·merged.

  WARP (Ramé et al. 2024, arXiv 2406.16768, algorithm 1) with η = 0.3; WiSE-FT (Wortsman et al. 2022,
  arXiv 2109.01903) with α = 0.5; model averaging of the alignment-tax paper (arXiv 2309.06256), where α multiplies the
  post-RLHF model (the authors' code has it the other way round).

  Args:
    init: where the fine-tuning started (η = 0).
    merged: the fine-tuned or merged weights (η = 1).
    eta: as `t` of `lerp`.
    extrapolate: as in `lerp`.
    out_dtype: as in `lerp`.
  """
  return lerp(init, merged, eta, extrapolate=extrapolate, out_dtype=out_dtype)


wise_ft = liti


def weighted_mean(
  members: PyTree,
  coefficients: Any = None,
  *,
  normalize: bool = True,
  extrapolate: bool = False,
  out_dtype: Any = None,
) -> PyTree:
  """Σ c_m θ_m / Σ c_m: the soup with given coefficients.

  All the coefficient on one member returns that member bit for bit; equal members return themselves where normalised.

  Args:
    members: a sequence of M trees, or one tree with a leading member axis.
    coefficients: M numbers or trees, or a tree with leaves [M] or [M, L]; default equal.
    normalize: whether to divide by the sum. Otherwise the sum of coefficients stays as given.
    extrapolate: allows negative coefficients. Traced coefficients are not checked.
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.

  Raises:
    MismatchedTrees: names the leaves that do not agree, or integer leaves that differ.
    ConfigError: if a coefficient is negative without `extrapolate`, or the sum to divide by is zero.
  """
  num_members = len(members := listed(members))
  every = columns(members)
  table = member_coefficients(coefficients, every, num_members, default=1 / num_members)
  merged = []
  for name, leaves in every.leaves.items():
    if not is_floating(leaves[0]):
      merged.append(leaves[0])
      continue
    factors = table[name]
    if not is_traced(factors):
      _check_coefficients(name, np.asarray(factors), normalize=normalize, extrapolate=extrapolate)
    if normalize:
      factors = normalized(factors)
    dtype = np.dtype(out_dtype or leaves[0].dtype)
    merged.append(combine_leaf(leaves, factors, dtype=dtype, affine=normalize))
  return every.rebuild(merged)


def _check_coefficients(
  name: str, values: np.ndarray, *, normalize: bool, extrapolate: bool
) -> None:
  if not extrapolate and values.min() < 0:
    raise ConfigError(
      f"weighted_mean: negative coefficients {values} for '{name}'; pass extrapolate=True to mean it"
    )
  # A sum that is only rounding noise would blow the merge up without a sign of it.
  if normalize and (np.abs(values.sum(0)) <= 1e-6 * np.abs(values).sum(0)).any():
    raise ConfigError(
      f"weighted_mean: the coefficients {values} for '{name}' sum to zero and cannot be normalised;"
      " pass normalize=False"
    )


def uniform_mean(members: PyTree, *, out_dtype: Any = None) -> PyTree:
  """(1/M) Σ θ_m: the uniform soup (Wortsman et al. 2022, arXiv 2203.05482)."""
  return weighted_mean(members, out_dtype=out_dtype)


class Averager(NamedTuple):
  """An average along a run, in the manner of optax: `state = init(params)`, `state = update(params, state)`.

  `value(state)` gives the average in float32; `value(state, dtype)` casts its floating-point leaves. Leaves that are
  not floating point are those of the last update.
  """

  init: Callable[[PyTree], Any]
  update: Callable[[PyTree, Any], Any]
  value: Callable[..., PyTree]


class MeanState(NamedTuple):
  """State of `running_mean`."""

  num_updates: jax.Array  # [] int32
  mean: PyTree  # float32 leaves


class EmaState(NamedTuple):
  """State of `ema`."""

  num_updates: jax.Array  # [] int32
  mean: PyTree  # float32 leaves


def _wide(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.astype(accumulator(x.dtype)) if is_floating(x) else x, tree)


def _zeros(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jnp.zeros_like(x, accumulator(x.dtype)) if is_floating(x) else x, tree
  )


def _move(mean: PyTree, params: PyTree, step: jax.Array) -> PyTree:
  """mean + step·(params - mean) in float32; a step of 0 or 1 is exact."""

  def leaf(m: jax.Array, x: jax.Array) -> jax.Array:
    return _lerp_leaf(m, x.astype(m.dtype), step, dtype=m.dtype) if is_floating(x) else x

  check_same_trees(mean, params, names=["the average", "params"])
  return jax.tree.map(leaf, mean, params)


def running_mean() -> Averager:
  """The mean of all updates: θ̄ₙ = θ̄ₙ₋₁ + (θₙ - θ̄ₙ₋₁)/n (moving average, SWA). Before the first update it is 0."""

  def init(params: PyTree) -> MeanState:
    return MeanState(jnp.zeros((), jnp.int32), _zeros(params))

  def update(params: PyTree, state: MeanState) -> MeanState:
    count = state.num_updates + 1
    return MeanState(count, _move(state.mean, params, 1 / count.astype(jnp.float32)))

  def value(state: MeanState, dtype: Any = jnp.float32) -> PyTree:
    return trees.cast(state.mean, dtype)

  return Averager(init, update, value)


def ema(*, decay: float, debias: bool = False) -> Averager:
  """Exponential moving average: θ̄ ← decay·θ̄ + (1 - decay)·θ, from θ̄ = the params given to `init`.

  WARP writes μ = 1 - decay (μ = 0.01 is decay = 0.99). Closed form after T updates:
  decayᵀ·θ_0 + μ Σ_t decay^(T-t)·θ_t.

  Args:
    decay: in [0, 1]; 1 (μ = 0) never moves, 0 (μ = 1) is the last update.
    debias: start from 0 in place of the params, and divide by 1 - decayᵀ; the value is 0 before the first update.

  Raises:
    ConfigError: if decay is outside [0, 1], or is 1 with `debias`.
  """
  if not 0 <= decay <= 1 or (debias and decay == 1):
    raise ConfigError(f"ema: decay must lie in [0, 1] (below 1 with debias), found {decay}")

  def init(params: PyTree) -> EmaState:
    return EmaState(jnp.zeros((), jnp.int32), _zeros(params) if debias else _wide(params))

  def update(params: PyTree, state: EmaState) -> EmaState:
    mu = jnp.asarray(1 - decay, jnp.float32)
    return EmaState(state.num_updates + 1, _move(state.mean, params, mu))

  def value(state: EmaState, dtype: Any = jnp.float32) -> PyTree:
    if not debias:
      return trees.cast(state.mean, dtype)
    # 1 - decayᵀ without cancellation; at T = 0 the mean is 0 and stays 0.
    log_decay = math.log(decay) if decay > 0 else -math.inf
    count = jnp.maximum(state.num_updates, 1).astype(jnp.float32)
    rest = -jnp.expm1(count * jnp.asarray(log_decay, jnp.float32))
    scaled = jax.tree.map(lambda m: m / rest.astype(m.dtype) if is_floating(m) else m, state.mean)
    return trees.cast(scaled, dtype)

  return Averager(init, update, value)
