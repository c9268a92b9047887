"""The search for a front, on objectives whose front is a straight line: every point of it is known."""

import sys

import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError, UnknownName
from wam.evaluation import pareto, search

pytest.importorskip("optuna", reason="the extra 'search' is not installed")
ONE, OTHER = np.array([0.1, 0.2, 0.9]), np.array([0.7, 0.8, 0.3])
REFERENCE = np.array([-1.2, -1.2])


def evaluate(point):
  """Nearness to two points: nothing beats the line between them."""
  return -np.sum((point - ONE) ** 2), -np.sum((point - OTHER) ** 2)


def volume(objectives):
  return pareto.hypervolume(objectives, REFERENCE)


@pytest.fixture(scope="module")
def found():
  return search.search_front(evaluate, 3, num_evaluations=60)


def line(points=201):
  share = np.linspace(0, 1, points)[:, None]
  return np.array([evaluate(p) for p in (1 - share) * ONE + share * OTHER])


@pytest.mark.parametrize("method", search.METHODS)
def test_the_front_is_found(found, method):
  if method != "tpe":
    found = search.search_front(evaluate, 3, num_evaluations=60, method=method)
  assert len(found.ratios) == 60 and found.ratios.min() >= 0 and found.ratios.max() <= 1
  draw = np.random.default_rng(0)
  blind = [volume(np.array([evaluate(p) for p in draw.uniform(0, 1, (60, 3))])) for _ in range(5)]
  best = volume(line())
  assert np.mean(blind) < volume(found.objectives) <= best
  assert volume(found.objectives) > 0.85 * best
  # Vanilla averaging is where it starts.
  np.testing.assert_array_equal(found.ratios[:5], np.outer(search.EQUAL_RATIOS, np.ones(3)))
  assert found.front.tolist() == pareto.front(found.objectives).tolist()


def test_values_belong_to_their_points_and_no_point_comes_twice(found):
  np.testing.assert_array_equal(found.objectives, [evaluate(p) for p in found.ratios])
  assert len(np.unique(found.ratios, axis=0)) == len(found.ratios)


def test_the_same_seed_gives_the_same_search(found):
  again = search.search_front(evaluate, 3, num_evaluations=60)
  np.testing.assert_array_equal(again.ratios, found.ratios)
  other = search.search_front(evaluate, 3, num_evaluations=60, seed=1)
  assert not np.array_equal(other.ratios, found.ratios)


def test_an_interrupted_search_goes_on(found):
  kept, calls = [], []

  def counted(point):
    calls.append(point)
    return evaluate(point)

  search.search_front(counted, 3, num_evaluations=25, on_point=kept.append)
  assert [len(k.ratios) for k in kept] == list(range(1, 26))
  calls.clear()
  again = search.search_front(counted, 3, num_evaluations=60, seen=kept[-1])
  assert len(calls) == 35
  np.testing.assert_array_equal(again.ratios, found.ratios)


@pytest.mark.parametrize("method", search.METHODS)
def test_a_given_mean_is_kept(method):
  result = search.search_front(evaluate, 3, num_evaluations=30, alpha=0.45, method=method, low=0.1)
  np.testing.assert_allclose(result.ratios.mean(1), 0.45, atol=2e-6)
  assert result.ratios.min() >= 0.1 and result.ratios.max() <= 1
  np.testing.assert_allclose(result.ratios[0], 0.45)


def test_few_points_end_the_search():
  """One part of a given mean: there is one point."""
  result = search.search_front(lambda a: (a[0], -a[0]), 1, num_evaluations=10, alpha=0.3)
  assert result.ratios.tolist() == [[0.3]]


def test_own_starts():
  starts = np.array([ONE, OTHER])
  result = search.search_front(evaluate, 3, num_evaluations=4, starts=starts)
  np.testing.assert_allclose(result.ratios[:2], starts)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    ({"method": "nsga"}, UnknownName, "search method 'nsga'. Did you mean 'nsga2'"),
    ({"num_evaluations": 0}, ConfigError, "num_evaluations and num_parts from 1"),
    ({"alpha": 1.2}, ConfigError, "alpha between them"),
    ({"evaluate": lambda a: (1.0, np.nan)}, BadData, r"evaluate returned \[1.0, nan\] at the ratios"),
    ({"evaluate": lambda a: [1.0] * (1 + int(a[0] > 0))}, BadData, "the same objectives"),
  ],
)  # fmt: skip
def test_what_is_refused(call, error, message):
  keywords = {"evaluate": evaluate, "num_evaluations": 5} | call
  with pytest.raises(error, match=message):
    search.search_front(keywords.pop("evaluate"), 3, **keywords)


def test_without_optuna(monkeypatch):
  monkeypatch.setitem(sys.modules, "optuna", None)
  with pytest.raises(ConfigError, match=r"pip install 'wam\[search\]'"):
    search.search_front(evaluate, 3, num_evaluations=5)
