"""Grids, utilities, ε-dominance and connectivity against closed forms, brute force and the published tables."""

import itertools
import math

import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError, UnknownName
from wam.evaluation import pareto, simplex


@pytest.mark.parametrize(("rewards", "intervals"), [(1, 3), (2, 10), (3, 4), (4, 3)])
def test_grid_is_every_multiple_once(rewards, intervals):
  found = simplex.grid(rewards, intervals)
  assert len(found) == math.comb(intervals + rewards - 1, rewards - 1)
  counts = itertools.product(range(intervals, -1, -1), repeat=rewards)
  expected = [np.array(c) / intervals for c in counts if sum(c) == intervals]
  np.testing.assert_array_equal(found, expected)
  # The corners are exact.
  assert (found == 1).any(axis=1).sum() == rewards


@pytest.mark.parametrize(("rewards", "intervals"), [(2, 1), (2, 7), (3, 1), (3, 5)])
def test_preferences_lie_inside_and_are_balanced(rewards, intervals):
  found = simplex.preferences(rewards, intervals)
  assert len(found) == intervals ** (rewards - 1) and (found > 0).all()
  np.testing.assert_allclose(found.sum(axis=1), 1)
  np.testing.assert_allclose(found.mean(axis=0), 1 / rewards)


def test_grids_that_cannot_be():
  with pytest.raises(ConfigError, match="needs 1 reward and 1 interval"):
    simplex.grid(2, 0)
  with pytest.raises(ConfigError, match="2 rewards at least, found 1"):
    simplex.preferences(1, 2)


def test_expected_utility_closed_forms():
  """Of one point, its mean; of the two corners, E max(μ, 1 - μ) = 3/4; of a circle's points, E ‖μ‖."""
  users = simplex.preferences(2, 100)
  assert simplex.expected_utility(np.array([[3.0, 5.0]]), users) == pytest.approx(4)
  assert simplex.expected_utility(np.eye(2), users) == pytest.approx(3 / 4)
  angles = np.linspace(0, np.pi / 2, 2001)
  circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  # ∫ √(μ² + (1 - μ)²) dμ from 0 to 1.
  expected = (math.sqrt(2) + math.asinh(1)) / (2 * math.sqrt(2))
  assert simplex.expected_utility(circle, users) == pytest.approx(expected, abs=1e-4)
  # Three corners: the mean of the largest of three numbers of a flat Dirichlet, (1 + 1/2 + 1/3)/3.
  assert simplex.expected_utility(np.eye(3), simplex.preferences(3, 60)) == pytest.approx(
    11 / 18, abs=1e-3
  )


def test_utility_brute_force_and_order():
  draw = np.random.default_rng(0)
  points, users = draw.normal(size=(7, 3)), draw.dirichlet([1, 1, 1], size=11)
  table = [[sum(m * r for m, r in zip(u, p, strict=True)) for p in points] for u in users]
  best = [max(row) for row in table]
  assert simplex.expected_utility(points, users) == pytest.approx(sum(best) / 11)
  assert simplex.best_for(points, users).tolist() == [row.index(max(row)) for row in table]
  # Neither order nor dominated points matter.
  more = np.concatenate([points[::-1], points[:2] - 0.5])
  assert simplex.expected_utility(more, users) == pytest.approx(sum(best) / 11)


def test_lambda_for_a_user():
  lambdas = simplex.grid(2, 10)
  users = np.array([[0.5, 0.5], [0.97, 0.03], [1.0, 0.0], [0.05, 0.95]])
  # 0.05 is as far from 0 as from 0.1; the first of the grid is 0.1.
  np.testing.assert_allclose(lambdas[simplex.nearest(lambdas, users)][:, 0], [0.5, 1, 1, 0.1])
  rewards = np.stack([lambdas[:, 0], 2 * np.sqrt(lambdas[:, 1])], axis=1)
  chosen = simplex.best_for(rewards, np.array([[0.8, 0.2]]))
  # max 0.8·λ + 0.4·√(1 - λ): λ = 1 - (0.4 / 1.6)² = 0.9375, of the grid 0.9.
  np.testing.assert_allclose(lambdas[chosen], [[0.9, 0.1]])


