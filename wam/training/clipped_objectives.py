"""The two objectives of proximal policy optimisation, as loss functions over batches of completions.

Batches hold "tokens" and "loss_mask" [B, P + N] and, for the N slots of completions, "old_logprobs" and "advantages"
[B, N] (policy), "old_values" and "returns" [B, N] (critic). Sums over tokens, so that a batch is normalised by its
tokens, wherever they lie. Leaves out the forward passes, which are handed in, and where advantages come from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from wam.core.types import Params, PyTree
from wam.losses import policy_gradient, sequence
from wam.training.state import Frozen, LossFn, Pair


def surrogate(
  read: Callable[[Params, PyTree], tuple[jax.Array, jax.Array]],
  *,
  clip_ratio: float | None,
  entropy_coef: float = 0.0,
) -> LossFn:
  """The clipped surrogate, less entropy_coef times the entropy.

  Metrics: the means "entropy" (nats a token), "ratio", "approx_kl" and "clip_fraction", and "ratio_max", the largest.

  Args:
    read: (params, batch) -> log-probabilities of the completions' tokens and entropies of their distributions, [B, N].
    clip_ratio: as in `policy_gradient.clipped_surrogate`.
    entropy_coef: in units of the advantages.
  """

  def loss_fn(
    params: Params, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    del key, frozen  # nothing random in the forward pass
    logprobs, entropy = read(params, batch)
    weights = completion_weights(batch, logprobs.shape[1])
    terms = policy_gradient.clipped_surrogate(
      logprobs, batch["old_logprobs"], batch["advantages"], weights > 0, clip=clip_ratio
    )
    losses, total = terms.loss, jnp.sum(weights)
    # Not with a coefficient of 0: its backward pass would be computed.
    if entropy_coef:
      losses = losses - entropy_coef * entropy
    means = {
      "entropy": entropy,
      "ratio": terms.ratio,
      "approx_kl": terms.approx_kl,
      "clip_fraction": terms.clipped,
    }
    metrics = {name: (sequence.masked_sum(x, weights), total) for name, x in means.items()}
    metrics["ratio_max"] = (jnp.max(jnp.where(weights > 0, terms.ratio, 0.0)), jnp.ones(()))
    return sequence.masked_sum(losses, weights), total, jax.lax.stop_gradient(metrics)

  return loss_fn


def value_error(
  read: Callable[[Params, PyTree], jax.Array], *, clip_value: float | None, vf_coef: float
) -> LossFn:
  """vf_coef times the clipped squared error of the values. Metric: "clip_fraction".

  Args:
    read: (params, batch) -> values before each token of the completions, [B, N].
    clip_value: as in `policy_gradient.clipped_value_loss`.
    vf_coef: the factor.
  """

  def loss_fn(
    params: Params, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    del key, frozen
    values = read(params, batch)
    weights = completion_weights(batch, values.shape[1])
    terms = policy_gradient.clipped_value_loss(
      values, batch["old_values"], batch["returns"], clip=clip_value
    )
    total = jnp.sum(weights)
    metrics = {"clip_fraction": (sequence.masked_sum(terms.clipped, weights), total)}
    return vf_coef * sequence.masked_sum(terms.loss, weights), total, metrics

  return loss_fn


def completion_weights(batch: PyTree, length: int) -> jax.Array:
  """The part of the loss mask that is about completions of N slots: float32 [B, N]."""
  mask = batch["loss_mask"]
  return mask[:, mask.shape[1] - length :].astype(jnp.float32)
