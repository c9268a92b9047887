"""torch, transformers and TRL, measured. Runs in .venv-bench-torch."""

import copy
import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from shape import Shape
from torch.nn.functional import logsigmoid

torch.set_num_threads(len(os.sched_getaffinity(0)))
Measure = Callable[[], tuple[int, float]]


def _config(shape: Shape, **more: Any) -> transformers.LlamaConfig:
  torch.manual_seed(0)
  return transformers.LlamaConfig(
    vocab_size=shape.vocab_size,
    hidden_size=shape.hidden_size,
    intermediate_size=shape.intermediate_size,
    num_hidden_layers=shape.num_layers,
    num_attention_heads=shape.num_heads,
    num_key_value_heads=shape.num_kv_heads,
    tie_word_embeddings=False,
    max_position_embeddings=2048,
    **more,
  )


def _model(shape: Shape) -> transformers.LlamaForCausalLM:
  return transformers.LlamaForCausalLM(_config(shape))


def _reward_model(shape: Shape) -> transformers.LlamaForSequenceClassification:
  # Token 0 is not among the data, so that the last token is where the reward is read.
  return transformers.LlamaForSequenceClassification(_config(shape, num_labels=1, pad_token_id=0))


def _versions() -> dict[str, str]:
  return {"torch": torch.__version__, "transformers": transformers.__version__}


def bare_sft(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """A loop of forward, backward, clipping and AdamW."""
  model = _model(shape).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
  tokens = torch.randint(0, shape.vocab_size, (shape.train_batch, shape.train_length))

  def measure() -> tuple[int, float]:
    start = time.perf_counter()
    for _ in range(shape.train_steps):
      optimizer.zero_grad(set_to_none=True)
      model(input_ids=tokens, labels=tokens).loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
    return tokens.numel() * shape.train_steps, time.perf_counter() - start

  return measure, _versions()


class _Clock(transformers.TrainerCallback):
  """Times the steps of a training after its first one."""

  def __init__(self) -> None:
    self.start = self.end = 0.0

  def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
    self.end = time.perf_counter()
    if state.global_step == 1:
      self.start = self.end


def _tokenizer(shape: Shape) -> transformers.PreTrainedTokenizerFast:
  """Numbers as words: "w7" is 7."""
  import tokenizers

  words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, shape.vocab_size)}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<pad>"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
  )


def _arguments(shape: Shape, *, learning_rate: float) -> dict[str, Any]:
  """What all of TRL's trainers are told."""
  return {
    "output_dir": tempfile.mkdtemp(prefix="trl-"),
    "per_device_train_batch_size": shape.train_batch,
    "max_steps": shape.train_steps + 1,
    "learning_rate": learning_rate,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 10**6,
  }


def trl_sft(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """TRL's trainer on rows of ids; every measurement is a short training, its first step not counted."""
  import datasets
  import trl

  rows = shape.train_batch * (shape.train_steps + 1)
  ids = torch.randint(2, shape.vocab_size, (rows, shape.train_length)).tolist()
  model, clock = _model(shape), _Clock()
  trainer = trl.SFTTrainer(
    model=model,
    args=trl.SFTConfig(max_length=shape.train_length, **_arguments(shape, learning_rate=1e-4)),
    train_dataset=datasets.Dataset.from_dict({"input_ids": ids}),
    processing_class=_tokenizer(shape),
    callbacks=[clock],
  )

  def measure() -> tuple[int, float]:
    trainer.train()
    tokens = shape.train_batch * shape.train_length * shape.train_steps
    return tokens, clock.end - clock.start

  return measure, _versions() | {"trl": trl.__version__}


def bare_dpo(shape: Shape, *, cached: bool = False) -> tuple[Measure, dict[str, str]]:
  """One pass over both completions of 8 pairs, and one of the reference; `cached`: that one before the training.

  Logits are computed where they are needed, at the completions.
  """
  policy = _model(shape).train()
  reference = copy.deepcopy(policy).eval().requires_grad_(False)
  optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.01)
  pairs, prompt = shape.train_batch, shape.prompt_length
  tokens = torch.randint(2, shape.vocab_size, (2 * pairs, shape.train_length))
  tokens[pairs:, :prompt] = tokens[:pairs, :prompt]
  labels = tokens[:, prompt:, None]

  def logprobs(model: transformers.LlamaForCausalLM) -> torch.Tensor:
    logits = model(input_ids=tokens, logits_to_keep=labels.shape[1] + 1).logits[:, :-1]
    scores = logits.gather(2, labels)[:, :, 0] - logits.logsumexp(dim=2)
    return scores.sum(dim=1)

  def of_reference() -> torch.Tensor:
    with torch.no_grad():
      return logprobs(reference)

  known = of_reference() if cached else None

  def measure() -> tuple[int, float]:
    start = time.perf_counter()
    for _ in range(shape.train_steps):
      optimizer.zero_grad(set_to_none=True)
      ratios = logprobs(policy) - (of_reference() if known is None else known)
      (-logsigmoid(0.1 * (ratios[:pairs] - ratios[pairs:]))).mean().backward()
      torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
      optimizer.step()
    return shape.train_steps, time.perf_counter() - start

  return measure, _versions()


