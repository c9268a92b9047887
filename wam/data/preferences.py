"""Preference pairs: from rows with prompt, chosen and rejected; from whole dialogues; from labelled texts.

Leaves out lists of messages in place of strings, and ties.
"""

import logging
import os.path
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wam.core import rng
from wam.core.errors import BadData, ConfigError, unknown_name
from wam.data import prompts, sources
from wam.data.examples import Pair
from wam.data.readers import Record

FORMATS = ("pairs", "hh", "labelled")
ASSISTANT = "\n\nAssistant:"
_LOG = logging.getLogger(__name__)


class LoadedPairs(NamedTuple):
  """Pairs, and what was wrong with the rows that gave none ("file, line 3: ...")."""

  pairs: list[Pair]
  skipped: list[str]


def load_pairs(spec: Mapping[str, Any]) -> list[Pair]:
  """The pairs of `read_pairs`; how many rows were skipped goes to the log."""
  pairs, skipped = read_pairs(spec)
  if skipped:
    _LOG.warning("%s: skipped %d rows, the first: %s", spec["path"], len(skipped), skipped[0])
  return pairs


def read_pairs(spec: Mapping[str, Any]) -> LoadedPairs:
  """The preference pairs that a spec describes; see sources.py for the keys that all specs share.

  Its own keys:

  * format: "pairs" (default): fields prompt, chosen, rejected. "hh": chosen and rejected are whole dialogues as in
    Anthropic's HH data, and the prompt is what they share up to the last "\\n\\nAssistant:". "labelled": texts of two
    classes, of which one is preferred; a slice is taken of the texts, so disjoint slices share no text.
  * fields: {ours: theirs} for prompt, chosen, rejected; labelled: for text, label.
  * template: pairs: how the prompt is written from fields.
  * unusable: pairs, hh: what to do with rows whose dialogues share no turn or whose completions are equal: "error"
    (default) or "skip".
  * preferred, other: labelled: the two labels, 1 and 0 by default. Rows with other labels are an error.
  * prompt: labelled: the prompt of every pair, empty by default; text_prefix goes between it and the text.
  * uses: labelled: how often a text of the rarer class is used, each time with a partner newly drawn by pair_seed. A
    text of the other class is used at most so often.

  Raises:
    WamError: says which file and line, or which key.
  """
  format = spec.get("format", "pairs") if hasattr(spec, "get") else "pairs"
  if format not in FORMATS:
    raise unknown_name("preference format", format, FORMATS)
  loaders: dict[str, Callable[..., LoadedPairs]] = {
    "pairs": _load_rows,
    "hh": _load_dialogues,
    "labelled": _load_labelled,
  }
  return sources.splat(loaders[format], spec, f"preference ({format})")


def _load_rows(
  source: sources.Source,
  *,
  format: str = "pairs",
  fields: Mapping[str, str] | None = None,
  template: str | None = None,
  unusable: str = "error",
) -> LoadedPairs:
  names = sources.field_names(fields, {name: name for name in Pair._fields})
  pairs: list[Pair] = []
  skipped: list[str] = []
  for record in sources.read_records(source):
    chosen, rejected = (record.get(names[side], "string") for side in ("chosen", "rejected"))
    if template is None and names["prompt"] not in record.values and ASSISTANT in chosen:
      raise BadData(
        f"{record.where}: no field '{names['prompt']}', and the answers are whole dialogues: say format='hh'"
      )
    pair = Pair(prompts.write_prompt(record, names["prompt"], template), chosen, rejected)
    problem = "chosen and rejected are equal" if chosen == rejected else ""
    _sort_out(record, pair, problem, unusable, pairs, skipped)
  return _checked(pairs, skipped, source)


def _load_dialogues(
  source: sources.Source,
  *,
  format: str = "hh",
  fields: Mapping[str, str] | None = None,
  unusable: str = "error",
) -> LoadedPairs:
  names = sources.field_names(fields, {"chosen": "chosen", "rejected": "rejected"})
  pairs: list[Pair] = []
  skipped: list[str] = []
  for record in sources.read_records(source):
    chosen, rejected = (record.get(names[side], "string") for side in ("chosen", "rejected"))
    pair = split_dialogue(chosen, rejected)
    problem = ""
    if pair is None:
      problem = f"chosen and rejected share no {ASSISTANT!r}"
    elif pair.chosen == pair.rejected:
      problem = "chosen and rejected are equal"
    _sort_out(record, pair, problem, unusable, pairs, skipped)
  return _checked(pairs, skipped, source)


