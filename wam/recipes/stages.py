"""The trained stages that come before RLHF, from a config section to parameters: policy and rewards.

Each function turns strings into token rows and hands them to one algorithm. A stage is checked whole before the first
one trains. Leaves out what is measured afterwards.
"""

import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam import pretrained
from wam.algorithms import reward_model as reward_models
from wam.algorithms import sft
from wam.core import rng, sections
from wam.core.errors import BadData, ConfigError
from wam.core.types import Params
from wam.data import encoding
from wam.data.batching import Batches
from wam.data.examples import Example, Pair
from wam.data.tokenizers import Tokenizer, eos_id, padding_id
from wam.generation.sampling import generate
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel
from wam.recipes.problems import Problem
from wam.rewards import scorers
from wam.rewards.scorers import RolloutScorer
from wam.training import durations, optimizers, sharding
from wam.training.workdir import Run

# What the program itself passes to the functions that take a section.
GIVEN = ("policy", "params", "run", "stage")


@dataclasses.dataclass(frozen=True)
class Policy:
  """A language model, its tokenizer and where its training starts."""

  model: LanguageModel
  params: Params
  tokenizer: Tokenizer

  @property
  def ends(self) -> dict[str, Any]:
    """The token ids that generation needs."""
    return {"eos_id": eos_id(self.tokenizer), "pad_id": padding_id(self.tokenizer)}


class Rewards(NamedTuple):
  """Who scores completions.

  Attributes:
    scorers: by name: "proxy" is optimised; "gold" or "control" judges.
    model, params: of the proxy.
  """

  scorers: dict[str, RolloutScorer]
  model: ScalarModel
  params: Params


def check(
  *,
  pretrain: Mapping[str, Any] | None,
  sft: Mapping[str, Any] | None,
  reward_model: Mapping[str, Any],
  sampling: Mapping[str, Any],
) -> None:
  """Checks the keys of the sections of training.

  Raises:
    ConfigError: names section and key.
  """
  trained = {"reward_model": reward_model}
  trained |= {n: s for n, s in (("pretrain", pretrain), ("sft", sft)) if s is not None}
  for name, section in trained.items():
    function, also = _TRAINED[name]
    sections.check(function, section, name, given=GIVEN, also=also)
    check_optimizer(section["optimizer"], f"{name}.optimizer")
  sections.check(sampling_settings, sampling, "sampling")


def check_optimizer(section: Mapping[str, Any], name: str) -> None:
  """Checks the keys of a section of `optimizers.make`."""
  sections.check(
    optimizers.make, section, name, given=["total_steps"], also=[optimizers.make_schedule]
  )


def load_or_make(own: Tokenizer | None, *, seed: int, section: Mapping[str, Any]) -> Policy:
  """The policy to start from: a Hugging Face directory ("path"), or fresh weights of a given shape.

  Args:
    own: the problem's tokenizer, or None to take the model's.
    seed: of the run.
    section: {"path": directory}, or the keys of `DecoderConfig` without those of the vocabulary; and "stacked": whether
      the layers are trained in one scan (compiles faster when there are many) or one by one (runs faster).

  Raises:
    ConfigError: if neither path nor shape is given, or there is no tokenizer.
    WamError: what is wrong with the directory.
  """
  keywords = {key: value for key, value in section.items() if value is not None}
  path = keywords.pop("path", None)
  stacked = keywords.pop("stacked", True)
  if path:
    if keywords:
      raise ConfigError(f"model: with a path the shape is the file's; remove {', '.join(keywords)}")
    loaded = pretrained.load(path, stacked=stacked)
    tokenizer = own or loaded.tokenizer
    if tokenizer is None:
      raise ConfigError(f"model.path: {path} has no tokenizer.json; put it beside the weights")
    return Policy(loaded.model, loaded.params, tokenizer)
  if own is None:
    raise ConfigError(
      "model.path: give a Hugging Face directory (config.json, model.safetensors, tokenizer.json);"
      " this problem has no vocabulary of its own to train a fresh model on"
    )
  vocabulary = {
    # Rounded up: matrices of odd widths are slow, and shard badly.
    "vocab_size": math.ceil(len(own) / 8) * 8,
    "bos_token_id": own.bos_token_id,
    "eos_token_id": (eos_id(own),),
    "pad_token_id": padding_id(own),
  }
  fresh = LanguageModel(sections.call(DecoderConfig, keywords, "model", **vocabulary))
  return Policy(fresh, fresh.init(rng.key(seed, "init"), stacked=stacked), own)


