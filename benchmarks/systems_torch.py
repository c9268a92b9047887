"""torch, transformers and TRL, measured. Runs in .venv-bench-torch."""

import functools
import os
import tempfile
import time
from collections.abc import Callable

import torch
import transformers
from shape import Shape

torch.set_num_threads(len(os.sched_getaffinity(0)))
Measure = Callable[[], tuple[int, float]]


def _model(shape: Shape) -> transformers.LlamaForCausalLM:
  torch.manual_seed(0)
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=shape.vocab_size,
      hidden_size=shape.hidden_size,
      intermediate_size=shape.intermediate_size,
      num_hidden_layers=shape.num_layers,
      num_attention_heads=shape.num_heads,
      num_key_value_heads=shape.num_kv_heads,
      tie_word_embeddings=False,
      max_position_embeddings=2048,
    )
  )


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


def trl_sft(shape: Shape) -> tuple[Measure, dict[str, str]]:
  """TRL's trainer on rows of ids; every measurement is a short training, its first step not counted."""
  import datasets
  import tokenizers
  import trl

  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>"))
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
  )
  rows = shape.train_batch * (shape.train_steps + 1)
  ids = torch.randint(2, shape.vocab_size, (rows, shape.train_length)).tolist()
  model, clock = _model(shape), _Clock()
  directory = tempfile.mkdtemp(prefix="trl-")
  trainer = trl.SFTTrainer(
    model=model,
    args=trl.SFTConfig(
      output_dir=directory,
      per_device_train_batch_size=shape.train_batch,
      max_steps=shape.train_steps + 1,
      max_length=shape.train_length,
      learning_rate=1e-4,
      weight_decay=0.01,
      max_grad_norm=1.0,
      gradient_checkpointing=False,
      bf16=False,
      use_cpu=True,
      report_to="none",
      save_strategy="no",
      disable_tqdm=True,
      logging_steps=10**6,
    ),
    train_dataset=datasets.Dataset.from_dict({"input_ids": ids}),
    processing_class=tokenizer,
    callbacks=[clock],
  )

  def measure() -> tuple[int, float]:
    trainer.train()
    tokens = shape.train_batch * shape.train_length * shape.train_steps
    return tokens, clock.end - clock.start

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