def split_dialogue(chosen: str, rejected: str) -> Pair | None:
  """Splits two dialogues behind the last turn marker of the assistant that both share; None where there is none.

  >>> split_dialogue("\\n\\nHuman: a\\n\\nAssistant: b", "\\n\\nHuman: a\\n\\nAssistant: c")
  Pair(prompt='\\n\\nHuman: a\\n\\nAssistant:', chosen=' b', rejected=' c')
  """
  shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (characters are what is meant)
  place = shared.rfind(ASSISTANT)
  if place < 0:
    return None
  place += len(ASSISTANT)
  return Pair(chosen[:place], chosen[place:], rejected[place:])


def dialogue_turns(dialogue: str) -> list[dict[str, str]]:
  """The turns of a dialogue in HH's writing as messages for a chat template (tokenizers.chat_prompt).

  An open turn of the assistant at the end, as prompts have it, is left out.

  Raises:
    BadData: the text does not begin with a turn.

  >>> dialogue_turns("\\n\\nHuman: Hi!\\n\\nAssistant:")
  [{'role': 'user', 'content': 'Hi!'}]
  """
  before, *pieces = re.split(r"\n\n(Human|Assistant):", dialogue)
  if before.strip() or not pieces:
    raise BadData(f"not a dialogue, which begins with '\\n\\nHuman:': {dialogue[:60]!r}")
  roles = {"Human": "user", "Assistant": "assistant"}
  turns = [
    {"role": roles[name], "content": said.strip()}
    for name, said in zip(pieces[::2], pieces[1::2], strict=True)
  ]
  return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _sort_out(
  record: Record,
  pair: Pair | None,
  problem: str,
  unusable: str,
  pairs: list[Pair],
  skipped: list[str],
) -> None:
  """Puts a row with the pairs or with the skipped, or refuses it."""
  if unusable not in ("error", "skip"):
    raise unknown_name("value of unusable", unusable, ["error", "skip"])
  if pair is not None and not problem:
    pairs.append(pair)
  elif unusable == "skip":
    skipped.append(f"{record.where}: {problem}")
  else:
    raise BadData(f"{record.where}: {problem}; mend the row, or say unusable='skip'")


def _load_labelled(
  source: sources.Source,
  *,
  format: str = "labelled",
  fields: Mapping[str, str] | None = None,
  preferred: Any = 1,
  other: Any = 0,
  prompt: str = "",
  text_prefix: str = "",
  uses: int = 1,
  pair_seed: int = 0,
) -> LoadedPairs:
  names = sources.field_names(fields, {"text": "text", "label": "label"})
  if uses < 1:
    raise ConfigError(f"uses is {uses}; a text is used at least once")
  texts: dict[Any, list[str]] = {preferred: [], other: []}
  for record in sources.read_records(source):
    text = record.get(names["text"], "string")
    if names["label"] not in record.values:
      record.get(names["label"], "whole number")  # raises with the names that there are
    label = record.values[names["label"]]
    if label not in (preferred, other):
      raise BadData(
        f"{record.where}: label {label!r} is neither preferred={preferred!r} nor other={other!r}"
      )
    texts[label].append(text_prefix + text)
  counts = {label: len(found) for label, found in texts.items()}
  if min(counts.values()) == 0 or len(counts) < 2:
    raise BadData(
      f"{source.path}: pairs need texts of both labels, found {counts}; a sorted file needs shuffle_seed"
    )
  draw = rng.generator(pair_seed, "data/labelled pairs")
  pairs = []
  for _ in range(uses):
    orders = [draw.permutation(len(texts[label])) for label in (preferred, other)]
    # The orders end with the shorter one: every text of the rarer class has a partner.
    for good, bad in zip(*orders, strict=False):
      pairs.append(Pair(prompt, texts[preferred][good], texts[other][bad]))
  return LoadedPairs(pairs, [])


def _checked(pairs: list[Pair], skipped: list[str], source: sources.Source) -> LoadedPairs:
  if not pairs:
    raise BadData(
      f"{source.path}: none of {len(skipped)} rows gives a pair; the first: {skipped[0]}"
    )
  return LoadedPairs(pairs, skipped)
