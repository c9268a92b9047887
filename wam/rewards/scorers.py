"""Scorers of completions: rules and gold rewards on strings, reward models on tokens; one way to call either.

Leaves out ensembles, and the KL penalty, which is the algorithm's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import NonFinite
from wam.core.types import Params, PyTree
from wam.models.heads import ScalarModel


class Scorer(Protocol):
  """A reward on text: a rule, or the gold reward of a world."""

  def __call__(self, prompts: Sequence[str], completions: Sequence[str], /) -> np.ndarray:
    """Rewards [R] of the completions of these prompts, any finite numbers."""


class RolloutScorer(Protocol):
  """A reward on what a generation returned, as arrays."""

  def __call__(
    self,
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    completions: np.ndarray,
    completion_mask: np.ndarray,
  ) -> np.ndarray:
    """Rewards [R] float32 of prompts [R, P], left-padded, and completions [R, N], right-padded."""


def from_text(
  score: Scorer,
  decode: Callable[[list[int]], str],
  *,
  eos_id: int | Sequence[int],
  name: str = "reward",
) -> RolloutScorer:
  """A scorer of text as a scorer of rollouts.

  Args:
    score: the reward.
    decode: token ids -> text.
    eos_id: what ends a completion, one token or several; it is not decoded.
    name: for the message when a reward is not finite.
  """

  def scorer(
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    completions: np.ndarray,
    completion_mask: np.ndarray,
  ) -> np.ndarray:
    prompts = _texts(prompt_tokens, prompt_mask, decode)
    texts = _texts(completions, completion_mask & ~np.isin(completions, eos_id), decode)
    return check_rewards(score(prompts, texts), len(texts), name=name)

  return scorer


def from_model(
  model: ScalarModel,
  params: Params,
  *,
  chunk: int = 256,
  dtype: Any = jnp.float32,
  place: Callable[[PyTree], PyTree] = lambda batch: batch,
  fetch: Callable[[PyTree], PyTree] = jax.device_get,
  name: str = "reward model",
) -> RolloutScorer:
  """A reward model as a scorer of rollouts; it reads prompt and completion, EOS included.

  Args:
    model, params: the reward model.
    chunk: rows at a time; one program is compiled for it.
    dtype: of the computation.
    place: puts arrays [chunk, T] on the devices (`sharding.put_whole_batch`).
    fetch: brings whole arrays to the host.
    name: for the message when a reward is not finite.
  """

  def scorer(
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    completions: np.ndarray,
    completion_mask: np.ndarray,
  ) -> np.ndarray:
    tokens = np.concatenate([prompt_tokens, completions], axis=1)
    mask = np.concatenate([prompt_mask, completion_mask], axis=1)
    return score_tokens(
      model, params, tokens, mask, chunk=chunk, dtype=dtype, place=place, fetch=fetch, name=name
    )

  return scorer


def score_tokens(
  model: ScalarModel,
  params: Params,
  tokens: np.ndarray,
  mask: np.ndarray,
  *,
  chunk: int = 256,
  dtype: Any = jnp.float32,
  place: Callable[[PyTree], PyTree] = lambda batch: batch,
  fetch: Callable[[PyTree], PyTree] = jax.device_get,
  name: str = "reward model",
) -> np.ndarray:
  """Rewards [R] float32 of sequences [R, T], in chunks of one size.

  Raises:
    NonFinite: if a reward is NaN or infinite.
  """
  count = len(tokens)
  # The last chunk is filled with copies of the first row: a row without tokens could be NaN.
  rows = np.concatenate([np.arange(count), np.zeros(-count % chunk, np.int64)])
  pieces = []
  for start in range(0, len(rows), chunk):
    part = place((tokens[rows[start : start + chunk]], mask[rows[start : start + chunk]]))
    # Not fetched yet: the next chunk is prepared while this one is computed.
    pieces.append(_apply(model, params, *part, dtype=jnp.dtype(dtype)))
  rewards = np.concatenate([fetch(piece) for piece in pieces]) if pieces else np.zeros(0)
  return check_rewards(rewards[:count], count, name=name)


def check_rewards(rewards: Any, count: int, *, name: str = "reward") -> np.ndarray:
  """The rewards as float32 [count].

  Raises:
    NonFinite: if one is NaN or infinite; says how many and which comes first.
    ValueError: if there are not `count` of them.
  """
  array = np.asarray(rewards, np.float32)
  if array.shape != (count,):
    raise ValueError(f"{name}: expected {count} rewards, found shape {array.shape}")
  bad = np.flatnonzero(~np.isfinite(array))
  if bad.size:
    raise NonFinite(
      f"{name}: {bad.size} of {count} rewards are not finite, the first is number {bad[0]} ({array[bad[0]]})"
    )
  return array


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def _apply(
  model: ScalarModel, params: Params, tokens: jax.Array, mask: jax.Array, *, dtype: Any
) -> jax.Array:
  return model.apply(params, tokens, mask=mask, dtype=dtype)


def _texts(tokens: np.ndarray, mask: np.ndarray, decode: Callable[[list[int]], str]) -> list[str]:
  return [decode(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]
