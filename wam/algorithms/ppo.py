"""PPO with a KL-shaped reward and a separate critic (Schulman et al. 2017; Ziegler et al. 2019), and a restart trick.

Each iteration samples completions, reads their log-probabilities under the policy and θ_0 and their values, makes
rewards (the score at the last token, less kl_coef·log(π/π_0) at every token) and advantages of them, and trains policy
and critic on minibatches. After a collapse it goes back (training/collapse.py). Leaves out merging.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam.core import rng
from wam.core.errors import BadData, ConfigError
from wam.core.types import Params, PyTree
from wam.generation import preconditions, rollouts, scoring, valuation
from wam.generation.rollouts import Rollout
from wam.generation.valuation import Readers, Reading
from wam.losses import advantages, policy_gradient
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel
from wam.rewards import missing_eos
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training import (
  clipped_objectives,
  collapse,
  iterations,
  kl_control,
  minibatches,
  optimizers,
  sharding,
)
from wam.training.actor_critic import ActorCritic, Network
from wam.training.mitigations import NONE, Mitigation
from wam.training.progress import Progress
from wam.training.state import LossFn
from wam.training.workdir import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The numbers of a run of PPO.

  Attributes:
    num_iterations: iterations.
    prompts_per_iteration, samples_per_prompt: P and n; drawn without replacement in an iteration where they suffice.
    sampling: keywords of `generation.sampling.generate`: max_new_tokens, eos_id, pad_id, temperature. All
      log-probabilities are those at this temperature. No top_k, no top_p.
    optimizer: keywords of `optimizers.make`, without `total_steps`: the schedule spans the whole stage.
    critic_optimizer: the same of the critic; None: as the policy's.
    batch_size, epochs: completions of an update, and passes over those of an iteration, each in an order of its own.
    kl_coef: what a nat of log(π/π_0) costs, in units of the score; the first one where there is a kl_target.
    kl_target, kl_horizon: nats a completion that kl_coef is steered to, and how slowly; see `kl_control`.
    reward_baseline, reward_clip: subtracted from every reward (Lin et al. 2024, table 1: 5.5625); then to [-c, c].
    missing_eos, missing_eos_penalty: what becomes of completions without EOS; see `rewards.missing_eos`.
    whiten_rewards, whiten_advantages: over all tokens of the iteration; the mean of the (shaped) rewards stays.
    gamma, gae_lambda: γ and λ of generalised advantage estimation.
    clip_ratio, clip_value: of the surrogate and of the value loss; None does not clip.
    vf_coef: multiplies the critic's loss. It matters to the clipping of its gradient, and with SGD.
    entropy_coef: of the mean entropy of the next token, added to the objective.
    restart: keywords of `collapse.Rule`, {} for its defaults; None: a collapse goes unnoticed.
    prompts_per_call: prompts of one call of `generate`, to bound its memory; divides P. None: all.
    accumulate_steps, dtype, remat: as in `sft.run`.
  """

  num_iterations: int
  prompts_per_iteration: int
  sampling: Mapping[str, Any]
  optimizer: Mapping[str, Any]
  batch_size: int
  critic_optimizer: Mapping[str, Any] | None = None
  samples_per_prompt: int = 1
  epochs: int = 2
  kl_coef: float = 0.05
  kl_target: float | None = None
  kl_horizon: float = 10000.0
  reward_baseline: float = 0.0
  reward_clip: float | None = None
  missing_eos: str = "keep"
  missing_eos_penalty: float | None = None
  whiten_rewards: bool = False
  whiten_advantages: bool = True
  gamma: float = 1.0
  gae_lambda: float = 0.95
  clip_ratio: float | None = 0.2
  clip_value: float | None = 0.2
  vf_coef: float = 0.1
  entropy_coef: float = 0.0
  restart: Mapping[str, Any] | None = None
  prompts_per_call: int | None = None
  accumulate_steps: int = 1
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    """Refuses what cannot work.

    Raises:
      ConfigError: names the field.
    """
    preconditions.check_sampling(self.sampling, algorithm="ppo")
    missing_eos.check(self.missing_eos, self.missing_eos_penalty)
    self.kl.check(self.rows)
    counts = ("num_iterations", "prompts_per_iteration", "samples_per_prompt", "batch_size")
    factors = ("reward_clip", "clip_ratio", "clip_value", "vf_coef", "entropy_coef")
    bounds = dict.fromkeys((*counts, "epochs", "accumulate_steps"), (1, math.inf))
    bounds |= dict.fromkeys(("gamma", "gae_lambda"), (0, 1)) | dict.fromkeys(factors, (0, 1e9))
    for field, (least, most) in bounds.items():
      number = getattr(self, field)
      if number is not None and not least <= number <= most:
        raise ConfigError(f"{field}: expected {least} to {most:g}, found {number}")
    if self.batch_size % self.accumulate_steps:
      raise ConfigError(
        f"accumulate_steps={self.accumulate_steps} does not divide batch_size={self.batch_size}"
      )
    _ = self.collapse

  @property
  def rows(self) -> int:
    """Completions of an iteration."""
    return self.prompts_per_iteration * self.samples_per_prompt

  @property
  def temperature(self) -> float:
    """Of the sampling."""
    return float(self.sampling.get("temperature", 1.0))

  @property
  def forward(self) -> dict[str, Any]:
    """Keywords of a forward pass."""
    return {"dtype": jnp.dtype(self.dtype), "remat": self.remat}

  @property
  def kl(self) -> kl_control.Rule:
    """The coefficient of the KL penalty."""
    return kl_control.Rule(
      kl_coef=self.kl_coef, kl_target=self.kl_target, kl_horizon=self.kl_horizon
    )

  @property
  def collapse(self) -> collapse.Rule | None:
    """When a policy has collapsed; None: never."""
    return None if self.restart is None else collapse.Rule(**self.restart)

  def make_optimizer(
    self, section: Mapping[str, Any] | None = None
  ) -> optax.GradientTransformation:
    """The policy's optimizer, or that of another section, its schedule as long as the stage."""
    updates = self.num_iterations * self.epochs * math.ceil(self.rows / self.batch_size)
    return optimizers.make(total_steps=updates, **(self.optimizer if section is None else section))


