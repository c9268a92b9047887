import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.losses import preference


def test_bradley_terry_equals_minus_the_log_of_the_logistic_function(strict_dtypes):
  chosen = jnp.asarray([0.0, 2.0, -1.0, 80.0, -80.0])
  rejected = jnp.asarray([0.0, 0.5, 1.5, 0.0, 0.0])
  difference = np.asarray(chosen - rejected, np.float64)
  expected = -np.log(1 / (1 + np.exp(-difference)))
  np.testing.assert_allclose(
    preference.bradley_terry(chosen, rejected), expected, rtol=1e-6, atol=1e-30
  )
  shifted = -np.log(1 / (1 + np.exp(-(difference - 0.5))))
  np.testing.assert_allclose(
    preference.bradley_terry(chosen, rejected, 0.5), shifted, rtol=1e-6, atol=1e-30
  )


def test_equal_rewards_cost_log_two_and_a_shift_costs_nothing(strict_dtypes):
  a, b = jnp.asarray([0.3, -2.0]), jnp.asarray([1.0, 0.25])
  np.testing.assert_allclose(preference.bradley_terry(a, a), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(
    preference.bradley_terry(a + 4.0, b + 4.0), preference.bradley_terry(a, b), rtol=1e-5
  )


def test_gradient_raises_the_chosen_reward(strict_dtypes):
  slope = jax.grad(lambda c: preference.bradley_terry(c, jnp.float32(0.7)))(jnp.float32(0.7))
  assert float(slope) == pytest.approx(-0.5)


def test_correct_counts_ties_half(strict_dtypes):
  found = preference.correct(jnp.asarray([1.0, 0.0, 2.0]), jnp.asarray([0.0, 1.0, 2.0]))
  np.testing.assert_array_equal(found, [1, 0, 0.5])


def test_centering(strict_dtypes):
  np.testing.assert_array_equal(
    preference.centering(jnp.asarray([1.0, 2.0]), jnp.asarray([-1.0, 1.0])), [0, 9]
  )
  with pytest.raises(ValueError, match="shapes differ"):
    preference.centering(jnp.ones(2), jnp.ones(3))