def supervised(
  policy: Policy,
  params: Params,
  examples: Sequence[Example],
  run: Run,
  stage: str,
  section: Mapping[str, Any],
) -> Params:
  """Pre-training or supervised fine-tuning, as a section says; see `_supervised` for its keys."""
  if not examples:
    raise BadData(
      f"{stage}: the problem has no texts for this stage; remove the section or add data"
    )
  return _supervised(examples, policy=policy, params=params, run=run, stage=stage, **section)


def _supervised(
  examples: Sequence[Example],
  *,
  policy: Policy,
  params: Params,
  run: Run,
  stage: str,
  batch_size: int,
  length: int,
  optimizer: Mapping[str, Any],
  num_steps: int | None = None,
  num_examples: int | None = None,
  num_epochs: float | None = None,
  prompt_loss: bool = False,
  **training: Any,
) -> Params:
  """Trains on prompts with completions.

  Args:
    examples: the data.
    policy, params, run, stage: what is trained, where, under which name.
    batch_size: rows a step.
    length: tokens a row; longer examples are cut.
    optimizer: keywords of `optimizers.make`.
    num_steps, num_examples, num_epochs: how long; exactly one.
    prompt_loss: whether prompts are trained on as well.
    **training: keywords of `sft.run`: dtype, remat, logits_chunk, accumulate_steps, log_every.
  """
  rows = encoding.example_rows(
    policy.tokenizer, examples, length=length, prompt_loss=prompt_loss, trim=True
  )
  batches = _batches(rows.arrays, batch_size, run, stage)
  steps = {"num_steps": num_steps, "num_examples": num_examples, "num_epochs": num_epochs}
  return sft.run(
    policy.model,
    params,
    batches,
    run=run,
    stage=stage,
    optimizer=optimizer,
    num_steps=_num_steps(steps, batches),
    **training,
  )


def rewards(
  policy: Policy,
  reference: Params,
  data: Problem,
  run: Run,
  *,
  section: Mapping[str, Any],
  sampling: Mapping[str, Any],
) -> Rewards:
  """The proxy reward, and its judge: the gold reward where there is one, a control reward model otherwise.

  Reward models start from the trunk of θ_0, and are normalised on samples of θ_0: mean 0, standard deviation 1.

  Args:
    policy: the language model.
    reference: θ_0.
    data: pairs and gold reward.
    run: the open workdir.
    section: see `_reward_model` for its keys.
    sampling: see `sampling_settings` for its keys.
  """
  dtype = section.get("dtype", "float32")
  samples = _reference_samples(policy, reference, data, run, sampling, dtype)

  def train(stage: str, pairs: Mapping[str, Sequence[Pair]]) -> Params:
    return _reward_model(
      pairs, samples, policy=policy, params=reference, run=run, stage=stage, **section
    )

  model = ScalarModel(policy.model.config)
  proxy = train("reward_model", data.pairs)
  found = {"proxy": _scorer(model, proxy, run, dtype, "reward_model")}
  if data.gold is not None:
    decode = policy.tokenizer.decode
    found["gold"] = scorers.from_text(
      data.gold, decode, eos_id=eos_id(policy.tokenizer), name="gold reward"
    )
  elif data.control_pairs:
    control = train("control_model", data.control_pairs)
    found["control"] = _scorer(model, control, run, dtype, "control_model")
  return Rewards(found, model, proxy)