def run(
  model: LanguageModel,
  params: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  scorer: RolloutScorer,
  *,
  run: Run,
  stage: str = "ppo",
  critic: tuple[ScalarModel, Params] | None = None,
  other_scorers: Mapping[str, RolloutScorer] | None = None,
  on_iteration: Callable[[int, Params], Mapping[str, float] | None] | None = None,
  mitigation: Mitigation = NONE,
  **settings: Any,
) -> Params:
  """Raises the reward of `params` by its own samples; returns the last parameters.

  The parameters after every iteration (from 1) are kept: see `iterations.load_iteration`. Killed at any moment and
  called again, the iteration that was under way is done again and the run ends with the same bits. Arguments as in
  `rsf.run`, with the fields of this module's `Settings`, and

    critic: the value function's shape, and weights that its trunk starts from: those of a reward model, say. Its head
      starts from zeros, whatever theirs is. None: the trunk starts from `params`.

  Raises:
    NonFinite: if a reward, a loss or a parameter is not finite; names stage and iteration.
    BadData: if there are no prompts, if one is empty, or if no completion of an iteration can be learnt from.
    ConfigError: if settings cannot work, prompts do not fit the model's context, or the critic's vocabulary is another.
    Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  scorers = [("reward", scorer)] + [(f"reward_{n}", s) for n, s in (other_scorers or {}).items()]
  calls = {n: getattr(config, n) for n in ("prompts_per_iteration", "prompts_per_call")}
  rollouts.check(prompts, stage=stage, **calls)
  length = config.sampling["max_new_tokens"]
  preconditions.check_context(model, prompts, max_new_tokens=length, stage=stage)
  sharding.check_batch_size(config.batch_size // config.accumulate_steps, run.mesh)
  critic = critic or (ScalarModel(model.config), {"decoder": params})
  valuation.check(model, critic[0], stage=stage)
  with jax.set_mesh(run.mesh):
    done = iterations.load_result(run, params, stage=stage)
    if done is not None:
      return done
    began = time.monotonic()
    trainer, sample, read = _prepare(
      model, params, critic, prompts, config, mitigation=mitigation, run=run, stage=stage
    )
    progress = Progress(stage, config.num_iterations, start=trainer.iteration, enabled=run.show)
    with contextlib.closing(trainer), progress as bar:
      while not trainer.done:
        i = trainer.iteration + 1
        clock = time.monotonic()
        rollout = sample(params=trainer.policy, iteration=i)
        sampling_seconds = time.monotonic() - clock
        run.interrupts.check(f"iteration {i} of {stage}")
        rewards = {n: check_rewards(s(*rollout[:4]), config.rows, name=n) for n, s in scorers}
        draw = rng.generator(run.seed, f"{stage}/shuffle/{i}")
        record = _iterate(trainer, rollout, rewards, read, config=config, draw=draw)
        if on_iteration is not None:
          record |= dict(on_iteration(i, trainer.policy) or {})
        record |= {"sampling_seconds": sampling_seconds, "seconds": time.monotonic() - clock}
        run.log(record, stage=stage, step=i)
        trainer.commit()
        bar.update(i, {n: record[n] for n in ("reward", "kl", "length") if n in record})
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=config.num_iterations)
    return trainer.finish()


def _iterate(
  trainer: ActorCritic,
  rollout: Rollout,
  rewards: Mapping[str, np.ndarray],
  read: Callable[[Rollout], Reading],
  *,
  config: Settings,
  draw: np.random.Generator,
) -> dict[str, float]:
  """Learns from a rollout, or goes back if it is a collapsed policy's; returns what to record."""
  lengths = rollout.completion_mask.sum(axis=1)
  now = collapse.measure(lengths, rollout.finished, rewards["reward"])
  record = {name: float(values.mean()) for name, values in rewards.items()}
  record |= {n: getattr(now, n) for n in ("reward_std", "length", "finished")}
  signals = trainer.collapsed(now)
  if signals:
    record |= {f"collapsed_{signal}": 1.0 for signal in signals}
    return record | {"restored_iteration": float(trainer.go_back())}
  kl_coef = trainer.kl_coef
  record |= {"kl_coef": kl_coef, "critic_warm_up": float(trainer.paused)}
  reading = read(rollout)
  rows, measured = learn_from(rollout, rewards["reward"], reading, config, kl_coef=kl_coef)
  batches = minibatches.shuffled(rows, draw, batch_size=config.batch_size, epochs=config.epochs)
  record |= measured | trainer.train(batches)
  trainer.end(now, kl=measured["kl"], samples=config.rows)
  return record


