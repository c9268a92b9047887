"""Adaptive Model Averaging: between the weights before and after RLHF, a ratio for every part of the network.

Lin et al. 2024 (arXiv 2309.06256), section 5 and appendix C.5. The mean of the ratios is given; the ratios maximise the
likelihood of completions of the RLHF policy (eq. 8, `run`), or the reward itself (eq. 6, `run_on_reward`). Nothing in
either objective speaks of the tax: they choose where in the network to stay near θ, given how near. With anchors, texts
that θ_0 makes likely, `run` weighs both. K numbers are searched for, so the gradient is K derivatives in forward mode:
see wam/merging/adaptive.py. Leaves out where the two models come from, and what the average is worth (evaluation).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params
from wam.generation import preconditions, rollouts
from wam.generation.rollouts import Rollout
from wam.losses import baselines
from wam.models.decoder import LanguageModel
from wam.rewards import top_rewards
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training import sharding
from wam.training.between import OBJECTIVES, Weighted
from wam.training.ratio_run import Averaged, Averaging, Search
from wam.training.workdir import Run

AVERAGES = ("sequences", "tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Averaging):
  """The numbers of a search by likelihood; those of `Averaging`, and

  Attributes:
    optimizer: None: the exact solver (`ratio_search.solve`), which takes all examples for every evaluation, about ten
      in all from each start; for the form "projected".
    num_starts: of the exact solver: equal ratios, and ratios drawn at random. One is enough for models that are near
      each other; the likelihood between models far apart has several maxima.
    batch_size: examples of a gradient step; None: all.
    epochs: of gradient steps over the examples.
    average: of the log-likelihood: over "sequences" (eq. 8), or "tokens", as a language-model loss does.
    temperature: of the policy.
    anchor_weight: of the anchors, where they are given.
    objective: "likelihood", or "entropy": the predictions are to be as certain as can be on the examples, whatever
      their tokens: AdaMerging (Yang et al. 2024, arXiv 2310.02575, eq. 6), which has form="free" and gradient steps.
  """

  num_starts: int = 1
  batch_size: int | None = None
  epochs: int = 1
  average: str = "sequences"
  temperature: float = 1.0
  anchor_weight: float = 1.0
  objective: str = "likelihood"

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.average not in AVERAGES:
      raise unknown_name("average", self.average, AVERAGES)
    if self.objective not in OBJECTIVES:
      raise unknown_name("objective", self.objective, OBJECTIVES)
    for name in ("num_starts", "batch_size", "epochs", "temperature", "anchor_weight"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ConfigError(f"{name}: expected a number above 0, found {value}")
    if self.optimizer is None and (self.form != "projected" or self.batch_size is not None):
      raise ConfigError(
        "the exact solver takes form='projected' and no batch_size; give an optimizer for gradient steps"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSettings(Averaging):
  """The numbers of a search by reward; those of `Averaging`, and

  Attributes:
    optimizer: needed here.
    num_iterations: gradient steps, each on fresh samples.
    prompts_per_iteration, samples_per_prompt, prompts_per_call: as in `rollouts.draw`.
    sampling: keywords of `generation.sampling.generate`; without top-k and top-p.
    baseline: of `baselines.advantages`.
  """

  num_iterations: int
  prompts_per_iteration: int
  samples_per_prompt: int
  sampling: Mapping[str, Any]
  prompts_per_call: int | None = None
  baseline: str = "leave_one_out"

  def __post_init__(self) -> None:
    super().__post_init__()
    preconditions.check_sampling(self.sampling, algorithm="adaptive averaging on rewards")
    if self.baseline not in baselines.BASELINES:
      raise unknown_name("baseline", self.baseline, baselines.BASELINES)
    if self.optimizer is None:
      raise ConfigError("a search by reward makes gradient steps: give an optimizer")
    if self.baseline == "leave_one_out" and self.samples_per_prompt < 2:
      raise ConfigError("the baseline leave_one_out needs samples_per_prompt of 2 or more")


def distillation_set(
  model: LanguageModel,
  tuned: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  scorer: RolloutScorer,
  *,
  run: Run,
  num_prompts: int,
  sampling: Mapping[str, Any],
  samples_per_prompt: int = 1,
  pool: int = 5000,
  size: int = 2000,
  require_eos: bool = True,
  prompts_per_call: int | None = None,
  dtype: str = "float32",
  stage: str = "distillation set",
) -> Rollout:
  """D_θ of eq. 7 by the rule of appendix C.5: completions of the RLHF policy, of the highest rewards.

  Args:
    model, tuned: the RLHF policy.
    prompts: tokens [A, P] int32, left-padded, and their mask, to draw from.
    scorer: the reward that the policy was trained on.
    run: gives seed and mesh.
    num_prompts, samples_per_prompt, sampling, prompts_per_call, dtype: as in `rollouts.draw`.
    pool, size: see `top_rewards.draw_from_the_best`.
    require_eos: whether completions that do not end are left out; completions without a token always are.
    stage: names the random streams.

  Raises:
    BadData: if there are no prompts or no completion can be used. NonFinite: if a reward is not finite.
  """
  per_call = prompts_per_call or num_prompts
  rollouts.check(prompts, stage=stage, prompts_per_iteration=num_prompts, prompts_per_call=per_call)
  with jax.set_mesh(run.mesh):
    drawn = rollouts.draw(
      model,
      tuned,
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
  rewards = check_rewards(scorer(*drawn[:4]), len(drawn.finished))
  usable = drawn.completion_mask.any(axis=1) & (drawn.finished | (not require_eos))
  generator = rng.generator(run.seed, f"{stage}/rows")
  rows = top_rewards.draw_from_the_best(
    rewards, generator=generator, pool=pool, size=size, usable=usable
  )
  return top_rewards.take(drawn, rows)


def run(
  model: LanguageModel,
  reference: Params,
  tuned: Params,
  examples: Rollout,
  *,
  run: Run,
  anchors: Weighted | None = None,
  stage: str = "adaptive averaging",
  **settings: Any,
) -> Averaged:
  """The ratios of a given mean that make completions most likely (eq. 8), and the average with them.

  With anchors the objective is the mean log-likelihood of the examples plus anchor_weight times that of the anchors;
  this one is ours, not the paper's.

  A search that was killed goes on from its last gradient step; the exact solver begins again, with the same numbers.

  Args:
    model: the decoder.
    reference: θ_0, before RLHF; not consumed.
    tuned: θ, after it; not consumed.
    examples: D_θ, such as `distillation_set`.
    run: the open workdir.
    anchors: what the average should go on saying, its tokens with weight 1: completions of θ_0 (`counted(rollout)`),
      or texts that it was trained on. None: the paper's objective.
    stage: names the stage.
    **settings: the fields of `Settings`.

  Raises:
    ConfigError: if settings contradict each other. BadData: if there are no examples.
    NonFinite: if a log-likelihood is not finite. Interrupted, CannotWrite: as `loop.fit`.
  """
  config = Settings(**settings)
  count = len(examples.completions)
  if not examples.completion_mask.any():
    raise BadData(f"{stage}: the {count} examples hold no token to make likely")
  with jax.set_mesh(run.mesh):
    search = Search(
      model,
      reference,
      tuned,
      config,
      config.temperature,
      run=run,
      stage=stage,
      objective=config.objective,
    )
    if search.done:
      return search.result()
    between = search.between
    texts = [counted(examples)] + ([] if anchors is None else [anchors])
    factors = (1.0, config.anchor_weight)[: len(texts)]
    sizes = [min(config.batch_size or len(each.tokens), len(each.tokens)) for each in texts]
    per_epoch = -(-count // sizes[0])

    def rows(number: int, step: int) -> np.ndarray:
      """Of one of the texts, those of a step; later epochs have other orders."""
      total, size = len(texts[number].tokens), sizes[number]
      if size == total:
        return np.arange(total)
      epoch, part = divmod(step, -(-total // size))
      stream = f"{stage}/shuffle/{number}/{epoch}" if number else f"{stage}/shuffle/{epoch}"
      order = rng.generator(run.seed, stream).permutation(total)
      return order[part * size : (part + 1) * size]

    def objective(a: np.ndarray, step: int) -> tuple[float, np.ndarray]:
      value, slopes = 0.0, np.zeros(config.num_parts)
      for number, (each, factor) in enumerate(zip(texts, factors, strict=True)):
        chosen = mean_of(each, rows(number, step), average=config.average)
        part, slope = between.gradient(a, config.alpha, chosen)
        value, slopes = value + factor * part, slopes + factor * slope
      return value, slopes

    if config.optimizer is None:
      a, steps = search.solve(objective, num_starts=config.num_starts)
    else:
      steps = config.epochs * per_epoch
      a = search.climb(objective, config.optimizer, num_steps=steps)
    found, uniform = (
      sum(
        factor * between.value(x, config.alpha, mean_of(each, average=config.average))
        for each, factor in zip(texts, factors, strict=True)
      )
      for x in (a, search.equal_ratios)
    )
    return search.finish(a, objective=found, uniform=uniform, evaluations=steps)


def run_on_reward(
  model: LanguageModel,
  reference: Params,
  tuned: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  scorer: RolloutScorer,
  *,
  run: Run,
  stage: str = "adaptive averaging on rewards",
  **settings: Any,
) -> Averaged:
  """The ratios of a given mean that have the highest reward (eq. 6), by REINFORCE on the K ratios.

  Each iteration samples from the average with the ratios it has; ∇_a E[r] = E[(r - b)·∇_a log π_θ(a)(y)].

  Args:
    model, reference, tuned, run, stage: as in `run`.
    prompts: tokens [A, P] int32, left-padded, and their mask [A, P] bool, to draw from.
    scorer: the reward.
    **settings: the fields of `RewardSettings`.

  Raises:
    ConfigError: if settings contradict each other. BadData: if there are no prompts.
    NonFinite: if a reward or a log-probability is not finite. Interrupted, CannotWrite: as `loop.fit`.
  """
  config = RewardSettings(**settings)
  assert config.optimizer is not None
  rollouts.check(
    prompts,
    stage=stage,
    prompts_per_iteration=config.prompts_per_iteration,
    prompts_per_call=config.prompts_per_call,
  )
  temperature = config.sampling.get("temperature", 1.0)
  with jax.set_mesh(run.mesh):
    search = Search(model, reference, tuned, config, temperature, run=run, stage=stage)
    if search.done:
      return search.result()

    def objective(a: np.ndarray, step: int) -> tuple[float, np.ndarray]:
      drawn = rollouts.draw(
        model,
        search.between.params(a, config.alpha),
        prompts,
        seed=run.seed,
        stream=stage,
        iteration=step + 1,
        num_prompts=config.prompts_per_iteration,
        num_samples=config.samples_per_prompt,
        sampling=config.sampling,
        prompts_per_call=config.prompts_per_call,
        dtype=config.dtype,
        place=lambda batch: sharding.put_whole_batch(batch, run.mesh),
        fetch=sharding.fetch,
      )
      rewards = check_rewards(scorer(*drawn[:4]), len(drawn.finished))
      weighted = weigh_by_reward(drawn, rewards, config.samples_per_prompt, config.baseline)
      return float(rewards.mean()), search.between.gradient(a, config.alpha, weighted)[1]

    a = search.climb(objective, config.optimizer, num_steps=config.num_iterations)
    values = search.values
    return search.finish(
      a, objective=values[-1], uniform=values[0], evaluations=config.num_iterations
    )


def counted(examples: Rollout) -> Weighted:
  """The completions of a rollout, each of their tokens with weight 1."""
  return Weighted(examples.tokens, examples.mask, examples.completion_mask.astype(np.float32))


def mean_of(
  texts: Weighted, rows: np.ndarray | None = None, *, average: str = "sequences"
) -> Weighted:
  """These rows (default: all) of texts, whose tokens have weight 1, for the mean over "sequences" or "tokens"."""
  chosen = texts if rows is None else top_rewards.take(texts, rows)
  total = len(chosen.tokens) if average == "sequences" else max(float(chosen.weights.sum()), 1.0)
  return chosen._replace(weights=chosen.weights / np.float32(total))


def weigh_by_reward(
  drawn: Rollout, rewards: np.ndarray, samples_per_prompt: int, baseline: str = "leave_one_out"
) -> Weighted:
  """Σ (r_i - b_i)·log π(y_i) / R as weights, whose gradient is an unbiased estimate of that of the mean reward."""
  table = rewards.reshape(-1, samples_per_prompt)
  advantages, counted = baselines.advantages(
    baseline, jnp.asarray(table), jnp.ones(table.shape, bool)
  )
  scale = np.asarray(advantages, np.float32).reshape(-1, 1) / max(int(counted.sum()), 1)
  return Weighted(drawn.tokens, drawn.mask, drawn.completion_mask * scale)
