"""Fronts by brute force; hypervolumes by closed form, grid counting and inclusion-exclusion."""

import itertools

import numpy as np
import pytest

from wam.core.errors import BadData
from wam.evaluation import pareto


def slow_front(points):
  """Straight from the definition."""
  kept = []
  for i, p in enumerate(points):
    beaten = any(
      all(q[r] >= p[r] for r in range(len(p))) and any(q[r] > p[r] for r in range(len(p)))
      for q in points
    )
    if not beaten:
      kept.append(i)
  return set(kept)


def inclusion_exclusion(points, reference):
  """Volume of a union of boxes, over all subsets."""
  boxes = [np.maximum(np.array(p) - reference, 0) for p in points]
  total = 0.0
  for size in range(1, len(boxes) + 1):
    for subset in itertools.combinations(boxes, size):
      total += (-1) ** (size + 1) * np.prod(np.min(subset, axis=0))
  return total


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_front_is_what_nothing_dominates(num_objectives):
  random = np.random.default_rng(num_objectives)
  points = random.integers(0, 5, size=(40, num_objectives)).astype(float)  # ties and duplicates
  found = pareto.front(points)
  assert set(found.tolist()) == slow_front(points.tolist())
  assert (np.diff(points[found][:, 0]) >= 0).all()
  assert not pareto.dominated(points)[found].any()


def test_duplicates_are_all_kept():
  assert pareto.front(np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 2.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_hypervolume_is_the_volume_of_the_union(num_objectives):
  random = np.random.default_rng(10 + num_objectives)
  for _ in range(5):
    points = random.normal(size=(9, num_objectives)).round(1)  # some below the reference, some tied
    reference = np.full(num_objectives, -0.5)
    exact = inclusion_exclusion(points, reference)
    np.testing.assert_allclose(pareto.hypervolume(points, reference), exact, rtol=1e-10, atol=1e-12)


def test_hypervolume_of_simple_shapes():
  assert pareto.hypervolume(np.array([[2.0, 3.0]]), np.array([1.0, 1.0])) == 2.0
  assert pareto.hypervolume(np.array([[2.0, 3.0, 5.0]]), np.zeros(3)) == 30.0
  assert pareto.hypervolume(np.zeros((0, 2)), np.zeros(2)) == 0.0
  # Better in one objective only: nothing.
  assert pareto.hypervolume(np.array([[5.0, -1.0], [3.0, 0.0]]), np.zeros(2)) == 0.0
  # A fine staircase under x + y = 1 tends to the triangle.
  x = np.linspace(0, 1, 2001)
  np.testing.assert_allclose(
    pareto.hypervolume(np.stack([x, 1 - x], -1), np.zeros(2)), 0.5, atol=5e-4
  )


def test_hypervolume_ignores_order_and_dominated_points_and_grows():
  random = np.random.default_rng(0)
  points = random.uniform(size=(12, 3))
  reference = np.zeros(3)
  whole = pareto.hypervolume(points, reference)
  assert pareto.hypervolume(points[random.permutation(12)], reference) == pytest.approx(
    whole, rel=1e-12
  )
  assert pareto.hypervolume(points[pareto.front(points)], reference) == pytest.approx(
    whole, rel=1e-12
  )
  assert pareto.hypervolume(points[:6], reference) < whole
  assert pareto.hypervolume(np.vstack([points, [1.0, 1.0, 1.0]]), reference) == pytest.approx(1.0)


def test_what_cannot_be_measured_is_refused():
  with pytest.raises(BadData, match=r"rows \[1\] hold NaN"):
    pareto.front(np.array([[1.0, 2.0], [np.nan, 0.0]]))
  with pytest.raises(ValueError, match="reference of shape"):
    pareto.hypervolume(np.ones((2, 2)), np.zeros(3))
  with pytest.raises(BadData, match="finite"):
    pareto.hypervolume(np.ones((2, 2)), np.array([-np.inf, 0.0]))
  with pytest.raises(BadData, match="above worst"):
    pareto.normalize(np.ones((1, 2)), np.array([0.0, 1.0]), np.array([1.0, 1.0]))
  with pytest.raises(BadData, match="same points"):
    pareto.bootstrap_hypervolume([np.ones((2, 1, 3)), np.ones((3, 1, 3))], np.zeros(2))


def test_coverage_normalize_standardize():
  a = np.array([[2.0, 2.0]])
  b = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 0.0], [0.0, 3.0]])
  assert pareto.coverage(a, b) == 0.5
  assert pareto.coverage(b, a) == 1.0
  assert pareto.normalize(b, np.zeros(2), np.array([2.0, 4.0]))[2].tolist() == [1.5, 0.0]
  samples = np.array([[0.0, 10.0], [2.0, 30.0]])
  assert pareto.standardize(np.array([[2.0, 20.0]]), samples)[0].tolist() == [1.0, 0.0]
  assert pareto.dominates(a[0], b[0]) and not pareto.dominates(a[0], a[0])


def test_bootstrap_interval_covers_the_true_volume():
  """One point, so that the volume is a product of means: the 90% interval covers it about 90 times in 100."""
  random = np.random.default_rng(4)
  hits = 0
  for trial in range(100):
    scores = [random.normal(1.0, 0.5, size=(1, 1, 200)), random.normal(2.0, 0.5, size=(1, 1, 150))]
    found = pareto.bootstrap_hypervolume(
      scores, np.zeros(2), level=0.9, num_resamples=200, seed=trial
    )
    hits += found.low <= 2.0 <= found.high
  assert 80 <= hits <= 98


def test_bootstrap_draws_the_same_items_for_all_points():
  """Two points whose errors are the same item by item: the volume between them does not vary."""
  noise = np.random.default_rng(0).normal(size=(1, 2, 50))
  first = np.concatenate([noise, noise + 1.0])
  scores = [first, np.tile(np.array([2.0, 1.0])[:, None, None], (1, 2, 50))]
  shifted = [first - noise, scores[1]]
  steady = pareto.bootstrap_hypervolume(shifted, np.array([-1.0, 0.0]))
  assert steady.low == pytest.approx(steady.high) == pytest.approx(3.0)
  moving = pareto.bootstrap_hypervolume(scores, np.array([-5.0, 0.0]))
  assert moving.low < moving.value < moving.high
  assert moving == pareto.bootstrap_hypervolume(scores, np.array([-5.0, 0.0]))


def test_bootstrap_of_a_metric_that_is_not_a_mean():
  """A ratio of sums, as in corpus BLEU: finish makes it of mean statistics."""
  statistics = np.random.default_rng(1).integers(1, 9, size=(3, 2, 40, 2)).astype(float)
  ratio = lambda s: s[..., 0] / s[..., 1]  # noqa: E731
  found = pareto.bootstrap_hypervolume([statistics], np.zeros(1), finish=[ratio])
  by_hand = (statistics[..., 0].sum(2) / statistics[..., 1].sum(2)).mean(1).max()
  assert found.value == pytest.approx(by_hand)
  assert found.low < found.value < found.high
