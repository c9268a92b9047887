"""From the Gram matrix of M vectors to the coefficients of their combination: the mathematics of all directions.

Means on a sphere, medians and the ratio of model stock lie in the span of the vectors, so that they can be worked out
on the M x M matrix of their products, whatever the vectors are: task vectors of a layer, rows of a matrix, models.
Everything takes xp (numpy or jax.numpy) and matrices [..., M, M], and asks for no value. No JAX here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or jax.Array

# Why vectors were not merged on the sphere. The fallback is the linear average of the same coefficients.
SPHERICAL, PARALLEL, ZERO, ANTIPARALLEL = 0, 1, 2, 3
REASONS = ("spherical", "parallel", "zero", "antiparallel")

# Below this angle slerp and lerp differ by less than float32 can tell: Ω²/8 of the result.
SMALL_ANGLE = 1e-3

# Entries that BLAS adds up in float32 at a time: few enough to lose nothing, and to start no threads of its own, with
# whose number the last bits would change.
_RUN = 4096


def inner(xp: Any, a: Array, b: Array) -> Array:
  """Σ a·b over all entries: float64 in NumPy, the dtype of the arrays in JAX."""
  if xp is not np:
    # Not a matrix product, which is not float32 on every device.
    return xp.sum(a * b)
  return inner_of_rows(xp, a.reshape(-1), b.reshape(-1))


def inner_of_rows(xp: Any, a: Array, b: Array) -> Array:
  """Σ a·b along the last axis, which a number has too; float64 in NumPy."""
  if not a.shape:
    a, b = a[None], b[None]
  if xp is not np:
    return xp.sum(a * b, -1)
  whole = a.shape[-1] // _RUN * _RUN
  runs = (*a.shape[:-1], -1, _RUN)
  rest = np.vecdot(a[..., whole:], b[..., whole:]).astype(np.float64)
  if not whole:
    return rest
  head = np.vecdot(a[..., :whole].reshape(runs), b[..., :whole].reshape(runs))
  return head.sum(-1, dtype=np.float64) + rest


def total(xp: Any, a: Array) -> Array:
  """Σ a over all entries; float64 in NumPy, where it takes half the time of `sum`."""
  if xp is not np:
    return xp.sum(a)
  flat = a.reshape(-1)
  whole = flat.size // _RUN * _RUN
  head = np.vecdot(flat[:whole].reshape(-1, _RUN), np.ones(_RUN, a.dtype))
  return head.sum(dtype=np.float64) + flat[whole:].sum(dtype=np.float64)


def inner_of_columns(xp: Any, a: Array, b: Array) -> Array:
  """Σ a·b along the first axis, which a number has too; float64 in NumPy."""
  if not a.shape:
    a, b = a[None], b[None]
  return xp.sum(a * b, 0, dtype=np.float64 if xp is np else None)


def triangle(vectors: Sequence[Array], product: Callable[[Array, Array], Array]) -> tuple[Any, ...]:
  """⟨v_i, v_j⟩ for i ≥ j, row by row: the M (M + 1) / 2 numbers of a Gram matrix."""
  return tuple(product(vectors[i], vectors[j]) for i in range(len(vectors)) for j in range(i + 1))


def matrix(xp: Any, products: Sequence[Array]) -> Array:
  """The Gram matrix [..., M, M] of a `triangle` of arrays [...]."""
  num_vectors = (math.isqrt(8 * len(products) + 1) - 1) // 2
  order = range(num_vectors)
  place = {(i, j): i * (i + 1) // 2 + j for i in order for j in range(i + 1)}
  rows = [
    xp.stack([xp.asarray(products[place[max(i, j), min(i, j)]]) for j in order], -1) for i in order
  ]
  return xp.stack(rows, -2)


def measures(xp: Any, products: Array) -> tuple[Array, Array]:
  """Norms [..., M] and cosines [..., M, M] (0 where a vector is zero) of a Gram matrix."""
  norms = xp.sqrt(xp.diagonal(products, axis1=-2, axis2=-1))
  lengths = norms[..., :, None] * norms[..., None, :]
  return norms, xp.where(lengths > 0, products / _nonzero(xp, lengths), 0.0)


def quadratic(xp: Any, row: Array, products: Array) -> Array:
  """rowᵀ·G·row: [...]."""
  return xp.sum(row[..., :, None] * products * row[..., None, :], (-2, -1))


def _nonzero(xp: Any, x: Array) -> Array:
  """A divisor: 1 where it would be zero."""
  return xp.where(x > 0, x, 1.0)


def _root(xp: Any, x: Array) -> Array:
  """The root of what rounding may have left below zero."""
  return xp.sqrt(xp.maximum(x, 0.0))


def repeat(xp: Any, num_steps: int, step: Callable[[Any], Any], start: Any) -> Any:
  """step(step(...start)): a loop that JAX compiles once."""
  if xp is np:
    for _ in range(num_steps):
      start = step(start)
    return start
  from jax import lax

  return lax.fori_loop(0, num_steps, lambda _, value: step(value), start)


def _pair(
  xp: Any,
  norms: tuple[Array, Array],
  dot: Array,
  t: Array,
  dot_threshold: float | None,
) -> tuple[Array, Array, Array]:
  """Slerp's two coefficients and the fallback code, for vectors known by norms and dot product; all arrays [...]."""
  zero = (norms[0] == 0) | (norms[1] == 0)
  lengths = xp.where(zero, 1.0, norms[0]) * xp.where(zero, 1.0, norms[1])
  cosine = xp.clip(dot / lengths, -1.0, 1.0)
  omega = xp.arccos(cosine)
  if dot_threshold is None:
    parallel, opposite = omega < SMALL_ANGLE, omega > math.pi - SMALL_ANGLE
  else:
    parallel, opposite = cosine > dot_threshold, cosine < -dot_threshold
  reason = xp.where(parallel, PARALLEL, SPHERICAL)
  reason = xp.where(opposite, ANTIPARALLEL, reason)
  reason = xp.where(zero, ZERO, reason)
  straight = reason != SPHERICAL
  angle = xp.where(straight, 1.0, omega)
  # At the end points the formula is right only up to rounding, and no fallback is needed.
  end = (t == 0) | (t == 1)
  first, second = xp.sin((1 - t) * angle) / xp.sin(angle), xp.sin(t * angle) / xp.sin(angle)
  keep, step = xp.where(straight | end, 1 - t, first), xp.where(straight | end, t, second)
  return keep, step, xp.where(end, SPHERICAL, reason)


