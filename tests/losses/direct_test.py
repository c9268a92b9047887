import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.losses import direct

BETA, SMOOTHING = 0.3, 0.2


@pytest.fixture(scope="module")
def pairs():
  """Log-ratios and lengths of nine pairs, one of them equal."""
  draw = np.random.default_rng(0)
  chosen, rejected = draw.normal(0, 5, (2, 9)).astype(np.float32)
  rejected[0] = chosen[0]
  lengths = draw.integers(1, 7, (2, 9)).astype(np.float32)
  lengths[:, 0] = 3
  return tuple(jnp.asarray(x) for x in (chosen, rejected, *lengths))


def logistic(x):
  return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def slow(name, beta, smoothing, chosen, rejected, chosen_length, rejected_length):
  """The losses as the papers print them, pair by pair in float64."""
  losses = []
  for a, b, m, n in np.stack([chosen, rejected, chosen_length, rejected_length], 1).astype(float):
    if name in ("ipo", "length_normalised"):
      a, b = a / m, b / n
    right, wrong = -np.log(logistic(beta * (a - b))), -np.log(logistic(beta * (b - a)))
    losses.append(
      {
        "ipo": (a - b - 1 / (2 * beta)) ** 2,
        "robust": ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing),
      }.get(name, (1 - smoothing) * right + smoothing * wrong)
    )
  return np.asarray(losses)


@pytest.mark.parametrize(
  ("name", "smoothing"),
  [(n, e) for n in direct.NAMES for e in (0.0, SMOOTHING) if n != "ipo" or not e],
)
def test_losses_are_those_of_the_papers(strict_dtypes, pairs, name, smoothing):
  loss = direct.make(name, beta=BETA, label_smoothing=smoothing)
  found = jax.jit(loss)(*pairs)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, slow(name, BETA, smoothing, *pairs), rtol=2e-6, atol=1e-6)


def test_at_the_reference_the_loss_is_log_2_and_its_slope_half_beta(strict_dtypes):
  zero = jnp.zeros(())
  for name in ("sigmoid", "robust", "length_normalised"):
    loss = direct.make(name, beta=BETA)
    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(zero, zero, zero + 1, zero + 1)
    assert float(value) == pytest.approx(np.log(2), rel=1e-6)
    np.testing.assert_allclose(slopes, (-BETA / 2, BETA / 2), rtol=1e-6)


def test_what_both_completions_share_costs_nothing(strict_dtypes, pairs):
  """Terms of the prompt, and the normalisation of the implied reward, are equal on both sides."""
  chosen, rejected, *_ = pairs
  for loss in (direct.sigmoid, direct.robust):
    np.testing.assert_allclose(
      loss(chosen + 8, rejected + 8, beta=BETA, label_smoothing=SMOOTHING),
      loss(chosen, rejected, beta=BETA, label_smoothing=SMOOTHING),
      rtol=1e-5,
    )


def test_averages_do_not_know_the_length(strict_dtypes, pairs):
  chosen, rejected, m, n = pairs
  for name in ("ipo", "length_normalised"):
    loss = direct.make(name, beta=BETA)
    np.testing.assert_allclose(
      loss(3 * chosen, 2 * rejected, 3 * m, 2 * n), loss(chosen, rejected, m, n), rtol=1e-5
    )


def slope_at(expected_loss, difference: float) -> float:
  return float(jax.grad(expected_loss)(jnp.float32(difference)))


def test_smoothed_labels_have_a_finite_optimum(strict_dtypes):
  best = np.log((1 - SMOOTHING) / SMOOTHING) / BETA

  def loss(h):
    return direct.sigmoid(h, jnp.zeros(()), beta=BETA, label_smoothing=SMOOTHING)

  assert slope_at(loss, best) == pytest.approx(0, abs=1e-6)
  assert slope_at(loss, best - 0.5) < -1e-3 and slope_at(loss, best + 0.5) > 1e-3


@pytest.mark.parametrize("share", [0.5, 0.7, 1.0])
def test_the_optimum_of_ipo_follows_how_often_labels_agree(strict_dtypes, share):
  one, zero = jnp.ones(()), jnp.zeros(())

  def expected(h):
    agreeing = direct.ipo(h, zero, one, one, beta=BETA)
    return share * agreeing + (1 - share) * direct.ipo(zero, h, one, one, beta=BETA)

  best = (share - 0.5) / BETA
  assert slope_at(expected, best) == pytest.approx(0, abs=1e-5)
  assert slope_at(expected, best + 1) == pytest.approx(2, rel=1e-5)


def test_the_mean_of_the_robust_loss_over_flips_is_the_loss_of_the_true_labels(pairs):
  chosen, rejected, *_ = pairs
  kept = direct.robust(chosen, rejected, beta=BETA, label_smoothing=SMOOTHING)
  flipped = direct.robust(rejected, chosen, beta=BETA, label_smoothing=SMOOTHING)
  np.testing.assert_allclose(
    (1 - SMOOTHING) * kept + SMOOTHING * flipped,
    direct.sigmoid(chosen, rejected, beta=BETA),
    rtol=1e-5,
    atol=1e-6,
  )
  assert float(kept.min()) < 0


def test_extreme_log_ratios_stay_finite(strict_dtypes):
  chosen, rejected = jnp.asarray([1e5, -1e5]), jnp.asarray([-1e5, 1e5])
  for name in direct.NAMES:
    loss = direct.make(name, beta=1.0)

    def total(c, loss=loss):
      return jnp.sum(loss(c, rejected, jnp.ones(2), jnp.ones(2)))

    value, slope = jax.value_and_grad(total)(chosen)
    assert np.isfinite(value) and np.isfinite(slope).all(), name
  np.testing.assert_array_equal(direct.sigmoid(chosen, rejected, beta=1.0), [0, 2e5])


def test_what_is_out_of_range_is_refused(pairs):
  with pytest.raises(UnknownName, match="Did you mean 'sigmoid'"):
    direct.make("sigmoide", beta=0.1)
  for beta in (0.0, -1.0, float("nan"), float("inf")):
    with pytest.raises(ConfigError, match="beta: expected a number above 0"):
      direct.make("sigmoid", beta=beta)
  for smoothing in (-0.1, 0.5, float("nan")):
    with pytest.raises(ConfigError, match="label_smoothing: expected a share"):
      direct.make("sigmoid", beta=0.1, label_smoothing=smoothing)
  with pytest.raises(ConfigError, match="not ipo"):
    direct.make("ipo", beta=0.1, label_smoothing=0.1)
  for loss in (direct.sigmoid, direct.robust):
    with pytest.raises(ValueError, match="shapes differ"):
      loss(pairs[0], pairs[1][:3], beta=0.1)
  for loss in (direct.ipo, direct.length_normalised):
    with pytest.raises(ValueError, match="shapes differ"):
      loss(pairs[0], pairs[1], pairs[2][:3], pairs[3], beta=0.1)
