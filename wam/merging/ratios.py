"""Ratios of K parts: how free numbers become ratios of a given mean, and the sets that they are searched in.

Adaptive Model Averaging (Lin et al. 2024, arXiv 2309.06256, section 5) averages every part with a ratio of its own and
keeps their mean: Ω = {mean_k α_k = α, 0 <= α_k <= 1}. α multiplies the post-RLHF weights, as in the paper; in the
authors' code it multiplies the others. Leaves out what a part is (adaptive.py) and the search (ratio_search.py).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import ConfigError, check_rank, unknown_name

KINDS = ("printed", "coded", "projected", "free")
# What the paper searches ε in (appendix C.5).
EPSILONS = tuple(i / 10 for i in range(10))


class Form(NamedTuple):
  """How ratios follow from the variables of a search, all [K] float32.

  Attributes:
    start: the variables of equal ratios.
    ratios: variables -> ratios.
    gradient: (variables, gradient with respect to the ratios) -> what an optimizer is to climb along.
    retract: variables after a step of the optimizer -> variables that are allowed.
  """

  start: jax.Array
  ratios: Callable[[jax.Array], jax.Array]
  gradient: Callable[[jax.Array, jax.Array], jax.Array]
  retract: Callable[[jax.Array], jax.Array]


def form(kind: str, num_parts: int, alpha: float, *, epsilon: float = 0.0) -> Form:
  """The ratios of a search, by name.

  "printed" is eq. 13 of the paper, α_i = α·α̂_i / Σ α̂ with α̂_i = σ(s_i) + ε: their mean is α/K and not α.
  "coded" is what the authors' code computes, K times that: the mean is α, but a ratio may leave [0, 1].
  "projected" are the ratios themselves, projected after every step onto Ω, with no ratio outside the range that "coded"
  has for this ε (for ε = 0 that is all of Ω).
  "free" are numbers in [0, 1] of any mean, which begin at α, as AdaMerging has them (arXiv 2310.02575).

  Args:
    kind: "printed", "coded", "projected" or "free".
    num_parts: K.
    alpha: the mean (K times the mean, as printed), in [0, 1].
    epsilon: at least 0; the larger, the narrower the range of a ratio: see `bounds`.

  Raises:
    UnknownName: if there is no such kind; ConfigError: if a number is out of range.
  """
  low, high = bounds(kind, num_parts, alpha, epsilon=epsilon)
  if kind in ("projected", "free"):
    project: Callable[[jax.Array], jax.Array]
    if kind == "free":
      project = functools.partial(jnp.clip, min=low, max=high)
    else:
      project = functools.partial(projection, alpha=alpha, low=low, high=high)
    start = jnp.full((num_parts,), alpha, jnp.float32)
    return Form(start, lambda v: v, functools.partial(_feasible_direction, project), project)
  mean = alpha / num_parts if kind == "printed" else alpha

  def ratios(s: jax.Array) -> jax.Array:
    return reparameterized(s, mean, epsilon=epsilon)

  def gradient(s: jax.Array, of_ratios: jax.Array) -> jax.Array:
    return jax.vjp(ratios, s)[1](of_ratios)[0]

  # logit(α), as the code starts; bounded, since the logits of 0 and 1 are infinite.
  inside = min(max(alpha, 1e-3), 1 - 1e-3)
  start = jnp.full((num_parts,), math.log(inside / (1 - inside)), jnp.float32)
  return Form(start, ratios, gradient, lambda s: s)


def reparameterized(s: jax.Array, mean: float | jax.Array, *, epsilon: float = 0.0) -> jax.Array:
  """K·mean·α̂_i / Σ α̂ with α̂_i = σ(s_i) + ε: ratios [K] float32 of this mean from any real numbers [K].

  Eq. 13 of the paper is mean = α/K, its code mean = α. Equal numbers give exactly the mean.
  """
  check_rank("s", s, 1)
  shares = jax.nn.sigmoid(jnp.asarray(s, jnp.float32)) + epsilon
  # Relative to the largest, so that equal ones are exactly 1; the ratios do not depend on it.
  relative = shares / jax.lax.stop_gradient(jnp.max(shares))
  return mean * (relative * (s.shape[0] / jnp.sum(relative)))


def bounds(kind: str, num_parts: int, alpha: float, *, epsilon: float = 0.0) -> tuple[float, float]:
  """The range that a ratio can have, its ends included.

  For K = 3 and ε = 1: [0.2α, 0.5α] as printed, which is what the paper says; [0.6α, 1.5α] as coded.

  >>> [
  ...   round(x, 6)
  ...   for x in bounds("printed", 3, 1.0, epsilon=1.0) + bounds("coded", 3, 1.0, epsilon=1.0)
  ... ]
  [0.2, 0.5, 0.6, 1.5]
  >>> bounds("projected", 3, 0.5)
  (0.0, 1.0)

  Raises:
    UnknownName: if there is no such kind; ConfigError: if a number is out of range.
  """
  if kind not in KINDS:
    raise unknown_name("form of ratios", kind, KINDS)
  if num_parts < 1:
    raise ConfigError(f"ratios: expected at least 1 part, found {num_parts}")
  if not 0 <= alpha <= 1:
    raise ConfigError(f"ratios: alpha must lie in [0, 1], found {alpha}")
  if not (math.isfinite(epsilon) and epsilon >= 0):
    raise ConfigError(f"ratios: epsilon must be a number that is at least 0, found {epsilon}")
  if kind == "free":
    return 0.0, 1.0
  K = num_parts
  scale = 1.0 if kind == "printed" else float(K)
  if K == 1:
    low = high = scale * alpha
  else:
    low = scale * alpha * epsilon / (epsilon + (K - 1) * (1 + epsilon))
    high = scale * alpha * (1 + epsilon) / ((1 + epsilon) + (K - 1) * epsilon)
  return (low, high) if kind != "projected" else (max(low, 0.0), min(high, 1.0))


def projection(
  values: jax.Array, alpha: float | jax.Array, *, low: float = 0.0, high: float = 1.0
) -> jax.Array:
  """The nearest ratios of mean α in [low, high]: argmin ‖a - values‖², [K] float32.

  a_i = clip(values_i - τ, low, high), with τ found exactly: Σ a is piecewise linear in τ and breaks at 2K places.
  Differentiable wherever the projection is: a ratio at a bound stays there, the others share what is left.

  Args:
    values: [K] float.
    alpha: in [low, high].
    low, high: bounds of every ratio.
  """
  check_rank("values", values, 1)
  values, alpha = jnp.asarray(values, jnp.float32), jnp.asarray(alpha, jnp.float32)
  return _project(values, alpha, float(low), float(high))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _project(values: jax.Array, alpha: jax.Array, low: float, high: float) -> jax.Array:
  K = values.shape[0]
  # The sum falls from K·high to K·low as τ runs over the breaks.
  breaks = jnp.sort(jnp.concatenate([values - high, values - low]))
  sums = jnp.sum(jnp.clip(values[None, :] - breaks[:, None], low, high), axis=1)
  # The last break whose sum is still enough, and the piece that begins there.
  piece = jnp.clip(jnp.sum(sums >= K * alpha) - 1, 0, 2 * K - 2)
  middle = (breaks[piece] + breaks[piece + 1]) / 2
  shifted = values - middle
  free = (shifted > low) & (shifted < high)
  bound = jnp.where(shifted >= high, high, low)
  count = jnp.sum(free)
  rest = K * alpha - jnp.sum(jnp.where(free, 0.0, bound))
  # Relative to the free ones' mean: their sum comes out exact where all of them are large.
  mean = jnp.sum(jnp.where(free, values, 0.0)) / jnp.maximum(count, 1)
  moved = values - mean + rest / jnp.maximum(count, 1)
  return jnp.clip(jnp.where(free, moved, bound), low, high)


@_project.defjvp
def _project_jvp(
  low: float, high: float, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
  projected = _project(*primals, low, high)
  free = (projected > low) & (projected < high)
  count = jnp.maximum(jnp.sum(free), 1)
  values, alpha = tangents
  mean = jnp.sum(jnp.where(free, values, 0.0)) / count
  share = projected.shape[0] * alpha / count
  return projected, jnp.where(free, values - mean + share, 0.0)


def _feasible_direction(
  project: Callable[[jax.Array], jax.Array], ratios: jax.Array, gradient: jax.Array
) -> jax.Array:
  """(project(a + t·g) - a) / t for a small t: g without what the bounds and the mean do not let through.

  An optimizer that scales every number by itself (Adam) needs this: of a gradient that points upwards everywhere, as
  that of eq. 8 does, it would make equal steps, which the projection takes back.
  """
  step = 1e-3 / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-30)
  return (project(ratios + step * gradient) - ratios) / step


def patterns(alpha: float, *, num_parts: int = 3, step: float = 0.1) -> dict[str, np.ndarray]:
  """The unequal ratios of the paper's figure 8, by name: (α|α|α), (α|α|α-0.1), (α|α-0.1|α-0.1), and so on for K parts.

  >>> {name: ratios.tolist() for name, ratios in patterns(0.3).items()}["(0.3|0.3|0.2)"]
  [0.3, 0.3, 0.2]

  Raises:
    ConfigError: if α - step is negative.
  """
  bounds("coded", num_parts, alpha)
  if not 0 <= step <= alpha:
    raise ConfigError(f"patterns: expected a step from 0 to alpha = {alpha:g}, found {step:g}")
  found = {}
  for lowered in range(num_parts):
    steps = np.where(np.arange(num_parts) >= num_parts - lowered, step, 0.0)
    ratios = np.round(alpha - steps, 10)
    found[f"({'|'.join(f'{a:g}' for a in ratios)})"] = ratios
  return found


def grid(
  num_parts: int, alpha: float, *, step: float, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
  """Ratios [G, K] float64 of mean α in [low, high]: equal ratios and steps away from them, and the corners of the set.

  Args:
    num_parts: K, 1 to 4: the number of points grows with its power.
    alpha: the mean.
    step: between neighbouring ratios.
    low, high: bounds of every ratio.

  Raises:
    ConfigError: if K or the step is out of range, or α outside the bounds.
  """
  if not 1 <= num_parts <= 4 or not step > 0:
    raise ConfigError(f"grid: expected 1 to 4 parts and a step above 0, found {num_parts}, {step}")
  if not low <= alpha <= high:
    raise ConfigError(f"grid: alpha = {alpha} lies outside [{low}, {high}]")
  reach = math.floor((high - low) / step + 1e-9)
  points = [
    alpha + step * np.array([*moves, -sum(moves)], np.float64)
    for moves in itertools.product(range(-reach, reach + 1), repeat=num_parts - 1)
  ]
  points += corners(num_parts, alpha, low=low, high=high)
  inside = [np.clip(p, low, high) for p in points if p.min() > low - 1e-9 and p.max() < high + 1e-9]
  # Rounded, so that a corner on the grid is there once.
  return np.unique(np.round(inside, 9), axis=0)


def corners(
  num_parts: int, alpha: float, *, low: float = 0.0, high: float = 1.0
) -> list[np.ndarray]:
  """The corners of {mean α, low <= a_k <= high}: all ratios but one at a bound. A linear objective is best at one."""
  found: dict[tuple[float, ...], None] = {}
  for free in range(num_parts):
    for others in itertools.product((low, high), repeat=num_parts - 1):
      last = num_parts * alpha - sum(others)
      if low - 1e-9 <= last <= high + 1e-9:
        point = [*others[:free], min(max(last, low), high), *others[free:]]
        found[tuple(round(x, 9) for x in point)] = None
  return [np.array(point, np.float64) for point in found]


def random_points(
  generator: np.random.Generator,
  count: int,
  num_parts: int,
  alpha: float,
  *,
  low: float = 0.0,
  high: float = 1.0,
) -> np.ndarray:
  """Ratios [count, K] float64 of mean α in [low, high]: uniform in the box, then projected; corners are among them."""
  drawn = generator.uniform(low, high, (count, num_parts)).astype(np.float32)
  projected = jax.vmap(lambda v: projection(v, alpha, low=low, high=high))(jnp.asarray(drawn))
  return np.asarray(projected, np.float64)


def closeness_weights(num_layers: int) -> np.ndarray:
  """w_l = (L - 1) / (|l - L/2| + 1), float64 [L], layers counted from 0: what holds the middle layers near α.

  The authors' code has 25 / (|l - 13| + 1) for the 26 layers of its model; for other depths this is our reading of it.
  """
  layers = np.arange(num_layers, dtype=np.float64)
  return (num_layers - 1) / (np.abs(layers - num_layers / 2) + 1)


def closeness_penalty(
  ratios: Sequence[float] | np.ndarray, alpha: float, weights: np.ndarray
) -> tuple[float, np.ndarray]:
  """Σ_k w_k |a_k - α| and its slope [K] (0 where a_k = α): the paper's regulariser (appendix C.5)."""
  away = np.asarray(ratios, np.float64) - alpha
  # Ratios are float32: what is equal up to their rounding is equal.
  away = np.where(np.abs(away) < 1e-6, 0.0, away)
  return float(np.sum(weights * np.abs(away))), weights * np.sign(away)
