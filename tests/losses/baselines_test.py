import numpy as np
import pytest

from wam.core.errors import UnknownName
from wam.losses import baselines

REWARDS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
ALL = np.ones((5, 4), bool)


def slow(name, rewards, scorable):
  """By its definition, sample by sample, in float64."""
  P, N = rewards.shape
  found, counted = np.zeros((P, N)), np.zeros((P, N), bool)
  for p in range(P):
    for n in range(N):
      others = [
        float(rewards[q, m])
        for q in range(P)
        for m in range(N)
        if scorable[q, m] and (q, m) != (p, n) and (name == "batch_mean" or q == p)
      ]
      if not scorable[p, n] or (name != "none" and not others):
        continue
      counted[p, n] = True
      found[p, n] = float(rewards[p, n]) - (0.0 if name == "none" else np.mean(others))
  return found, counted


@pytest.mark.parametrize("name", list(baselines.BASELINES))
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_definition(name, some, strict_dtypes):
  scorable = ALL.copy()
  if some:
    # Row 1 keeps one sample, row 2 none.
    scorable[0, 1] = scorable[1, 1:] = scorable[2] = False
  found, counted = baselines.advantages(name, REWARDS, scorable)
  expected = slow(name, REWARDS, scorable)
  np.testing.assert_allclose(found, expected[0], atol=1e-6)
  assert np.array_equal(counted, expected[1])


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_what_has_no_reward_is_not_looked_at(name):
  scorable = ALL.copy()
  scorable[0, 1] = scorable[3] = False
  expected = baselines.advantages(name, REWARDS, scorable)
  found = baselines.advantages(name, np.where(scorable, REWARDS, np.nan), scorable)
  assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["leave_one_out", "batch_mean"])
@pytest.mark.parametrize("value", [0.1, -3.7, 1e6, 1 / 3])
def test_equal_rewards_give_exactly_nothing(name, value):
  """A rounding left over would be a signal to Adam, which divides by the size of the gradient."""
  for N in (2, 3, 7):
    rewards = np.full((3, N), value, np.float32)
    found, counted = baselines.advantages(name, rewards, np.ones_like(rewards, bool))
    assert not np.asarray(found).any() and np.asarray(counted).all()


def test_leave_one_out_sums_to_nothing_and_ignores_what_a_prompt_adds():
  found, _ = baselines.advantages("leave_one_out", REWARDS, ALL)
  np.testing.assert_allclose(np.asarray(found).sum(1), 0, atol=1e-6)
  shifted = REWARDS + np.arange(5, dtype=np.float32)[:, None]
  np.testing.assert_allclose(
    baselines.advantages("leave_one_out", shifted, ALL)[0], found, atol=2e-6
  )


def test_refuses_unknown_names_and_shapes():
  with pytest.raises(UnknownName, match="Did you mean 'leave_one_out'"):
    baselines.advantages("leave-one-out", REWARDS, ALL)
  with pytest.raises(ValueError, match="rewards: expected 2 axes"):
    baselines.advantages("none", REWARDS[0], ALL[0])
