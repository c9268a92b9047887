"""Rows without padding: documents cut into equal pieces, or whole short examples side by side.

Leaves out segment masks: a token sees everything before it in its row, also what belongs to another document, as is
usual in pre-training. Where that matters, use one example a row (encoding.py).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Literal

import numpy as np

from wam.core.errors import BadData, ConfigError, unknown_name
from wam.data.batching import Arrays


def pack(
  documents: Sequence[Sequence[int]],
  *,
  length: int,
  overlap: int = 0,
  remainder: Literal["pad", "drop"] = "pad",
  pad_id: int = 0,
) -> Arrays:
  """Concatenates documents and cuts the stream into rows of `length` tokens.

  The documents bring their own separators (`encode_texts(..., add_eos=True)`). The first token of a row is never a
  target. With `overlap` k the last k tokens of a row are repeated at the start of the next one, as context only; so
  with k = 1 every token but the very first is a target exactly once, which is what measuring a held-out text wants.

  Args:
    documents: lists of token ids.
    length: T.
    overlap: tokens of context shared by neighbouring rows, below `length`.
    remainder: what becomes of the last, shorter row: "pad" keeps every target, "drop" leaves no padding.
    pad_id: what fills it.

  Returns:
    "tokens" [rows, T] int32, "mask" and "loss_mask" [rows, T] bool.

  Raises:
    BadData: there are too few tokens for one row.
  """
  if remainder not in ("pad", "drop"):
    raise unknown_name("value of remainder", remainder, ["pad", "drop"])
  if not 0 <= overlap < length or length < 2:
    raise ConfigError(
      f"rows of {length} tokens that overlap by {overlap}: need 0 <= overlap < length"
    )
  arrays = [np.asarray(document, np.int32) for document in documents]
  stream = np.concatenate([np.zeros(0, np.int32), *arrays])
  stride = length - overlap
  if remainder == "drop":
    count = (len(stream) - overlap) // stride
  else:
    # A further row is worth having when it holds a target: a token beyond the overlap, and beyond t = 0.
    beyond = len(stream) - length - (overlap == 0)
    count = 1 + -(-max(beyond, 0) // stride) if len(stream) > 1 else 0
  if count < 1:
    raise BadData(
      f"{len(stream)} tokens in {len(documents)} documents are too few for a row of {length}"
    )
  starts = np.arange(count) * stride
  places = starts[:, None] + np.arange(length)[None, :]
  mask = places < len(stream)
  tokens = np.where(mask, stream[np.minimum(places, len(stream) - 1)], np.int32(pad_id))
  loss_mask = mask.copy()
  loss_mask[:, 0] = False
  loss_mask[1:, :overlap] = False
  return {"tokens": tokens.astype(np.int32), "mask": mask, "loss_mask": loss_mask}


def pack_examples(
  prompts: Sequence[Sequence[int]],
  completions: Sequence[Sequence[int]],
  *,
  length: int,
  pad_id: int = 0,
  prompt_loss: bool = False,
) -> Arrays:
  """Puts several whole examples into a row; none is split (best fit, longest first).

  Args:
    prompts: lists of token ids.
    completions: lists of token ids, one for each prompt.
    length: T.
    pad_id: what fills the end of a row.
    prompt_loss: train on the prompts too. The first token of an example never is a target.

  Returns:
    "tokens" [rows, T] int32, "mask" and "loss_mask" [rows, T] bool.

  Raises:
    BadData: an example is longer than `length`, or there is none.
  """
  sizes = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
  if not sizes:
    raise BadData("no examples to pack")
  if max(sizes) > length:
    worst = int(np.argmax(sizes))
    raise BadData(
      f"example {worst} has {sizes[worst]} tokens, more than a row of {length}; raise the length or drop it"
    )
  bins = _best_fit(sizes, length)
  tokens = np.full((len(bins), length), pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  loss_mask = np.zeros(tokens.shape, bool)
  for row, members in enumerate(bins):
    start = 0
    for i in members:
      stop = start + sizes[i]
      tokens[row, start:stop] = [*prompts[i], *completions[i]]
      mask[row, start:stop] = True
      loss_mask[row, start + max(1, 0 if prompt_loss else len(prompts[i])) : stop] = True
      start = stop
  return {"tokens": tokens, "mask": mask, "loss_mask": loss_mask}


def _best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
  """Which examples share a row: each, from the longest on, goes where it leaves the least room."""
  rows: list[list[int]] = []
  room: list[tuple[int, int]] = []  # (free tokens, row), sorted
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    place = bisect_left(room, (sizes[i], 0))
    if place == len(room):
      free, row = length, len(rows)
      rows.append([])
    else:
      free, row = room.pop(place)
    rows[row].append(i)
    insort(room, (free - sizes[i], row))
  return rows
