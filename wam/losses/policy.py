"""Divergences between a policy and its reference, per token. Leaves out policy-gradient losses."""

import jax
import jax.numpy as jnp

from wam.core.errors import check_rank, check_same_shape


def kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
  """KL(π ‖ π_ref) = Σ_v π(v) (log π(v) - log π_ref(v)) of the next token, exact over the vocabulary, in nats.

  Summed along a sampled completion it is the Rao-Blackwellised estimate of the KL of sequences: unbiased, never
  negative, and of less variance than the sum of log-ratios.

  Args:
    logits: [B, T, V] of the policy π; any float dtype, computed in float32.
    reference_logits: [B, T, V] of the reference.

  Returns:
    [B, T] float32, at least 0 up to rounding. Entry t is about the token AFTER position t.
  """
  check_rank("logits", logits, 3)
  check_same_shape(logits=logits, reference_logits=reference_logits)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  log_q = jax.nn.log_softmax(reference_logits.astype(jnp.float32))
  # 0·log 0 is 0: a token that the policy never emits costs nothing, whatever the reference says.
  p = jnp.exp(log_p)
  return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)


def k1(logprobs: jax.Array, reference_logprobs: jax.Array) -> jax.Array:
  """log π(y_t) - log π_ref(y_t) of sampled tokens: unbiased for the KL, of either sign. Schulman 2020."""
  check_same_shape(logprobs=logprobs, reference_logprobs=reference_logprobs)
  return logprobs - reference_logprobs


def k2(logprobs: jax.Array, reference_logprobs: jax.Array) -> jax.Array:
  """(log π(y_t) - log π_ref(y_t))² / 2 of sampled tokens: biased, never negative. Schulman 2020."""
  return 0.5 * jnp.square(k1(logprobs, reference_logprobs))


def k3(logprobs: jax.Array, reference_logprobs: jax.Array) -> jax.Array:
  """exp(-d) - 1 + d with d = log π - log π_ref: unbiased for the KL and never negative. Schulman 2020."""
  d = k1(logprobs, reference_logprobs)
  return jnp.expm1(-d) + d