def _reward_model(
  pairs: Mapping[str, Sequence[Pair]],
  reference_samples: Mapping[str, np.ndarray],
  *,
  policy: Policy,
  params: Params,
  run: Run,
  stage: str,
  batch_size: int,
  length: int,
  optimizer: Mapping[str, Any],
  num_steps: int | None = None,
  num_examples: int | None = None,
  num_epochs: float | None = None,
  **training: Any,
) -> Params:
  """Trains a reward model, records its held-out accuracy and normalises it.

  Args:
    pairs: by split.
    reference_samples: prompt and completion arrays to normalise on.
    policy, params, run, stage: whose trunk, where, under which name.
    batch_size: pairs a step.
    length: tokens of prompt and completion; longer pairs are dropped, and counted in the record.
    optimizer: keywords of `optimizers.make`.
    num_steps, num_examples, num_epochs: how long; exactly one.
    **training: keywords of `reward_model.run`: probe_steps, center_rewards_coefficient, margin, ...
  """
  model = ScalarModel(policy.model.config)
  rows = {
    split: encoding.pair_rows(policy.tokenizer, pairs[split], length=length, trim=True)
    for split in ("train", "validation")
  }
  for split, encoded in rows.items():
    if not len(encoded.kept):
      raise BadData(
        f"{stage}: all {len(pairs[split])} {split} pairs are longer than {length} tokens; raise"
        f" reward_model.length"
      )
  batches = _batches(rows["train"].arrays, batch_size, run, stage)
  steps = {"num_steps": num_steps, "num_examples": num_examples, "num_epochs": num_epochs}
  fresh = model.init(rng.key(run.seed, f"{stage}/head"), decoder=params)
  trained = reward_models.run(
    model,
    fresh,
    batches,
    run=run,
    stage=stage,
    optimizer=optimizer,
    num_steps=_num_steps(steps, batches),
    **training,
  )
  heldout = reward_models.evaluate(model, trained, rows["validation"].arrays, run=run)
  counts = {f"{split}_dropped": float(len(pairs[split]) - len(r.kept)) for split, r in rows.items()}
  once(run, kind="heldout", stage=stage, fields=heldout | counts)
  raw = _scorer(model, trained, run, training.get("dtype", "float32"), stage)
  return reward_models.normalise(trained, raw(**reference_samples))


def _scorer(model: ScalarModel, params: Params, run: Run, dtype: str, name: str) -> RolloutScorer:
  """A reward model as a scorer, its rows split over the devices."""
  return scorers.from_model(
    model,
    params,
    chunk=len(sharding.filled_rows(256, run.mesh)),
    dtype=dtype,
    place=functools.partial(sharding.put_whole_batch, mesh=run.mesh),
    fetch=sharding.fetch,
    name=name,
  )


def once(run: Run, *, kind: str, stage: str, fields: Mapping[str, Any]) -> None:
  """Writes a record unless the run has one of this kind and stage already (it was killed after writing it)."""
  run.records.drop(lambda record: record["kind"] == kind and record["stage"] == stage)
  run.log(fields, kind=kind, stage=stage, step=0)


def export(policy: Policy, params: Params, directory: pathlib.Path) -> None:
  """Writes a Hugging Face directory with tokenizer, in place of one that an earlier call left."""
  if directory.exists():
    shutil.rmtree(directory)
  pretrained.save(directory, policy.model, params, policy.tokenizer)


def sampling_settings(
  *,
  prompt_length: int,
  max_new_tokens: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> tuple[int, dict[str, Any]]:
  """The section "sampling": tokens of a prompt (its right end), and keywords of `generate`."""
  settings = {
    "max_new_tokens": max_new_tokens,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
  }
  return prompt_length, settings


def _reference_samples(
  policy: Policy,
  reference: Params,
  data: Problem,
  run: Run,
  sampling: Mapping[str, Any],
  dtype: str,
) -> dict[str, np.ndarray]:
  """One completion by θ_0 of each of up to 256 training prompts."""
  prompt_length, settings = sampling_settings(**sampling)
  prompts = data.prompts["train"][:256]
  rows = encoding.prompt_rows(policy.tokenizer, prompts, length=prompt_length).arrays
  filled = sharding.filled_rows(len(prompts), run.mesh)
  tokens, mask = sharding.put_whole_batch((rows["tokens"][filled], rows["mask"][filled]), run.mesh)
  key = rng.key(run.seed, "reference_samples")
  samples = sharding.fetch(
    generate(
      policy.model, reference, tokens, mask, key, dtype=jnp.dtype(dtype), **settings, **policy.ends
    )
  )
  names = ("prompt_tokens", "prompt_mask", "completions", "completion_mask")
  return {name: np.asarray(getattr(samples, name))[: len(prompts)] for name in names}


def _batches(rows: Mapping[str, np.ndarray], batch_size: int, run: Run, stage: str) -> Batches:
  sharding.check_batch_size(batch_size, run.mesh)
  return Batches(rows, batch_size=batch_size, seed=run.seed, stream=f"{stage}/batches")


def _num_steps(spec: Mapping[str, Any], batches: Batches) -> int:
  return durations.to_steps(
    spec,
    "num",
    examples_per_step=batches.batch_size,
    examples_per_epoch=batches.num_rows,
  )


# By section: the function that takes its keys, and those that it hands keys on to.
_TRAINED: dict[str, Any] = {
  "pretrain": (_supervised, [sft.run]),
  "sft": (_supervised, [sft.run]),
  "reward_model": (_reward_model, [reward_models.run]),
}
