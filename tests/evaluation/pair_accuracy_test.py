"""Against scipy's intervals, the loss's own count, and by hand."""

import numpy as np
import pytest
import scipy.stats

from wam.core.errors import BadData, ConfigError, NonFinite, UnknownName
from wam.evaluation import pair_accuracy
from wam.losses import preference

CHOSEN = np.asarray([1.0, 0.0, 2.0, -1.0, 3.0])
REJECTED = np.asarray([0.0, 0.0, 3.0, -1.0, 1.0])


def test_what_counts_at_a_tie():
  half = pair_accuracy.credit(CHOSEN, REJECTED)
  np.testing.assert_array_equal(half, [1, 0.5, 0, 0.5, 1])
  np.testing.assert_array_equal(half, preference.correct(CHOSEN, REJECTED))
  found = pair_accuracy.credit(CHOSEN, REJECTED, ties="correct")
  np.testing.assert_array_equal(found, CHOSEN >= REJECTED)


def test_a_constant_reward_is_at_chance_or_by_the_paper_perfect():
  same = np.full(400, 0.3)
  assert pair_accuracy.accuracy(same, same).value == 0.5
  assert pair_accuracy.accuracy(same, same, ties="correct").value == 1.0


def test_groups_have_wilsons_intervals():
  draw = np.random.default_rng(0)
  chosen, rejected = draw.normal(0.5, 1, 300), draw.normal(size=300)
  validation = np.zeros(300, bool)
  validation[200:] = True
  groups = {"clean_train": np.arange(150), "corrupt_train": np.arange(150, 200)}
  found = pair_accuracy.by_group(chosen, rejected, groups | {"validation": validation}, level=0.9)
  assert list(found) == ["clean_train", "corrupt_train", "validation"]
  for name, rows in (("clean_train", slice(150)), ("validation", slice(200, 300))):
    wins, total = int(np.sum(chosen[rows] > rejected[rows])), len(chosen[rows])
    expected = scipy.stats.binomtest(wins, total).proportion_ci(0.9, method="wilson")
    assert found[name].value == pytest.approx(wins / total)
    np.testing.assert_allclose(found[name][1:3], [expected.low, expected.high], atol=1e-12)
  everything = pair_accuracy.accuracy(chosen, rejected)
  assert everything.value == pytest.approx(np.mean(chosen > rejected))


def test_rewards_up_to_a_constant_of_the_prompt_are_as_accurate():
  constant = np.asarray([4.0, -2.0, 8.0, 1.0, 0.0])
  found = pair_accuracy.credit(CHOSEN + constant, REJECTED + constant)
  np.testing.assert_array_equal(found, pair_accuracy.credit(CHOSEN, REJECTED))


def test_bad_input_is_refused():
  with pytest.raises(UnknownName, match="Did you mean 'half'"):
    pair_accuracy.credit(CHOSEN, REJECTED, ties="halves")
  with pytest.raises(ValueError, match="shapes differ"):
    pair_accuracy.credit(CHOSEN, REJECTED[:-1])
  with pytest.raises(NonFinite, match=r"1 of 5 .* the first is 2"):
    pair_accuracy.accuracy(np.where(CHOSEN == 2, np.nan, CHOSEN), REJECTED)
  with pytest.raises(BadData, match="no pairs in validation, test"):
    groups = {"train": [0], "validation": [], "test": np.zeros(5, bool)}
    pair_accuracy.by_group(CHOSEN, REJECTED, groups)
  with pytest.raises(BadData, match="no pairs"):
    pair_accuracy.accuracy(np.zeros(0), np.zeros(0))
  with pytest.raises(ConfigError, match="95"):
    pair_accuracy.accuracy(CHOSEN, REJECTED, level=95)
