import jax
import pytest

from wam.core.errors import ConfigError
from wam.training import kl_control
from wam.training.kl_control import Rule

STEERED = Rule(kl_coef=0.2, kl_target=6.0, kl_horizon=10000.0)


@pytest.mark.parametrize(
  ("kl", "expected"),
  [
    (6.0, 0.2),
    (6.6, 0.2 * (1 + 0.1 * 0.0256)),
    (5.4, 0.2 * (1 - 0.1 * 0.0256)),
    # Errors count as a fifth of the target at most, however far away the KL, or its estimate, is.
    (60.0, 0.2 * (1 + 0.2 * 0.0256)),
    (0.0, 0.2 * (1 - 0.2 * 0.0256)),
    (-3.0, 0.2 * (1 - 0.2 * 0.0256)),
  ],
)
def test_one_update(kl, expected):
  state = kl_control.update(kl_control.init(STEERED), kl, 256, STEERED)
  assert float(kl_control.value(state)) == pytest.approx(expected, rel=1e-6)


def test_a_fixed_coefficient_stays():
  rule = Rule(kl_coef=0.05)
  state = kl_control.update(kl_control.init(rule), 100.0, 10**6, rule)
  assert float(kl_control.value(state)) == pytest.approx(0.05)


def test_finds_the_target_under_jit():
  """A policy whose KL is 1 / β: the coefficient that holds it at 6 is a sixth."""
  update = jax.jit(lambda s: kl_control.update(s, 1 / s.coefficient, 512, STEERED))
  state = kl_control.init(STEERED)
  for _ in range(300):
    state = update(state)
  assert float(kl_control.value(state)) == pytest.approx(1 / 6, rel=1e-3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kl_coef": -0.1}, "kl_coef: expected 0 or more"),
    ({"kl_coef": float("nan")}, "kl_coef: expected 0 or more"),
    ({"kl_target": 0.0}, "kl_target: expected nats above 0"),
    ({"kl_target": float("inf")}, "kl_target: expected nats above 0"),
  ],
)
def test_refuses_numbers_that_mean_nothing(changes, message):
  with pytest.raises(ConfigError, match=message):
    Rule(**{"kl_coef": 0.1} | changes)


def test_refuses_a_horizon_that_could_turn_the_sign():
  with pytest.raises(ConfigError, match=r"kl_horizon=100.0 is too short.*expected more than 102.4"):
    Rule(kl_coef=0.1, kl_target=6.0, kl_horizon=100.0).check(512)
  Rule(kl_coef=0.1, kl_target=6.0, kl_horizon=103.0).check(512)
  Rule(kl_coef=0.1, kl_horizon=1.0).check(512)