bare_dpo_cached = functools.partial(bare_dpo, cached=True)


def trl_dpo(shape: Shape, *, cached: bool = False) -> tuple[Measure, dict[str, str]]:
  """TRL's trainer, which wants text; `cached`: told to compute the reference's log-probabilities before."""
  import datasets
  import trl

  rows = shape.train_batch * (shape.train_steps + 1)
  new = shape.train_length - shape.prompt_length - 1  # and EOS, which it adds

  def texts(length: int, before: str) -> list[str]:
    ids = torch.randint(2, shape.vocab_size, (rows, length)).tolist()
    return [before + " ".join(f"w{i}" for i in row) for row in ids]

  data = {
    "prompt": texts(shape.prompt_length, ""),
    "chosen": texts(new, " "),
    "rejected": texts(new, " "),
  }
  clock = _Clock()
  trainer = trl.DPOTrainer(
    model=_model(shape),
    ref_model=None if cached else _model(shape),
    args=trl.DPOConfig(
      beta=0.1,
      max_length=shape.train_length,
      precompute_ref_log_probs=cached,
      **_arguments(shape, learning_rate=1e-6),
    ),
    train_dataset=datasets.Dataset.from_dict(data),
    processing_class=_tokenizer(shape),
    callbacks=[clock],
  )
  example = trainer.train_dataset[0]
  assert len(example["prompt_ids"]) == shape.prompt_length
  assert len(example["chosen_ids"]) == new + 1

  def measure() -> tuple[int, float]:
    trainer.train()
    return shape.train_steps, clock.end - clock.start

  return measure, _versions() | {"trl": trl.__version__}


trl_dpo_cached = functools.partial(trl_dpo, cached=True)


def bare_reward_model(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """One pass over both completions of 8 pairs."""
  model = _reward_model(shape).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01)
  pairs = shape.train_batch
  tokens = torch.randint(2, shape.vocab_size, (2 * pairs, shape.train_length))

  def measure() -> tuple[int, float]:
    start = time.perf_counter()
    for _ in range(shape.train_steps):
      optimizer.zero_grad(set_to_none=True)
      rewards = model(input_ids=tokens).logits[:, 0]
      (-logsigmoid(rewards[:pairs] - rewards[pairs:])).mean().backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
    return shape.train_steps, time.perf_counter() - start

  return measure, _versions()


def trl_reward_model(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """TRL's trainer on rows of ids."""
  import datasets
  import trl

  size = (shape.train_batch * (shape.train_steps + 1), shape.train_length)
  data = {
    f"{side}_ids": torch.randint(2, shape.vocab_size, size).tolist()
    for side in ("chosen", "rejected")
  }
  clock = _Clock()
  trainer = trl.RewardTrainer(
    model=_reward_model(shape),
    args=trl.RewardConfig(max_length=shape.train_length, **_arguments(shape, learning_rate=1e-6)),
    train_dataset=datasets.Dataset.from_dict(data),
    processing_class=_tokenizer(shape),
    callbacks=[clock],
  )

  def measure() -> tuple[int, float]:
    trainer.train()
    return shape.train_steps, clock.end - clock.start

  return measure, _versions() | {"trl": trl.__version__}


def sampling(shape: Shape, *, top_p: float = 1.0) -> tuple[Measure, dict[str, str]]:
  """`generate` at temperature 1 without EOS."""
  model = _model(shape).eval()
  size = (shape.sample_batch, shape.prompt_length)
  prompts = torch.randint(0, shape.vocab_size, size)

  def measure() -> tuple[int, float]:
    start = time.perf_counter()
    with torch.inference_mode():
      out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=top_p,
        max_new_tokens=shape.new_tokens,
        eos_token_id=None,
        pad_token_id=0,
      )
    seconds = time.perf_counter() - start
    assert out.shape[1] == shape.prompt_length + shape.new_tokens
    return shape.sample_batch * shape.new_tokens, seconds

  model.generation_config.eos_token_id = None
  return measure, _versions()


sampling_top_p = functools.partial(sampling, top_p=0.95)