def slerp_rows(
  xp: Any, products: Array, shares: Array, *, dot_threshold: float | None = None
) -> tuple[Array, Array]:
  """Coefficients of the iterated slerp: the merge of the first m - 1 is slerped towards vector m.

  t = c_m / Σ_{j≤m} c_j (WARP, Ramé et al. 2024, arXiv 2406.16768, eq. 26, where they are equal). The step is linear
  where the angle is below 1e-3 (parallel) or as near to π (antiparallel), or a vector is zero.

  Args:
    xp: numpy or jax.numpy.
    products: Gram matrices [..., M, M].
    shares: c, [M].
    dot_threshold: the step is linear where the cosine is beyond it on either side; replaces the threshold of angles.

  Returns:
    coefficients [..., M], and indices into REASONS [...] int32: the largest of all steps.
  """
  norms, _ = measures(xp, products)
  rows = [xp.ones_like(norms[..., 0])]
  fallback = xp.zeros_like(rows[0])
  before = shares[0]
  for m in range(1, products.shape[-1]):
    total = before + shares[m]
    t = xp.where(total > 0, shares[m] / _nonzero(xp, total), 0.0)
    t = xp.where(before == 0, xp.where(shares[m] > 0, xp.ones_like(t), 0.0), t)
    merged = xp.stack(rows, -1)
    # Sums of products, not matrix products, which are not float32 on every device.
    dot = xp.sum(merged * products[..., :m, m], -1)
    norm = _root(xp, quadratic(xp, merged, products[..., :m, :m]))
    t = xp.broadcast_to(t, norm.shape)
    keep, step, reason = _pair(xp, (norm, norms[..., m]), dot, t, dot_threshold)
    rows = [*(keep * row for row in rows), step]
    fallback = xp.maximum(fallback, reason.astype(fallback.dtype))
    before = total
  return xp.stack(rows, -1), fallback.astype(np.int32)


