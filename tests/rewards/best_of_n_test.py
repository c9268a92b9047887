import itertools

import numpy as np
import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.rewards import best_of_n


@pytest.mark.parametrize("n", range(1, 8))
def test_estimator_equals_the_mean_over_all_subsets(n):
  draw = np.random.default_rng(0)
  proxy, gold = draw.normal(size=7), draw.normal(size=7)
  subsets = list(itertools.combinations(range(7), n))
  expected = np.mean([max(proxy[list(s)]) for s in subsets])
  assert best_of_n.expected_best(proxy, n) == pytest.approx(expected)
  worth = np.mean([gold[max(s, key=lambda i: proxy[i])] for s in subsets])
  assert best_of_n.expected_best(gold, n, ranked_by=proxy) == pytest.approx(worth)


def test_estimator_at_its_ends_and_in_batches():
  rewards = np.random.default_rng(1).normal(size=(3, 5))
  np.testing.assert_allclose(best_of_n.expected_best(rewards, 1), rewards.mean(1))
  np.testing.assert_allclose(best_of_n.expected_best(rewards, 5), rewards.max(1))
  # Far beyond where binomials overflow.
  many = np.linspace(0, 1, 5000)
  assert best_of_n.expected_best(many, 2500) == pytest.approx(1 - 1 / 2501, abs=1e-3)
  with pytest.raises(ValueError, match="between 1 and the 5"):
    best_of_n.expected_best(rewards, 6)


def test_kl_bound_of_the_papers():
  assert best_of_n.kl_bound(8) == pytest.approx(1.204, abs=1e-3)
  assert best_of_n.kl_bound(1000) == pytest.approx(5.909, abs=1e-3)


REWARDS = np.asarray([[0.1, 0.7, 0.7], [0.5, 0.5, 0.5], [0.9, 0.2, 0.3], [0.4, 0.6, 0.8]])
FINISHED = np.asarray([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 0]], bool)


def test_best_per_prompt():
  found = best_of_n.select(REWARDS, FINISHED)
  # The first of equals; prompt 1 is tied; the best of prompt 2 does not end; nothing of prompt 3 does.
  np.testing.assert_array_equal(found.rows, [1, 8])
  assert (found.ties, found.unfinished) == (1, 4)


def test_one_sample_is_plain_self_distillation():
  found = best_of_n.select(REWARDS[:, :1], np.ones((4, 1), bool))
  np.testing.assert_array_equal(found.rows, [0, 1, 2, 3])
  assert found.ties == 0


def test_selected_rewards_have_the_expectation_of_the_estimator():
  draw = np.random.default_rng(2)
  rewards = draw.normal(size=(4000, 4))
  rows = best_of_n.select(rewards, np.ones_like(rewards, bool)).rows
  assert rewards.reshape(-1)[rows].mean() == pytest.approx(
    best_of_n.expected_best(rewards, 4).mean(), abs=1e-9
  )
  assert rewards.reshape(-1)[rows].mean() == pytest.approx(1.029, abs=0.04)  # E max of 4 normals


def test_top_fraction():
  found = best_of_n.select(REWARDS, FINISHED, rule="top_fraction", fraction=0.25)
  np.testing.assert_array_equal(found.rows, [1, 2, 3])
  assert len(best_of_n.select(REWARDS, FINISHED, rule="top_fraction").rows) == 4
  everything = best_of_n.select(REWARDS, FINISHED, rule="top_fraction", fraction=1.0)
  np.testing.assert_array_equal(everything.rows, np.flatnonzero(FINISHED.reshape(-1)))
  assert best_of_n.largest_selection(128, 8) == 128
  assert best_of_n.largest_selection(10, 7, 0.33) == 24


def test_unknown_rules_and_fractions_are_refused():
  with pytest.raises(UnknownName, match="Did you mean 'best_per_prompt'"):
    best_of_n.select(REWARDS, FINISHED, rule="best_of_prompt")
  with pytest.raises(ConfigError, match=r"found 1\.5"):
    best_of_n.select(REWARDS, FINISHED, rule="top_fraction", fraction=1.5)
  with pytest.raises(ConfigError, match="belongs to the rule 'top_fraction'"):
    best_of_n.select(REWARDS, FINISHED, fraction=0.5)
