"""Completions as a policy with a critic reads them: log-probabilities, those of a reference, and values.

Leaves out rewards and what is learnt (algorithms).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import ConfigError
from wam.core.types import Params, PyTree
from wam.generation import scoring
from wam.generation.rollouts import Rollout
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel


class Reading(NamedTuple):
  """R completions of N tokens, on the host: [R, N] float32 each, 0 where masked.

  Attributes:
    logprobs: of the policy, in nats.
    reference_logprobs: of the reference.
    kl: KL(policy ‖ reference) of the next token, exact over the vocabulary.
    values: of the critic, what it expected before the token was chosen.
  """

  logprobs: np.ndarray
  reference_logprobs: np.ndarray
  kl: np.ndarray
  values: np.ndarray


class Readers(NamedTuple):
  """The weights that read.

  Attributes:
    policy, reference: of the decoder.
    critic: of the value function.
  """

  policy: Params
  reference: Params
  critic: Params


def check(model: LanguageModel, critic: ScalarModel, *, stage: str) -> None:
  """Raises ConfigError unless both read the same tokens, as far as the sizes of their vocabularies tell."""
  sizes = (critic.config.vocab_size, model.config.vocab_size)
  if sizes[0] != sizes[1]:
    raise ConfigError(
      f"{stage}: the critic's vocabulary has {sizes[0]} tokens, the policy's {sizes[1]}; both must read the same"
      " tokens: start the critic from the policy (critic=None), or from a reward model of this vocabulary"
    )


def read(
  model: LanguageModel,
  critic: ScalarModel,
  readers: Readers,
  rollout: Rollout,
  *,
  rows_per_call: int,
  temperature: float = 1.0,
  dtype: str = "float32",
  place: Callable[[PyTree], PyTree] = lambda batch: batch,
  fetch: Callable[[PyTree], PyTree] = jax.device_get,
) -> Reading:
  """Reads a rollout under a policy, a reference and a critic.

  Args:
    model: of policy and reference.
    critic: the value function; its vocabulary is the model's.
    readers: their weights.
    rollout: R completions.
    rows_per_call: rows at a time; the last call is filled up with the first row, so that one shape is compiled. With
      the rows of a training batch, the log-probabilities have the bits that they have in training.
    temperature: of the sampling, above 0.
    dtype: of the computation.
    place: puts arrays [B, ...] that every process holds on the devices.
    fetch: brings whole arrays to the host.
  """
  R, P = rollout.prompt_tokens.shape
  filling = np.zeros(-R % rows_per_call, np.int64)
  rows = np.concatenate([np.arange(R), filling])
  filled = Rollout(*(array[rows] for array in rollout))
  comparison = scoring.compare(
    model,
    readers.policy,
    {"reference": readers.reference},
    filled,
    temperature=temperature,
    rows_per_call=rows_per_call,
    dtype=dtype,
    place=place,
    fetch=fetch,
  )
  tokens, mask, parts = filled.tokens, filled.mask, []
  for start in range(0, len(rows), rows_per_call):
    part = place((tokens[start : start + rows_per_call], mask[start : start + rows_per_call]))
    found = _values(critic, readers.critic, *part, prompt=P, dtype=jnp.dtype(dtype))
    parts.append(fetch(found))
  values = np.where(filled.completion_mask, np.concatenate(parts), np.float32(0))
  everything = Reading(
    comparison.logprobs, comparison.others["reference"], comparison.kl["reference"], values
  )
  return Reading(*(array[:R] for array in everything))


def values_before(
  critic: ScalarModel,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array,
  *,
  prompt: int,
  dtype: Any = jnp.float32,
  remat: bool = False,
) -> jax.Array:
  """What the critic expects before each token of the completions is chosen: float32 [B, N].

  Args:
    critic, params: the value function.
    tokens: [B, P + N] int32, prompts padded on the left and completions on the right.
    mask: [B, P + N] bool.
    prompt: P, at least 1.
    dtype, remat: of the forward pass.
  """
  values = critic.values(params, tokens, mask=mask, dtype=dtype, remat=remat)
  # The number at slot t - 1 has seen the tokens before t, as the logits there have.
  return values[:, prompt - 1 : -1]


@functools.partial(jax.jit, static_argnames=("critic", "prompt", "dtype"))
def _values(
  critic: ScalarModel,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array,
  *,
  prompt: int,
  dtype: Any,
) -> jax.Array:
  return values_before(critic, params, tokens, mask, prompt=prompt, dtype=dtype)
