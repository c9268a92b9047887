"""Searches on objectives whose maxima over the set are known in closed form or by linear programming."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.core.errors import ConfigError, NonFinite
from wam.merging import ratio_search, ratios

TARGET = np.array([0.9, 0.1, -0.4])


def quadratic(point):
  """-‖a - TARGET‖²/2: best at the projection of TARGET."""
  away = np.asarray(point, np.float64) - TARGET
  return -0.5 * float(away @ away), -away


def best(alpha, low=0.0, high=1.0):
  projected = ratios.projection(jnp.asarray(TARGET, jnp.float32), alpha, low=low, high=high)
  return np.asarray(projected, np.float64)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_projected_steps_find_the_maximum_and_keep_the_mean(alpha, name):
  schedule = optax.cosine_decay_schedule({"adam": 0.05, "sgd": 0.3}[name], 150)
  climb = ratio_search.ascent(ratios.form("projected", 3, alpha), getattr(optax, name)(schedule))
  state = climb.init()
  for _ in range(150):
    state = climb.update(jnp.asarray(quadratic(climb.value(state))[1]), state)
    found = np.asarray(climb.value(state))
    assert abs(found.mean() - alpha) < 1e-6
    assert found.min() >= 0 and found.max() <= 1
  np.testing.assert_allclose(found, best(alpha), atol=2e-3)
  assert int(state.num_updates) == 150


def test_reparameterised_steps_find_the_maximum_inside_the_bounds():
  alpha, epsilon = 0.3, 0.2
  form = ratios.form("coded", 3, alpha, epsilon=epsilon)
  climb = ratio_search.ascent(form, optax.adam(0.2))
  state = climb.init()
  for _ in range(300):
    state = climb.update(jnp.asarray(quadratic(climb.value(state))[1]), state)
    assert abs(float(climb.value(state).mean()) - alpha) < 1e-6
  low, high = ratios.bounds("coded", 3, alpha, epsilon=epsilon)
  found = np.asarray(climb.value(state), np.float64)
  assert low - 1e-6 <= found.min() and found.max() <= high + 1e-6
  dense = ratios.grid(3, alpha, step=0.002, low=low, high=high)
  # Shares lie in (ε, 1 + ε): no ratio is (1 + ε)/ε times another, which is less than the bounds allow.
  reachable = dense[dense.max(1) <= 6 * dense.min(1)]
  assert len(reachable) < len(dense)
  best_value = max(quadratic(point)[0] for point in reachable)
  assert best_value - 1e-3 < quadratic(found)[0] < best_value + 1e-3


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize(
  ("alpha", "low", "high"), [(0.3, 0.0, 1.0), (0.6, 0.0, 1.0), (0.3, 0.2, 0.5)]
)
def test_solver(num_parts, alpha, low, high):
  points = []

  def objective(point):
    points.append(point)
    value, slopes = quadratic(np.resize(point, 3))
    return value, slopes[:num_parts]

  found = ratio_search.solve(objective, num_parts, alpha, low=low, high=high, tolerance=1e-10)
  assert found.converged
  assert found.evaluations == len(points) <= 20
  for point in [*points, found.ratios]:
    assert abs(point.mean() - alpha) < 1e-6
    assert point.min() >= low and point.max() <= high
  expected = best(alpha, low, high) if num_parts == 3 else [alpha]
  np.testing.assert_allclose(found.ratios, expected, atol=1e-4)


def test_solver_finds_the_corner_of_a_linear_objective():
  slopes = np.array([1.0, 3.0, 2.0])
  found = ratio_search.solve(lambda a: (float(a @ slopes), slopes), 3, 0.5)
  np.testing.assert_allclose(found.ratios, [0, 1, 0.5], atol=1e-6)


def test_several_starts_find_the_higher_of_two_maxima():
  """Two hills, the lower one nearer to equal ratios."""
  low_hill, high_hill = np.array([0.5, 0.25, 0.15]), np.array([0.0, 0.1, 0.8])

  def objective(point):
    heights = [np.exp(-40 * np.sum((point - c) ** 2)) for c in (low_hill, high_hill)]
    slopes = -80 * (heights[0] * (point - low_hill) + 3 * heights[1] * (point - high_hill))
    return float(heights[0] + 3 * heights[1]), slopes

  one = ratio_search.solve(objective, 3, 0.3)
  np.testing.assert_allclose(one.ratios, low_hill, atol=1e-2)
  starts = ratios.random_points(np.random.default_rng(0), 10, 3, 0.3)
  np.testing.assert_allclose(starts.mean(1), 0.3, atol=1e-6)
  several = ratio_search.solve(objective, 3, 0.3, starts=starts)
  np.testing.assert_allclose(several.ratios, high_hill, atol=1e-2)
  assert several.converged


def test_grid_search_agrees_with_the_solver():
  grid = ratio_search.grid_search(lambda a: quadratic(a)[0], ratios.grid(3, 0.3, step=0.05))
  found = ratio_search.solve(quadratic, 3, 0.3)
  np.testing.assert_allclose(grid.ratios[grid.best], found.ratios, atol=0.05)
  assert grid.values.max() <= found.value + 1e-6


def test_epsilon_search_keeps_the_best_and_of_equals_the_first():
  def search(epsilon):
    low, high = ratios.bounds("projected", 3, 0.3, epsilon=epsilon)
    return ratio_search.solve(quadratic, 3, 0.3, low=low, high=high)

  found = ratio_search.search_epsilon(search, lambda solution: solution.value)
  assert found.epsilons == ratios.EPSILONS
  # A larger epsilon allows less.
  assert (np.diff(found.scores) < 1e-6).all()
  assert found.best == 0
  assert ratio_search.search_epsilon(search, lambda _: 1.0, [0.5, 0.1]).best == 0
  with pytest.raises(ConfigError, match="at least one epsilon"):
    ratio_search.search_epsilon(search, lambda _: 1.0, [])
  with pytest.raises(NonFinite, match="not all finite"):
    ratio_search.search_epsilon(search, lambda _: np.nan, [0.1])


def test_what_is_not_finite_is_refused():
  with pytest.raises(NonFinite, match=r"the objective is nan .* at ratios"):
    ratio_search.solve(lambda a: (np.nan, np.zeros(3)), 3, 0.3)
  with pytest.raises(NonFinite, match=r"not finite at the ratios \[\[0.3, 0.3, 0.3\]\]"):
    ratio_search.grid_search(lambda a: np.inf, np.full((1, 3), 0.3))
  with pytest.raises(ConfigError, match="outside"):
    ratio_search.solve(quadratic, 3, 0.3, low=0.4)
