"""The policy that a recipe trains, from a config section, and back to a directory; the section "sampling".

Leaves out its training (stages.py).
"""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from wam import pretrained
from wam.core import rng, sections
from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.data.tokenizers import Tokenizer, eos_id, padding_id
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel


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

  def decode(self, tokens: list[int]) -> str:
    """Text without special tokens: a BOS before a prompt is no word of it."""
    text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
    return text


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
