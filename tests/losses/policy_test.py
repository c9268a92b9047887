import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from wam.losses import policy


@pytest.fixture
def logits():
  draw = np.random.default_rng(0)
  return draw.normal(size=(2, 3, 5)).astype(np.float32), draw.normal(size=(2, 3, 5)).astype(
    np.float32
  )


def test_kl_equals_scipy(logits, strict_dtypes):
  p, q = (scipy.special.softmax(x.astype(np.float64), axis=-1) for x in logits)
  expected = scipy.special.rel_entr(p, q).sum(-1)
  np.testing.assert_allclose(policy.kl(*map(jnp.asarray, logits)), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    policy.kl(jnp.asarray(logits[0]), jnp.asarray(logits[0])), 0, atol=1e-6
  )


def test_impossible_tokens_cost_nothing(strict_dtypes):
  logits = jnp.asarray([[[0.0, 0.0, -jnp.inf]]])
  reference = jnp.asarray([[[0.0, 0.0, 0.0]]])
  np.testing.assert_allclose(policy.kl(logits, reference), [[np.log(1.5)]], rtol=1e-6)


def test_estimators_have_the_expectation_of_the_kl(logits, strict_dtypes):
  """Over the whole vocabulary the expectations of k1 and k3 are the KL, exactly; that of k2 is not."""
  p, q = (scipy.special.log_softmax(x.astype(np.float64), axis=-1) for x in logits)
  exact = np.sum(np.exp(p) * (p - q), axis=-1)
  p32, q32 = jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)
  for estimator, biased in ((policy.k1, False), (policy.k3, False), (policy.k2, True)):
    expectation = np.sum(np.exp(p) * np.asarray(estimator(p32, q32), np.float64), axis=-1)
    assert np.allclose(expectation, exact, atol=1e-5) is not biased
  assert (np.asarray(policy.k3(p32, q32)) >= 0).all()
