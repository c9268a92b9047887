"""How the strings of a task become padded batches on the device: what is cut, what is counted, which shapes there are.

The rule for length, everywhere: the model reads at most `context` tokens. What a prompt is followed by is never cut:
the prompt makes room for it, keeping BOS and its right end. What cannot fit at all is refused.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import BadData
from wam.data import encoding
from wam.data.batching import pad_left, pad_right
from wam.data.tokenizers import Tokenizer, bos_ids, padding_id

Arrays = tuple[jax.Array, ...]
# Rows are padded to a multiple of this, so that tasks of similar length share a compiled program.
_MULTIPLE = 8
# The longest row in so many steps gives the widths of batches: more would be less padding and more programs.
_WIDTHS = 4


class Column(NamedTuple):
  """One padded argument of a forward pass: a list of tokens a row, or several lists a row, [n, C]."""

  rows: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]]
  left: bool = False  # padded on the left
  nested: bool = False
  multiple: int = _MULTIPLE

  def length(self, row: int) -> int:
    """Tokens of a row; of its longest list."""
    if self.nested:
      return max((len(ids) for ids in self.rows[row]), default=0)  # type: ignore[arg-type]
    return len(self.rows[row])


class Batches(NamedTuple):
  """A task's rows in batches of one size, of similar length each.

  Attributes:
    rows: the row numbers of each batch, [B]; the last batch is filled up with its first row, the number -1.
    arrays: for each batch the tokens and the mask of every column, in turn.
  """

  rows: tuple[np.ndarray, ...]
  arrays: tuple[Arrays, ...]

  def gather(self, parts: Sequence[jax.Array | np.ndarray]) -> np.ndarray:
    """One array [n, ...] in the order of the rows, from the outputs of the batches."""
    rows, values = np.concatenate(self.rows), [np.asarray(part) for part in parts]
    width = max((value.shape[1] for value in values if value.ndim > 1), default=0)
    if width:
      # Batches of different widths, as completions have: zeros where the narrower ones end.
      values = [np.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in values]
    joined = np.concatenate(values)[rows >= 0]
    found = np.empty_like(joined)
    found[rows[rows >= 0]] = joined
    return found


class Encoder(NamedTuple):
  """How a task is tokenised.

  Attributes:
    tokenizer: of the models.
    batch_size: rows at a time, at most.
    max_length: tokens of a prompt, at most.
    context: tokens that the model reads, at most; None: no bound.
    add_bos: whether BOS stands before prompts and documents; None: as the tokenizer does.
    keep_bos: whether a prompt that is cut keeps its BOS.
  """

  tokenizer: Tokenizer
  batch_size: int
  max_length: int
  context: int | None
  add_bos: bool | None
  keep_bos: bool

  def prompts(
    self, name: str, texts: Sequence[str], room: Sequence[int]
  ) -> tuple[list[list[int]], int]:
    """Token ids of prompts that leave room for so many tokens each, and how many had to be cut.

    Raises:
      BadData: there are none, one has no tokens, or what follows one leaves it no room.
    """
    if not texts:
      raise BadData(f"task '{name}' has no items")
    before = len(bos_ids(self.tokenizer, self.add_bos)) if self.keep_bos else 0
    encoded = encoding.encode_texts(self.tokenizer, texts, add_bos=self.add_bos)
    cut = 0
    for number, (ids, needed) in enumerate(zip(encoded, room, strict=True)):
      if not ids:
        raise BadData(f"task '{name}', item {number}: the prompt has no tokens; set add_bos")
      limit = self.max_length
      if self.context is not None:
        limit = min(limit, self.context - needed)
      if limit <= before:
        raise BadData(
          f"task '{name}', item {number}: what follows the prompt takes {needed} of the {self.context} tokens that the"
          " model reads, and leaves none for the prompt"
        )
      if len(ids) > limit:
        encoded[number] = ids[:before] + ids[before - limit :]
        cut += 1
    return encoded, cut

  def completions(self, name: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts behind prompts, without EOS.

    Raises:
      BadData: one has no tokens.
    """
    encoded = encoding.encode_completions(self.tokenizer, texts, add_eos=False)
    for text, ids in zip(texts, encoded, strict=True):
      if not ids:
        raise BadData(f"task '{name}': the completion {text!r} has no tokens")
    return encoded

  def batches(self, *columns: Column) -> Batches:
    """Rows in as few batches as possible, of equal size, those of similar length together."""
    n = len(columns[0].rows)
    size = -(-n // -(-n // self.batch_size))
    lengths = np.array([[column.length(row) for row in range(n)] for column in columns])
    # Nested columns cost their whole width for every list.
    weights = [_lists(column) for column in columns]
    order = np.argsort(np.asarray(weights) @ lengths, kind="stable") if n > size else np.arange(n)
    longest = lengths.max(axis=1)
    rows, arrays = [], []
    for start in range(0, n, size):
      chosen = order[start : start + size]
      filled = np.concatenate([chosen, np.full(size - len(chosen), chosen[0])])
      widths = [
        _width(int(lengths[c, chosen].max()), int(longest[c]), column.multiple)
        for c, column in enumerate(columns)
      ]
      padded = [self._pad(c, filled, w) for c, w in zip(columns, widths, strict=True)]
      arrays.append(tuple(jnp.asarray(array) for pair in padded for array in pair))
      rows.append(np.where(np.arange(size) < len(chosen), filled, -1))
    return Batches(tuple(rows), tuple(arrays))

  def _pad(self, column: Column, rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    pad = pad_left if column.left else pad_right
    chosen = [column.rows[int(row)] for row in rows]
    if not column.nested:
      return pad(chosen, padding_id(self.tokenizer), length=width)  # type: ignore[arg-type]
    flat = [ids for lists in chosen for ids in lists]
    tokens, mask = pad(flat, padding_id(self.tokenizer), length=width)  # type: ignore[arg-type]
    return tokens.reshape(len(chosen), -1, width), mask.reshape(len(chosen), -1, width)


def _lists(column: Column) -> int:
  return len(column.rows[0]) if column.nested else 1


def _width(length: int, longest: int, multiple: int) -> int:
  """The smallest of a few widths that holds `length`: quarters of the longest, rounded up.

  >>> [_width(length, 100, 8) for length in (3, 33, 57, 99)]
  [32, 56, 80, 104]
  """
  for step in range(1, _WIDTHS + 1):
    width = -(-longest * step // (_WIDTHS * multiple)) * multiple
    if width >= length:
      return max(width, 1)
  raise AssertionError(f"{length} > {longest}")
