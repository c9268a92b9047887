"""Bradley-Terry reward models: training on pairs, held-out measurements, normalisation.

Leaves out ensembles and averages of reward models (rewards, recipes).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wam.core.errors import BadData
from wam.core.types import Params, PyTree
from wam.models.heads import ScalarModel
from wam.rewards import scorers
from wam.training import loop, optimizers, pair_objectives, sharding
from wam.training.workdir import Run

HEAD = r"head/.*"


def run(
  model: ScalarModel,
  params: Params,
  batches: loop.Batches,
  *,
  run: Run,
  stage: str,
  num_steps: int,
  optimizer: Mapping[str, Any],
  probe_steps: int = 0,
  probe_optimizer: Mapping[str, Any] | None = None,
  center_rewards_coefficient: float = 0.0,
  margin: float = 0.0,
  dropout: float = 0.0,
  dtype: str = "float32",
  remat: bool = False,
  accumulate_steps: int = 1,
  log_every: int = 50,
) -> Params:
  """Trains on pair batches {"chosen", "chosen_mask", "rejected", "rejected_mask"}, all [B, T]; returns the parameters.

  Args:
    model: trunk and head.
    params: {"decoder", "head"}, float32; `model.init(key, decoder=...)` makes them from a fine-tuned trunk.
    batches: the input, used by both phases one after the other.
    run: the open workdir.
    stage: names the stage; the probe is the stage "<stage>_probe".
    num_steps: updates of all the weights.
    optimizer: keywords of `optimizers.make`, without `total_steps`.
    probe_steps: updates of the head alone before (Kumar et al. 2022; Ramé et al. 2024, WARM); 0 for none.
    probe_optimizer: for the probe; default `optimizer`.
    center_rewards_coefficient: c of c·(r⁺ + r⁻)², which holds the rewards around 0; 0.01 is usual.
    margin: the chosen reward ought to be higher by this.
    dropout: of the features that the head reads, in both phases; see `pair_objectives.bradley_terry`.
    dtype, remat, accumulate_steps, log_every: as in `sft.run`.

  Raises:
    NonFinite, Interrupted, CannotWrite: as `loop.fit`.
  """
  loss_fn = pair_objectives.bradley_terry(
    model,
    center_rewards_coefficient=center_rewards_coefficient,
    margin=margin,
    dropout=dropout,
    dtype=dtype,
    remat=remat,
  )
  if probe_steps:
    keywords = dict(optimizer if probe_optimizer is None else probe_optimizer)
    params = loop.fit(
      params,
      batches,
      run=run,
      stage=f"{stage}_probe",
      loss_fn=loss_fn,
      tx=optimizers.make(total_steps=probe_steps, trainable=HEAD, **keywords),
      num_steps=probe_steps,
      accumulate_steps=accumulate_steps,
      log_every=log_every,
      count_tokens=pair_objectives.count_tokens,
    )
  return loop.fit(
    params,
    batches,
    run=run,
    stage=stage,
    loss_fn=loss_fn,
    tx=optimizers.make(total_steps=num_steps, **optimizer),
    num_steps=num_steps,
    accumulate_steps=accumulate_steps,
    log_every=log_every,
    count_tokens=pair_objectives.count_tokens,
  )


def evaluate(
  model: ScalarModel,
  params: Params,
  pairs: Mapping[str, np.ndarray],
  *,
  chunk: int = 256,
  dtype: str = "float32",
  run: Run | None = None,
) -> dict[str, float]:
  """Held-out measurements on pairs {"chosen", "chosen_mask", "rejected", "rejected_mask"}, all [B, T].

  Args:
    model, params: the reward model.
    pairs: all of them; not a batch.
    chunk: rows at a time.
    dtype: of the computation.
    run: if given, the computation is split over its mesh.

  Returns:
    "accuracy" in [0, 1] (ties count 1/2), "margin" (mean of r⁺ - r⁻), "loss" in nats, "reward_mean", "reward_std"
    and "pairs".

  Raises:
    BadData: if there are no pairs; NonFinite: if a reward is not finite.
  """
  count = len(pairs["chosen"])
  if not count:
    raise BadData("no pairs to evaluate the reward model on; the held-out set is empty")

  def place(batch: PyTree) -> PyTree:
    return batch if run is None else sharding.put_whole_batch(batch, run.mesh)

  both = scorers.score_tokens(
    model,
    params,
    np.concatenate([pairs["chosen"], pairs["rejected"]]),
    np.concatenate([pairs["chosen_mask"], pairs["rejected_mask"]]),
    chunk=chunk,
    dtype=dtype,
    place=place,
    fetch=sharding.fetch,
  )
  chosen, rejected = both[:count], both[count:]
  return {
    "accuracy": float(np.mean(0.5 * (np.sign(chosen - rejected) + 1.0))),
    "margin": float(np.mean(chosen - rejected)),
    "loss": float(np.mean(np.logaddexp(0.0, rejected - chosen))),
    "reward_mean": float(np.mean(both)),
    "reward_std": float(np.std(both)),
    "pairs": float(count),
  }


def normalise(params: Params, rewards: np.ndarray) -> Params:
  """The reward model whose rewards of these samples have mean 0 and standard deviation 1.

  r' = (r - mean) / std, put into the head's gain and bias. Meant for samples of the reference policy, so that rewards
  of several models are comparable (Ziegler et al. 2019, section 2.2); an average of reward models is normalised after
  averaging.

  Args:
    params: {"decoder", "head"}.
    rewards: [R], what `params` gives to the samples.

  Raises:
    BadData: if all rewards are equal; NonFinite: if one is not finite.
  """
  rewards = scorers.check_rewards(rewards, len(rewards)).astype(np.float64)
  mean, std = float(np.mean(rewards)), float(np.std(rewards))
  if not std > 0:
    raise BadData(
      f"the reward model gives all {len(rewards)} samples the reward {mean}; it cannot be normalised"
    )
  head = params["head"]
  scaled = {"kernel": head["kernel"] / std, "bias": (head["bias"] - mean) / std}
  return params | {"head": scaled}
