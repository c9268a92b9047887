"""Rejection-sampling fine-tuning (RAFT): iterative best-of-n, the trained policy sampling for the next iteration.

Dong et al. 2023, algorithm 1. Each iteration samples prompts, draws n completions of each from the current policy,
scores them with a fixed reward, keeps the best and fine-tunes on those. Leaves out the tax and its measurement: the
parameters of every iteration are kept for that.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from wam.core import rng
from wam.core.errors import BadData
from wam.core.types import Params, PyTree
from wam.generation import rollouts
from wam.generation.rollouts import Rollout
from wam.models.decoder import LanguageModel
from wam.rewards import best_of_n
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training import iterations, loop, objectives, optimizers, sharding
from wam.training.iterations import Iterations
from wam.training.mitigations import NONE, Mitigation
from wam.training.progress import Progress
from wam.training.state import Pair, init
from wam.training.step import Update, make_update
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
  require_eos: bool = True
  prompts_per_call: int | None = None
  carry_optimizer: bool = True
  accumulate_steps: int = 1
  dtype: str = "float32"
  remat: bool = False

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
    BadData: if there are no prompts. Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  scorers = {"reward": scorer} | {f"reward_{n}": s for n, s in (other_scorers or {}).items()}
  rollouts.check(
    prompts,
    stage=stage,
    prompts_per_iteration=config.prompts_per_iteration,
    prompts_per_call=config.prompts_per_call,
  )
  with jax.set_mesh(run.mesh):
    done = iterations.load_result(run, params, stage=stage)
    if done is not None:
      return done
    began = time.monotonic()
    trainer = _Trainer(model, params, config, mitigation, run=run, stage=stage)
    progress = Progress(stage, config.num_iterations, start=trainer.iteration, enabled=run.show)
    with contextlib.closing(trainer), progress as bar:
      while not trainer.done:
        i = trainer.iteration + 1
        clock = time.monotonic()
        rollout = rollouts.draw(
          model,
          trainer.policy,
          prompts,
          seed=run.seed,
          stream=stage,
          iteration=i,
          num_prompts=config.prompts_per_iteration,
          num_samples=config.samples_per_prompt,
          sampling=config.sampling,
          prompts_per_call=config.prompts_per_call,
          dtype=config.dtype,
          place=lambda batch: sharding.put_whole_batch(batch, run.mesh),
          fetch=sharding.fetch,
        )
        sampling_seconds = time.monotonic() - clock
        run.interrupts.check(f"iteration {i} of {stage}")
        rewards = {n: _score(rollout, s, config, name=n) for n, s in scorers.items()}
        kept = _select(rollout, rewards["reward"], config, f"{stage}: iteration {i}")
        record = _measure(rollout, rewards, kept) | trainer.fine_tune(rollout, kept.rows)
        if on_iteration is not None:
          record |= dict(on_iteration(i, trainer.policy) or {})
        record |= {
          "sampling_seconds": sampling_seconds,
          "seconds": time.monotonic() - clock,
        }
        run.log(record, stage=stage, step=i)
        trainer.commit()
        bar.update(i, {n: record[n] for n in ("reward", "length", "loss") if n in record})
    seconds = time.monotonic() - began
    run.log({"seconds": seconds}, kind="stage", stage=stage, step=config.num_iterations)
    loop.save_result(run.stage_directory(stage), trainer.policy, run=run)
    return trainer.policy


class _Trainer:
  """The policy under training."""

  def __init__(
    self,
    model: LanguageModel,
    params: Params,
    config: Settings,
    mitigation: Mitigation,
    *,
    run: Run,
    stage: str,
  ):
    """Starts from `params`, or from the last iteration that was committed."""
    self._config, self._run, self._stage = config, run, stage
    tx = mitigation.optimizer(config.make_optimizer())
    key = rng.key(run.seed, f"{stage}/start")
    self._steps = Iterations(
      lambda p: init(mitigation.start(p, key), tx),
      params,
      run=run,
      stage=stage,
      num_iterations=config.num_iterations,
    )
    where = self._steps.where
    self._restart = jax.jit(lambda trained: init(trained, tx), out_shardings=where)
    self._frozen = mitigation.freeze(params)
    self._full = jax.jit(mitigation.full, out_shardings=iterations.parameter_shardings(params, run))
    self._trains_weights = mitigation.trains_weights
    loss_fn = objectives.next_token(model, dtype=config.dtype, remat=config.remat)
    self._update: Update = jax.jit(
      make_update(mitigation.loss(loss_fn), tx, accumulate_steps=config.accumulate_steps),
      donate_argnums=0,
      out_shardings=(where, None),
    )

  @property
  def iteration(self) -> int:
    """Iterations that are committed."""
    return self._steps.iteration

  @property
  def done(self) -> bool:
    """Whether all are."""
    return self._steps.done

  @property
  def policy(self) -> Params:
    """The weights of the policy."""
    trained = self._steps.state.params
    return trained if self._trains_weights else self._full(trained, self._frozen)

  def fine_tune(self, rollout: Rollout, rows: np.ndarray) -> dict[str, float]:
    """Trains on these rows of the rollout; returns average loss and gradient norm (nothing when no row was kept)."""
    config, run, steps = self._config, self._run, self._steps
    i = self.iteration + 1
    if not config.carry_optimizer and i > 1:
      steps.state = self._restart(steps.state.params)
    draw = rng.generator(run.seed, f"{self._stage}/shuffle/{i}")
    history: list[dict[str, Pair]] = []
    for batch in _batches(rollout, rows, draw, epochs=config.epochs, batch_size=config.batch_size):
      key = rng.key(run.seed, f"{self._stage}/loss/{i}", len(history))
      placed = sharding.put_whole_batch(batch, run.mesh)
      steps.state, metrics = self._update(steps.state, placed, key, self._frozen)
      history.append(metrics)
    return iterations.averaged(history, steps.state.params, stage=self._stage, iteration=i)

  def commit(self) -> None:
    """Saves what the iteration left."""
    self._steps.commit(self.policy)

  def close(self) -> None:
    """Ends background threads."""
    self._steps.close()


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
  rollout: Rollout, rewards: Mapping[str, np.ndarray], kept: best_of_n.Selection
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
