"""How far a policy is from its reference, measured along completions that it sampled."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from wam.core.types import Params
from wam.generation.sampling import Samples
from wam.losses import policy
from wam.models.decoder import LanguageModel


class Divergence(NamedTuple):
  """KL(policy || reference) of R completions, in nats.

  Attributes:
    per_sequence: float64 [R], the sum over the completion's tokens, EOS included.
    per_token: float32 [R, N], 0 where masked.
  """

  per_sequence: np.ndarray
  per_token: np.ndarray


def kl_to_reference(
  model: LanguageModel,
  params: Params,
  reference_params: Params,
  samples: Samples,
  *,
  batch_size: int = 64,
) -> Divergence:
  """The KL of each next-token distribution, exact over the vocabulary, at every prefix the policy went through.

  At temperature 1 and without truncation. The mean of `per_sequence` over completions sampled that way from the policy
  is an unbiased, never negative estimate of KL(policy || reference) of whole completions.

  Args:
    model: of both.
    params: of the policy.
    reference_params: of the reference.
    samples: R completions of the policy.
    batch_size: rows at a time; one shape is compiled.
  """
  R, P = samples.prompt_tokens.shape
  tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
  batch_size = min(batch_size, R)
  rows = []
  for start in range(0, R, batch_size):
    # The last batch is filled up with its first row, to keep the shape.
    index = np.arange(start, start + batch_size)
    index = np.where(index < R, index, start)
    rows.append(_token_kl(model, params, reference_params, tokens[index], mask[index], prompt=P))
  per_token = np.concatenate([np.asarray(row) for row in rows])[:R]
  per_token = np.where(np.asarray(samples.completion_mask), per_token, 0.0)
  return Divergence(per_token.sum(axis=1, dtype=np.float64), per_token)


@functools.partial(jax.jit, static_argnames=("model", "prompt"))
def _token_kl(
  model: LanguageModel,
  params: Params,
  reference_params: Params,
  tokens: jax.Array,
  mask: jax.Array,
  *,
  prompt: int,
) -> jax.Array:
  """KL at every token after the prompt: [B, N]."""

  def logits(weights: Params) -> jax.Array:
    hidden = model.apply(weights, tokens, mask=mask, logits=False).hidden
    # Slot t - 1 predicts token t.
    return model.logits(weights, hidden[:, prompt - 1 : -1])

  return policy.kl(logits(params), logits(reference_params))
