"""Tiny tokenizers in directories, and sources in memory beside them; shared by the tests of vocabularies."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
  "the cat sat on the mat and sang",
  "two dogs and three cats were singing in the rain",
  "a rain of songs, sung by singing singers",
]
OTHER_TEXTS = ["streams of water streamed under streaming bridges", *TEXTS]


@dataclasses.dataclass(frozen=True)
class ArrayReader:
  name: str
  array: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  @property
  def dtype(self) -> np.dtype:
    return self.array.dtype

  def read(self, start: int, stop: int) -> np.ndarray:
    assert 0 <= start <= stop <= self.array.size
    return self.array.reshape(-1)[start:stop].copy()


@dataclasses.dataclass(eq=False)
class MemorySource:
  label: str
  tensors: Mapping[str, ArrayReader]
  config: Mapping[str, Any] | None = None
  directory: pathlib.Path | None = None
  files: Sequence[pathlib.Path] = ()

  def close(self) -> None:
    pass


def source(label: str, directory: pathlib.Path | None, rows: int, **options: Any) -> MemorySource:
  """A source with a random embedding [rows, width] and, unless `tied`, an output matrix."""
  tied, width = options.get("tied", True), options.get("width", 6)
  rng = np.random.default_rng(sum(label.encode()) + rows)
  names = ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]
  arrays = {
    n: rng.standard_normal((rows, width)).astype(options.get("dtype", np.float32)) for n in names
  }
  arrays["model.norm.weight"] = np.ones(width, np.float32)
  config = {"vocab_size": rows, "tie_word_embeddings": tied, **options.get("config", {})}
  return MemorySource(label, {n: ArrayReader(n, a) for n, a in arrays.items()}, config, directory)


def words(ids: Mapping[str, int], added: Sequence[str] = ()) -> tokenizers.Tokenizer:
  """A word-level tokenizer with these ids and, after them, added tokens."""
  made = tokenizers.Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(list(added))
  return made


def byte_level(
  texts: Sequence[str], added: Sequence[str] = (), size: int = 320
) -> tokenizers.Tokenizer:
  """A byte-level BPE as GPT-2's, trained on a few sentences."""
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  made.train_from_iterator(texts, trainer)
  made.add_special_tokens(list(added))
  return made


def metaspace(texts: Sequence[str], kind: str = "BPE", size: int = 80) -> tokenizers.Tokenizer:
  """A tokenizer that spells blanks ▁, as sentencepiece does: a BPE as Llama's, or a Unigram as T5's."""
  made = tokenizers.Tokenizer(
    models.BPE(unk_token="<unk>", fuse_unk=True) if kind == "BPE" else models.Unigram()
  )
  made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  made.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  )
  options: dict[str, Any] = {
    "vocab_size": size,
    "special_tokens": ["<unk>", "<s>", "</s>"],
    "show_progress": False,
  }
  trainer = (
    trainers.BpeTrainer(**options)
    if kind == "BPE"
    else trainers.UnigramTrainer(**options, unk_token="<unk>")
  )
  made.train_from_iterator(texts, trainer)
  return made


def save(tokenizer: tokenizers.Tokenizer, directory: pathlib.Path, **config: Any) -> pathlib.Path:
  """Writes tokenizer.json and tokenizer_config.json."""
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(directory / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
  } | config
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  return directory


def put(files: Mapping[str, bytes | pathlib.Path], directory: pathlib.Path) -> pathlib.Path:
  """Writes the files of a Vocabulary."""
  for name, content in files.items():
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
  return directory
