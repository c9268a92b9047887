"""The coefficient of the KL penalty: fixed, or steered so that the KL stays near a target (Ziegler et al. 2019).

init / update / value, as optax writes what accumulates. Leaves out how the KL is measured.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from wam.core.errors import ConfigError

# An error counts as at most so much of the target.
_LARGEST_ERROR = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """How the coefficient moves.

  Attributes:
    kl_coef: the first one, at least 0.
    kl_target: nats a completion; None keeps the coefficient as it is.
    kl_horizon: in completions: after about so many, an error of a whole target would have doubled it, if errors were
      not cut at a fifth of the target.
  """

  kl_coef: float
  kl_target: float | None = None
  kl_horizon: float = 10000.0

  def __post_init__(self) -> None:
    if not (math.isfinite(self.kl_coef) and self.kl_coef >= 0):
      raise ConfigError(f"kl_coef: expected 0 or more, found {self.kl_coef}")
    if self.kl_target is not None and not (math.isfinite(self.kl_target) and self.kl_target > 0):
      raise ConfigError(
        f"kl_target: expected nats above 0, or None to keep kl_coef, found {self.kl_target}"
      )

  def check(self, samples: int) -> None:
    """Raises ConfigError if an update after so many completions could make the coefficient negative."""
    least = _LARGEST_ERROR * samples
    if self.kl_target is not None and not self.kl_horizon > least:
      raise ConfigError(
        f"kl_horizon={self.kl_horizon} is too short: an update after {samples} completions could make kl_coef"
        f" negative; expected more than {least:g}"
      )


class State(NamedTuple):
  """The coefficient now: [] float32."""

  coefficient: jax.Array


def init(rule: Rule) -> State:
  """The state before the first update."""
  return State(jnp.asarray(rule.kl_coef, jnp.float32))


def value(state: State) -> jax.Array:
  """The coefficient to use: [] float32."""
  return state.coefficient


def update(state: State, kl: float | jax.Array, samples: int, rule: Rule) -> State:
  """β ← β (1 + clamp(KL / target - 1, -0.2, 0.2) · samples / horizon); Ziegler et al. 2019, section 2.2.

  Args:
    state: the state.
    kl: mean KL of a completion since the last update, in nats; an estimate, so perhaps below 0.
    samples: completions that it is of.
    rule: target and horizon.
  """
  if rule.kl_target is None:
    return state
  error = jnp.asarray(kl, jnp.float32) / rule.kl_target - 1.0
  bounded = jnp.clip(error, -_LARGEST_ERROR, _LARGEST_ERROR)
  return State(state.coefficient * (1.0 + bounded * (samples / rule.kl_horizon)))
