"""Log-probabilities of token sequences, and means over masks.

The only place of the project that gathers log-probabilities. Leaves out losses on rewards and policies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from wam.core.errors import check_rank, check_same_shape


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """log p(tokens[t] | tokens[<t]) for every position, in nats.

  Written as logit minus logsumexp: no second [B, T, V] array of log-probabilities is made.

  Args:
    logits: [B, T, V]; position t - 1 predicts token t. Any float dtype; computed in float32.
    tokens: [B, T] int.

  Returns:
    [B, T] float32, at most 0; entry 0 is 0, as nothing predicts the first token.
  """
  check_rank("logits", logits, 3)
  check_rank("tokens", tokens, 2)
  # The labels are rolled and not the logits: slicing off a position would copy the largest array of the step.
  scores = _scores(logits, jnp.roll(tokens, -1, axis=1))
  return _shift(scores)


def token_logprobs_from_hidden(
  hidden: jax.Array, tokens: jax.Array, project: Callable[[jax.Array], jax.Array], *, chunk: int
) -> jax.Array:
  """As `token_logprobs`, from hidden states, holding the logits of `chunk` positions at a time.

  For large vocabularies: the forward and the backward pass recompute each chunk's logits (`jax.checkpoint`), so the
  peak is [B, chunk, V] in place of [B, T, V], for one more multiplication by the output matrix.

  Args:
    hidden: [B, T, D], after the final norm.
    tokens: [B, T] int.
    project: [B, chunk, D] -> logits [B, chunk, V]; gradients flow into what it closes over.
    chunk: positions at a time; the last chunk is padded.

  Returns:
    [B, T] float32; entry 0 is 0.
  """
  check_rank("hidden", hidden, 3)
  check_rank("tokens", tokens, 2)
  if chunk < 1:
    raise ValueError(f"chunk: expected at least 1, found {chunk}")
  length = tokens.shape[1]
  padding = -length % chunk
  labels = jnp.pad(jnp.roll(tokens, -1, axis=1), ((0, 0), (0, padding)))
  hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))

  def chunks(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

  def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    return _scores(project(pair[0]), pair[1])

  scores = jax.lax.map(jax.checkpoint(one), (chunks(hidden), chunks(labels)))  # [T/chunk, B, chunk]
  scores = jnp.moveaxis(scores, 0, 1).reshape(tokens.shape[0], -1)[:, :length]
  return _shift(scores)


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Σ values·mask, a float32 scalar. A masked NaN does not reach the sum."""
  check_same_shape(values=values, mask=mask)
  kept = jnp.where(mask.astype(bool), values.astype(jnp.float32), 0.0)
  return jnp.sum(kept * mask.astype(jnp.float32))


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Σ values·mask / Σ mask, a float32 scalar; 0 where the mask is empty."""
  return masked_sum(values, mask) / jnp.maximum(jnp.sum(mask.astype(jnp.float32)), 1.0)


def _scores(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """log softmax(logits)[labels], [B, T] float32."""
  return -optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def _shift(scores: jax.Array) -> jax.Array:
  """Moves the score of the next token to that token's own place."""
  return jnp.pad(scores[:, :-1], ((0, 0), (1, 0)))
