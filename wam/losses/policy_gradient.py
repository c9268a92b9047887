"""Losses of proximal policy optimisation, per token: the clipped surrogate, the clipped value loss, the entropy.

Schulman et al. 2017. Leaves out advantages (advantages.py) and the KL to a reference, which is in the rewards.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from wam.core.errors import check_rank, check_same_shape
from wam.losses import policy


class Surrogate(NamedTuple):
  """What `clipped_surrogate` says of every token; all of one shape.

  Attributes:
    loss: float32, to minimise; 0 where masked.
    ratio: float32, ρ = π / π_old; 1 where masked.
    approx_kl: float32, ρ - 1 - log ρ: of samples of π_old, an unbiased and never negative estimate of KL(π_old ‖ π).
    clipped: bool, where the clipping raised the loss: there it has no gradient.
  """

  loss: jax.Array
  ratio: jax.Array
  approx_kl: jax.Array
  clipped: jax.Array


class ValueLoss(NamedTuple):
  """What `clipped_value_loss` says, elementwise: the loss, float32, and where the clipping raised it, bool."""

  loss: jax.Array
  clipped: jax.Array


def clipped_surrogate(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip: float | None = 0.2,
) -> Surrogate:
  """max(-A ρ, -A clamp(ρ, 1 - clip, 1 + clip)) with ρ = π / π_old, elementwise. Schulman et al. 2017, eq. 7.

  Args:
    logprobs: log π of the tokens, any shape, in nats.
    old_logprobs: those of the policy that sampled, same shape.
    advantages: A, same shape; gradients flow into neither.
    mask: bool, same shape. What is masked may be anything: its ratio, which could overflow, is not computed.
    clip: None does not clip: -A ρ, whose gradient at ρ = 1 is that of -A log π.
  """
  check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
  old, fixed = jax.lax.stop_gradient((old_logprobs, advantages))
  log_ratio = jnp.where(mask, logprobs - old, 0.0)
  ratio = jnp.exp(log_ratio)
  plain = jnp.where(mask, -fixed * ratio, 0.0)
  bounded = plain
  if clip is not None:
    bounded = jnp.where(mask, -fixed * jnp.clip(ratio, 1.0 - clip, 1.0 + clip), 0.0)
  approx_kl = policy.k3(old, jnp.where(mask, logprobs, old))
  return Surrogate(jnp.maximum(plain, bounded), ratio, approx_kl, bounded > plain)


def clipped_value_loss(
  values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip: float | None = 0.2
) -> ValueLoss:
  """½ max((V - R)², (clamp(V, V_old - clip, V_old + clip) - R)²), elementwise; None does not clip.

  Args:
    values: V, any shape.
    old_values: when the completions were sampled, same shape.
    returns: R, same shape; gradients flow into neither.
    clip: in units of the value.
  """
  check_same_shape(values=values, old_values=old_values, returns=returns)
  target, start = jax.lax.stop_gradient((returns, old_values))
  plain = jnp.square(values - target)
  if clip is None:
    return ValueLoss(0.5 * plain, jnp.zeros(plain.shape, bool))
  bounded = jnp.square(jnp.clip(values, start - clip, start + clip) - target)
  return ValueLoss(0.5 * jnp.maximum(plain, bounded), bounded > plain)


def entropy(logits: jax.Array) -> jax.Array:
  """-Σ_v π(v) log π(v) of the next token, in nats: [B, T, V] of any float dtype -> [B, T] float32."""
  check_rank("logits", logits, 3)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  p = jnp.exp(log_p)
  # 0·log 0 is 0, and so is its gradient.
  return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=-1)
