"""Policy-gradient losses with an advantage for each completion: REINFORCE, and its clipped ratio. No reductions.

Leaves out where advantages come from (baselines.py) and losses with a value function.
"""

import jax
import jax.numpy as jnp

from wam.core.errors import check_rank, check_same_shape


def sequence_level(
  logprobs: jax.Array,
  mask: jax.Array,
  advantages: jax.Array,
  *,
  old_logprobs: jax.Array | None = None,
  clip_ratio: float | None = None,
) -> jax.Array:
  """-A·log π(y) of whole completions, log π(y) = Σ_t log π(y_t); or the clipped form of the ratio π(y)/π_old(y).

  Its mean over samples y ~ π has the gradient -∇E_π[A] (Williams 1992), to be minimised.

  Args:
    logprobs: [B, T] float32 of the policy, in nats, at the temperature of the sampling.
    mask: [B, T] bool, the tokens that the policy chose: completions, EOS included.
    advantages: [B] float; no gradient flows into them.
    old_logprobs: [B, T] of the policy that sampled; looked at only with a `clip_ratio`.
    clip_ratio: ε; then the loss is -min(w·A, clip(w, 1 - ε, 1 + ε)·A) with w = π(y)/π_old(y) (Schulman et al. 2017,
      eq. 7, for one action that is the whole completion, as RLOO has it). None: -A·log π(y).

  Returns:
    [B] float32.
  """
  _check(logprobs, mask, advantages)
  total = jnp.sum(jnp.where(mask, logprobs, 0.0), axis=1)
  if clip_ratio is None:
    return -jax.lax.stop_gradient(advantages) * total
  return _clipped(log_ratio(logprobs, old_logprobs, mask).sum(axis=1), advantages, clip_ratio)


def token_level(
  logprobs: jax.Array,
  mask: jax.Array,
  advantages: jax.Array,
  *,
  old_logprobs: jax.Array | None = None,
  clip_ratio: float | None = None,
) -> jax.Array:
  """-A·log π(y_t) of every token, each with the advantage of its completion; arguments as in `sequence_level`.

  Summed over a completion and unclipped it is the same as `sequence_level`. What differs is what a caller may do with
  it: a mean over tokens, in which long completions count more, and ratios that are clipped token by token.

  Returns:
    [B, T] float32, 0 where masked.
  """
  _check(logprobs, mask, advantages)
  spread = jnp.broadcast_to(advantages[:, None], logprobs.shape)
  if clip_ratio is None:
    terms = -jax.lax.stop_gradient(spread) * logprobs
  else:
    terms = _clipped(log_ratio(logprobs, old_logprobs, mask), spread, clip_ratio)
  return jnp.where(mask, terms, 0.0)


def log_ratio(logprobs: jax.Array, old_logprobs: jax.Array | None, mask: jax.Array) -> jax.Array:
  """log π(y_t) - log π_old(y_t) of every token: [B, T] float32, 0 where masked.

  Raises:
    ValueError: without `old_logprobs`, or if shapes differ.
  """
  if old_logprobs is None:
    raise ValueError("a ratio needs old_logprobs, those of the policy that sampled")
  check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
  return jnp.where(mask, logprobs - jax.lax.stop_gradient(old_logprobs), 0.0)


def _clipped(log_ratios: jax.Array, advantages: jax.Array, clip_ratio: float) -> jax.Array:
  """-min(w·A, clip(w)·A), elementwise."""
  fixed = jax.lax.stop_gradient(advantages)
  ratio = jnp.exp(log_ratios)
  bounded = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
  return -jnp.minimum(ratio * fixed, bounded * fixed)


def _check(logprobs: jax.Array, mask: jax.Array, advantages: jax.Array) -> None:
  check_rank("logprobs", logprobs, 2)
  check_same_shape(logprobs=logprobs, mask=mask)
  check_same_shape(advantages=advantages, rows=logprobs[:, 0])
