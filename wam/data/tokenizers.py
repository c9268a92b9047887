"""Tokenizers: Hugging Face fast tokenizers from a directory, or one made of a fixed list of words.

Nothing is ever fetched from a network. Leaves out training of tokenizers and slow (pure Python) ones.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

# On import transformers tells that it found no torch; only its tokenizers are used here, and they need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import tokenizers
import transformers

from wam.core.errors import BadData, ConfigError, MissingFile

# A transformers fast tokenizer. Its classes move between releases, so what is relied upon is checked when it is loaded.
Tokenizer = Any

_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
  """Loads the fast tokenizer of a Hugging Face model directory, without a network.

  Raises:
    MissingFile: the directory, or a tokenizer in it, does not exist.
    BadData: its files cannot be read, or only make a slow tokenizer.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise MissingFile(
      f"no tokenizer: '{directory}' is not a directory; give a Hugging Face model directory"
    )
  if not (directory / "tokenizer.json").exists() and not (directory / "tokenizer.model").exists():
    raise MissingFile(f"'{directory}' holds no tokenizer.json (nor tokenizer.model)")
  for name in _FILES:
    path = directory / name
    if path.exists():
      try:
        json.loads(path.read_text(encoding="utf-8"))
      except ValueError as error:
        raise BadData(f"{path}: not JSON ({error}); is the file cut off?") from error
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
  except Exception as error:  # the Rust library raises bare Exception
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise BadData(f"{directory}: the tokenizer cannot be loaded: {reason}") from error
  if not tokenizer.is_fast:
    raise BadData(f"{directory}: only a slow tokenizer; save a tokenizer.json beside it")
  return tokenizer


def word_tokenizer(
  words: Sequence[str],
  *,
  pad: str = "<pad>",
  bos: str = "<bos>",
  eos: str = "<eos>",
  unk: str = "<unk>",
) -> Tokenizer:
  """A tokenizer with one token per word of a fixed vocabulary.

  Text is split at whitespace; decoding joins by single blanks, so texts of known words joined so come back unchanged.
  Ids 0 to 3 are pad, bos, eos, unk; the words follow in their order. Like Llama's, it puts bos before a text that is
  encoded with special tokens. `save_pretrained` and `load_tokenizer` keep all of it.

  Args:
    words: the vocabulary, without the special tokens.
    pad: padding token.
    bos: token at the beginning of a text.
    eos: token at its end.
    unk: what any other word becomes.

  Raises:
    ConfigError: a word is empty, holds whitespace, occurs twice or is a special token.

  >>> tokenizer = word_tokenizer(["a", "b"])
  >>> tokenizer("b a z").input_ids
  [1, 5, 4, 3]
  """
  specials = [pad, bos, eos, unk]
  vocabulary: dict[str, int] = {}
  for word in [*specials, *words]:
    if len(word.split()) != 1 or word.split()[0] != word:
      raise ConfigError(f"'{word}' cannot be a word of a vocabulary: it is empty or holds a blank")
    if word in vocabulary:
      raise ConfigError(f"'{word}' is twice in the vocabulary")
    vocabulary[word] = len(vocabulary)
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unk))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token=pad,
    bos_token=bos,
    eos_token=eos,
    unk_token=unk,
    clean_up_tokenization_spaces=False,
  )


def adds_bos(tokenizer: Tokenizer) -> bool:
  """Whether the tokenizer itself puts its BOS token before a text: the default policy everywhere here."""
  return tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("").input_ids


def bos_ids(tokenizer: Tokenizer, add_bos: bool | None = None) -> list[int]:
  """The ids that go before a text: [] or [bos].

  Args:
    tokenizer: whose BOS.
    add_bos: whether to; None does what the tokenizer itself does.

  Raises:
    ConfigError: BOS was asked for and the tokenizer has none.
  """
  if add_bos is None:
    add_bos = adds_bos(tokenizer)
  if add_bos and tokenizer.bos_token_id is None:
    raise ConfigError("add_bos is set but the tokenizer has no BOS token")
  return [tokenizer.bos_token_id] if add_bos else []


def eos_id(tokenizer: Tokenizer) -> int:
  """The id of the token that ends a completion.

  Raises:
    ConfigError: the tokenizer has none.
  """
  if tokenizer.eos_token_id is None:
    raise ConfigError(
      "the tokenizer has no EOS token, which ends a completion; set eos_token in its tokenizer_config.json"
    )
  return int(tokenizer.eos_token_id)


def padding_id(tokenizer: Tokenizer) -> int:
  """The id to fill up rows with: the pad token, else EOS, else 0.

  Which one does not matter, since masks are always explicit and never `id == pad` (pad is EOS in many models).
  """
  for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
    if token is not None:
      return int(token)
  return 0


def chat_prompt(
  tokenizer: Tokenizer, messages: str | Sequence[Mapping[str, str]], *, system: str | None = None
) -> str:
  """Writes a conversation as the tokenizer's chat template wants it, up to where the model answers.

  Templates that write BOS themselves are safe: encoding does not add a second one.

  Args:
    tokenizer: whose `chat_template` is applied.
    messages: what the user says, or a list of {"role": ..., "content": ...}.
    system: a system message to put first.

  Raises:
    ConfigError: the tokenizer has no chat template.
  """
  if not tokenizer.chat_template:
    raise ConfigError(
      "a chat template was asked for but the tokenizer has none; use a chat model's tokenizer, or turn it off"
    )
  turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
  if system is not None:
    turns = [{"role": "system", "content": system}, *turns]
  return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
