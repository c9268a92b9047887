"""The compiled forward passes behind the tasks: choices after a prompt, targets, nats of windows of text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from wam.core.types import Params
from wam.losses import sequence
from wam.models.decoder import LanguageModel

# Logits are made for so many numbers at a time, at most (256 MB of float32).
_LOGITS = 2**26


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def choice_logprobs(
  model: LanguageModel,
  params: Params,
  prompts: tuple[jax.Array, jax.Array],
  choices: tuple[jax.Array, jax.Array],
  *,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """log p(choice | prompt), summed over the choice's tokens, each prompt read once.

  Args:
    model: the decoder.
    params: its weights.
    prompts: tokens int32 [B, P] and mask bool [B, P], padded on the left.
    choices: tokens int32 [B, C, T] and mask bool [B, C, T], padded on the right; a choice without tokens gets -inf.
    dtype: of the computation.

  Returns:
    float32 [B, C].
  """
  (B, P), (_, C, T) = prompts[0].shape, choices[0].shape
  cache = model.init_cache(B, P, dtype)
  output = model.apply(params, prompts[0], mask=prompts[1], cache=cache, dtype=dtype, logits=False)
  tokens, mask = (x.reshape(B * C, T) for x in choices)
  hidden = jnp.repeat(output.hidden[:, -1:], C, axis=0)
  if T > 1:
    assert output.cache is not None
    cache = output.cache.repeat(C).lengthen(P + T - 1)
    rest = model.apply(
      params, tokens[:, :-1], mask=mask[:, :-1], cache=cache, dtype=dtype, logits=False
    )
    hidden = jnp.concatenate([hidden, rest.hidden], axis=1)
  # A token in front, since the first position of a sequence has no log-probability.
  shifted = jnp.pad(hidden, ((0, 0), (0, 1), (0, 0)))
  scores = _logprobs(model, params, shifted, jnp.pad(tokens, ((0, 0), (1, 0))))[:, 1:]
  sums = jnp.sum(jnp.where(mask, scores, 0.0), axis=1)
  return jnp.where(mask.any(axis=1), sums, -jnp.inf).reshape(B, C)


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def target_nats(
  model: LanguageModel,
  params: Params,
  inputs: tuple[jax.Array, jax.Array],
  targets: tuple[jax.Array, jax.Array],
  *,
  dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
  """-log p of targets after their prompts, and whether all of their tokens are the most probable ones.

  Args:
    model: the decoder.
    params: its weights.
    inputs: tokens int32 [B, S] and mask bool [B, S], padded on the left: prompt and target but for its last token.
    targets: tokens int32 [B, T] and mask bool [B, T], padded on the left, so that the last T slots predict them.
    dtype: of the computation.

  Returns:
    float32 [B] and bool [B].
  """
  # No target is longer than its input, but its padding may be.
  tokens, mask = (x[:, -inputs[0].shape[1] :] for x in targets)
  hidden = model.apply(params, inputs[0], mask=inputs[1], dtype=dtype, logits=False).hidden
  logits = model.logits(params, hidden[:, -tokens.shape[1] :]).astype(jnp.float32)
  scores = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, :, None], axis=2)[:, :, 0]
  # Of equal logits the lowest id counts, as in greedy decoding: a model that says nothing is not always right.
  right = jnp.all((jnp.argmax(logits, axis=2) == tokens) | ~mask, axis=1)
  return -jnp.sum(jnp.where(mask, scores, 0.0), axis=1), right


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def text_nats(
  model: LanguageModel,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array,
  scored: jax.Array,
  *,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """-log p summed over the scored tokens: float32 [B]; tokens, mask and scored are [B, T], padded on the right."""
  hidden = model.apply(params, tokens, mask=mask, dtype=dtype, logits=False).hidden
  return -jnp.sum(jnp.where(scored, _logprobs(model, params, hidden, tokens), 0.0), axis=1)


def _logprobs(
  model: LanguageModel, params: Params, hidden: jax.Array, tokens: jax.Array
) -> jax.Array:
  """`losses.sequence.token_logprobs`, in chunks where the logits would be large."""
  B, T = tokens.shape
  chunk = max(_LOGITS // (B * model.config.vocab_size), 1)
  if chunk >= T:
    return sequence.token_logprobs(model.logits(params, hidden), tokens)
  return sequence.token_logprobs_from_hidden(
    hidden, tokens, lambda h: model.logits(params, h), chunk=chunk
  )