def multislerp_rows(xp: Any, products: Array, shares: Array) -> Array:
  """Coefficients [..., M] of Σ w|v| · m, m the direction of Σ w v/|v|: linear where that sum vanishes.

  Args:
    xp: numpy or jax.numpy.
    products: Gram matrices [..., M, M].
    shares: w, [M].
  """
  norms, cosines = measures(xp, products)
  row = xp.broadcast_to(shares, norms.shape)
  length = _root(xp, quadratic(xp, row, cosines))[..., None]
  scale = xp.sum(row * norms, -1, keepdims=True)
  spherical = row * scale / (_nonzero(xp, norms) * _nonzero(xp, length))
  # Rounding leaves about this much of vectors that cancel.
  return xp.where(length < SMALL_ANGLE, row, spherical)


def karcher_rows(
  xp: Any,
  products: Array,
  shares: Array,
  *,
  num_steps: int,
  tolerance: float = 0.0,
  skip_zeros: bool = False,
) -> tuple[Array, Array]:
  """Coefficients of the Karcher mean of the directions, with the mean of the norms.

  Starts at the normalised linear mean m of the unit vectors u_i and repeats m ← exp_m(Σ w_i log_m(u_i)). Linear where
  two vectors are opposite or all are parallel.

  Args:
    xp: numpy or jax.numpy.
    products: Gram matrices [..., M, M].
    shares: w, [M], of sum 1.
    num_steps: of the iteration; converges to float32 in about ten.
    tolerance: a step shorter than this, in radians, is not taken, nor any after it.
    skip_zeros: whether, where one vector is zero, the directions of the others are averaged; else the mean is linear.

  Returns:
    coefficients [..., M], and indices into REASONS [...] int32.
  """
  norms, cosines = measures(xp, products)
  shares = xp.broadcast_to(shares, norms.shape)
  zero = (norms == 0).any(-1)
  weights = xp.where(norms == 0, 0.0, shares) if skip_zeros else shares
  counted = xp.sum(weights, -1, keepdims=True)
  weights = weights / xp.where(counted == 0, 1.0, counted)

  parallel = (cosines > math.cos(SMALL_ANGLE)).all((-2, -1))
  length = _root(xp, quadratic(xp, weights, cosines))
  opposite = (cosines < -math.cos(SMALL_ANGLE)).any((-2, -1)) | (length < SMALL_ANGLE)
  only_one = (shares == 1).any(-1)
  straight = parallel | opposite | only_one | ((norms == 0).all(-1) if skip_zeros else zero)

  def step(mean: Array) -> Array:
    cosine = xp.clip(xp.sum(cosines * mean[..., None, :], -1), -1.0, 1.0)
    angle = xp.arccos(cosine)
    # θ/sinθ → 1 at θ = 0.
    pull = weights * xp.where(angle < SMALL_ANGLE, 1.0, angle / xp.sin(xp.maximum(angle, 1e-6)))
    tangent = pull - xp.sum(pull * cosine, -1, keepdims=True) * mean
    size = _root(xp, quadratic(xp, tangent, cosines))[..., None]
    moved = xp.cos(size) * mean + xp.sinc(size / math.pi) * tangent
    # Rounding would let the mean drift off the sphere.
    moved = moved / _nonzero(xp, _root(xp, quadratic(xp, moved, cosines)))[..., None]
    return xp.where(size < tolerance, mean, moved)

  start = weights / xp.where(straight, 1.0, _nonzero(xp, length))[..., None]
  mean = repeat(xp, num_steps, step, start)
  scale = xp.sum(shares * norms, -1, keepdims=True) / _nonzero(xp, norms)
  rows = xp.where(straight[..., None], shares, scale * mean)
  reason = xp.where(parallel | only_one, PARALLEL, SPHERICAL)
  reason = xp.where(zero, ZERO, xp.where(opposite & ~only_one, ANTIPARALLEL, reason))
  return rows, reason.astype(np.int32)


