"""Tensors with a row per token, read in the order of another vocabulary.

Which tensors these are goes by the names that Hugging Face models give them. Leaves out what the rows mean:
vocabulary.py decides where each comes from.
"""

import dataclasses
import itertools
import math
import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wam.core.errors import BadCheckpoint
from wam.streaming.plan import Reader, Source

# Ends of names, from a dot on. Input embeddings first: their rows are the vocabulary.
_EMBEDDINGS = (
  "embed_tokens.weight",
  "wte.weight",
  "word_embeddings.weight",
  "tok_embeddings.weight",
  "embed_in.weight",
  "embeddings.weight",
  "embedding.weight",
  "shared.weight",
)
_HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight", "output_layer.weight")
_WHOLE_NAMES = ("output.weight",)

# Where a row comes from when no checkpoint has it: see VocabularyRows.
ZERO, MEAN_OF_OWNERS, MEAN_OF_ROWS = -1, -2, -3
_BLOCK = 2**18


def _ends(name: str, ends: Iterable[str]) -> bool:
  return any(name == end or name.endswith("." + end) for end in ends)


def is_embedding(name: str) -> bool:
  """Whether a tensor of this name is an input embedding."""
  return _ends(name, _EMBEDDINGS)


def embedding(source: Source) -> Reader | None:
  """The input embedding of a source; None where it has no tensor with one of the known names."""
  for end in _EMBEDDINGS:
    for name, reader in source.tensors.items():
      if _ends(name, (end,)) and len(reader.shape) == 2:
        return reader
  return None


def num_rows(source: Source) -> int | None:
  """How many rows the vocabulary tensors of a source have: of its embedding, else what its config says."""
  found = embedding(source)
  if found is not None:
    return found.shape[0]
  config = source.config or {}
  for part in (config, config.get("text_config")):
    if isinstance(part, dict) and type(part.get("vocab_size")) is int:
      return part["vocab_size"]
  return None


def vocabulary_tensors(source: Source) -> tuple[str, ...]:
  """Names of the tensors of a source whose first axis counts tokens: embeddings, output matrix and its bias."""
  rows = num_rows(source)
  return tuple(
    name
    for name, reader in source.tensors.items()
    if reader.shape
    and reader.shape[0] == rows
    and (_ends(name, (*_EMBEDDINGS, *_HEADS)) or name in _WHOLE_NAMES)
  )


def counterpart(source: Source, name: str, shape: Sequence[int]) -> Reader:
  """The tensor of a source that plays the part of `name`: the one of that name, or, of tied models, the embedding.

  Args:
    source: to read from.
    name: of the tensor in the output.
    shape: of a row.

  Raises:
    BadCheckpoint: it has none, or its rows have another shape.
  """
  reader = source.tensors.get(name)
  matrix = not is_embedding(name) and not name.endswith(".bias")
  if matrix and (reader is None or _is_tied(source)):
    reader = embedding(source)
  if reader is None or tuple(reader.shape[1:]) != tuple(shape):
    found = "has no such tensor" if reader is None else f"has '{reader.name}' {reader.shape}"
    raise BadCheckpoint(
      f"rows of '{name}', each of shape {tuple(shape)}, are to come from '{source.label}', which {found}"
    )
  return reader


def _is_tied(source: Source) -> bool:
  """Whether the config says so: a copy of the head in the files is then not what the model uses."""
  config = source.config or {}
  if "tie_word_embeddings" not in config and isinstance(config.get("text_config"), Mapping):
    config = config["text_config"]
  return bool(config.get("tie_word_embeddings"))


@dataclasses.dataclass(frozen=True)
class Origins:
  """Where each row of a vocabulary tensor of one input comes from.

  Attributes:
    sources: `int16 [V]`, index of a source, or ZERO, MEAN_OF_OWNERS or MEAN_OF_ROWS.
    rows: `int64 [V]`, row there; 0 where no source is given.
    owners: for rows that are MEAN_OF_OWNERS: row of the output -> (index of a source, row there) of every owner.
  """

  sources: np.ndarray
  rows: np.ndarray
  owners: Mapping[int, Sequence[tuple[int, int]]] = dataclasses.field(default_factory=dict)

  def needed(self) -> set[int]:
    """Indices of all sources that are read."""
    found = {int(i) for i in np.unique(self.sources) if i >= 0}
    return found | {i for owners in self.owners.values() for i, _ in owners}


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
  """The narrowest dtype that holds all values exactly; float32 where NumPy knows none (bfloat16 and float16)."""
  result: np.dtype | None = None
  for dtype in dtypes:
    try:
      result = dtype if result is None else np.promote_types(result, dtype)
    except TypeError:
      result = np.dtype(np.float32)
  return np.dtype(np.float32) if result is None else result


