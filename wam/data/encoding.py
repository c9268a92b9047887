"""Strings into token rows: prompts, examples and pairs, with explicit policies for BOS, EOS and length.

A prompt and its completion are encoded apart and their ids concatenated, so that the boundary is where generation will
have it and no token spans it. Leaves out packing several texts into a row (packing.py).

Policies, the same everywhere:

* BOS goes before a text (`add_bos`: None does what the tokenizer does itself), never twice.
* EOS goes after a completion (`add_eos`). A completion that was cut has no EOS, since it did not end there.
* A prompt that is too long keeps its right end (and BOS); a completion that is too long keeps its left end.
* Tokenizers of the SentencePiece kind put a blank before every text. A completion does not begin a text, so it
  is encoded behind an anchor character which is then taken off: "word" continues a word and " word" starts one, as in
  any other tokenizer. A completion whose prompt is empty does begin a text and keeps the blank.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from wam.core.errors import BadData, ConfigError, unknown_name
from wam.data.batching import Arrays, pad_left, pad_right
from wam.data.examples import Example, Pair
from wam.data.tokenizers import Tokenizer, bos_ids, eos_id, padding_id

Ids = list[int]
TooLong = Literal["truncate", "drop"]
# Characters to encode a completion behind; a newline is a token of its own in SentencePiece vocabularies, the others
# are tried where it merges with what follows.
_ANCHORS = ("\n", "0", "a", ".")
# Rows are trimmed to a multiple of this, to keep the number of compiled shapes small.
_TRIM_MULTIPLE = 8


class Rows(NamedTuple):
  """Tokenised data.

  Attributes:
    arrays: what `Batches` takes; every array [rows, ...].
    kept: [rows] int64, which input each row came from.
    counts: what happened on the way: "rows", "dropped", "truncated_prompts", "truncated_completions".
  """

  arrays: Arrays
  kept: np.ndarray
  counts: dict[str, int]


def encode_texts(
  tokenizer: Tokenizer, texts: Sequence[str], *, add_bos: bool | None = None, add_eos: bool = False
) -> list[Ids]:
  """Token ids of texts that stand at the beginning: documents and prompts.

  Args:
    tokenizer: a fast tokenizer.
    texts: any number of strings.
    add_bos: see the module; not added where the text already begins with it (chat templates).
    add_eos: whether EOS follows.
  """
  before = bos_ids(tokenizer, add_bos)
  after = [eos_id(tokenizer)] if add_eos else []
  return [
    (ids if before and ids[:1] == before else before + ids) + after
    for ids in _plain_ids(tokenizer, texts)
  ]


def encode_completions(
  tokenizer: Tokenizer, texts: Sequence[str], *, add_eos: bool = True
) -> list[Ids]:
  """Token ids of texts that go on after a prompt; see the module for tokenizers that prepend a blank.

  Raises:
    BadData: a text cannot be told apart from what stands before it (no anchor is free-standing).
  """
  after = [eos_id(tokenizer)] if add_eos else []
  if not _prepends_blank(tokenizer):
    return [ids + after for ids in _plain_ids(tokenizer, texts)]
  found: dict[int, Ids] = {}
  for anchor in _ANCHORS:
    left = [i for i in range(len(texts)) if i not in found]
    head, *encoded = _plain_ids(tokenizer, [anchor, *(anchor + texts[i] for i in left)])
    for i, ids in zip(left, encoded, strict=True):
      if ids[: len(head)] == head:
        found[i] = ids[len(head) :] + after
  for i, text in enumerate(texts):
    if i not in found:
      raise BadData(f"completion {i} ({text[:40]!r}) merges with whatever token stands before it")
  return [found[i] for i in range(len(texts))]


def encode_examples(
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  *,
  add_bos: bool | None = None,
  add_eos: bool = True,
) -> tuple[list[Ids], list[Ids]]:
  """Prompt ids (with BOS) and completion ids (with EOS) of each example."""
  prompts = encode_texts(tokenizer, [e.prompt for e in examples], add_bos=add_bos)
  completions: list[Ids] = [[] for _ in examples]
  after = [eos_id(tokenizer)] if add_eos else []
  continuing = [i for i, e in enumerate(examples) if e.prompt]
  beginning = [i for i, e in enumerate(examples) if not e.prompt]
  texts = [examples[i].completion for i in continuing]
  encoded = encode_completions(tokenizer, texts, add_eos=add_eos)
  for i, ids in zip(continuing, encoded, strict=True):
    completions[i] = ids
  encoded = _plain_ids(tokenizer, [examples[i].completion for i in beginning])
  for i, ids in zip(beginning, encoded, strict=True):
    completions[i] = ids + after
  return prompts, completions


def prompt_rows(
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  *,
  length: int,
  add_bos: bool | None = None,
  too_long: TooLong = "truncate",
) -> Rows:
  """Prompts for generation, padded on the left.

  Args:
    tokenizer: a fast tokenizer.
    prompts: P strings.
    length: T, exactly.
    add_bos: see the module.
    too_long: keep the right end of longer prompts, or drop them.

  Returns:
    Rows with "tokens" [P, T] int32 and "mask" [P, T] bool.
  """
  _check_choice(too_long, length)
  before = len(bos_ids(tokenizer, add_bos))
  encoded = encode_texts(tokenizer, prompts, add_bos=add_bos)
  long = [len(ids) > length for ids in encoded]
  kept = [i for i in range(len(encoded)) if not (long[i] and too_long == "drop")]
  cut = [_right_end(encoded[i], length, before) for i in kept]
  tokens, mask = pad_left(cut, padding_id(tokenizer), length=length)
  truncated = sum(long[i] for i in kept)
  return _rows({"tokens": tokens, "mask": mask}, kept, len(prompts), truncated, 0)


def example_rows(
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  *,
  length: int,
  prompt_length: int | None = None,
  add_bos: bool | None = None,
  add_eos: bool = True,
  too_long: TooLong = "truncate",
  prompt_loss: bool = False,
  trim: bool = False,
) -> Rows:
  """Prompt and completion in one row, padded on the right, with the loss on the completion.

  Args:
    tokenizer: a fast tokenizer.
    examples: B prompts and completions.
    length: T. A prompt is cut to what the completion leaves, but never below half of T (or `prompt_length`);
      after that the completion is cut.
    prompt_length: at most so many tokens of prompt, BOS included.
    add_bos: see the module.
    add_eos: see the module.
    too_long: cut examples over `length`, or drop them.
    prompt_loss: train on the prompt too.
    trim: T is the longest row instead, rounded up to 8 but not over `length`.

  Returns:
    Rows with "tokens" [B, T] int32, "mask" and "loss_mask" [B, T] bool.
  """
  prompts, completions = encode_examples(tokenizer, examples, add_bos=add_bos, add_eos=add_eos)
  return sequence_rows(
    prompts,
    completions,
    length=length,
    pad_id=padding_id(tokenizer),
    prompt_length=prompt_length,
    keep_first=len(bos_ids(tokenizer, add_bos)),
    too_long=too_long,
    prompt_loss=prompt_loss,
    trim=trim,
  )


def sequence_rows(
  prompts: Sequence[Ids],
  completions: Sequence[Ids],
  *,
  length: int,
  pad_id: int,
  prompt_length: int | None = None,
  keep_first: int = 0,
  too_long: TooLong = "truncate",
  prompt_loss: bool = False,
  trim: bool = False,
) -> Rows:
  """`example_rows` for ids that are there already, such as sampled completions.

  Args:
    prompts: B lists of ids.
    completions: B lists of ids.
    length: T.
    pad_id: what fills rows up.
    prompt_length: see `example_rows`.
    keep_first: so many first tokens of a prompt (BOS) survive cutting.
    too_long: see `example_rows`.
    prompt_loss: see `example_rows`.
    trim: see `example_rows`.
  """
  _check_choice(too_long, length)
  kept, fitted = [], []
  for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
    if too_long == "truncate" or len(prompt) + len(completion) <= length:
      kept.append(i)
      fitted.append(_fit(prompt, [completion], length, prompt_length, keep_first))
  lists = [prompt + completion for prompt, (completion,) in fitted]
  tokens, mask = pad_right(lists, pad_id, length=_width(lists, length, trim))
  arrays = {
    "tokens": tokens,
    "mask": mask,
    "loss_mask": _loss_mask(mask, [0 if prompt_loss else len(prompt) for prompt, _ in fitted]),
  }
  short_prompts = sum(len(f[0]) < len(prompts[i]) for i, f in zip(kept, fitted, strict=True))
  short = sum(len(f[1][0]) < len(completions[i]) for i, f in zip(kept, fitted, strict=True))
  return _rows(arrays, kept, len(prompts), short_prompts, short)


def pair_rows(
  tokenizer: Tokenizer,
  pairs: Sequence[Pair],
  *,
  length: int,
  prompt_length: int | None = None,
  add_bos: bool | None = None,
  add_eos: bool = True,
  too_long: TooLong = "drop",
  trim: bool = False,
) -> Rows:
  """Preference pairs: two rows with one prompt each.

  Pairs over `length` are dropped by default: a cut answer is not the one that was judged.

  Args:
    tokenizer: a fast tokenizer.
    pairs: B pairs.
    length: T, for prompt and the longer completion.
    prompt_length: at most so many tokens of prompt; a longer prompt is too long like a longer pair.
    add_bos: see the module.
    add_eos: see the module.
    too_long: drop the pair, or cut it; both rows keep the same piece of the prompt.
    trim: T is the longest row instead, rounded up to 8 but not over `length`.

  Returns:
    Rows with "chosen", "rejected" [B, T] int32 and for both "…_mask" (real tokens) and "…_loss_mask" (the completion)
    [B, T] bool.
  """
  sides = [
    encode_examples(
      tokenizer, [Example(p.prompt, p[1 + side]) for p in pairs], add_bos=add_bos, add_eos=add_eos
    )
    for side in range(2)
  ]
  return pair_sequence_rows(
    sides[0][0],
    sides[0][1],
    sides[1][1],
    length=length,
    pad_id=padding_id(tokenizer),
    prompt_length=prompt_length,
    keep_first=len(bos_ids(tokenizer, add_bos)),
    too_long=too_long,
    trim=trim,
  )


def pair_sequence_rows(
  prompts: Sequence[Ids],
  chosen: Sequence[Ids],
  rejected: Sequence[Ids],
  *,
  length: int,
  pad_id: int,
  prompt_length: int | None = None,
  keep_first: int = 0,
  too_long: TooLong = "drop",
  trim: bool = False,
) -> Rows:
  """`pair_rows` for ids that are there already, such as sampled completions.

  Args:
    prompts, chosen, rejected: B lists of ids each.
    length: T.
    pad_id: what fills rows up.
    prompt_length, too_long, trim: see `pair_rows`.
    keep_first: so many first tokens of a prompt (BOS) survive cutting.
  """
  _check_choice(too_long, length)
  kept, fitted = [], []
  for i, (prompt, *both) in enumerate(zip(prompts, chosen, rejected, strict=True)):
    fits = len(prompt) + max(len(c) for c in both) <= length
    fits = fits and len(prompt) <= (prompt_length or length)
    if fits or too_long == "truncate":
      kept.append(i)
      fitted.append(_fit(prompt, both, length, prompt_length, keep_first))
  width = _width([p + c for p, both in fitted for c in both], length, trim)
  arrays: Arrays = {}
  for side, name in enumerate(("chosen", "rejected")):
    lists = [prompt + both[side] for prompt, both in fitted]
    arrays[name], mask = pad_right(lists, pad_id, length=width)
    arrays[f"{name}_mask"] = mask
    arrays[f"{name}_loss_mask"] = _loss_mask(mask, [len(prompt) for prompt, _ in fitted])
  shorter = [
    (len(f[0]) < len(prompts[i]), len(f[1][0]) < len(chosen[i]) or len(f[1][1]) < len(rejected[i]))
    for i, f in zip(kept, fitted, strict=True)
  ]
  counts = sum(p for p, _ in shorter), sum(c for _, c in shorter)
  return _rows(arrays, kept, len(prompts), *counts)


def _plain_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
  """Ids without special tokens, all texts in one call (the fast path of the Rust library)."""
  if not texts:
    return []  # transformers refuses an empty batch
  return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def _prepends_blank(tokenizer: Tokenizer) -> bool:
  """Whether a text is encoded as if a blank stood before it: then a letter alone differs from one after a newline."""
  alone, newline, behind = _plain_ids(tokenizer, ["a", "\n", "\na"])
  return behind[: len(newline)] == newline and behind[len(newline) :] != alone


def _right_end(ids: Ids, length: int, keep_first: int) -> Ids:
  """The first `keep_first` and the last tokens, `length` together."""
  if len(ids) <= length:
    return ids
  first = ids[: min(keep_first, length)]
  return first + ids[len(ids) - (length - len(first)) :]


def _fit(
  prompt: Ids, completions: list[Ids], length: int, prompt_length: int | None, keep_first: int
) -> tuple[Ids, list[Ids]]:
  """Cuts the prompt on its left, then the completions on their right; see `example_rows` for the rule."""
  room = max(length - max(len(c) for c in completions), length // 2)
  prompt = _right_end(prompt, min(room, prompt_length or room), keep_first)
  return prompt, [completion[: length - len(prompt)] for completion in completions]


def _loss_mask(mask: np.ndarray, starts: Sequence[int]) -> np.ndarray:
  """[B, T] bool: real tokens from `starts` on; never t = 0, which nothing predicts."""
  first = np.maximum(np.asarray(starts, np.int64), 1)
  return mask & (np.arange(mask.shape[1])[None, :] >= first[:, None])


def _width(lists: Sequence[Ids], length: int, trim: bool) -> int:
  if not trim:
    return length
  longest = max((len(ids) for ids in lists), default=0)
  return min(length, -(-longest // _TRIM_MULTIPLE) * _TRIM_MULTIPLE)


def _check_choice(too_long: str, length: int) -> None:
  if too_long not in ("truncate", "drop"):
    raise unknown_name("value of too_long", too_long, ["truncate", "drop"])
  if length < 2:
    raise ConfigError(f"length {length}: a row holds at least two tokens")


def _rows(arrays: Arrays, kept: list[int], given: int, prompts: int, completions: int) -> Rows:
  """Refuses an empty result, and counts."""
  if not kept:
    what = "all are longer than the given length; raise it" if given else "there were none to begin"
    raise BadData(f"no rows are left of {given}: {what}")
  counts = {
    "rows": len(kept),
    "dropped": given - len(kept),
    "truncated_prompts": prompts,
    "truncated_completions": completions,
  }
  return Rows(arrays, np.asarray(kept, np.int64), counts)
