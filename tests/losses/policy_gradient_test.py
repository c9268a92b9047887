import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from wam.losses import policy_gradient

# ratio, advantage -> loss and its derivative by log π, with a clip of 0.2 (Schulman et al. 2017, figure 1).
SURROGATE = [
  (1.0, 2.0, -2.0, -2.0),
  (1.0, -2.0, 2.0, 2.0),
  (1.1, 2.0, -2.2, -2.2),
  (1.5, 2.0, -2.4, 0.0),
  (1.5, -2.0, 3.0, 3.0),
  (0.5, 2.0, -1.0, -1.0),
  (0.5, -2.0, 1.6, 0.0),
  (0.9, -2.0, 1.8, 1.8),
]


@pytest.mark.parametrize("clip", [0.2, None])
def test_surrogate(clip, strict_dtypes):
  ratios, gains, losses, slopes = np.asarray(SURROGATE).T
  if clip is None:
    losses, slopes = -ratios * gains, -ratios * gains
  old = np.random.default_rng(0).normal(size=len(ratios))
  arrays = [jnp.asarray(x, jnp.float32) for x in (old + np.log(ratios), old, gains)]
  mask = jnp.ones(len(ratios), bool)

  def total(logprobs, old, gains):
    found = policy_gradient.clipped_surrogate(logprobs, old, gains, mask, clip=clip)
    return found.loss.sum(), found

  gradients, found = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)
  np.testing.assert_allclose(found.loss, losses, rtol=1e-5)
  np.testing.assert_allclose(gradients[0], slopes, rtol=1e-5)
  assert not np.any(gradients[1]) and not np.any(gradients[2])
  np.testing.assert_allclose(found.ratio, ratios, rtol=1e-6)
  assert found.clipped.tolist() == [clip is not None and s == 0 for s in slopes]


def test_what_is_masked_cannot_overflow():
  logprobs = jnp.asarray([-1.0, 500.0, jnp.nan])
  mask = jnp.asarray([True, False, False])

  def total(logprobs):
    found = policy_gradient.clipped_surrogate(
      logprobs, jnp.full(3, -1.0), jnp.asarray([0.5, jnp.inf, jnp.nan]), mask
    )
    return found.loss.sum() + found.approx_kl.sum(), found

  gradient, found = jax.grad(total, has_aux=True)(logprobs)
  assert found.loss.tolist() == [-0.5, 0, 0] and found.ratio.tolist() == [1, 1, 1]
  assert found.approx_kl.tolist() == [0, 0, 0] and not found.clipped.any()
  assert gradient.tolist() == [-0.5, 0, 0]


def test_approx_kl_has_the_expectation_of_the_kl_from_the_old_policy():
  logits = np.random.default_rng(0).normal(size=(2, 7))
  old, new = scipy.special.log_softmax(logits, axis=1)
  zeros = np.zeros(7, np.float32)
  found = policy_gradient.clipped_surrogate(
    jnp.asarray(new, jnp.float32), jnp.asarray(old, jnp.float32), zeros, zeros == 0
  )
  exact = np.sum(np.exp(old) * (old - new))
  assert float(np.sum(np.exp(old) * found.approx_kl)) == pytest.approx(exact, rel=1e-5)
  assert (np.asarray(found.approx_kl) >= 0).all()


@pytest.mark.parametrize(
  ("value", "old", "target", "loss", "slope"),
  [
    (1.0, 1.0, 3.0, 2.0, -2.0),
    (1.1, 1.0, 3.0, 1.805, -1.9),
    # Moved further than the clip towards the target: the clipped error is larger and has no gradient.
    (2.0, 1.0, 3.0, 1.62, 0.0),
    # Moved away from it: the plain error counts.
    (0.0, 1.0, 3.0, 4.5, -3.0),
  ],
)
def test_value_loss(value, old, target, loss, slope, strict_dtypes):
  def total(values, old, target, clip):
    found = policy_gradient.clipped_value_loss(values, old, target, clip=clip)
    return found.loss.sum(), found.clipped

  arrays = [jnp.asarray([x], jnp.float32) for x in (value, old, target)]
  (found, clipped), slopes = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(
    *arrays, 0.2
  )
  assert float(found) == pytest.approx(loss, rel=1e-5)
  assert [float(x[0]) for x in slopes] == pytest.approx([slope, 0, 0], rel=1e-5)
  assert bool(clipped[0]) == (slope == 0)
  (found, clipped), slopes = jax.value_and_grad(total, has_aux=True)(*arrays, None)
  assert float(found) == pytest.approx(0.5 * (value - target) ** 2, rel=1e-5)
  assert float(slopes[0]) == pytest.approx(value - target, rel=1e-5)
  assert not clipped[0]


def test_entropy_equals_scipy(strict_dtypes):
  logits = np.random.default_rng(0).normal(size=(2, 3, 5)) * 3
  p = scipy.special.softmax(logits, axis=-1)
  found = policy_gradient.entropy(jnp.asarray(logits, jnp.float32))
  np.testing.assert_allclose(found, scipy.special.entr(p).sum(-1), rtol=1e-5)
  # Impossible tokens add nothing, and leave gradients finite.
  logits = jnp.asarray([[[0.0, 0.0, -jnp.inf]]])
  value, slope = jax.value_and_grad(lambda x: policy_gradient.entropy(x).sum())(logits)
  assert float(value) == pytest.approx(np.log(2))
  assert np.isfinite(slope).all()
  uniform = policy_gradient.entropy(jnp.zeros((1, 1, 8), jnp.bfloat16))
  assert uniform.dtype == jnp.float32 and float(uniform[0, 0]) == pytest.approx(np.log(8))


def test_refuses_shapes_that_do_not_fit():
  x, y = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
  with pytest.raises(ValueError, match="shapes differ"):
    policy_gradient.clipped_surrogate(x, x, y, x > 0)
  with pytest.raises(ValueError, match="shapes differ"):
    policy_gradient.clipped_value_loss(x, x, y)
  with pytest.raises(ValueError, match="logits: expected 3 axes"):
    policy_gradient.entropy(x)
