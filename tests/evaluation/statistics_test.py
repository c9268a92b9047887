"""Intervals against scipy, closed forms and repeated sampling."""

import numpy as np
import pytest
import scipy.stats

from wam.core.errors import BadData, ConfigError
from wam.evaluation import statistics


def test_mean_interval_is_near_the_t_interval():
  samples = np.random.default_rng(0).normal(3.0, 2.0, size=400)
  found = statistics.mean_interval(samples)
  low, high = scipy.stats.t.interval(0.95, 399, samples.mean(), scipy.stats.sem(samples))
  assert found.value == samples.mean()
  np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.03)
  assert found == statistics.mean_interval(samples)


def test_constant_samples_have_a_point_interval():
  assert statistics.mean_interval(np.ones(5)) == (1.0, 1.0, 1.0, 0.95)


def test_bad_samples_are_refused():
  with pytest.raises(BadData, match="at least 2"):
    statistics.mean_interval(np.ones(1))
  with pytest.raises(BadData, match="1 of 3 items"):
    statistics.mean_interval(np.array([1.0, np.nan, 2.0]))
  with pytest.raises(ConfigError, match=r"0\.95"):
    statistics.mean_interval(np.arange(3.0), level=95)
  with pytest.raises(ValueError, match="shapes differ"):
    statistics.paired_difference(np.ones(3), np.ones(4))


def test_paired_difference_counts_all_sign_flips():
  """Six differences of one sign: 2 of the 64 sign patterns are as extreme, p = 1/32."""
  found = statistics.paired_difference(np.arange(6.0) + 1, np.zeros(6))
  assert found.p_value == pytest.approx(2 / 64)
  assert found.difference.value == 3.5
  assert statistics.paired_difference(np.ones(4), np.ones(4)).p_value == 1.0


def test_pairing_removes_what_both_share():
  random = np.random.default_rng(1)
  common = random.normal(0, 10, size=200)
  a = common + 0.2 + random.normal(0, 0.1, size=200)
  found = statistics.paired_difference(a, common)
  assert 0.15 < found.difference.low < found.difference.high < 0.25
  assert found.p_value < 0.01


@pytest.mark.parametrize(("wins", "total"), [(0, 10), (7, 10), (10, 10), (431, 1000)])
def test_win_rate_is_wilsons(wins, total):
  found = statistics.win_rate(wins, total - wins, level=0.9)
  expected = scipy.stats.binomtest(wins, total).proportion_ci(0.9, method="wilson")
  np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], atol=1e-12)
  assert found.value == wins / total


def test_ties_count_half():
  assert statistics.win_rate(3, 3, 4).value == 0.5
  assert statistics.win_rate(5, 3, 4).value == statistics.win_rate(7, 5).value
  for counts in ((0, 0, 0), (-1, 2, 0)):
    with pytest.raises(BadData, match="comparisons"):
      statistics.win_rate(*counts)


def test_resampling_counts():
  counts = statistics.resampling_counts(np.random.default_rng(0), 20, 500)
  assert (counts.sum(1) == 20).all()
  np.testing.assert_allclose(counts.mean(0), 1.0, atol=0.2)
