"""Losses on pairs of rewards. Leaves out those on log-probabilities of pairs (DPO)."""

import jax
import jax.numpy as jnp

from wam.core.errors import check_same_shape


def bradley_terry(
  chosen: jax.Array, rejected: jax.Array, margin: float | jax.Array = 0.0
) -> jax.Array:
  """-log σ(r(x, y⁺) - r(x, y⁻) - margin), elementwise, in nats.

  Args:
    chosen: rewards of the preferred completions, any shape, float.
    rejected: rewards of the others, same shape.
    margin: by how much the chosen one ought to win (Touvron et al. 2023, eq. 2); a number or the same shape.

  Returns:
    Losses of the same shape, at least 0; log 2 where the rewards are equal and the margin is 0.

  See Bradley & Terry 1952; Ouyang et al. 2022, eq. 1.
  """
  check_same_shape(chosen=chosen, rejected=rejected)
  return -jax.nn.log_sigmoid(chosen - rejected - margin)


def centering(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """(r(x, y⁺) + r(x, y⁻))², elementwise: what holds the rewards of a pair around 0.

  Bradley-Terry fixes rewards up to a constant for each prompt only; rewards that are averaged or compared over models
  need the constant. Eisenstein et al. 2023, eq. 2, with coefficient 0.01.
  """
  check_same_shape(chosen=chosen, rejected=rejected)
  return jnp.square(chosen + rejected)


def correct(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """1 where the chosen reward is higher, 1/2 at a tie, 0 otherwise; float32, elementwise."""
  check_same_shape(chosen=chosen, rejected=rejected)
  return 0.5 * (jnp.sign(chosen - rejected).astype(jnp.float32) + 1.0)
