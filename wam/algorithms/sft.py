"""Supervised fine-tuning, and pre-training: next-token cross-entropy over the tokens that the loss mask names.

Leaves out where the batches come from. In pre-training every token but the first is trained; in fine-tuning
those of the completion, its end-of-sequence token included.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.types import Params, PyTree
from wam.losses import sequence
from wam.models.decoder import LanguageModel
from wam.training import loop, optimizers
from wam.training.state import LossFn, Pair
from wam.training.workdir import Run


def run(
  model: LanguageModel,
  params: Params,
  batches: loop.Batches,
  *,
  run: Run,
  stage: str,
  num_steps: int,
  optimizer: Mapping[str, Any],
  dtype: str = "float32",
  remat: bool = False,
  logits_chunk: int | None = None,
  accumulate_steps: int = 1,
  log_every: int = 50,
) -> Params:
  """Trains on {"tokens" [B, T] int32, "mask" [B, T] bool, "loss_mask" [B, T]} batches; returns the parameters.

  Args:
    model: the decoder.
    params: float32 master weights; stacked layers compile faster. Not consumed.
    batches: the input; its position is part of the checkpoint.
    run: the open workdir.
    stage: names the stage ("pretrain", "sft").
    num_steps: updates.
    optimizer: keywords of `optimizers.make`, without `total_steps`.
    dtype: of the computation; master weights, moments and loss are float32.
    remat: recompute activations in the backward pass, layer by layer.
    logits_chunk: positions whose logits are held at a time; None for all. For large vocabularies.
    accumulate_steps: microbatches per update.
    log_every: steps between records.

  Raises:
    NonFinite, Interrupted, CannotWrite: as `loop.fit`.
  """
  tx = optimizers.make(total_steps=num_steps, **optimizer)
  loss_fn = make_loss(model, dtype=dtype, remat=remat, logits_chunk=logits_chunk)
  return loop.fit(
    params,
    batches,
    run=run,
    stage=stage,
    loss_fn=loss_fn,
    tx=tx,
    num_steps=num_steps,
    accumulate_steps=accumulate_steps,
    log_every=log_every,
    count_tokens=count_tokens,
  )


def make_loss(
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
    params: Params, batch: PyTree, key: jax.Array
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    del key  # nothing random in the forward pass
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
