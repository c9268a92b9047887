import numpy as np
import pytest
import scipy.stats

from wam.core.errors import ConfigError
from wam.evaluation import metrics, scores


def test_shares_have_wilsons_interval():
  score = scores.from_items("t", "accuracy", [1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
  interval, method = scores.score_interval(score, level=0.9)
  expected = scipy.stats.binomtest(2, 10).proportion_ci(0.9, method="wilson")
  np.testing.assert_allclose(interval[:3], [0.2, expected.low, expected.high])
  assert method == scores.WILSON
  nothing, _ = scores.score_interval(scores.from_items("t", "exact_match", np.zeros(40)))
  assert nothing.low == 0 and 0.05 < nothing.high < 0.15


def test_means_have_the_bootstraps_interval():
  rng = np.random.default_rng(0)
  values = rng.beta(2, 5, 300)
  interval, method = scores.score_interval(scores.from_items("t", "drop_f1", values))
  low, high = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
  np.testing.assert_allclose(interval[:3], [values.mean(), low, high], atol=0.004)
  assert method == scores.BOOTSTRAP


def test_perplexities_weigh_documents_by_their_words():
  rows = np.array([[6.0, 2.0], [2.0, 6.0]])
  score = scores.from_statistics("t", "word_perplexity", rows)
  assert score.value == pytest.approx(np.e)
  np.testing.assert_allclose(score.per_item, np.exp([3, 1 / 3]))
  assert metrics.value("bits_per_byte", rows) == pytest.approx(1 / np.log(2))
  assert metrics.value("perplexity", np.array([[1e6, 1.0]])) == np.inf
  interval, _ = scores.score_interval(score)
  # Of two documents: both the one, both the other, or one each.
  np.testing.assert_allclose(interval[1:3], np.exp([1 / 3, 3]))


def test_one_item_and_a_bad_level():
  one = scores.from_items("t", "f1", [0.5])
  interval, method = scores.score_interval(one)
  assert interval.value == 0.5 and np.isnan([interval.low, interval.high]).all()
  assert method == scores.NO_INTERVAL
  for score in (one, scores.from_items("t", "accuracy", [0.5])):
    with pytest.raises(ConfigError, match=r"0\.95"):
      scores.score_interval(score, level=95)
