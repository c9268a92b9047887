"""REINFORCE and RLOO with a KL penalty in the reward, towards θ_0 or towards a moving average of the policy.

Ramé et al. 2024 (WARP), algorithm 1, lines 5-8, without its merges; Ahmadian et al. 2024 for the leave-one-out
baseline. Each iteration samples completions, scores them, subtracts kl_coef·log(π/π_anchor) of the whole completion and
a baseline, and follows the gradient of -A·log π. Leaves out value functions and merging.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
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
from wam.losses import baselines, sequence
from wam.losses import reinforce as losses
from wam.models.decoder import LanguageModel
from wam.rewards import missing_eos
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training import iterations, loop, minibatches, optimizers, sharding
from wam.training.mitigations import NONE, Mitigation
from wam.training.progress import Progress
from wam.training.state import Frozen, LossFn, Pair
from wam.training.trained_policy import TrainedPolicy
from wam.training.workdir import Run

ANCHORS = ("init", "ema")
LEVELS = ("sequence", "token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The numbers of a run.

  Attributes:
    num_iterations: iterations.
    prompts_per_iteration: P; drawn without replacement within an iteration where there are enough.
    samples_per_prompt: N; at least 2 for the baseline "leave_one_out".
    sampling: keywords of `generation.sampling.generate`: max_new_tokens, eos_id, pad_id, temperature. Log-probabilities
      are those at this temperature, in the loss and in every KL. No top_k, no top_p.
    optimizer: keywords of `optimizers.make`, without `total_steps`: the schedule spans the whole stage.
    kl_coef: β, what a nat of log(π/π_anchor) of a completion costs, in units of the reward.
    anchor: what the KL is taken to: "init" (θ_0), or "ema": θ_ema ← (1 - μ)·θ_ema + μ·θ after every update, kept in
      float32, starting from θ_0 (WARP).
    ema_rate: μ in [0, 1], for "ema" only; 0.01 in WARP. 1: the anchor is the policy itself, and β has no effect.
    baseline: "leave_one_out" (RLOO), "batch_mean" or "none"; see `losses.baselines`.
    level: "sequence": the mean over completions of -A·log π(y). "token": the mean over all tokens of -A·log π(y_t), in
      which a completion counts by its length.
    batch_size: completions of one update; divides P·N. None: all of them, one update an epoch.
    epochs: passes over the completions of an iteration.
    clip_ratio: ε of the clipped ratio to the policy that sampled, per completion or per token as `level` says. None: no
      ratio: updates after an iteration's first one use the samples as if they were the policy's own.
    missing_eos, missing_eos_penalty: what becomes of completions without EOS; see `rewards.missing_eos`.
    keep_every: after every so many iterations, and after the last, the parameters are kept and the run can go on; 1 but
      for iterations so short that saving takes longer.
    prompts_per_call: prompts of one call of `generate`, to bound its memory; divides P. None: all.
    accumulate_steps, dtype, remat: as in `sft.run`.
  """

  num_iterations: int
  prompts_per_iteration: int
  samples_per_prompt: int
  sampling: Mapping[str, Any]
  optimizer: Mapping[str, Any]
  kl_coef: float = 0.1
  anchor: str = "init"
  ema_rate: float | None = None
  baseline: str = "leave_one_out"
  level: str = "sequence"
  batch_size: int | None = None
  epochs: int = 1
  clip_ratio: float | None = None
  missing_eos: str = "keep"
  missing_eos_penalty: float | None = None
  keep_every: int = 1
  prompts_per_call: int | None = None
  accumulate_steps: int = 1
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    """Refuses what cannot work.

    Raises:
      ConfigError: names the field; UnknownName: suggests the nearest name.
    """
    names = {"anchor": ANCHORS, "baseline": tuple(baselines.BASELINES), "level": LEVELS}
    for field, choices in names.items():
      if getattr(self, field) not in choices:
        raise unknown_name(field, getattr(self, field), choices)
    preconditions.check_sampling(self.sampling, algorithm="reinforce")
    missing_eos.check(self.missing_eos, self.missing_eos_penalty)
    bounds = {"kl_coef": (0, 1e9), "ema_rate": (0, 1), "clip_ratio": (0, 1), "keep_every": (1, 1e9)}
    for field, (least, most) in bounds.items():
      if not least <= (getattr(self, field) or 0) <= most:
        raise ConfigError(f"{field}: expected {least} to {most:g}, found {getattr(self, field)}")
    if (self.ema_rate is not None) != (self.anchor == "ema"):
      raise ConfigError(
        f"ema_rate={self.ema_rate} with anchor='{self.anchor}': the rate belongs to anchor='ema', which needs it"
      )
    if self.baseline == "leave_one_out" and self.samples_per_prompt < 2:
      raise ConfigError("samples_per_prompt: 'leave_one_out' compares 2 at least, found 1")
    if self.rows % self.rows_per_update or self.rows_per_update % self.accumulate_steps:
      raise ConfigError(
        f"batch_size={self.batch_size} with accumulate_steps={self.accumulate_steps}: they must divide the"
        f" {self.rows} completions of an iteration"
      )

  @property
  def rows(self) -> int:
    """Completions of an iteration."""
    return self.prompts_per_iteration * self.samples_per_prompt

  @property
  def rows_per_update(self) -> int:
    """Completions of an update."""
    return self.batch_size or self.rows

  @property
  def rows_per_call(self) -> int:
    """Completions that are read at a time."""
    return self.rows_per_update // self.accumulate_steps

  @property
  def temperature(self) -> float:
    """Of the sampling."""
    return float(self.sampling.get("temperature", 1.0))

  def make_optimizer(self) -> optax.GradientTransformation:
    """The optimizer, its schedule as long as the stage."""
    updates = self.num_iterations * self.epochs * (self.rows // self.rows_per_update)
    return optimizers.make(total_steps=updates, **self.optimizer)


def run(
  model: LanguageModel,
  params: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  scorer: RolloutScorer,
  *,
  run: Run,
  stage: str = "reinforce",
  reference: Params | None = None,
  other_scorers: Mapping[str, RolloutScorer] | None = None,
  on_iteration: Callable[[int, Params], Mapping[str, float] | None] | None = None,
  mitigation: Mitigation = NONE,
  **settings: Any,
) -> Params:
  """Raises the reward of `params` by its own samples; returns the last parameters.

  The parameters after every iteration (from 1) are kept: see `iterations.load_iteration`. Killed at any moment and
  called again, what was not kept yet is done again and the run ends with the same bits. Arguments as in
  `rsf.run`, with the fields of this module's `Settings`; and `reference`, what the KL is measured to where it is not
  `params` (WARP measures to θ_SFT and starts elsewhere): "kl" is to it, and that to an anchor "init" is "kl_init".

  Raises:
    NonFinite: if a reward, a loss or a parameter is not finite; names stage and iteration.
    BadData: if there are no prompts, if one is empty, or if no completion of an iteration can be learnt from.
    ConfigError: if settings cannot work, or prompts do not fit the model's context.
    Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  scorers = [("reward", scorer)] + [(f"reward_{n}", s) for n, s in (other_scorers or {}).items()]
  calls = {n: getattr(config, n) for n in ("prompts_per_iteration", "prompts_per_call")}
  rollouts.check(prompts, stage=stage, **calls)
  most = config.sampling["max_new_tokens"]
  preconditions.check_context(model, prompts, max_new_tokens=most, stage=stage)
  sharding.check_batch_size(config.rows_per_call, run.mesh)
  with jax.set_mesh(run.mesh):
    done = iterations.load_result(run, params, stage=stage)
    if done is not None:
      return done
    began = time.monotonic()
    trainer = TrainedPolicy(
      params,
      loss_fn=loss(model, config),
      tx=config.make_optimizer(),
      mitigation=mitigation,
      run=run,
      stage=stage,
      num_iterations=config.num_iterations,
      accumulate_steps=config.accumulate_steps,
      ema_rate=config.ema_rate,
    )
    where_params = iterations.parameter_shardings(params, run)
    fixed = {"init": params} if reference is None or config.anchor == "init" else {}
    fixed |= {} if reference is None else {"reference": reference}
    fixed = {name: sharding.put(w, where_params, copy=False) for name, w in fixed.items()}
    sample, compare = _readers(model, prompts, config, run, stage)
    progress = Progress(stage, config.num_iterations, start=trainer.iteration, enabled=run.show)
    with contextlib.closing(trainer), progress as bar:
      while not trainer.done:
        i = trainer.iteration + 1
        where = f"iteration {i} of {stage}"
        clock = time.monotonic()
        rollout = sample(params=trainer.weights, iteration=i)
        sampling_seconds = time.monotonic() - clock
        run.interrupts.check(where)
        rewards = {n: check_rewards(s(*rollout[:4]), config.rows, name=n) for n, s in scorers}
        others = fixed | ({"ema": trainer.ema} if trainer.ema else {})
        comparison = compare(trainer.weights, others, rollout)
        worth = learn_from(rollout, rewards["reward"], comparison, config, where=where)
        record = _measure(rollout, rewards, comparison, worth, config)
        draw = rng.generator(run.seed, f"{stage}/shuffle/{i}")
        every = rows(rollout, comparison, worth)
        sizes = {"batch_size": config.rows_per_update, "epochs": config.epochs}
        batches = minibatches.shuffled(every, draw, weight="completion_mask", **sizes)
        record |= trainer.train(batches)
        if on_iteration is not None:
          record |= dict(on_iteration(i, trainer.weights) or {})
        record |= {"sampling_seconds": sampling_seconds, "seconds": time.monotonic() - clock}
        run.log(record, stage=stage, step=i)
        trainer.commit(keep=i % config.keep_every == 0)
        bar.update(i, {n: record[n] for n in ("reward", "kl", "length")})
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=config.num_iterations)
    loop.save_result(run.stage_directory(stage), trainer.weights, run=run)
    return trainer.weights


class Worth(NamedTuple):
  """What an iteration's R completions are worth.

  Attributes:
    shaped: [R] float32, rewards after the rule for a missing EOS and the KL penalty.
    advantages: [R] float32, 0 where they do not count.
    counted: [R] bool, which are trained on.
  """

  shaped: np.ndarray
  advantages: np.ndarray
  counted: np.ndarray


def learn_from(
  rollout: Rollout,
  rewards: np.ndarray,
  comparison: Comparison,
  config: Settings,
  *,
  where: str = "reinforce",
) -> Worth:
  """Advantages: the reward, less the KL penalty of the whole completion (k1, without a gradient), less the baseline.

  r_β(y) = r(y) - β·log(π(y)/π_anchor(y)) (WARP, algorithm 1, line 6). As E[∇log π] = 0, its policy gradient is that of
  E[r] - β·KL(π ‖ π_anchor), exactly.

  Args:
    rollout: R completions.
    rewards: [R] float32.
    comparison: of the policy with what `config.anchor` names.
    config: the settings.
    where: for the message.

  Raises:
    BadData: if no completion counts.
  """
  shaped, scorable = missing_eos.apply(
    rewards, rollout.finished, rule=config.missing_eos, penalty=config.missing_eos_penalty
  )
  shaped = shaped - np.float32(config.kl_coef) * comparison.log_ratio(config.anchor)
  shape = (-1, config.samples_per_prompt)
  found = baselines.advantages(
    config.baseline, jnp.asarray(shaped.reshape(shape)), jnp.asarray(scorable.reshape(shape))
  )
  advantages, counted = (np.asarray(x).reshape(-1) for x in found)
  if not counted.any():
    raise BadData(
      f"{where} leaves nothing to learn from: {int(rollout.finished.sum())} of {config.rows} completions end within"
      f" {config.sampling['max_new_tokens']} tokens, and missing_eos='drop' leaves out the others. Raise"
      " sampling.max_new_tokens, or choose another rule"
    )
  return Worth(shaped, advantages, counted)


def loss(model: LanguageModel, config: Settings) -> LossFn:
  """The sum over a batch of completions (or their tokens, as `config.level` says), and how many count.

  Batches hold "tokens" and "mask" [B, P + N], "completion_mask" and "old_logprobs" [B, N], "advantages" and
  "weight" [B], 0 for completions that do not count. Metrics: "ratio", the mean of π/π_old, and with a clip_ratio
  "clip_fraction", how many ratios lie outside of it.
  """
  by_sequence = config.level == "sequence"
  loss_of = losses.sequence_level if by_sequence else losses.token_level

  def loss_fn(
    params: Params, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    del key, frozen  # nothing random in the forward pass
    tokens, chosen, old = batch["tokens"], batch["completion_mask"], batch["old_logprobs"]
    prompt = tokens.shape[1] - chosen.shape[1]
    logits = scoring.completion_logits(
      model,
      params,
      tokens,
      batch["mask"],
      prompt=prompt,
      temperature=config.temperature,
      dtype=jnp.dtype(config.dtype),
      remat=config.remat,
    )
    logprobs = scoring.completion_logprobs(logits, tokens, prompt=prompt)
    log_ratio = losses.log_ratio(jax.lax.stop_gradient(logprobs), old, chosen)
    weight = batch["weight"].astype(jnp.float32)
    if by_sequence:
      log_ratio = log_ratio.sum(axis=1)
    else:
      weight = weight[:, None] * chosen
    advantages, clip = batch["advantages"], config.clip_ratio
    terms = loss_of(logprobs, chosen, advantages, old_logprobs=old, clip_ratio=clip)
    ratio, total = jnp.exp(log_ratio), jnp.sum(weight)
    metrics = {"ratio": (sequence.masked_sum(ratio, weight), total)}
    if clip is not None:
      outside = (jnp.abs(ratio - 1.0) > clip).astype(jnp.float32)
      metrics["clip_fraction"] = (sequence.masked_sum(outside, weight), total)
    return sequence.masked_sum(terms, weight), total, metrics

  return loss_fn


def rows(rollout: Rollout, comparison: Comparison, worth: Worth) -> dict[str, np.ndarray]:
  """The completions as one batch of `loss`."""
  return {
    "tokens": rollout.tokens,
    "mask": rollout.mask,
    "completion_mask": rollout.completion_mask,
    "old_logprobs": comparison.logprobs,
    "advantages": worth.advantages,
    "weight": worth.counted.astype(np.float32),
  }


def _readers(
  model: LanguageModel,
  prompts: tuple[np.ndarray, np.ndarray],
  config: Settings,
  run: Run,
  stage: str,
) -> tuple[Callable[..., Rollout], Callable[..., Comparison]]:
  """`rollouts.draw` of (params, iteration), and `scoring.compare` of (params, others, rollout)."""
  shared: dict[str, Any] = {
    "dtype": config.dtype,
    "place": lambda batch: sharding.put_whole_batch(batch, run.mesh),
    "fetch": sharding.fetch,
  }
  sample = functools.partial(
    rollouts.draw,
    model,
    prompts=prompts,
    seed=run.seed,
    stream=stage,
    num_prompts=config.prompts_per_iteration,
    num_samples=config.samples_per_prompt,
    sampling=config.sampling,
    prompts_per_call=config.prompts_per_call,
    **shared,
  )
  temperature, rows_per_call = config.temperature, config.rows_per_call
  return sample, functools.partial(
    scoring.compare, model, temperature=temperature, rows_per_call=rows_per_call, **shared
  )


def _measure(
  rollout: Rollout,
  rewards: Mapping[str, np.ndarray],
  comparison: Comparison,
  worth: Worth,
  config: Settings,
) -> dict[str, float]:
  """What an iteration says about the policy that it sampled from."""
  lengths = rollout.completion_mask.sum(axis=1)
  proxy = rewards["reward"].reshape(-1, config.samples_per_prompt)
  record = {name: values.mean() for name, values in rewards.items()} | {
    "reward_std": proxy.std(),
    "reward_shaped": worth.shaped.mean(),
    "advantage_std": worth.advantages.std(),
    "length": lengths.mean(),
    "finished": rollout.finished.mean(),
    "left_out": config.rows - worth.counted.sum(),
    "tied_prompts": (proxy == proxy[:, :1]).all(axis=1).sum(),
    # -log π of what was sampled, a token: an estimate of the entropy.
    "surprise": -comparison.logprobs.sum() / lengths.sum(),
  }
  measured_to = "reference" if "reference" in comparison.kl else "init"
  for name, per_token in comparison.kl.items():
    # Of whole completions; exact over the vocabulary at every token.
    record["kl" if name == measured_to else f"kl_{name}"] = per_token.sum(axis=1).mean()
  return {name: float(value) for name, value in record.items()}
