"""Ratios against the equations in float64, and projections against the enumeration of all active sets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from wam.core.errors import ConfigError, UnknownName
from wam.merging import ratio_search, ratios


def twin(kind, s, alpha, epsilon):
  """Equation 13 as it stands, float64."""
  shares = 1 / (1 + np.exp(-np.asarray(s, np.float64))) + epsilon
  printed = alpha * shares / shares.sum()
  return printed if kind == "printed" else len(s) * printed


def slow_projection(values, alpha, low, high):
  """The nearest of the points that each choice of bounds leaves."""
  values, K = np.asarray(values, np.float64), len(values)
  best, nearest = np.inf, None
  for choice in itertools.product((low, high, None), repeat=K):
    free = np.array([c is None for c in choice])
    point = np.array([0.0 if c is None else c for c in choice])
    rest = K * alpha - point.sum()
    if free.any():
      point[free] = values[free] + (rest - values[free].sum()) / free.sum()
    elif abs(rest) > 1e-12:
      continue
    if point.min() < low - 1e-12 or point.max() > high + 1e-12:
      continue
    distance = np.sum((point - values) ** 2)
    if distance < best:
      best, nearest = distance, point
  return nearest


@pytest.mark.parametrize("num_parts", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("kind", ["printed", "coded"])
def test_equal_numbers_give_equal_ratios(kind, num_parts):
  for alpha in (0.0, 0.1, 0.2, 0.3, 0.7, 1.0):
    for epsilon in (0.0, 0.3, 1.0):
      form = ratios.form(kind, num_parts, alpha, epsilon=epsilon)
      found = np.asarray(form.ratios(form.start))
      expected = np.float32(alpha if kind == "coded" else alpha / num_parts)
      assert found.dtype == np.float32
      assert (found == expected).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("kind", ["printed", "coded"])
def test_any_numbers_give_ratios_of_the_mean_inside_the_bounds(kind, epsilon):
  draw = np.random.default_rng(0)
  for num_parts in (1, 3, 6, 9):
    form = ratios.form(kind, num_parts, 0.3, epsilon=epsilon)
    low, high = ratios.bounds(kind, num_parts, 0.3, epsilon=epsilon)
    for scale in (0.1, 1.0, 20.0):
      s = draw.normal(0, scale, num_parts).astype(np.float32)
      found = np.asarray(form.ratios(jnp.asarray(s)))
      np.testing.assert_allclose(found, twin(kind, s, 0.3, epsilon), rtol=3e-6, atol=1e-8)
      mean = 0.3 / num_parts if kind == "printed" else 0.3
      np.testing.assert_allclose(found.mean(), mean, atol=1e-6)
      assert low - 1e-6 <= found.min() and found.max() <= high + 1e-6


@pytest.mark.parametrize("kind", ["printed", "coded"])
def test_the_bounds_are_reached(kind):
  low, high = ratios.bounds(kind, 3, 0.4, epsilon=0.5)
  form = ratios.form(kind, 3, 0.4, epsilon=0.5)
  assert float(form.ratios(jnp.array([-40.0, 40.0, 40.0]))[0]) == pytest.approx(low, rel=1e-5)
  assert float(form.ratios(jnp.array([40.0, -40.0, -40.0]))[0]) == pytest.approx(high, rel=1e-5)


def test_the_range_of_the_paper_is_that_of_the_printed_form():
  assert ratios.bounds("printed", 3, 0.5, epsilon=1.0) == pytest.approx((0.2 * 0.5, 0.5 * 0.5))
  assert ratios.bounds("coded", 3, 0.5, epsilon=1.0) == pytest.approx((0.6 * 0.5, 1.5 * 0.5))


@pytest.mark.parametrize(("epsilon", "limit"), [(0.0, 1 / 3), (0.2, 0.4444444), (1.0, 2 / 3)])
def test_the_coded_form_leaves_the_box_above_a_mean(epsilon, limit):
  assert ratios.bounds("coded", 3, limit - 1e-3, epsilon=epsilon)[1] < 1
  assert ratios.bounds("coded", 3, limit + 1e-3, epsilon=epsilon)[1] > 1
  assert ratios.bounds("projected", 3, limit + 1e-3, epsilon=epsilon)[1] == 1


@pytest.mark.parametrize("kind", ["printed", "coded"])
def test_gradient_with_respect_to_the_variables(kind):
  s = np.array([0.3, -1.2, 0.8])
  of_ratios = np.array([1.0, -2.0, 0.5])
  form = ratios.form(kind, 3, 0.4, epsilon=0.1)
  found = form.gradient(jnp.asarray(s, jnp.float32), jnp.asarray(of_ratios, jnp.float32))
  step = 1e-5 * np.eye(3)
  expected = [
    of_ratios @ (twin(kind, s + h, 0.4, 0.1) - twin(kind, s - h, 0.4, 0.1)) / 2e-5 for h in step
  ]
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ratios.KINDS)
def test_permuted_variables_give_permuted_ratios(kind):
  form = ratios.form(kind, 4, 0.3, epsilon=0.1)
  s, order = jnp.array([0.1, 0.9, -0.5, 0.3]), np.array([2, 0, 3, 1])
  found = form.ratios(form.retract(s))
  np.testing.assert_allclose(form.ratios(form.retract(s[order])), found[order], atol=1e-6)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5])
def test_projection_is_the_nearest_point(num_parts):
  draw = np.random.default_rng(num_parts)
  for _ in range(25):
    alpha = draw.uniform(0, 1)
    low, high = draw.choice([(0.0, 1.0), (alpha / 2, (1 + alpha) / 2)])
    values = draw.normal(alpha, 1.0, num_parts).astype(np.float32)
    found = np.asarray(ratios.projection(jnp.asarray(values), alpha, low=low, high=high))
    np.testing.assert_allclose(found, slow_projection(values, alpha, low, high), atol=2e-6)
    np.testing.assert_allclose(found.mean(), alpha, atol=1e-6)
    assert found.min() >= np.float32(low) and found.max() <= np.float32(high)


def test_projection_at_the_corners():
  project = lambda v, a: np.asarray(ratios.projection(jnp.asarray(v), a)).tolist()  # noqa: E731
  assert project([5.0, -3.0, 0.0], 0.0) == [0, 0, 0]
  assert project([5.0, -3.0, 0.0], 1.0) == [1, 1, 1]
  assert project([9.0, 0.0, -9.0], 2 / 3)[0] == 1
  np.testing.assert_allclose(project([1e4, 0.0, -1e4], 2 / 3), [1, 1, 0], atol=1e-6)
  # Equal numbers, however large, are spread evenly.
  np.testing.assert_allclose(project([1e6, 1e6, 1e6], 0.3), [0.3] * 3, atol=1e-7)
  # Points of the set stay.
  np.testing.assert_allclose(project([0.1, 0.2, 0.6], 0.3), [0.1, 0.2, 0.6], atol=1e-7)


def test_projection_is_differentiable():
  values, alpha = np.array([0.9, 0.2, -0.7, 0.6]), 0.45  # one ratio at 0, the others free or at 1
  weights = np.array([1.0, 2.0, -1.0, 0.5])
  value = lambda v, a: jnp.asarray(weights, jnp.float32) @ ratios.projection(v, a)  # noqa: E731
  found = jax.grad(value, argnums=(0, 1))(jnp.asarray(values, jnp.float32), jnp.float32(alpha))
  step = 1e-6

  def slope(h, da):
    up = slow_projection(values + h, alpha + da, 0, 1)
    return weights @ (up - slow_projection(values - h, alpha - da, 0, 1)) / (2 * step)

  np.testing.assert_allclose(found[0], [slope(step * e, 0) for e in np.eye(4)], atol=1e-5)
  np.testing.assert_allclose(found[1], slope(0, step), rtol=1e-5)


def test_directions_that_the_bounds_do_not_let_through_are_gone():
  form = ratios.form("projected", 3, 0.2)
  # Upwards everywhere: only what differs from the mean can be followed.
  found = form.gradient(jnp.full(3, 0.2), jnp.array([5.0, 6.0, 10.0]))
  np.testing.assert_allclose(found, [-2, -1, 3], atol=1e-2)
  # The first ratio cannot fall further: the others share the rest.
  found = form.gradient(jnp.array([0.0, 0.3, 0.3]), jnp.array([-10.0, 4.0, 6.0]))
  np.testing.assert_allclose(found, [0, -1, 1], atol=1e-2)


@pytest.mark.parametrize(("num_parts", "step"), [(1, 0.1), (2, 0.05), (3, 0.1), (4, 0.1)])
def test_grid(num_parts, step):
  points = ratios.grid(num_parts, 0.35, step=step)
  np.testing.assert_allclose(points.mean(1), 0.35, atol=1e-8)
  assert points.min() >= 0 and points.max() <= 1
  assert (np.abs(points - 0.35).max(1) < 1e-8).sum() == 1
  for corner in ratios.corners(num_parts, 0.35):
    assert (np.abs(points - corner).max(1) < 1e-8).sum() == 1
  if num_parts == 3:
    # By counting: all a, b with a + b <= 1.05 and what is left <= 1, on the lattice through 0.35.
    lattice = [0.35 + 0.1 * i for i in range(-3, 7)]
    count = sum(-1e-9 < 1.05 - a - b < 1 + 1e-9 for a in lattice for b in lattice)
    assert len(points) == count + sum((c < 0.01).any() for c in ratios.corners(3, 0.35))


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1 / 3, 0.5, 0.8, 1.0])
def test_a_linear_objective_is_best_at_a_corner(alpha):
  draw = np.random.default_rng(0)
  corners = np.array(ratios.corners(4, alpha))
  np.testing.assert_allclose(corners.mean(1), alpha, atol=1e-8)
  for _ in range(10):
    slopes = draw.normal(size=4)
    linear = scipy.optimize.linprog(
      -slopes, A_eq=np.ones((1, 4)), b_eq=[4 * alpha], bounds=[(0, 1)] * 4
    )
    np.testing.assert_allclose((corners @ slopes).max(), -linear.fun, atol=1e-6)


def test_patterns():
  found = ratios.patterns(0.3)
  assert list(found) == ["(0.3|0.3|0.3)", "(0.3|0.3|0.2)", "(0.3|0.2|0.2)"]
  assert found["(0.3|0.2|0.2)"].tolist() == [0.3, 0.2, 0.2]
  with pytest.raises(ConfigError, match=r"expected a step from 0 to alpha = 0\.05"):
    ratios.patterns(0.05)


def test_the_regulariser():
  weights = ratios.closeness_weights(26)
  assert weights.tolist() == [25 / (abs(layer - 13) + 1) for layer in range(26)]
  assert weights.argmax() == 13
  value, slopes = ratios.closeness_penalty([0.1, 0.3, 0.2], 0.2, np.array([2.0, 3.0, 5.0]))
  assert value == pytest.approx(0.5)
  assert slopes.tolist() == [-2.0, 3.0, 0.0]


def test_the_published_learning_rate_hardly_moves_the_ratios():
  """2000 steps at 2e-5 with cosine decay, the gradient always the same: trap 3 of the paper's appendix."""
  form = ratios.form("coded", 3, 0.2, epsilon=0.2)
  climb = ratio_search.ascent(form, optax.adam(optax.cosine_decay_schedule(2e-5, 2000)))
  gradient = jnp.array([1.0, -1.0, -1.0])
  state = jax.lax.fori_loop(0, 2000, lambda _, s: climb.update(gradient, s), climb.init())
  found = np.asarray(climb.value(state))
  assert found[0] > 0.2 > found[1]
  # logit(0.2) moves by the sum of the steps, 0.02 at most.
  moved = twin("coded", np.array([0.02, -0.02, -0.02]) + np.log(0.25), 0.2, 0.2)
  np.testing.assert_allclose(found, moved, atol=2e-5)
  assert np.abs(found - 0.2).max() < 2.6e-3


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda: ratios.form("code", 3, 0.2), UnknownName, "form of ratios 'code'. Did you mean 'coded'"),
    (lambda: ratios.form("coded", 0, 0.2), ConfigError, "at least 1 part"),
    (lambda: ratios.form("coded", 3, 1.2), ConfigError, r"alpha must lie in \[0, 1\], found 1.2"),
    (lambda: ratios.form("coded", 3, 0.2, epsilon=-1.0), ConfigError, "epsilon must be"),
    (lambda: ratios.grid(5, 0.2, step=0.1), ConfigError, "1 to 4 parts"),
    (lambda: ratios.grid(3, 0.2, step=0.0), ConfigError, "a step above 0"),
    (lambda: ratios.grid(3, 0.2, step=0.1, low=0.3), ConfigError, "outside"),
  ],
)  # fmt: skip
def test_what_is_refused(call, error, message):
  with pytest.raises(error, match=message):
    call()


def test_free_ratios_have_bounds_and_no_mean():
  form = ratios.form("free", 3, 0.3)
  np.testing.assert_array_equal(form.start, np.float32([0.3, 0.3, 0.3]))
  np.testing.assert_array_equal(form.retract(jnp.array([-0.2, 0.5, 1.7])), [0.0, 0.5, 1.0])
  # A ratio at a bound goes inwards only.
  direction = form.gradient(jnp.array([0.0, 0.5, 1.0]), jnp.array([-1.0, -2.0, 3.0]))
  np.testing.assert_allclose(direction, [0.0, -2.0, 0.0], rtol=1e-3)
  assert ratios.bounds("free", 3, 0.3) == (0.0, 1.0)
