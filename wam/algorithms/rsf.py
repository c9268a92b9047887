"""Rejection-sampling fine-tuning (RAFT): iterative best-of-n, the trained policy sampling for the next iteration.

Dong et al. 2023, algorithm 1. Each iteration samples prompts, draws n completions of each from the current policy,
scores them with a fixed reward, keeps the best and fine-tunes on those. Leaves out the tax and its measurement: the
parameters of every iteration are kept for that; and fine-tuning afterwards on what was kept (distillation.py).
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from wam.core import rng
from wam.core.errors import BadData, ConfigError
from wam.core.types import Params, PyTree
from wam.generation import kept_samples, preconditions, rollouts, scoring
from wam.generation.rollouts import Rollout
from wam.models.decoder import LanguageModel
from wam.rewards import best_of_n
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training import iterations, loop, objectives, optimizers, sharding
from wam.training.mitigations import NONE, Mitigation
from wam.training.progress import Progress
from wam.training.trained_policy import TrainedPolicy
from wam.training.workdir import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The numbers of a run of RSF.

  Attributes:
    num_iterations: iterations.
    prompts_per_iteration: P; drawn without replacement within an iteration where there are enough.
    samples_per_prompt: n.
    sampling: keywords of `generation.sampling.generate`: max_new_tokens, eos_id, pad_id, temperature, top_k, top_p.
    optimizer: keywords of `optimizers.make`, without `total_steps`: the schedule spans the whole stage (counting full
      selections) when the optimizer is carried over, and one iteration when not.
    batch_size, epochs: of the fine-tuning on what an iteration kept.
    rule, fraction: what is kept; see `best_of_n.select`.
    kl_coef: β: samples are selected by r(y) - β·log(π(y)/π_0(y)), π_0 the policy of θ_0, at the temperature of the
      sampling and before top-k and top-p. 0: by the reward, and θ_0 is not held.
    keep_samples: whether what is selected is kept on the disk as well; see `kept_samples.load`.
    require_eos: whether only completions that end are kept; False for models that do not end texts.
    prompts_per_call: prompts of one call of `generate`, to bound its memory; divides P. None: all.
    carry_optimizer: moments go from one iteration to the next; otherwise each starts afresh.
    accumulate_steps, dtype, remat: as in `sft.run`.
  """

  num_iterations: int
  prompts_per_iteration: int
  samples_per_prompt: int
  sampling: Mapping[str, Any]
  optimizer: Mapping[str, Any]
  batch_size: int
  epochs: int = 1
  rule: str = "best_per_prompt"
  fraction: float | None = None
  kl_coef: float = 0.0
  keep_samples: bool = False
  require_eos: bool = True
  prompts_per_call: int | None = None
  carry_optimizer: bool = True
  accumulate_steps: int = 1
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self) -> None:
    """Raises ConfigError where a KL penalty cannot be."""
    if not 0 <= self.kl_coef < float("inf"):
      raise ConfigError(f"kl_coef: expected 0 or more, found {self.kl_coef}")
    if self.kl_coef and not self.temperature > 0:
      raise ConfigError(
        "kl_coef: greedy decoding (sampling.temperature=0) has no log-probabilities"
      )

  @property
  def temperature(self) -> float:
    """Of the sampling."""
    return float(self.sampling.get("temperature", 1.0))

  def make_optimizer(self) -> optax.GradientTransformation:
    """The optimizer, its schedule as long as the fine-tuning can be."""
    largest = best_of_n.largest_selection(
      self.prompts_per_iteration, self.samples_per_prompt, self.fraction
    )
    steps = self.epochs * math.ceil(largest / self.batch_size)
    spanned = self.num_iterations if self.carry_optimizer else 1
    return optimizers.make(total_steps=steps * spanned, **self.optimizer)


