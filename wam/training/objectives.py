"""The objective that several algorithms share: the next-token cross-entropy of a decoder.

Leaves out the objectives that belong to one algorithm, which stand in it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.types import Params, PyTree
from wam.losses import sequence
from wam.models.decoder import LanguageModel
from wam.training.state import Frozen, LossFn, Pair


def next_token(
  model: LanguageModel,
  *,
  dtype: str = "float32",
  remat: bool = False,
  logits_chunk: int | None = None,
) -> LossFn:
  """Σ_t -log p(token t | tokens before) over the loss mask, in nats, and the number of such tokens.

  The metric "accuracy" is left out on purpose: an argmax over the vocabulary costs as much as the loss on small models.
  """

  def loss_fn(
    params: Params, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    del key, frozen  # nothing random in the forward pass
    tokens, mask = batch["tokens"], batch["mask"]
    output = model.apply(
      params,
      tokens,
      mask=mask,
      dtype=jnp.dtype(dtype),
      remat=remat,
      logits=logits_chunk is None,
    )
    if output.logits is not None:
      logprobs = sequence.token_logprobs(output.logits, tokens)
    else:
      logprobs = sequence.token_logprobs_from_hidden(
        output.hidden,
        tokens,
        lambda hidden: model.logits(params, hidden),
        chunk=logits_chunk or tokens.shape[1],
      )
    weights = batch["loss_mask"].astype(jnp.float32)
    return sequence.masked_sum(-logprobs, weights), jnp.sum(weights), {}

  return loss_fn


def count_tokens(batch: PyTree) -> int:
  """Real tokens of a batch, trained on or not."""
  return int(np.count_nonzero(batch["mask"]))
