"""Supervised fine-tuning, and pre-training: next-token cross-entropy over the tokens that the loss mask names.

Leaves out where the batches come from. In pre-training every token but the first is trained; in fine-tuning
those of the completion, its end-of-sequence token included.
"""

from collections.abc import Collection, Mapping
from typing import Any

from wam.core.types import Params
from wam.models.decoder import LanguageModel
from wam.training import loop, objectives, optimizers
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
  keep_steps: Collection[int] = (),
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
    keep_steps: numbers of updates after which the parameters are kept for good; see `kept.load`.

  Raises:
    NonFinite, Interrupted, CannotWrite: as `loop.fit`.
  """
  tx = optimizers.make(total_steps=num_steps, **optimizer)
  loss_fn = objectives.next_token(model, dtype=dtype, remat=remat, logits_chunk=logits_chunk)
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
    keep_steps=keep_steps,
    count_tokens=objectives.count_tokens,
  )
