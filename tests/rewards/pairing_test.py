import numpy as np
import pytest

from wam.core.errors import UnknownName
from wam.rewards import pairing


def draw():
  return np.random.default_rng(0)


def test_best_and_worst_of_the_usable_samples():
  rewards = np.asarray(
    [[0.5, 2.0, -1.0], [3.0, 3.0, 3.0], [1.0, 9.0, -9.0], [0.0, 1.0, 0.0], [1.0, 2.0, 3.0]]
  )
  usable = np.ones((5, 3), bool)
  usable[2, 1:] = False
  usable[4, 2] = False
  found = pairing.pair(rewards, usable, rule="best_worst", draw=draw())
  np.testing.assert_array_equal(found.prompts, [0, 3, 4])
  np.testing.assert_array_equal(found.chosen, [1, 9 + 1, 12 + 1])
  np.testing.assert_array_equal(found.rejected, [2, 9 + 0, 12 + 0])
  assert (found.equal_rewards, found.too_few) == (1, 1)


def test_random_pairs_are_judged_as_bradley_and_terry_do():
  count = 30_000
  rewards = np.tile([0.0, 0.7, 50.0, 2.0], (count, 1))
  usable = np.tile([True, True, False, True], (count, 1))
  found = pairing.pair(rewards, usable, rule="random", draw=draw())
  assert len(found.prompts) == count and (found.equal_rewards, found.too_few) == (0, 0)
  np.testing.assert_array_equal(found.chosen // 4, np.arange(count))
  np.testing.assert_array_equal(found.rejected // 4, np.arange(count))
  better, worse = found.chosen % 4, found.rejected % 4
  assert set(zip(better, worse, strict=True)) == {(a, b) for a in (0, 1, 3) for b in (0, 1, 3) if a != b}  # fmt: skip
  for a, b in ((0, 1), (0, 3), (1, 3)):
    wins, losses = (np.sum((better == i) & (worse == j)) for i, j in ((a, b), (b, a)))
    pairs = wins + losses
    # Five standard deviations of a share among `pairs`, and of one third among all.
    assert pairs / count == pytest.approx(1 / 3, abs=5 * np.sqrt(2 / 9 / count))
    expected = 1 / (1 + np.exp(rewards[0, b] - rewards[0, a]))
    assert wins / pairs == pytest.approx(expected, abs=5 * np.sqrt(0.25 / pairs))


def test_random_pairs_of_equal_or_single_samples_are_left_out():
  rewards = np.asarray([[1.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
  usable = np.asarray([[True, True], [True, False], [True, True]])
  found = pairing.pair(rewards, usable, rule="random", draw=draw())
  np.testing.assert_array_equal(found.prompts, [2])
  assert {int(found.chosen[0]), int(found.rejected[0])} == {4, 5}
  assert (found.equal_rewards, found.too_few) == (1, 1)
  one = pairing.pair(rewards[:, :1], usable[:, :1], rule="random", draw=draw())
  assert len(one.prompts) == 0 and one.too_few == 3


def test_extreme_rewards_and_unknown_rules():
  rewards = np.tile(np.asarray([[1e30, -1e30]], np.float32), (200, 1))
  found = pairing.pair(rewards, np.ones((200, 2), bool), rule="random", draw=draw())
  assert (found.chosen % 2 == 0).all()
  with pytest.raises(UnknownName, match="Did you mean 'best_worst'"):
    pairing.pair(rewards, np.ones((200, 2), bool), rule="best_wurst", draw=draw())
  with pytest.raises(ValueError, match="shapes differ"):
    pairing.pair(rewards, np.ones((200, 3), bool), rule="random", draw=draw())
