import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.losses import reinforce

DRAW = np.random.default_rng(0)
LOGPROBS = -DRAW.uniform(0.1, 3, (4, 5)).astype(np.float32)
OLD = LOGPROBS + DRAW.normal(0, 0.2, (4, 5)).astype(np.float32)
MASK = np.arange(5) < np.asarray([5, 3, 1, 4])[:, None]
ADVANTAGES = np.asarray([0.75, -1.6, 0.25, 0.0], np.float32)


def arrays():
  return jnp.asarray(LOGPROBS), jnp.asarray(MASK), jnp.asarray(ADVANTAGES)


def test_plain_terms(strict_dtypes):
  total = np.where(MASK, LOGPROBS, 0).astype(np.float64).sum(1)
  np.testing.assert_allclose(reinforce.sequence_level(*arrays()), -ADVANTAGES * total, rtol=1e-5)
  tokens = np.asarray(reinforce.token_level(*arrays()))
  np.testing.assert_allclose(tokens.sum(1), -ADVANTAGES * total, rtol=1e-5)
  assert not tokens[~MASK].any()


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_clipped_terms(level, strict_dtypes):
  """Against max(-w·A, -clip(w)·A), worked out one number at a time."""
  epsilon = 0.1
  term = getattr(reinforce, f"{level}_level")
  found = np.asarray(term(*arrays(), old_logprobs=jnp.asarray(OLD), clip_ratio=epsilon))
  kinds = set()
  for b in range(4):
    d = [float(LOGPROBS[b, t]) - float(OLD[b, t]) for t in range(5) if MASK[b, t]]
    ratios = [np.exp(sum(d))] if level == "sequence" else np.exp(d)
    A = float(ADVANTAGES[b])
    expected = [max(-w * A, -min(max(w, 1 - epsilon), 1 + epsilon) * A) for w in ratios]
    kinds |= {int(w > 1 + epsilon) - int(w < 1 - epsilon) for w in ratios}
    ours = [found[b]] if level == "sequence" else found[b][MASK[b]]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
  assert kinds >= {-1, 1}  # ratios on both sides were clipped


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_at_the_policy_that_sampled_both_forms_have_one_gradient(level):
  term = getattr(reinforce, f"{level}_level")
  logprobs, mask, advantages = arrays()

  def total(x, **keywords):
    return term(x, mask, advantages, **keywords).sum()

  plain = jax.grad(total)(logprobs)
  clipped = jax.grad(lambda x: total(x, old_logprobs=logprobs, clip_ratio=0.2))(logprobs)
  np.testing.assert_allclose(plain, np.where(MASK, -ADVANTAGES[:, None], 0), rtol=1e-6)
  np.testing.assert_allclose(clipped, plain, rtol=1e-6)


def test_no_gradient_beyond_the_clip():
  """A ratio that has moved too far in the direction of its advantage pulls no more; one against it does."""
  logprobs = jnp.zeros((4, 1))
  old = -jnp.asarray([[0.5], [-0.5], [0.5], [-0.5]])  # ratios e^0.5, e^-0.5, ...
  advantages = jnp.asarray([1.0, -1.0, -1.0, 1.0])
  slope = jax.grad(
    lambda x: reinforce.sequence_level(
      x, jnp.ones((4, 1), bool), advantages, old_logprobs=old, clip_ratio=0.2
    ).sum()
  )(logprobs)
  np.testing.assert_allclose(np.asarray(slope)[:, 0], [0, 0, np.exp(0.5), -np.exp(-0.5)], rtol=1e-6)


def test_no_gradient_into_advantages_and_what_is_masked():
  logprobs, mask, advantages = arrays()
  poisoned = jnp.where(mask, logprobs, jnp.nan)
  for term in (reinforce.sequence_level, reinforce.token_level):
    slope = jax.grad(lambda a, f=term: f(logprobs, mask, a).sum())(advantages)
    assert not np.asarray(slope).any()
    assert np.isfinite(np.asarray(term(poisoned, mask, advantages))).all()


def test_refuses_a_ratio_without_a_policy_that_sampled():
  with pytest.raises(ValueError, match="needs old_logprobs"):
    reinforce.sequence_level(*arrays(), clip_ratio=0.2)
  with pytest.raises(ValueError, match="shapes differ"):
    reinforce.token_level(arrays()[0], arrays()[1], jnp.zeros(3))
