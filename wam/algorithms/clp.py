"""Conditional language policy: one policy for every mixture of rewards (Wang et al. 2024, arXiv 2407.15762).

Each iteration draws preferences w from a Dirichlet distribution; for each it makes the policy θ(w) of the conditioned
weights, samples from it, and follows the gradient of -A·log π_θ(w) into the shared weights S and every θ_i. The
objective is E_w E_π[(1 - α)·w·R(y)] - α·KL(π_θ(w) ‖ π_θ0), by REINFORCE with the KL in the reward. Leaves out how a
preference steers a model (models/conditioning.py), and which rewards there are and on what scale.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam.core import rng
from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params, PyTree
from wam.generation import preconditions, rollouts, scoring
from wam.generation.rollouts import Rollout
from wam.generation.scoring import Comparison
from wam.generation.steered import SteeredSampler
from wam.losses import baselines, sequence
from wam.losses import reinforce as losses
from wam.models.conditioning import Conditioning
from wam.models.decoder import LanguageModel
from wam.rewards import missing_eos
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training import iterations, loop, optimizers, preferences, sharding
from wam.training.mitigations import NONE
from wam.training.preferences import Objective, Objectives
from wam.training.progress import Progress
from wam.training.state import Frozen, LossFn, Pair
from wam.training.trained_policy import TrainedPolicy
from wam.training.workdir import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The numbers of a run.

  Attributes:
    num_iterations: iterations.
    preferences_per_iteration: W, preferences drawn for each.
    prompts_per_preference: P; every preference has its own, drawn without replacement where there are enough.
    samples_per_prompt: N; at least 2 for the baseline "leave_one_out".
    sampling: keywords of `generation.sampling.generate`: max_new_tokens, eos_id, pad_id, temperature. Log-probabilities
      are those at this temperature, in the loss and in the KL. No top_k, no top_p.
    optimizer: keywords of `optimizers.make`, without `total_steps`: the schedule spans the whole stage.
    conditioning: "full", "attention", "logit" or "prompt"; see `models.conditioning`.
    levels: for "prompt" only, as in `Conditioning`.
    kl_weight, concentration, preference: as in `preferences.Objectives`: α, or a range of it, and where w comes from.
      With a fixed preference and "full" this is the run of a single mixture of rewards.
    freeze_shared: whether S stays as it is. For "prompt" this leaves the learnt tokens alone to be trained.
    baseline: "leave_one_out" (RLOO), "batch_mean" or "none", among completions of one preference.
    updates_per_iteration: U, updates with the completions of an iteration, each with 1/U of those of every preference;
      those after the first use samples that are not quite the policy's own.
    missing_eos, missing_eos_penalty: what becomes of completions without EOS; see `rewards.missing_eos`.
    prompts_per_call: prompts of one call of `generate`, to bound its memory; divides P. None: all.
    accumulate_steps: microbatches for the completions of one preference in one update.
    dtype, remat: as in `sft.run`.
  """

  num_iterations: int
  preferences_per_iteration: int
  prompts_per_preference: int
  samples_per_prompt: int
  sampling: Mapping[str, Any]
  optimizer: Mapping[str, Any]
  conditioning: str = "full"
  levels: int = 11
  kl_weight: float | Sequence[float] = 0.1
  concentration: float = 1.0
  preference: Sequence[float] | None = None
  freeze_shared: bool = False
  baseline: str = "leave_one_out"
  updates_per_iteration: int = 1
  missing_eos: str = "keep"
  missing_eos_penalty: float | None = None
  prompts_per_call: int | None = None
  accumulate_steps: int = 1
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    """Refuses what cannot work.

    Raises:
      ConfigError: names the field; UnknownName: suggests the nearest name.
    """
    if self.baseline not in baselines.BASELINES:
      raise unknown_name("baseline", self.baseline, tuple(baselines.BASELINES))
    preconditions.check_sampling(self.sampling, algorithm="clp")
    missing_eos.check(self.missing_eos, self.missing_eos_penalty)
    if self.baseline == "leave_one_out" and self.samples_per_prompt < 2:
      raise ConfigError("samples_per_prompt: 'leave_one_out' compares 2 at least, found 1")
    parts = self.updates_per_iteration * self.accumulate_steps
    if self.rows_per_preference % parts:
      raise ConfigError(
        f"updates_per_iteration={self.updates_per_iteration} with accumulate_steps={self.accumulate_steps}: they must"
        f" divide the {self.rows_per_preference} completions of a preference"
      )
    if self.freeze_shared and self.optimizer.get("weight_decay"):
      raise ConfigError("freeze_shared: weight_decay would shrink what is to stay; set it to 0")

  @property
  def rows_per_preference(self) -> int:
    """Completions of a preference in an iteration."""
    return self.prompts_per_preference * self.samples_per_prompt

  @property
  def rows_per_call(self) -> int:
    """Completions that are read at a time."""
    return self.rows_per_preference // (self.updates_per_iteration * self.accumulate_steps)

  @property
  def temperature(self) -> float:
    """Of the sampling."""
    return float(self.sampling.get("temperature", 1.0))

  def make_optimizer(self) -> optax.GradientTransformation:
    """The optimizer, its schedule as long as the stage."""
    updates = self.num_iterations * self.updates_per_iteration
    return optimizers.make(total_steps=updates, **self.optimizer)

  def make_objectives(self, num_rewards: int) -> Objectives:
    """Where the preferences among so many rewards come from."""
    names = ("kl_weight", "concentration", "preference")
    own: dict[str, Any] = {name: getattr(self, name) for name in names}
    return Objectives(num_rewards=num_rewards, **own)

  def make_conditioning(self, model: LanguageModel, num_rewards: int) -> Conditioning:
    """How a preference among so many rewards steers the model."""
    size = self.make_objectives(num_rewards).size
    return Conditioning(self.conditioning, size, model, self.levels)


