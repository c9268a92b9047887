import jax.numpy as jnp
import numpy as np
import pytest

from wam.losses import advantages

LENGTHS = np.asarray([5, 1, 3, 4])
MASK = np.arange(5) < LENGTHS[:, None]


@pytest.fixture
def arrays():
  """Rewards, values, log-probabilities of policy and reference: [4, 5] float32; nonsense where masked."""
  draw = np.random.default_rng(0)
  return [np.where(MASK, draw.normal(size=MASK.shape), 1e9).astype(np.float32) for _ in range(4)]


def slow_gae(rewards, values, gamma, lam):
  """Schulman et al. 2016, eq. 16, a double sum for every row."""
  found = np.zeros(MASK.shape)
  for row, length in enumerate(LENGTHS):
    r, v = rewards[row, :length].astype(np.float64), values[row, :length].astype(np.float64)
    delta = [r[t] + gamma * (v[t + 1] if t + 1 < length else 0) - v[t] for t in range(length)]
    for t in range(length):
      found[row, t] = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length))
  return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_the_double_sum(arrays, gamma, lam, strict_dtypes):
  rewards, values = map(jnp.asarray, arrays[:2])
  found, returns = advantages.gae(rewards, values, jnp.asarray(MASK), gamma=gamma, lam=lam)
  expected = slow_gae(*arrays[:2], gamma, lam)
  assert found.dtype == returns.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(returns, np.where(MASK, expected + arrays[1], 0), atol=1e-5)


