"""Searches over ratios of a given mean: gradient steps, an exact solver, a grid, and a choice of ε.

All climb: objectives are maximised. They know functions of K numbers, not models. Leaves out where gradients come from
(adaptive.py) and fronts of several objectives (wam/evaluation/search.py).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam.core.errors import ConfigError, NonFinite
from wam.merging.ratios import EPSILONS, Form, projection

Result = TypeVar("Result")


class AscentState(NamedTuple):
  """State of `ascent`."""

  num_updates: jax.Array  # [] int32
  variables: jax.Array  # [K] float32
  opt_state: Any


class Ascent(NamedTuple):
  """Gradient steps, in the manner of optax: `state = init()`, `state = update(gradient, state)`, `value(state)`."""

  init: Callable[[], AscentState]
  update: Callable[[jax.Array, AscentState], AscentState]
  value: Callable[[AscentState], jax.Array]


def ascent(form: Form, tx: optax.GradientTransformation) -> Ascent:
  """Steps of an optimizer up the gradient with respect to the ratios; every state's ratios are those of the form.

  Args:
    form: see `ratios.form`.
    tx: an optimizer of optax, which minimises: it is given the negative gradient.
  """

  def init() -> AscentState:
    return AscentState(jnp.zeros((), jnp.int32), form.start, tx.init(form.start))

  @jax.jit
  def update(gradient: jax.Array, state: AscentState) -> AscentState:
    climb = form.gradient(state.variables, jnp.asarray(gradient, jnp.float32))
    steps, opt_state = tx.update(-climb, state.opt_state, state.variables)
    variables = form.retract(optax.apply_updates(state.variables, steps))
    return AscentState(state.num_updates + 1, variables, opt_state)

  @jax.jit
  def value(state: AscentState) -> jax.Array:
    return form.ratios(state.variables)

  return Ascent(init, update, value)


class Solution(NamedTuple):
  """What `solve` found.

  Attributes:
    ratios: [K] float64, of the mean asked for.
    value: of the objective there.
    evaluations: of the objective and its gradient.
    converged: whether the solver says so, of its best end.
    message: what it says.
  """

  ratios: np.ndarray
  value: float
  evaluations: int
  converged: bool
  message: str


def solve(
  objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
  num_parts: int,
  alpha: float,
  *,
  low: float = 0.0,
  high: float = 1.0,
  starts: np.ndarray | None = None,
  tolerance: float = 1e-6,
  max_iterations: int = 50,
) -> Solution:
  """A local maximum over {mean α, low <= a_k <= high} by sequential quadratic programming (SciPy's SLSQP).

  About ten evaluations from one start, for a deterministic objective; of several starts the best end counts. Every
  point that is evaluated has the mean α and lies inside.

  Args:
    objective: ratios [K] float64 -> value and gradient [K].
    num_parts: K.
    alpha: the mean.
    low, high: bounds of every ratio.
    starts: where to begin, [S, K] of mean α; default equal ratios, once. Likelihoods of models that are far apart have
      several maxima.
    tolerance: in units of the objective, where it stops.
    max_iterations: of the solver.

  Raises:
    ConfigError: if α lies outside the bounds.
    NonFinite: if a value or a derivative is NaN or infinite.
  """
  import scipy.optimize  # half a second to import

  if not low <= alpha <= high:
    raise ConfigError(f"solve: alpha = {alpha} lies outside [{low}, {high}]")
  begin = np.full((1, num_parts), alpha) if starts is None else np.asarray(starts, np.float64)
  seen: list[tuple[float, np.ndarray]] = []

  def feasible(point: np.ndarray) -> np.ndarray:
    # The solver's own points are off by rounding; the objective is to see none outside.
    inside = np.asarray(projection(jnp.asarray(point), alpha, low=low, high=high), np.float64)
    return point if np.abs(inside - point).max() < 1e-6 else inside

  def negative(point: np.ndarray) -> tuple[float, np.ndarray]:
    point = np.clip(feasible(point), low, high)
    value, gradient = objective(point)
    if not math.isfinite(value) or not np.isfinite(gradient).all():
      raise NonFinite(f"the objective is {value} with slopes {gradient} at ratios {point}")
    seen.append((value, point))
    return -value, -np.asarray(gradient, np.float64)

  if num_parts == 1 or low == high:
    value = -negative(np.full(num_parts, alpha))[0]
    return Solution(np.full(num_parts, alpha), value, 1, True, "nothing to choose")
  mean = {"type": "eq", "fun": lambda a: a.sum() - num_parts * alpha, "jac": np.ones_like}
  every = [
    scipy.optimize.minimize(
      negative,
      feasible(first),
      jac=True,
      method="SLSQP",
      bounds=[(low, high)] * num_parts,
      constraints=[mean],
      options={"ftol": tolerance, "maxiter": max_iterations},
    )
    for first in begin
  ]
  last = min(every, key=lambda end: end.fun)
  # The best point seen, which a failed line search may have left.
  value, ratios = max(seen, key=lambda pair: pair[0])
  return Solution(ratios, value, len(seen), bool(last.success), str(last.message))


class Grid(NamedTuple):
  """An objective at many ratios.

  Attributes:
    ratios: [G, K] float64.
    values: [G] float64.
    best: the index of the largest value; of equal ones the first.
  """

  ratios: np.ndarray
  values: np.ndarray
  best: int


def grid_search(objective: Callable[[np.ndarray], float], ratios: np.ndarray) -> Grid:
  """Evaluates an objective at every row of ratios [G, K], such as those of `ratios.grid`.

  Raises:
    NonFinite: if a value is NaN or infinite; names the ratios.
  """
  values = np.array([float(objective(row)) for row in ratios], np.float64)
  if not np.isfinite(values).all():
    bad = ratios[~np.isfinite(values)].tolist()
    raise NonFinite(f"the objective is not finite at the ratios {bad}")
  return Grid(np.asarray(ratios, np.float64), values, int(np.argmax(values)))


class EpsilonSearch(NamedTuple, Generic[Result]):
  """A search for each ε.

  Attributes:
    epsilons: those tried.
    results: what each search returned.
    scores: [E] float64.
    best: the index of the highest score; of equal ones the first.
  """

  epsilons: tuple[float, ...]
  results: list[Result]
  scores: np.ndarray
  best: int


def search_epsilon(
  search: Callable[[float], Result],
  score: Callable[[Result], float],
  epsilons: Sequence[float] = EPSILONS,
) -> EpsilonSearch[Result]:
  """Searches once for every ε and keeps the best by a score, "to get the best model" (appendix C.5).

  The paper does not say by what, or on which data: score on a split that no reported number comes from.

  Args:
    search: ε -> a result.
    score: of a result, the higher the better.
    epsilons: default those of the paper, 0 to 0.9.

  Raises:
    ConfigError: if there is no ε. NonFinite: if a score is NaN or infinite.
  """
  if not len(epsilons):
    raise ConfigError("search_epsilon: expected at least one epsilon, found none")
  results = [search(float(epsilon)) for epsilon in epsilons]
  scores = np.array([float(score(result)) for result in results], np.float64)
  if not np.isfinite(scores).all():
    raise NonFinite(f"scores of epsilon {list(epsilons)} are not all finite: {scores.tolist()}")
  return EpsilonSearch(tuple(map(float, epsilons)), results, scores, int(np.argmax(scores)))
