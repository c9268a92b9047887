"""Advantages of sampled tokens: scores with a KL penalty as rewards, generalised advantage estimation, whitening.

Everything is about completions alone, [B, N], right-padded, with a mask that is never derived from a token: EOS may be
the token that pads. Leaves out where scores, log-probabilities and values come from, and the losses
(policy_gradient.py).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from wam.core.errors import check_rank, check_same_shape
from wam.losses import policy, sequence

# Numbers that differ by less, relatively to the largest, differ by the rounding of float32.
_ROUNDING = 1e-6


class Estimates(NamedTuple):
  """What the tokens of completions earned; arrays [B, N] float32, 0 where masked.

  Attributes:
    rewards: shaped; whitened if asked for.
    advantages: whitened if asked for.
    returns: targets of the values, of advantages that are not whitened.
    statistics: scalars by name, over all tokens: mean and biased variance of returns and values, and
      "explained_variance", 1 - Var(returns - values) / Var(returns): 0 where returns do not vary.
  """

  rewards: jax.Array
  advantages: jax.Array
  returns: jax.Array
  statistics: dict[str, jax.Array]


def shaped_rewards(
  scores: jax.Array,
  logprobs: jax.Array,
  reference_logprobs: jax.Array,
  mask: jax.Array,
  *,
  kl_coef: float | jax.Array,
) -> jax.Array:
  """r_t = -kl_coef·(log π(y_t) - log π_ref(y_t)) for every token, and the score on top at the last one, in float32.

  The last token is EOS, or where there is none the last that was sampled. Summed over a completion this is an
  unbiased estimate of score - kl_coef·KL(π ‖ π_ref). Ziegler et al. 2019, section 2.2; Ouyang et al. 2022, eq. 2.

  Args:
    scores: [B], any real dtype; fractions stay fractions.
    logprobs: [B, N] of the policy that sampled.
    reference_logprobs: [B, N].
    mask: [B, N] bool, the completion's tokens, EOS included.
    kl_coef: at least 0.

  Returns:
    [B, N] float32, 0 where masked; a row without tokens gets nothing.
  """
  check_rank("mask", mask, 2)
  check_rank("scores", scores, 1)
  check_same_shape(logprobs=logprobs, reference_logprobs=reference_logprobs, mask=mask)
  real = mask.astype(bool)
  penalty = kl_coef * policy.k1(logprobs, reference_logprobs).astype(jnp.float32)
  # The last real token has none after it.
  following = jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
  score = jnp.where(real & ~following, scores.astype(jnp.float32)[:, None], 0.0)
  return jnp.where(real, score - penalty, 0.0)


def gae(
  rewards: jax.Array,
  values: jax.Array,
  mask: jax.Array,
  *,
  gamma: float | jax.Array = 1.0,
  lam: float | jax.Array = 0.95,
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation (Schulman et al. 2016, eq. 16), in float32.

  δ_t = r_t + γ V_{t+1} - V_t and A_t = Σ_k (γλ)^k δ_{t+k}, where V_t is the value before token t is chosen, and that
  after the last token is 0. With λ = 1 and γ = 1, A_t + V_t is the sum of the rewards from t on.

  Args:
    rewards: [B, N], what token t earned.
    values: [B, N], what was expected before token t.
    mask: [B, N] bool, one run of tokens in each row.
    gamma: γ.
    lam: λ.

  Returns:
    Advantages and returns A + V (targets of the values), [B, N] float32, 0 where masked.
  """
  check_rank("rewards", rewards, 2)
  check_same_shape(rewards=rewards, values=values, mask=mask)
  real = mask.astype(bool)
  known = jnp.where(real, values.astype(jnp.float32), 0.0)
  after = jnp.pad(known[:, 1:], ((0, 0), (0, 1)))
  deltas = jnp.where(real, rewards.astype(jnp.float32) + gamma * after - known, 0.0)

  def step(later: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    delta, here = xs
    advantage = jnp.where(here, delta + gamma * lam * later, 0.0)
    return advantage, advantage

  start = jnp.zeros(deltas.shape[:1], jnp.float32)
  _, advantages = jax.lax.scan(step, start, (deltas.T, real.T), reverse=True)
  return advantages.T, jnp.where(real, advantages.T + known, 0.0)


def whiten(values: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
  """(x - mean) / sqrt(variance + 1e-8) over the mask of the whole array, with the biased variance.

  Values that are all equal have nothing to say and become 0 (or their mean): dividing what rounding left of them by its
  own size would make an update of noise.

  Args:
    values: [B, N], the whole batch: statistics of a part of it would weigh the parts differently.
    mask: [B, N] bool.
    shift_mean: False leaves the mean where it was (for rewards: their sign matters).

  Returns:
    [B, N] float32, 0 where masked.
  """
  check_same_shape(values=values, mask=mask)
  real = mask.astype(bool)
  peak = jnp.max(jnp.where(real, values.astype(jnp.float32), -jnp.inf))
  # From the largest on: equal values are exactly 0 then, and their mean has no rounding.
  x = jnp.where(real, values.astype(jnp.float32) - peak, 0.0)
  mean = sequence.masked_mean(x, real)
  deviations = jnp.where(real, x - mean, 0.0)
  variance = sequence.masked_mean(jnp.square(deviations), real)
  varies = variance > jnp.square(_ROUNDING * peak)
  white = jnp.where(varies, deviations * jax.lax.rsqrt(variance + 1e-8), 0.0)
  return jnp.where(real, white if shift_mean else white + (mean + peak), 0.0)


@functools.partial(jax.jit, static_argnames=("whiten_rewards", "whiten_advantages"))
def estimate(
  scores: jax.Array,
  logprobs: jax.Array,
  reference_logprobs: jax.Array,
  values: jax.Array,
  mask: jax.Array,
  *,
  kl_coef: float | jax.Array,
  gamma: float | jax.Array = 1.0,
  lam: float | jax.Array = 0.95,
  whiten_rewards: bool = False,
  whiten_advantages: bool = True,
) -> Estimates:
  """`shaped_rewards`, `gae` and `whiten` after one another; compiled once for a shape and the two flags."""
  rewards = shaped_rewards(scores, logprobs, reference_logprobs, mask, kl_coef=kl_coef)
  if whiten_rewards:
    rewards = whiten(rewards, mask, shift_mean=False)
  advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
  if whiten_advantages:
    advantages = whiten(advantages, mask)
  return Estimates(rewards, advantages, returns, _statistics(returns, values, mask))


def _statistics(returns: jax.Array, values: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
  """Those of `Estimates`."""

  def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean = sequence.masked_mean(x, mask)
    return mean, sequence.masked_mean(jnp.square(x - mean), mask)

  returns_mean, spread = moments(returns)
  values_mean, values_var = moments(values)
  unexplained = moments(returns - values)[1] / jnp.where(spread > 0, spread, 1.0)
  return {
    "returns_mean": returns_mean,
    "returns_var": spread,
    "values_mean": values_mean,
    "values_var": values_var,
    "explained_variance": jnp.where(spread > 0, 1.0 - unexplained, 0.0),
  }