def test_gae_closed_forms(arrays):
  """λ = 1 and γ = 1: returns are the sums of later rewards; a reward of 1 a token: a geometric series."""
  rewards, values = arrays[:2]
  to_go = np.cumsum(np.where(MASK, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
  found, returns = advantages.gae(rewards, values, MASK, gamma=1.0, lam=1.0)
  np.testing.assert_allclose(returns[MASK], to_go[MASK], atol=1e-5)
  np.testing.assert_allclose(found[MASK], (to_go - values)[MASK], atol=1e-5)
  ones, zeros = np.ones(MASK.shape, np.float32), np.zeros(MASK.shape, np.float32)
  found, _ = advantages.gae(ones, zeros, MASK, gamma=0.9, lam=0.5)
  left = LENGTHS[:, None] - np.arange(5)
  np.testing.assert_allclose(found, np.where(MASK, (1 - 0.45**left) / 0.55, 0), atol=1e-6)


def test_fractional_scores_reach_the_last_real_token(arrays, strict_dtypes):
  """Integer rewards would turn 0.75 into 0; a mask by the id of the padding would hide an EOS that pads."""
  zeros, mask = jnp.zeros(MASK.shape, jnp.float32), jnp.asarray(MASK)
  for dtype in (jnp.float32, jnp.float16):
    scores = jnp.asarray([0.75, -1.5, 0.25, 3.125], dtype)
    found = advantages.shaped_rewards(scores, zeros, zeros, mask, kl_coef=0.1)
    expected = np.zeros(MASK.shape)
    expected[np.arange(4), LENGTHS - 1] = [0.75, -1.5, 0.25, 3.125]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


def test_the_penalty_is_k1_of_every_token(arrays):
  _, _, logprobs, reference = arrays
  scores = np.asarray([0.75, -1.6, 0.0, 2.0], np.float32)
  found = np.asarray(
    advantages.shaped_rewards(scores, logprobs, reference, MASK, kl_coef=np.float32(0.2))
  )
  penalty = 0.2 * np.where(MASK, logprobs.astype(np.float64) - reference, 0)
  np.testing.assert_allclose(found.sum(1), scores - penalty.sum(1), atol=1e-5)
  inside = np.arange(5) < LENGTHS[:, None] - 1
  np.testing.assert_allclose(found[inside], -penalty[inside], atol=1e-6)
  assert (found[~MASK] == 0).all()
  # A row without tokens gets nothing, whatever its score.
  empty = advantages.shaped_rewards(scores, logprobs, reference, MASK & False, kl_coef=0.2)
  assert (np.asarray(empty) == 0).all()


def test_whitening_equals_numpy_over_the_mask(arrays):
  x = arrays[0] * 3 + 7
  kept = x[MASK].astype(np.float64)
  found = np.asarray(advantages.whiten(x, MASK))
  np.testing.assert_allclose(found[MASK], (kept - kept.mean()) / kept.std(), atol=1e-5)
  assert (found[~MASK] == 0).all()
  unshifted = np.asarray(advantages.whiten(x, MASK, shift_mean=False))
  np.testing.assert_allclose(unshifted[MASK] - found[MASK], kept.mean(), atol=1e-5)
  assert (unshifted[~MASK] == 0).all()


@pytest.mark.parametrize("value", [0.1, -5.5625, 1e6, 0.0])
def test_whitening_what_is_constant_leaves_no_noise(value):
  """A third of 0.1 has no exact float32, and neither has the mean of many: what is left must not be blown up."""
  x = np.full((37, 11), value, np.float32)
  mask = np.random.default_rng(0).random(x.shape) < 0.7
  x[0, 0] = np.nextafter(x[0, 0], np.float32(np.inf))
  assert (np.asarray(advantages.whiten(x, mask)) == 0).all()
  unshifted = np.asarray(advantages.whiten(x, mask, shift_mean=False))
  np.testing.assert_allclose(unshifted[mask], value, rtol=1e-6, atol=1e-30)


def test_estimate_is_the_three_steps(arrays):
  rewards, values, logprobs, reference = arrays
  scores = rewards[:, 0]
  for whiten_rewards in (False, True):
    found = advantages.estimate(
      scores, logprobs, reference, values, MASK,
      kl_coef=0.3, gamma=0.9, lam=0.8, whiten_rewards=whiten_rewards,
    )  # fmt: skip
    shaped = np.where(MASK, -0.3 * (logprobs.astype(np.float64) - reference), 0)
    shaped[np.arange(4), LENGTHS - 1] += scores
    if whiten_rewards:
      kept = shaped[MASK]
      shaped = np.where(MASK, (shaped - kept.mean()) / kept.std() + kept.mean(), 0)
    np.testing.assert_allclose(found.rewards, shaped, atol=1e-5)
    raw = slow_gae(shaped, values, 0.9, 0.8)
    returns = (raw + values)[MASK]
    np.testing.assert_allclose(found.returns[MASK], returns, atol=1e-5)
    white = (raw[MASK] - raw[MASK].mean()) / raw[MASK].std()
    np.testing.assert_allclose(found.advantages[MASK], white, atol=1e-5)
    numbers = {
      "returns_mean": returns.mean(), "returns_var": returns.var(),
      "values_mean": values[MASK].mean(), "values_var": values[MASK].var(),
      "explained_variance": 1 - (returns - values[MASK]).var() / returns.var(),
    }  # fmt: skip
    assert {n: float(x) for n, x in found.statistics.items()} == pytest.approx(numbers, abs=1e-5)


def test_explained_variance_of_returns_that_do_not_vary():
  zeros, mask = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
  values = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
  same = advantages.estimate(
    np.ones(2, np.float32), zeros, zeros, values, mask, kl_coef=0.0, lam=1.0
  )
  assert float(same.statistics["explained_variance"]) == pytest.approx(0.0)
  returns, perfect = np.arange(6, dtype=np.float32).reshape(2, 3), mask
  exact = advantages._statistics(jnp.asarray(returns), jnp.asarray(returns), jnp.asarray(perfect))
  assert float(exact["explained_variance"]) == 1.0


def test_refuses_shapes_that_do_not_fit():
  zeros = np.zeros((2, 3), np.float32)
  with pytest.raises(ValueError, match="shapes differ"):
    advantages.gae(zeros, zeros, np.ones((2, 4), bool))
  with pytest.raises(ValueError, match="scores: expected 1 axes"):
    advantages.shaped_rewards(zeros, zeros, zeros, zeros > 0, kl_coef=0.1)
