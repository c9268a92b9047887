"""Preference pairs sampled from a policy and labelled by a reward, once: what DPO (or a reward model) may train on.

Leaves out training, and pairs that are there already (data).
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wam.checkpoints import orbax
from wam.core import rng
from wam.core.errors import BadData, ConfigError
from wam.core.types import Params
from wam.data import encoding
from wam.generation import rollouts
from wam.generation.rollouts import Rollout
from wam.models.decoder import LanguageModel
from wam.rewards import pairing
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training import pairs, sharding
from wam.training.workdir import Run


def run(
  model: LanguageModel,
  params: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  scorer: RolloutScorer,
  *,
  run: Run,
  stage: str = "sampled_pairs",
  num_prompts: int,
  sampling: Mapping[str, Any],
  samples_per_prompt: int = 2,
  rule: str = "best_worst",
  require_eos: bool = True,
  length: int | None = None,
  prompts_per_call: int | None = None,
  dtype: str = "float32",
) -> pairs.Rows:
  """Draws completions of each prompt and makes one pair of each; the rows of `encoding.pair_rows`.

  Left out, and counted in the stage's record: prompts with fewer than two usable completions ("too_few"), pairs of
  equal rewards ("equal_rewards") or equal completions ("equal_completions"), and pairs over `length` ("too_long"). Done
  once: called again, the stage is loaded.

  Args:
    model: the decoder.
    params: the policy.
    prompts: tokens [A, P] int32, left-padded, and their mask [A, P] bool, to draw from.
    scorer: the reward that labels.
    run: the open workdir.
    stage: names the stage.
    num_prompts: prompts drawn, without replacement where there are enough.
    sampling: keywords of `generation.sampling.generate`. DPO's log-probabilities are those of temperature 1 whatever
      the temperature here.
    samples_per_prompt: n, at least 2.
    rule: which two, and which is preferred; see `pairing.pair`.
    require_eos: whether only completions that end are usable; False for models that do not end texts.
    length: the most tokens of prompt and completion together; None: no pair is too long.
    prompts_per_call: prompts of one call of `generate`, to bound its memory; divides num_prompts. None: all.
    dtype: of the sampling.

  Raises:
    NonFinite: if a reward is NaN or infinite. BadData: if there are no prompts, or no pair is left.
    ConfigError, UnknownName: for what is out of range. Interrupted: before the pairs are there.
  """
  if samples_per_prompt < 2:
    raise ConfigError(f"{stage}: samples_per_prompt: a pair needs 2, found {samples_per_prompt}")
  rollouts.check(
    prompts, stage=stage, prompts_per_iteration=num_prompts, prompts_per_call=prompts_per_call
  )
  result = run.stage_directory(stage) / "result"
  if orbax.exists(result):
    return {name: np.asarray(x) for name, x in orbax.load(result).items()}
  began = time.monotonic()
  with jax.set_mesh(run.mesh):
    rollout = rollouts.draw(
      model,
      params,
      prompts,
      seed=run.seed,
      stream=stage,
      iteration=1,
      num_prompts=num_prompts,
      num_samples=samples_per_prompt,
      sampling=sampling,
      prompts_per_call=prompts_per_call,
      dtype=dtype,
      place=lambda batch: sharding.put_whole_batch(batch, run.mesh),
      fetch=sharding.fetch,
    )
  run.interrupts.check(stage)
  flat = check_rewards(scorer(*rollout[:4]), len(rollout.finished), name=stage)
  rewards = flat.reshape(num_prompts, samples_per_prompt)
  usable = (rollout.finished | (not require_eos)).reshape(rewards.shape)
  found = pairing.pair(rewards, usable, rule=rule, draw=rng.generator(run.seed, f"{stage}/pairs"))
  length = rollout.tokens.shape[1] if length is None else length
  pad_id = int(sampling["pad_id"])
  rows, record = _rows(rollout, flat, found, stage=stage, length=length, pad_id=pad_id)
  run.records.drop(lambda line: line["stage"] == stage)
  record |= {"reward": float(flat.mean()), "seconds": time.monotonic() - began}
  run.log(record, kind="stage", stage=stage, step=0)
  run.records.sync()
  orbax.save(result, rows)
  return rows


def _rows(
  rollout: Rollout,
  rewards: np.ndarray,
  found: pairing.Pairing,
  *,
  stage: str,
  length: int,
  pad_id: int,
) -> tuple[pairs.Rows, dict[str, float]]:
  """The rows, and what became of the prompts and their rewards [R].

  Raises:
    BadData: if no pair is left.
  """
  same = _equal(rollout, found.chosen, found.rejected)
  chosen, rejected = found.chosen[~same], found.rejected[~same]
  counts = {
    "unfinished_samples": float(np.sum(~rollout.finished)),
    "too_few": float(found.too_few),
    "equal_rewards": float(found.equal_rewards),
    "equal_completions": float(np.sum(same)),
  }
  if not len(chosen):
    told = ", ".join(f"{name} {count:.0f}" for name, count in counts.items())
    raise BadData(
      f"{stage}: no pair is left of the {len(rewards)} samples ({told}); raise samples_per_prompt, max_new_tokens or"
      " the temperature, or look at the reward"
    )
  rows = encoding.pair_sequence_rows(
    _ids(rollout.prompt_tokens, rollout.prompt_mask, chosen),
    _ids(rollout.completions, rollout.completion_mask, chosen),
    _ids(rollout.completions, rollout.completion_mask, rejected),
    length=length,
    pad_id=pad_id,
    trim=True,
  )
  return rows.arrays, counts | {
    "too_long": float(rows.counts["dropped"]),
    "pairs": float(len(rows.kept)),
    "reward_chosen": float(rewards[chosen[rows.kept]].mean()),
    "reward_rejected": float(rewards[rejected[rows.kept]].mean()),
  }


def _equal(rollout: Rollout, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Whether the samples of these numbers [K] are the same completions: [K] bool."""
  tokens = np.where(rollout.completion_mask, rollout.completions, -1)
  return np.asarray((tokens[a] == tokens[b]).all(axis=1))


def _ids(tokens: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> list[list[int]]:
  """The real tokens of these rows."""
  return [tokens[row][mask[row]].tolist() for row in rows]