def test_additive_epsilon():
  front = np.array([[0.0, 3.0], [2.0, 2.0], [3.0, 0.0]])
  assert simplex.additive_epsilon(front, front) == 0
  assert simplex.additive_epsilon(front + 0.5, front) == -0.5
  assert simplex.additive_epsilon(front[:2], front) == 1.0  # (2, 2) + 1 covers (3, 0)
  assert simplex.additive_epsilon(front, np.array([[2.5, 2.25]])) == 0.5
  draw = np.random.default_rng(0)
  a, b = draw.normal(size=(6, 3)), draw.normal(size=(9, 3))
  epsilon = simplex.additive_epsilon(a, b)
  assert pareto.coverage(a + epsilon + 1e-12, b) == 1
  assert pareto.coverage(a + epsilon - 1e-9, b) < 1


# The tables of the authors' README: λ is on the second reward of each pair; rows are the ends and the middle.
PUBLISHED = {
  "news summary": [[0.9837, -0.788], [1.4593, -1.080], [1.7814, -1.526]],
  "captioning, BLEU1 and ROUGE": [[0.8497, 0.6038], [0.8395, 0.6095], [0.8234, 0.6100]],
  "captioning, CIDEr": [[1.3701], [1.3868], [1.3707]],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_are_connected(name):
  table = np.array(PUBLISHED[name])
  lambdas = simplex.grid(2, 2)
  gaps = simplex.connectivity_gaps(lambdas, table)
  np.testing.assert_allclose(gaps[1], table[1] - (table[0] + table[2]) / 2)
  assert (gaps >= 0).all() and (gaps[1] > 0).all()
  np.testing.assert_array_equal(gaps[[0, 2]], 0)
  # Turned upside down, they are not.
  assert (simplex.connectivity_gaps(lambdas, -table)[1] < 0).all()


def test_connectivity_of_a_quadratic_in_three_rewards():
  """R(θ) = -‖θ‖² is concave: the gap of a soup is Σ λ_i ‖θ_i‖² - ‖Σ λ_i θ_i‖²."""
  draw = np.random.default_rng(0)
  corners, lambdas = draw.normal(size=(3, 5)), simplex.grid(3, 4)
  scores = -((lambdas @ corners) ** 2).sum(axis=1)
  expected = lambdas @ (corners**2).sum(axis=1) + scores
  found = simplex.connectivity_gaps(lambdas, scores)
  np.testing.assert_allclose(found, expected, atol=1e-12)
  assert (found >= 0).all()


def test_connectivity_needs_the_corners_and_finite_scores():
  with pytest.raises(BadData, match="λ = 1 on reward 1 was not measured"):
    simplex.connectivity_gaps(np.array([[1.0, 0.0], [0.5, 0.5]]), np.zeros(2))
  with pytest.raises(BadData, match="1 that are not finite"):
    simplex.connectivity_gaps(np.eye(2), np.array([0.0, np.nan]))
  with pytest.raises(BadData, match="expected finite rewards"):
    simplex.expected_utility(np.zeros((0, 2)), np.eye(2))


def test_coefficients_by_name():
  found = simplex.check({"b": 0.75, "a": 0.25}, ["a", "b", "c"], "preferences.x")
  np.testing.assert_array_equal(found, [0.25, 0.75, 0])
  for bad in ({"a": 0.6, "b": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan"), "b": 1}, {}):
    with pytest.raises(ConfigError, match=r"preferences\.x: .* off the simplex"):
      simplex.check(bad, ["a", "b"], "preferences.x")
  with pytest.raises(UnknownName, match=r"preferences\.x 'warmht'. Did you mean 'warmth'"):
    simplex.check({"warmht": 1.0}, ["warmth", "b"], "preferences.x")
