"""Log-probabilities of completions that are there already, and how far policies are apart along them.

At the temperature of the sampling, so that they are about the distribution that was sampled from. Leaves out rewards.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.types import Params, PyTree
from wam.generation.rollouts import Rollout
from wam.losses import policy, sequence
from wam.models.decoder import LanguageModel


class Comparison(NamedTuple):
  """R completions of N tokens under a policy and under others, on the host; 0 where masked, in nats.

  Attributes:
    logprobs: [R, N] float32, log π(y_t) of the policy.
    others: the same of each of the others, by name.
    kl: by name, [R, N] float32, KL(policy ‖ other) of the next token, exact over the vocabulary, at every prefix.
  """

  logprobs: np.ndarray
  others: dict[str, np.ndarray]
  kl: dict[str, np.ndarray]

  def log_ratio(self, name: str) -> np.ndarray:
    """log π(y) - log π_other(y) of whole completions: [R] float32, exactly 0 where the two policies are one."""
    return (self.logprobs - self.others[name]).sum(axis=1)


def compare(
  model: LanguageModel,
  params: Params,
  others: Mapping[str, Params],
  rollout: Rollout,
  *,
  temperature: float = 1.0,
  rows_per_call: int | None = None,
  dtype: str = "float32",
  place: Callable[[PyTree], PyTree] = lambda batch: batch,
  fetch: Callable[[PyTree], PyTree] = jax.device_get,
) -> Comparison:
  """Reads a rollout under a policy and others.

  Every policy is read by one compiled program, so equal weights give equal bits.

  Args:
    model: of all of them.
    params: the policy, usually the one that sampled.
    others: weights by name.
    rollout: R completions.
    temperature: of the sampling, above 0: all logits are divided by it.
    rows_per_call: rows at a time, to bound the memory of the logits [rows, N, V]; one program for them. None: all.
    dtype: of the computation.
    place: puts arrays [B, ...] that every process holds on the devices.
    fetch: brings whole arrays to the host.
  """
  R, P = rollout.prompt_tokens.shape
  rows = min(rows_per_call or R, R)
  arrays = (rollout.tokens, rollout.mask, rollout.completion_mask)
  static = {"model": model, "prompt": P, "dtype": jnp.dtype(dtype)}
  parts = []
  for start in range(0, R, rows):
    # The last call is filled up with its first row, to keep the shape.
    index = np.arange(start, start + rows)
    index = np.where(index < R, index, start)
    batch = place(tuple(x[index] for x in arrays))
    logprobs, logits = _read(params=params, batch=batch, temperature=temperature, **static)
    part: dict[str, Any] = {"logprobs": logprobs, "others": {}, "kl": {}}
    for name, weights in others.items():
      read = _read(params=weights, batch=batch, temperature=temperature, **static)
      part["others"][name] = read[0]
      part["kl"][name] = _kl(logits, read[1], batch[2])
    parts.append(fetch(part))
  return Comparison(**jax.tree.map(lambda *pieces: np.concatenate(pieces)[:R], *parts))


def completion_logits(
  model: LanguageModel,
  params: Params,
  tokens: jax.Array,
  mask: jax.Array,
  *,
  prompt: int,
  temperature: jax.Array | float = 1.0,
  dtype: Any = jnp.float32,
  remat: bool = False,
) -> jax.Array:
  """What the completions are drawn from: float32 [B, N + 1, V]; entry t is about token t of the completion.

  The last entry is about the token after them and is of no use; cutting it off would copy the largest array there is.

  Args:
    model: the decoder.
    params: its weights.
    tokens: [B, P + N] int32, prompts padded on the left and completions on the right.
    mask: [B, P + N] bool.
    prompt: P, at least 1.
    temperature: of the sampling.
    dtype, remat: of the forward pass.
  """
  output = model.apply(params, tokens, mask=mask, dtype=dtype, remat=remat, logits=False)
  # Slot t - 1 predicts token t; the logits of prompts are never made.
  return model.logits(params, output.hidden[:, prompt - 1 :]) / temperature


def completion_logprobs(logits: jax.Array, tokens: jax.Array, *, prompt: int) -> jax.Array:
  """log π(y_t) [B, N] float32 from `completion_logits` [B, N + 1, V] and tokens [B, P + N]."""
  return sequence.token_logprobs(logits, tokens[:, prompt - 1 :])[:, 1:]


@functools.partial(jax.jit, static_argnames=("model", "prompt", "dtype"))
def _read(
  *,
  model: LanguageModel,
  params: Params,
  batch: tuple[jax.Array, jax.Array, jax.Array],
  temperature: jax.Array | float,
  prompt: int,
  dtype: Any,
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of the completions [B, N], and the logits [B, N + 1, V]."""
  tokens, mask, completion_mask = batch
  logits = completion_logits(
    model, params, tokens, mask, prompt=prompt, temperature=temperature, dtype=dtype
  )
  logprobs = completion_logprobs(logits, tokens, prompt=prompt)
  return jnp.where(completion_mask, logprobs, 0.0), logits


@jax.jit
def _kl(logits: jax.Array, other_logits: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.where(mask, policy.kl(logits, other_logits)[:, :-1], 0.0)
