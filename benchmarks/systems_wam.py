"""wam, measured: training steps as the trainers compile them, and `generate`."""

import functools
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from shape import Shape

from wam.algorithms import dpo as dpo_algorithm
from wam.core.types import Params
from wam.generation.sampling import generate
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel
from wam.training import completions, objectives, optimizers, pair_objectives, state, step

Measure = Callable[[], tuple[int, float]]


def _model(shape: Shape) -> LanguageModel:
  return LanguageModel(
    DecoderConfig(
      vocab_size=shape.vocab_size,
      hidden_size=shape.hidden_size,
      intermediate_size=shape.intermediate_size,
      num_layers=shape.num_layers,
      num_heads=shape.num_heads,
      num_kv_heads=shape.num_kv_heads,
    )
  )


def _versions() -> dict[str, str]:
  return {name: version(name) for name in ("jax", "flax", "optax")}


def sft(shape: Shape, *, stacked: bool = False) -> tuple[Measure, dict[str, str]]:
  """AdamW with clipping, float32, no remat."""
  model = _model(shape)
  tx = optimizers.make(
    learning_rate=1e-4, total_steps=10**6, weight_decay=0.01, name="adamw", clip_norm=1.0
  )
  update = step.make_update(objectives.next_token(model), tx)
  compiled = jax.jit(update, donate_argnums=0)
  carry = state.init(model.init(jax.random.key(0), stacked=stacked), tx)
  size = (shape.train_batch, shape.train_length)
  tokens = np.random.default_rng(0).integers(0, shape.vocab_size, size, dtype=np.int32)
  loss_mask = np.ones(size, bool)
  loss_mask[:, 0] = False
  batch = {"tokens": tokens, "mask": np.ones(size, bool), "loss_mask": loss_mask}
  key = jax.random.key(1)

  def measure() -> tuple[int, float]:
    nonlocal carry
    start = time.perf_counter()
    for _ in range(shape.train_steps):
      carry, metrics = compiled(carry, batch, key)
    jax.block_until_ready((carry, metrics))
    return tokens.size * shape.train_steps, time.perf_counter() - start

  return measure, _versions()


def sft_stacked(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """The same with scanned layers."""
  return sft(shape, stacked=True)


def _pairs(shape: Shape) -> dict[str, np.ndarray]:
  """Pairs of one prompt each and completions of one length, with columns as `encoding.pair_rows` makes them."""
  size = (shape.train_batch, shape.train_length)
  draw = np.random.default_rng(0)
  completion = np.broadcast_to(np.arange(size[1]) >= shape.prompt_length, size)
  chosen, rejected = draw.integers(2, shape.vocab_size, (2, *size), dtype=np.int32)
  columns = {}
  for side, tokens in (("chosen", chosen), ("rejected", np.where(completion, rejected, chosen))):
    columns |= {side: tokens, f"{side}_mask": np.ones(size, bool), f"{side}_loss_mask": completion}
  return columns


def _steps(
  loss_fn: state.LossFn, params: Params, batch: dict[str, np.ndarray], count: int
) -> Measure:
  """Updates by AdamW with clipping."""
  tx = optimizers.make(
    learning_rate=1e-6, total_steps=10**6, weight_decay=0.01, name="adamw", clip_norm=1.0
  )
  compiled = jax.jit(step.make_update(loss_fn, tx), donate_argnums=0)
  carry = state.init(params, tx)
  key = jax.random.key(1)

  def measure() -> tuple[int, float]:
    nonlocal carry
    start = time.perf_counter()
    for _ in range(count):
      carry, metrics = compiled(carry, batch, key)
    jax.block_until_ready((carry, metrics))
    return count, time.perf_counter() - start

  return measure


def dpo(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """The sigmoid loss; the reference's log-probabilities are columns of the batch."""
  model, columns = _model(shape), _pairs(shape)
  reference = {
    f"{side}_reference": np.zeros(shape.train_batch, np.float32) for side in ("chosen", "rejected")
  }
  settings = dpo_algorithm.Settings(optimizer={}, batch_size=shape.train_batch)
  positions = completions.width(columns["chosen_loss_mask"])
  loss_fn = dpo_algorithm.make_loss(model, settings, positions=positions)
  params = model.init(jax.random.key(0), stacked=False)
  return _steps(loss_fn, params, columns | reference, shape.train_steps), _versions()


def reward_model(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """Bradley-Terry's loss of all the weights."""
  model = ScalarModel(_model(shape).config)
  params = model.init(jax.random.key(0), stacked=False)
  loss_fn = pair_objectives.bradley_terry(model)
  return _steps(loss_fn, params, _pairs(shape), shape.train_steps), _versions()


def sampling(shape: Shape, *, top_p: float = 1.0, top_k: int = 0) -> tuple[Measure, dict[str, str]]:
  """`generate` at temperature 1 without EOS."""
  model = _model(shape)
  params = model.init(jax.random.key(0))
  size = (shape.sample_batch, shape.prompt_length)
  prompts = jax.random.randint(jax.random.key(1), size, 0, shape.vocab_size)
  seeds = iter(range(10**6))

  def measure() -> tuple[int, float]:
    key = jax.random.key(next(seeds))
    start = time.perf_counter()
    samples = generate(
      model,
      params,
      prompts,
      jnp.ones(size, bool),
      key,
      max_new_tokens=shape.new_tokens,
      eos_id=(),
      pad_id=0,
      top_p=top_p,
      top_k=top_k,
    )
    jax.block_until_ready(samples)
    return shape.sample_batch * shape.new_tokens, time.perf_counter() - start

  return measure, _versions()


sampling_top_p = functools.partial(sampling, top_p=0.95)
sampling_top_k = functools.partial(sampling, top_k=50)
