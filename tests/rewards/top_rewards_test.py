"""The draw from the best, against sorting by hand."""

import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError
from wam.generation.rollouts import Rollout
from wam.rewards import top_rewards


def draw(rewards, seed=0, **keywords):
  generator = np.random.default_rng(seed)
  return top_rewards.draw_from_the_best(np.asarray(rewards), generator=generator, **keywords)


def test_rows_are_drawn_from_the_pool_without_replacement():
  rewards = np.random.default_rng(1).normal(size=100)
  pool = set(sorted(range(100), key=lambda i: -rewards[i])[:20])
  seen = set()
  for seed in range(40):
    rows = draw(rewards, seed, pool=20, size=8)
    assert len(set(rows)) == 8 and (np.diff(rows) > 0).all()
    assert set(rows) <= pool
    seen |= set(rows)
  assert seen == pool  # all of them have a chance


def test_few_rows_are_all_taken():
  assert draw([3.0, 1.0, 2.0]).tolist() == [0, 1, 2]
  assert draw([3.0, 1.0, 2.0], pool=2, size=2).tolist() == [0, 2]


def test_ties_and_unusable_rows():
  assert draw([1.0, 2.0, 1.0, 1.0], pool=2, size=2).tolist() == [0, 1]
  usable = np.array([False, False, True, True])
  assert draw([9.0, np.nan, 1.0, 2.0], pool=1, size=1, usable=usable).tolist() == [3]


def test_rows_of_a_rollout():
  rollout = Rollout(*(np.arange(12).reshape(4, 3) + i for i in range(4)), np.arange(4) > 1)
  found = top_rewards.take(rollout, np.array([1, 3]))
  assert found.completions.tolist() == [[5, 6, 7], [11, 12, 13]]
  assert found.finished.tolist() == [False, True]


def test_what_is_refused():
  with pytest.raises(ConfigError, match="size = 3 and pool = 2"):
    draw([1.0], pool=2, size=3)
  with pytest.raises(BadData, match="none of 2 completions can be used"):
    draw([1.0, 2.0], usable=np.zeros(2, bool))
  with pytest.raises(BadData, match="1 of 2 rewards are NaN"):
    draw([1.0, np.nan])