def run(
  model: LanguageModel,
  params: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  scorers: Mapping[str, RolloutScorer],
  *,
  run: Run,
  stage: str = "clp",
  other_scorers: Mapping[str, RolloutScorer] | None = None,
  **settings: Any,
) -> Params:
  """Trains conditioned weights that start as `params`; returns the last ones, to be read with `make_conditioning`.

  Those after every iteration (from 1) are kept: see `iterations.load_iteration`. Killed at any moment and called again,
  the iteration that was under way is done again and the run ends with the same bits. Arguments as in `reinforce.run`,
  with the fields of this module's `Settings`; `scorers` are the R_i by name, in the order of a preference's numbers and
  on scales that can be added.

  Raises:
    NonFinite: if a reward, a loss or a parameter is not finite; names stage and iteration.
    BadData: if there are no prompts, if one is empty, or if no completion of an iteration can be learnt from.
    ConfigError: if settings cannot work, or prompts do not fit the model's context.
    Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  drawn, updates = config.preferences_per_iteration, config.updates_per_iteration
  objectives = config.make_objectives(len(scorers))
  steered = config.make_conditioning(model, len(scorers))
  rollouts.check(
    prompts,
    stage=stage,
    prompts_per_iteration=config.prompts_per_preference,
    prompts_per_call=config.prompts_per_call,
  )
  most = config.sampling["max_new_tokens"] + steered.extra_tokens
  preconditions.check_context(model, prompts, max_new_tokens=most, stage=stage)
  for size in (config.rows_per_call, config.prompts_per_call or config.prompts_per_preference):
    sharding.check_batch_size(size, run.mesh)
  with jax.set_mesh(run.mesh):
    start = steered.init(params)
    done = iterations.load_result(run, start, stage=stage)
    if done is not None:
      return done
    began = time.monotonic()
    trainer = TrainedPolicy(
      start,
      loss_fn=loss(steered, config),
      tx=config.make_optimizer(),
      mitigation=NONE,
      run=run,
      stage=stage,
      num_iterations=config.num_iterations,
      accumulate_steps=drawn * config.accumulate_steps,
    )
    placed = sharding.put(params, iterations.parameter_shardings(params, run), copy=False)
    sample = _sampler(steered, placed, prompts, config, run)
    progress = Progress(stage, config.num_iterations, start=trainer.iteration, enabled=run.show)
    with contextlib.closing(trainer), progress as bar:
      while not trainer.done:
        i = trainer.iteration + 1
        clock = time.monotonic()
        groups = []
        for number, objective in enumerate(objectives.draw(drawn, run.seed, stage, i)):
          seen = sample(trainer.weights, objective.steering, f"{stage}/{number}", i)
          groups.append(_group(objective, *seen, scorers, other_scorers or {}, config))
          run.interrupts.check(f"iteration {i} of {stage}")
        sampling_seconds = time.monotonic() - clock
        record = _measure(groups, stage, i)
        order = rng.generator(run.seed, f"{stage}/shuffle/{i}").permutation(
          config.rows_per_preference
        )
        every = [rows(group) for group in groups]
        record |= trainer.train(preferences.batches(every, order, updates, config.rows_per_call))
        record |= {"sampling_seconds": sampling_seconds, "seconds": time.monotonic() - clock}
        run.log(record, stage=stage, step=i)
        trainer.commit()
        bar.update(i, {n: record[n] for n in ("reward", "kl", "length")})
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=config.num_iterations)
    loop.save_result(run.stage_directory(stage), trainer.weights, run=run)
    return trainer.weights


class Worth(NamedTuple):
  """What the R completions of a preference are worth.

  Attributes:
    weighted: [R] float32, w·R.
    shaped: [R] float32, (1 - α)·w·R after the rule for a missing EOS, less the KL penalty.
    advantages: [R] float32, 0 where they do not count.
    counted: [R] bool, which are trained on.
  """

  weighted: np.ndarray
  shaped: np.ndarray
  advantages: np.ndarray
  counted: np.ndarray


def learn_from(
  rollout: Rollout,
  rewards: np.ndarray,
  comparison: Comparison,
  objective: Objective,
  config: Settings,
) -> Worth:
  """Advantages: (1 - α)·w·R(y) - α·log(π_θ(w)(y)/π_θ0(y)) of the whole completion, less the baseline.

  As E[∇log π] = 0, its policy gradient is that of E[(1 - α)·w·R] - α·KL(π_θ(w) ‖ π_θ0), exactly. Of R completions by
  θ(w): rewards are [R, N] float32, in the order of the preference, and the comparison is with θ_0, called "init".
  """
  weighted = np.asarray(rewards @ objective.preference, np.float32)
  kept, scorable = missing_eos.apply(
    np.float32(1 - objective.kl_weight) * weighted,
    rollout.finished,
    rule=config.missing_eos,
    penalty=config.missing_eos_penalty,
  )
  shaped = kept - np.float32(objective.kl_weight) * comparison.log_ratio("init")
  shape = (-1, config.samples_per_prompt)
  found = baselines.advantages(
    config.baseline, jnp.asarray(shaped.reshape(shape)), jnp.asarray(scorable.reshape(shape))
  )
  advantages, counted = (np.asarray(x).reshape(-1) for x in found)
  return Worth(weighted, shaped, advantages, counted)


class Group(NamedTuple):
  """The completions of one preference in an iteration."""

  objective: Objective
  rollout: Rollout
  comparison: Comparison
  rewards: Mapping[str, np.ndarray]  # by name, [R] each
  worth: Worth


def loss(steered: Conditioning, config: Settings) -> LossFn:
  """The sum over completions of ONE preference of -A·log π_θ(w)(y), of conditioned weights; and how many count.

  Batches hold "tokens" and "mask" [B, P + N], "completion_mask" and "old_logprobs" [B, N], "advantages" and "weight"
  [B], 0 for completions that do not count, and "steering" [B, N], all rows equal: only the first is looked at. The
  gradient flows through θ(w), so into S as it is, and into θ_i times w_i. Metrics: "ratio", the mean of π/π_old.
  """
  model = steered.model

  def loss_fn(
    conditioned: Params, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    del key, frozen  # nothing random in the forward pass
    trained = steered.freeze_shared(conditioned) if config.freeze_shared else conditioned
    tokens, chosen = batch["tokens"], batch["completion_mask"]
    prompt = tokens.shape[1] - chosen.shape[1]
    logits = scoring.completion_logits(
      model,
      steered.weights(trained, batch["steering"][0]),
      tokens,
      batch["mask"],
      prompt=prompt,
      temperature=config.temperature,
      dtype=jnp.dtype(config.dtype),
      remat=config.remat,
    )
    logprobs = scoring.completion_logprobs(logits, tokens, prompt=prompt)
    fixed = jax.lax.stop_gradient(logprobs)
    ratio = jnp.exp(losses.log_ratio(fixed, batch["old_logprobs"], chosen).sum(axis=1))
    weight = batch["weight"].astype(jnp.float32)
    terms = losses.sequence_level(logprobs, chosen, batch["advantages"])
    total = jnp.sum(weight)
    metrics = {"ratio": (sequence.masked_sum(ratio, weight), total)}
    return sequence.masked_sum(terms, weight), total, metrics

  return loss_fn


def rows(group: Group) -> dict[str, np.ndarray]:
  """The completions of a preference as one batch of `loss`."""
  count = len(group.worth.advantages)
  return {
    "tokens": group.rollout.tokens,
    "mask": group.rollout.mask,
    "completion_mask": group.rollout.completion_mask,
    "old_logprobs": group.comparison.logprobs,
    "advantages": group.worth.advantages,
    "weight": group.worth.counted.astype(np.float32),
    "steering": np.tile(group.objective.steering, (count, 1)),
  }


def _group(
  objective: Objective,
  rollout: Rollout,
  comparison: Comparison,
  scorers: Mapping[str, RolloutScorer],
  others: Mapping[str, RolloutScorer],
  config: Settings,
) -> Group:
  """Scores the completions of a preference."""
  count = len(rollout.finished)
  rewards = {
    name: check_rewards(score(*rollout[:4]), count, name=f"reward_{name}")
    for name, score in {**scorers, **others}.items()
  }
  table = np.stack([rewards[name] for name in scorers], axis=1)
  worth = learn_from(rollout, table, comparison, objective, config)
  return Group(objective, rollout, comparison, rewards, worth)


def _sampler(
  steered: Conditioning,
  init: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  config: Settings,
  run: Run,
) -> SteeredSampler:
  names = ("sampling", "prompts_per_call", "rows_per_call", "dtype")
  own: dict[str, Any] = {name: getattr(config, name) for name in names}
  own |= {
    "num_prompts": config.prompts_per_preference,
    "num_samples": config.samples_per_prompt,
    "place": functools.partial(sharding.put_whole_batch, mesh=run.mesh),
    "fetch": sharding.fetch,
  }
  return SteeredSampler(steered, init, prompts, seed=run.seed, **own)


def _measure(groups: Sequence[Group], stage: str, iteration: int) -> dict[str, float]:
  """What an iteration says about the policies that it sampled from: means over all preferences.

  Raises:
    BadData: if no completion counts.
  """
  finished = np.concatenate([group.rollout.finished for group in groups])
  counted = np.concatenate([group.worth.counted for group in groups])
  if not counted.any():
    raise BadData(
      f"iteration {iteration} of {stage} leaves nothing to learn from: {int(finished.sum())} of {len(finished)}"
      " completions end, and missing_eos='drop' leaves out the others. Raise sampling.max_new_tokens"
    )
  found = []
  for group in groups:
    lengths = group.rollout.completion_mask.sum(axis=1)
    found.append(
      {f"reward_{name}": values.mean() for name, values in group.rewards.items()}
      | {
        "reward": group.worth.weighted.mean(),
        "reward_shaped": group.worth.shaped.mean(),
        "advantage_std": group.worth.advantages.std(),
        "length": lengths.mean(),
        "surprise": -group.comparison.logprobs.sum() / lengths.sum(),
        "kl": group.comparison.kl["init"].sum(axis=1).mean(),
        "kl_weight": group.objective.kl_weight,
      }
    )
  record = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
  return record | {"finished": float(finished.mean()), "left_out": float((~counted).sum())}