def learn_from(
  rollout: Rollout, rewards: np.ndarray, reading: Reading, config: Settings, *, kl_coef: float
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """The completions as one batch of `policy_loss` and `value_loss`, and what there is to record of them.

  Args:
    rollout: R completions.
    rewards: [R] float32, of the scorer.
    reading: of the same completions, by the policy that sampled them.
    config: the settings.
    kl_coef: now.

  Raises:
    BadData: if no completion counts.
  """
  bound = math.inf if config.reward_clip is None else config.reward_clip
  scores = np.clip(rewards - np.float32(config.reward_baseline), -bound, bound)
  scores, scorable = missing_eos.apply(
    scores, rollout.finished, rule=config.missing_eos, penalty=config.missing_eos_penalty
  )
  chosen = rollout.completion_mask & scorable[:, None]
  if not chosen.any():
    raise BadData(
      f"ppo: nothing to learn from: none of {len(scores)} completions ends within {chosen.shape[1]} tokens, and"
      " missing_eos='drop' leaves those out. Raise sampling.max_new_tokens, or choose another rule"
    )
  found = sharding.fetch(
    advantages.estimate(
      scores,
      reading.logprobs,
      reading.reference_logprobs,
      reading.values,
      chosen,
      kl_coef=kl_coef,
      gamma=config.gamma,
      lam=config.gae_lambda,
      whiten_rewards=config.whiten_rewards,
      whiten_advantages=config.whiten_advantages,
    )
  )
  # 0 where masked, and so is their difference.
  log_ratios = (reading.logprobs - reading.reference_logprobs).sum(axis=1)
  record = found.statistics | {
    "score": scores[scorable].mean(),
    "non_score_reward": -kl_coef * log_ratios.mean(),
    "kl": reading.kl.sum(axis=1).mean(),
    "left_out": len(scores) - scorable.sum(),
  }
  rows = {
    "tokens": rollout.tokens,
    "mask": rollout.mask,
    "loss_mask": np.concatenate([np.zeros_like(rollout.prompt_mask), chosen], axis=1),
    "old_logprobs": reading.logprobs,
    "old_values": reading.values,
    "advantages": found.advantages,
    "returns": found.returns,
  }
  return rows, {name: float(x) for name, x in record.items()}


def policy_loss(model: LanguageModel, config: Settings) -> LossFn:
  """The clipped surrogate on batches as `learn_from` makes them; a loss mask of floats weighs the tokens."""

  def read(params: Params, batch: PyTree) -> tuple[jax.Array, jax.Array]:
    tokens, mask, temperature = batch["tokens"], batch["mask"], config.temperature
    prompt = tokens.shape[1] - batch["old_logprobs"].shape[1]
    logits = scoring.completion_logits(
      model, params, tokens, mask, prompt=prompt, temperature=temperature, **config.forward
    )
    # Recomputed in the backward pass: less memory, and compiled as where the old ones are read, so with equal bits.
    logprobs = jax.checkpoint(functools.partial(scoring.completion_logprobs, prompt=prompt))
    return logprobs(logits, tokens), policy_gradient.entropy(logits)[:, :-1]

  return clipped_objectives.surrogate(
    read, clip_ratio=config.clip_ratio, entropy_coef=config.entropy_coef
  )


def value_loss(critic: ScalarModel, config: Settings) -> LossFn:
  """The clipped error of the values on batches as `learn_from` makes them."""

  def read(params: Params, batch: PyTree) -> jax.Array:
    tokens, mask = batch["tokens"], batch["mask"]
    prompt = tokens.shape[1] - batch["old_values"].shape[1]
    return valuation.values_before(critic, params, tokens, mask, prompt=prompt, **config.forward)

  return clipped_objectives.value_error(read, clip_value=config.clip_value, vf_coef=config.vf_coef)


def _prepare(
  model: LanguageModel,
  params: Params,
  critic: tuple[ScalarModel, Params],
  prompts: tuple[np.ndarray, np.ndarray],
  config: Settings,
  *,
  mitigation: Mitigation,
  run: Run,
  stage: str,
) -> tuple[ActorCritic, Callable[..., Rollout], Callable[[Rollout], Reading]]:
  """Policy and critic as they start or go on; what samples from the policy; and what reads the samples."""
  value_model, trunk = critic
  value_params = value_model.init(rng.key(run.seed, stage), trunk["decoder"], zeros=True)
  critic_tx = config.make_optimizer(config.critic_optimizer)
  trainer = ActorCritic(
    Network(params, policy_loss(model, config), config.make_optimizer()),
    Network(value_params, value_loss(value_model, config), critic_tx),
    mitigation=mitigation,
    run=run,
    stage=stage,
    num_iterations=config.num_iterations,
    kl=config.kl,
    restart=config.collapse,
    accumulate_steps=config.accumulate_steps,
  )
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
  reference = sharding.put(params, iterations.parameter_shardings(params, run), copy=False)
  # Read as many at a time as are trained on: then a ratio that should be 1 is.
  rows = config.batch_size // config.accumulate_steps
  shared |= {"rows_per_call": rows, "temperature": config.temperature}

  def read(rollout: Rollout) -> Reading:
    readers = Readers(trainer.policy, reference, trainer.critic)
    return valuation.read(model, value_model, readers, rollout, **shared)

  return trainer, sample, read