def run(
  model: LanguageModel,
  params: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  scorer: RolloutScorer,
  *,
  run: Run,
  stage: str = "rsf",
  other_scorers: Mapping[str, RolloutScorer] | None = None,
  on_iteration: Callable[[int, Params], Mapping[str, float] | None] | None = None,
  mitigation: Mitigation = NONE,
  **settings: Any,
) -> Params:
  """Fine-tunes `params` on the best of their own samples, again and again; returns the last parameters.

  The parameters after every iteration (from 1) are kept: see `iterations.load_iteration`. Killed at any moment and
  called again, the iteration that was under way is done again and the run ends with the same bits.

  Args:
    model: the decoder.
    params: the policy to start from, float32; not consumed.
    prompts: tokens [A, P] int32, left-padded, and their mask [A, P] bool, to draw from.
    scorer: the reward that is optimised (proxy).
    run: the open workdir.
    stage: names the stage.
    other_scorers: rewards that are only recorded, as "reward_<name>" (gold).
    on_iteration: called with the iteration and its parameters before the iteration is committed (so again, if the run
      is killed inside); what it returns goes into the iteration's record. The next iteration takes the parameters away:
      copy what is to stay.
    mitigation: of the alignment tax, while training.
    **settings: the fields of `Settings`.

  Raises:
    NonFinite: if a reward, a loss or a parameter is not finite; names stage and iteration.
    BadData: if there are no prompts, if one is empty, or if nothing of an iteration can be kept.
    ConfigError: if settings cannot work, or prompts do not fit the model's context.
    Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  scorers = {"reward": scorer} | {f"reward_{n}": s for n, s in (other_scorers or {}).items()}
  rollouts.check(
    prompts,
    stage=stage,
    prompts_per_iteration=config.prompts_per_iteration,
    prompts_per_call=config.prompts_per_call,
  )
  most = config.sampling["max_new_tokens"]
  preconditions.check_context(model, prompts, max_new_tokens=most, stage=stage)
  if mitigation.carries_optimizer and not config.carry_optimizer:
    raise ConfigError(f"{stage}: this mitigation lives in the optimizer; set carry_optimizer=True")
  with jax.set_mesh(run.mesh):
    done = iterations.load_result(run, params, stage=stage)
    if done is not None:
      return done
    began = time.monotonic()
    trainer = TrainedPolicy(
      params,
      loss_fn=objectives.next_token(model, dtype=config.dtype, remat=config.remat),
      tx=config.make_optimizer(),
      mitigation=mitigation,
      run=run,
      stage=stage,
      num_iterations=config.num_iterations,
      accumulate_steps=config.accumulate_steps,
    )
    sample, penalties = _readers(model, params, prompts, config, run=run, stage=stage)
    progress = Progress(stage, config.num_iterations, start=trainer.iteration, enabled=run.show)
    with contextlib.closing(trainer), progress as bar:
      while not trainer.done:
        i = trainer.iteration + 1
        where = f"iteration {i} of {stage}"
        clock = time.monotonic()
        rollout = sample(params=trainer.weights, iteration=i)
        sampling_seconds = time.monotonic() - clock
        run.interrupts.check(where)
        rewards = {n: _score(rollout, s, config, name=n) for n, s in scorers.items()}
        penalty = penalties(trainer.weights, rollout)
        kept = _select(rollout, rewards["reward"] - penalty, config, where)
        record = _measure(rollout, rewards, kept)
        if config.kl_coef:
          record["kl_penalty"] = float(penalty.mean())
        if config.keep_samples:
          best = (rollout, kept.rows, rewards["reward"].reshape(-1))
          kept_samples.save(run.stage_directory(stage), i, *best)
        record |= _fine_tune(trainer, rollout, kept.rows, config, run.seed, stage)
        if on_iteration is not None:
          record |= dict(on_iteration(i, trainer.weights) or {})
        record |= {"sampling_seconds": sampling_seconds, "seconds": time.monotonic() - clock}
        run.log(record, stage=stage, step=i)
        trainer.commit()
        bar.update(i, {n: record[n] for n in ("reward", "length", "loss") if n in record})
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=config.num_iterations)
    loop.save_result(run.stage_directory(stage), trainer.weights, run=run)
    return trainer.weights


def _readers(
  model: LanguageModel,
  params: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  config: Settings,
  *,
  run: Run,
  stage: str,
) -> tuple[Callable[..., Rollout], Callable[[Params, Rollout], np.ndarray]]:
  """`rollouts.draw` of (params, iteration), and the KL penalty [P, n] of (params, rollout)."""
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
  shape = (config.prompts_per_iteration, config.samples_per_prompt)
  if not config.kl_coef:
    return sample, lambda policy, rollout: np.zeros(shape, np.float32)
  start = sharding.put(params, iterations.parameter_shardings(params, run), copy=False)
  rows = config.batch_size // config.accumulate_steps

  def penalties(policy: Params, rollout: Rollout) -> np.ndarray:
    found = scoring.compare(
      model,
      policy,
      {"init": start},
      rollout,
      temperature=config.temperature,
      rows_per_call=rows,
      **shared,
    )
    return np.float32(config.kl_coef) * found.log_ratio("init").reshape(shape)

  return sample, penalties


def _fine_tune(
  trainer: TrainedPolicy,
  rollout: Rollout,
  rows: np.ndarray,
  config: Settings,
  seed: int,
  stage: str,
) -> dict[str, float]:
  """Trains on these rows of the rollout; returns average loss and gradient norm (nothing when no row was kept)."""
  i = trainer.iteration + 1
  if not config.carry_optimizer and i > 1:
    trainer.restart_optimizer()
  draw = rng.generator(seed, f"{stage}/shuffle/{i}")
  return trainer.train(
    _batches(rollout, rows, draw, epochs=config.epochs, batch_size=config.batch_size)
  )


def _score(rollout: Rollout, scorer: RolloutScorer, config: Settings, *, name: str) -> np.ndarray:
  """Rewards [P, n] float32."""
  rewards = scorer(*rollout[:4])
  return check_rewards(rewards, len(rollout.finished), name=name).reshape(
    -1, config.samples_per_prompt
  )


def _select(
  rollout: Rollout, rewards: np.ndarray, config: Settings, where: str
) -> best_of_n.Selection:
  """What is kept; rewards [P, n].

  Raises:
    BadData: if that is nothing.
  """
  usable = rollout.finished | (not config.require_eos)
  kept = best_of_n.select(
    rewards, usable.reshape(rewards.shape), rule=config.rule, fraction=config.fraction
  )
  if not len(kept.rows):
    raise BadData(
      f"{where} kept nothing: {kept.unfinished} of {usable.size} completions do not end within"
      f" {config.sampling['max_new_tokens']} tokens, and {kept.ties} prompts have equal rewards. Raise"
      " sampling.max_new_tokens, or set require_eos=False for a model that does not end its texts"
    )
  return kept


def _batches(
  rollout: Rollout, rows: np.ndarray, draw: np.random.Generator, *, epochs: int, batch_size: int
) -> Iterator[PyTree]:
  """Batches of one shape over the kept rows, reshuffled every epoch; what is left of the last has no weight."""
  tokens, mask, trained = rollout.tokens, rollout.mask, rollout.loss_mask
  for _ in range(epochs):
    order = draw.permutation(rows)
    for start in range(0, len(order), batch_size):
      real = order[start : start + batch_size]
      chosen = np.concatenate([real, np.full(batch_size - len(real), order[0])])
      weight = np.arange(batch_size)[:, None] < len(real)
      yield {
        "tokens": tokens[chosen],
        "mask": mask[chosen],
        "loss_mask": trained[chosen] & weight,
      }


def _measure(
  rollout: Rollout,
  rewards: Mapping[str, np.ndarray],
  kept: best_of_n.Selection,
) -> dict[str, float]:
  """What an iteration says about the policy that it sampled from."""
  lengths = rollout.completion_mask.sum(axis=1)
  proxy = rewards["reward"]
  num_samples = proxy.shape[1]
  record = {
    "reward_std": float(proxy.std()),
    "reward_best": float(proxy.max(axis=1).mean()),
    "kl_bound": best_of_n.kl_bound(num_samples),
    "length": float(lengths.mean()),
    "finished": float(rollout.finished.mean()),
    "kept": float(len(kept.rows)),
    "tied_prompts": float(kept.ties),
    "unfinished_samples": float(kept.unfinished),
  }
  for name, values in rewards.items():
    record[name] = float(values.mean())
    if len(kept.rows):
      record[f"{name}_kept"] = float(values.reshape(-1)[kept.rows].mean())
    # The best by the proxy, worth this reward: for the proxy itself at n = N it is the mean of the maxima.
    n = 2
    while n <= num_samples:
      best = best_of_n.expected_best(values, n, ranked_by=proxy)
      record[f"{name}_best_of_{n}"] = float(best.mean())
      n *= 2
  return record