class VocabularyRows:
  """A tensor of one input with its rows in the order of the output's vocabulary. A Reader.

  Rows that are copied keep their bits. `dtype` is the narrowest that holds all rows that are copied; where a row is the
  mean of several owners' it is at least float32, and nothing is rounded before the merge itself is. Only the mean of
  all rows, which fills rows that no token uses, is rounded to `dtype`; it is made when first asked for, which reads the
  tensor once more, in one order whatever the threads do.
  """

  def __init__(self, name: str, readers: Mapping[int, Reader], origins: Origins):
    """Args: name of the tensor; readers by index of the source, with equal shapes of rows; origin of each row."""
    self.name = name
    self._readers = readers
    self._origins = origins
    rest = next(iter(readers.values())).shape[1:] if readers else ()
    self.shape = (len(origins.sources), *rest)
    self._width = max(1, math.prod(rest))
    dtype = common_dtype(readers[i].dtype for i in sorted(origins.needed()))
    self.dtype = common_dtype((dtype, np.dtype(np.float32))) if origins.owners else dtype
    self._mean: np.ndarray | None = None
    self._lock = threading.Lock()

  def read(self, start: int, stop: int) -> np.ndarray:
    """Entries [start, stop) in C order; see Reader."""
    if start == stop:
      return np.empty(0, self.dtype)
    first, last = start // self._width, -(-stop // self._width)
    asked = self._origins.sources[first:last] == MEAN_OF_ROWS
    return self._read(start, stop, self._mean_of_rows() if asked.any() else None)

  def _read(self, start: int, stop: int, mean: np.ndarray | None) -> np.ndarray:
    """The entries, with `mean` (zeros if None) in rows that are the mean of all."""
    width = self._width
    first, last = start // width, -(-stop // width)
    sources, rows = self._origins.sources[first:last], self._origins.rows[first:last]
    # Runs of rows that follow each other in one file are read at once.
    breaks = np.flatnonzero((np.diff(sources) != 0) | (np.diff(rows) != 1)) + 1
    bounds = [0, *breaks.tolist(), len(rows)]
    out = None
    for begin, end in itertools.pairwise(bounds):
      low, high = max((first + begin) * width, start), min((first + end) * width, stop)
      source, skipped = int(sources[begin]), low - (first + begin) * width
      if source >= 0:
        at = int(rows[begin]) * width + skipped
        values = self._readers[source].read(at, at + high - low)
      else:
        values = self._made(first + begin, source, mean)[skipped : skipped + high - low]
      if len(bounds) == 2:
        return values.astype(
          self.dtype, copy=source < 0
        )  # what is made is kept: a copy may be overwritten
      if out is None:
        out = np.empty(stop - start, self.dtype)
      out[low - start : high - start] = values
    return np.empty(0, self.dtype) if out is None else out

  def _made(self, row: int, how: int, mean: np.ndarray | None) -> np.ndarray:
    """A row that is in no file."""
    if how == MEAN_OF_OWNERS:
      owners, width = self._origins.owners[row], self._width
      total = np.zeros(width, self.dtype)
      for source, there in owners:
        total += self._readers[source].read(there * width, (there + 1) * width)
      return total / self.dtype.type(len(owners))
    return np.zeros(self._width, self.dtype) if mean is None or how == ZERO else mean

  def _mean_of_rows(self) -> np.ndarray:
    with self._lock:
      if self._mean is None:
        count = int(np.count_nonzero(self._origins.sources != MEAN_OF_ROWS))
        total = np.zeros(self._width, np.float64)
        step = max(1, _BLOCK // max(1, self._width)) * self._width
        size = math.prod(self.shape)
        for start in range(0, size, step):
          block = self._read(start, min(start + step, size), None).reshape(-1, self._width)
          total += np.sum(block, axis=0, dtype=np.float64)
        self._mean = (total / max(1, count)).astype(self.dtype)
      return self._mean
