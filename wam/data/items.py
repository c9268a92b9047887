"""Items to score a model on: multiple choice, free answers, the last word of a passage.

The defaults are the field names of MosaicML's evaluation gauntlet. Leaves out the schema kind of Winograd items, where
the contexts differ and the continuation is shared, and the scoring itself.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from wam.core.errors import BadData
from wam.data import prompts, sources
from wam.data.examples import AnswerItem, ChoiceItem, Example


class SpansItem(NamedTuple):
  """A question whose answer may be several spans: any of `references` is right, if all of its spans are given."""

  prompt: str
  references: tuple[tuple[str, ...], ...]


def load_choice_items(spec: Mapping[str, Any]) -> list[ChoiceItem]:
  """Multiple-choice questions; see sources.py for the keys that all specs share.

  Its own keys:

  * fields: {ours: theirs} for prompt ("query"), choices ("choices": a list of strings), answer ("gold": index from 0).
  * template: how the prompt is written from fields, such as "{query}\\nAnswer:".
  * choice_prefix: put before every choice; " " by default.

  Raises:
    WamError: says which file and line, or which key.
  """
  return sources.splat(_load_choice_items, spec, "multiple-choice")


def _load_choice_items(
  source: sources.Source,
  *,
  fields: Mapping[str, str] | None = None,
  template: str | None = None,
  choice_prefix: str = " ",
) -> list[ChoiceItem]:
  names = sources.field_names(fields, {"prompt": "query", "choices": "choices", "answer": "gold"})
  items = []
  for record in sources.read_records(source):
    choices = record.get(names["choices"], "list")
    answer = record.get(names["answer"], "whole number")
    if len(choices) < 2 or not 0 <= answer < len(choices):
      raise BadData(
        f"{record.where}: '{names['answer']}' is {answer}, which is not an index into {len(choices)} choices"
        " (at least two, counted from 0)"
      )
    prompt = prompts.write_prompt(record, names["prompt"], template)
    items.append(ChoiceItem(prompt, tuple(choice_prefix + choice for choice in choices), answer))
  return items


def load_answer_items(spec: Mapping[str, Any]) -> list[AnswerItem]:
  """Questions with free answers; template as for `load_choice_items`, and this key:

  * fields: prompt ("context"), answer ("answer": a string), aliases ("aliases": a list of strings, may be absent).

  The references are the answer and its aliases, each once.
  """
  return sources.splat(_load_answer_items, spec, "answer")


def _load_answer_items(
  source: sources.Source,
  *,
  fields: Mapping[str, str] | None = None,
  template: str | None = None,
) -> list[AnswerItem]:
  names = sources.field_names(
    fields, {"prompt": "context", "answer": "answer", "aliases": "aliases"}
  )
  items = []
  for record in sources.read_records(source):
    answers = [record.get(names["answer"], "string")]
    # Asked for by name, aliases must be there; by default they are taken where they are.
    if names["aliases"] in record.values or (fields and "aliases" in fields):
      answers += record.get(names["aliases"], "list")
    prompt = prompts.write_prompt(record, names["prompt"], template)
    items.append(AnswerItem(prompt, tuple(dict.fromkeys(answers))))
  return items


def load_last_word(spec: Mapping[str, Any]) -> list[Example]:
  """Passages whose last word is to be guessed (LAMBADA); the completion is a blank and that word.

  Its own key is fields: {ours: theirs} for prompt ("context") and word ("continuation"); or for text, a whole passage
  that is split before its last word.

  Raises:
    WamError: says which file and line, or which key.
  """
  return sources.splat(_load_last_word, spec, "last-word")


def _load_last_word(
  source: sources.Source, *, fields: Mapping[str, str] | None = None
) -> list[Example]:
  names = sources.field_names(fields, {"prompt": "context", "word": "continuation", "text": "text"})
  whole = bool(fields) and "text" in (fields or {})
  examples = []
  for record in sources.read_records(source):
    if whole:
      pieces = record.get(names["text"], "string").rsplit(maxsplit=1)
      prompt, word = pieces if len(pieces) == 2 else ("", "")
    else:
      prompt = record.get(names["prompt"], "string").rstrip()
      word = record.get(names["word"], "string").strip()
    if not prompt or not word:
      raise BadData(f"{record.where}: expected a passage and its last word, one of them is empty")
    examples.append(Example(prompt, " " + word))
  return examples
