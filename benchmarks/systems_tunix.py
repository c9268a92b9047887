"""Tunix, measured. Runs in .venv-bench-tunix."""

import functools
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from shape import Shape
from tunix.generate import sampler as tunix_sampler
from tunix.models.llama3 import model as llama
from tunix.sft import peft_trainer
from tunix.sft.dpo import dpo_trainer

Measure = Callable[[], tuple[int, float]]


def _model(shape: Shape) -> llama.Llama3:
  config = llama.ModelConfig(
    num_layers=shape.num_layers,
    vocab_size=shape.vocab_size,
    embed_dim=shape.hidden_size,
    hidden_dim=shape.intermediate_size,
    num_heads=shape.num_heads,
    head_dim=shape.head_dim,
    num_kv_heads=shape.num_kv_heads,
    rope_theta=10000,
    norm_eps=1e-6,
  )
  model = llama.Llama3(config, rngs=nnx.Rngs(params=0))
  # Like the others in float32, whatever the default.
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model))
  nnx.update(model, wide)
  return model


def _versions() -> dict[str, str]:
  return {name: version(name) for name in ("google-tunix", "jax", "flax")}


def sft(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """PeftTrainer on all weights, called again for every measurement; what it does around the steps is counted."""
  model = _model(shape)
  size = (shape.train_batch, shape.train_length)
  tokens = np.random.default_rng(0).integers(1, shape.vocab_size, size, dtype=np.int32)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))
  config = peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=10**9)

  def model_input(inputs: peft_trainer.TrainingInput) -> dict[str, jax.Array]:
    positions = jnp.broadcast_to(jnp.arange(size[1])[None], size)
    causal = jnp.broadcast_to(
      jnp.tril(jnp.ones((size[1], size[1]), bool))[None], (size[0], size[1], size[1])
    )
    return {
      "input_tokens": inputs.input_tokens,
      "input_mask": inputs.input_mask,
      "positions": positions,
      "attention_mask": causal,
    }

  trainer = peft_trainer.PeftTrainer(model, optimizer, config).with_gen_model_input_fn(model_input)
  batch = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=np.ones(size, bool))

  def measure() -> tuple[int, float]:
    before = trainer.train_steps
    # It passes over as many batches as it has seen before.
    batches = [batch] * (trainer.iter_steps + shape.train_steps)
    start = time.perf_counter()
    trainer.train(batches)
    jax.block_until_ready(nnx.state(model))
    seconds = time.perf_counter() - start
    return tokens.size * (trainer.train_steps - before), seconds

  return measure, _versions()


def dpo(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """DPOTrainer on all weights; it looks at the reference in every step."""
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.01))
  model = _model(shape)
  config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, max_steps=10**9, beta=0.1)
  trainer = dpo_trainer.DPOTrainer(model, _model(shape), optimizer, config)
  draw = np.random.default_rng(0)
  prompts = (shape.train_batch, shape.prompt_length)
  completions = (shape.train_batch, shape.train_length - shape.prompt_length)
  ids = {
    name: draw.integers(2, shape.vocab_size, size, dtype=np.int32)
    for name, size in (("prompt", prompts), ("chosen", completions), ("rejected", completions))
  }
  batch = dpo_trainer.TrainingInput(
    **{f"{name}_ids": x for name, x in ids.items()},
    **{f"{name}_mask": np.ones(x.shape, bool) for name, x in ids.items()},
  )

  def measure() -> tuple[int, float]:
    before = trainer.train_steps
    # It passes over as many batches as it has seen before.
    batches = [batch] * (trainer.iter_steps + shape.train_steps)
    start = time.perf_counter()
    trainer.train(batches)
    jax.block_until_ready(nnx.state(model))
    return trainer.train_steps - before, time.perf_counter() - start

  return measure, _versions()


class _Tokenizer:
  """Numbers as text: what the sampler needs of a tokenizer."""

  def __init__(self, vocab_size: int):
    self.vocab_size = vocab_size

  def encode(self, text: str, **kwargs: object) -> list[int]:
    del kwargs
    return [int(x) for x in text.split()]

  def decode(self, ids: list[int], **kwargs: object) -> str:
    del kwargs
    return " ".join(str(i) for i in ids)

  def bos_id(self) -> int:
    return 1

  def eos_id(self) -> int:
    return self.vocab_size  # never sampled

  def pad_id(self) -> int:
    return 0


def sampling(shape: Shape, *, top_p: float = 1.0) -> tuple[Measure, dict[str, str]]:
  """The sampler at temperature 1; its top-p of 1 still orders the vocabulary."""
  cache = tunix_sampler.CacheConfig(
    cache_size=shape.prompt_length + shape.new_tokens + 8,
    num_layers=shape.num_layers,
    num_kv_heads=shape.num_kv_heads,
    head_dim=shape.head_dim,
  )
  sampler = tunix_sampler.Sampler(_model(shape), _Tokenizer(shape.vocab_size), cache)
  rng = np.random.default_rng(0)
  # The sampler puts BOS in front.
  prompts = [
    " ".join(str(t) for t in rng.integers(2, shape.vocab_size, shape.prompt_length - 1))
    for _ in range(shape.sample_batch)
  ]
  seeds = iter(range(10**6))

  def measure() -> tuple[int, float]:
    start = time.perf_counter()
    out = sampler(
      prompts,
      max_generation_steps=shape.new_tokens,
      max_prompt_length=shape.prompt_length,
      temperature=1.0,
      top_p=top_p,
      seed=next(seeds),
    )
    seconds = time.perf_counter() - start
    return sum(len(t) for t in out.tokens), seconds

  return measure, _versions()


sampling_top_p = functools.partial(sampling, top_p=0.95)