def stock_ratio(xp: Any, products: Array) -> Array:
  """t = N cos / (1 + (N - 1) cos) of model stock, cos the mean over all pairs of vectors: [...].

  A pair with a zero vector counts as orthogonal. 0 where the denominator is below 1e-6: updates that oppose each other
  so evenly have no finite estimate. Below 0 where they oppose each other on the whole.
  """
  count = products.shape[-1]
  _, cosines = measures(xp, products)
  pairs = [xp.clip(cosines[..., i, j], -1.0, 1.0) for i in range(count) for j in range(i)]
  cosine = sum(pairs[1:], pairs[0]) / len(pairs)
  denominator = 1 + (count - 1) * cosine
  singular = xp.abs(denominator) < 1e-6
  return xp.where(singular, 0.0, count * cosine / xp.where(singular, 1.0, denominator))


def median_rows(xp: Any, products: Array, shares: Array, *, num_steps: int) -> Array:
  """Coefficients, of sum 1, of the point with the least Σ c_m |p - v_m|: the geometric median.

  Weiszfeld's iteration from the mean; but where a vector itself is the median, which the iteration would only creep up
  to, that is found by Kuhn's criterion: the others together do not pull harder than its own coefficient.

  Args:
    xp: numpy or jax.numpy.
    products: Gram matrices [..., M, M] of the vectors relative to any origin, best one near them.
    shares: c, [M], of sum 1.
    num_steps: of the iteration.
  """
  squares = xp.diagonal(products, axis1=-2, axis2=-1)
  distances2 = xp.maximum(squares[..., :, None] + squares[..., None, :] - 2 * products, 0.0)
  shares = xp.broadcast_to(shares, squares.shape)
  # Vectors this near are one: rounding leaves no more of their distance.
  tiny = 1e-12 * xp.max(distances2, (-2, -1), keepdims=True)
  apart = distances2 > tiny
  pulls = xp.where(apart, shares[..., None, :] / xp.sqrt(xp.where(apart, distances2, 1.0)), 0.0)
  # ⟨v_k - v_i, v_k - v_j⟩ = (|v_k - v_i|² + |v_k - v_j|² - |v_i - v_j|²) / 2, contracted with the pulls of i and j.
  total = xp.sum(pulls, -1)
  force2 = (
    xp.sum(pulls * distances2, -1) * total - quadratic(xp, pulls, distances2[..., None, :, :]) / 2
  )
  own = xp.sum(xp.where(apart, 0.0, shares[..., None, :]), -1)
  # Not where both sides are equal (two vectors of equal coefficients): every point between is a median there.
  settled = _root(xp, force2) < own * (1 - 1e-5)

  def step(row: Array) -> Array:
    reach2 = (
      xp.sum(distances2 * row[..., None, :], -1) - quadratic(xp, row, distances2)[..., None] / 2
    )
    weights = shares / xp.sqrt(xp.maximum(reach2, xp.where(tiny[..., 0] > 0, tiny[..., 0], 1.0)))
    return weights / xp.sum(weights, -1, keepdims=True)

  row = repeat(xp, num_steps, step, shares)
  chosen = settled.astype(row.dtype)
  count = xp.sum(chosen, -1, keepdims=True)
  return xp.where(count > 0, chosen / _nonzero(xp, count), row)
