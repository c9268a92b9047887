"""How the suites of suites.py make their tasks: rows through their schema, behind few-shot examples, into a task.

A maker takes (name, source) and the suite's options as keywords, which are documented where the suites are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from wam.core.errors import BadData, ConfigError
from wam.data import sources, text
from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.items import SpansItem
from wam.data.readers import Record
from wam.data.sources import Source
from wam.evaluation import question_files, schemas, texts
from wam.evaluation.task_kinds import AnswerTask, ChoiceTask, LastWordTask, Task, TextTask

Item = ChoiceItem | AnswerItem | SpansItem | Example


class Shots(NamedTuple):
  """Where the solved examples come from."""

  number: int
  split: str


def _ask(source: Source, shots: Shots, read: Callable[[Source], Sequence[Item]]) -> list[Any]:
  """The items of a source, each behind the solved examples."""
  if shots.number < 0:
    raise ConfigError(f"few_shot must not be negative, found {shots.number}")
  items = list(read(source))
  if not shots.number:
    return items
  if shots.split:
    solved = list(read(source._replace(split=shots.split)))[: shots.number]
  else:
    solved, items = items[: shots.number], items[shots.number :]
  if len(solved) < shots.number or not items:
    raise BadData(
      f"{source.path}: {shots.number} solved examples were asked for, beside questions, of"
      f" {len(solved) + len(items)} rows in all"
    )
  before = "".join(_solved(item) + "\n\n" for item in solved)
  return [item._replace(prompt=before + item.prompt) for item in items]


def _solved(item: Item) -> str:
  """An item with its answer."""
  match item:
    case ChoiceItem():
      return item.prompt + item.choices[item.answer]
    case AnswerItem():
      return f"{item.prompt} {item.references[0]}"
    case SpansItem():
      return f"{item.prompt} {', '.join(item.references[0])}"
    case Example():
      return item.prompt + item.completion


def _rows(source: Source) -> list[Record]:
  """Rows of any source; question files in the nested form of SQuAD and DROP too."""
  nested = question_files.read(source)
  return nested if nested is not None else sources.read_records(source)


def choices(row: Callable[[Record], ChoiceItem]) -> Callable[..., Task]:
  """Multiple choice, an item a row."""

  def make(name: str, source: Source, *, few_shot: int = 0, few_shot_split: str = "") -> Task:
    items = _ask(source, Shots(few_shot, few_shot_split), lambda s: [row(r) for r in _rows(s)])
    return ChoiceTask(name, items)

  return make


def race(name: str, source: Source, *, few_shot: int = 0, few_shot_split: str = "") -> Task:
  """RACE: an item an article."""

  def read(given: Source) -> list[ChoiceItem]:
    # Rows of one article come first together, then they are shuffled and sliced as articles.
    split, slice_ = sources.parse_split(given.split)
    items = schemas.race(_rows(given._replace(split=split, shuffle_seed=None)))
    return sources.select(items, given, slice_, "articles")

  return ChoiceTask(name, _ask(source, Shots(few_shot, few_shot_split), read))


def squad(
  name: str,
  source: Source,
  *,
  few_shot: int = 0,
  few_shot_split: str = "",
  max_new_tokens: int = 64,
  stop: str | Sequence[str] = "\n",
) -> Task:
  """SQuAD v1.1: an answer ends with its line."""
  items = _ask(
    source, Shots(few_shot, few_shot_split), lambda s: [schemas.squad(r) for r in _rows(s)]
  )
  return AnswerTask(name, items, "squad_f1", max_new_tokens, stop)


def drop(
  name: str,
  source: Source,
  *,
  few_shot: int = 0,
  few_shot_split: str = "",
  max_new_tokens: int = 64,
  stop: str | Sequence[str] = ".",
  span_separator: str = "",
) -> Task:
  """DROP: an answer ends with its sentence, or is split into spans."""
  items = _ask(
    source, Shots(few_shot, few_shot_split), lambda s: [schemas.drop(r) for r in _rows(s)]
  )
  return AnswerTask(name, items, "drop_f1", max_new_tokens, stop, span_separator=span_separator)


def translation(
  source_language: str, target_language: str, beside: tuple[str, str] = ("", "")
) -> Callable[..., Task]:
  """Rows with both languages, or two text files, of which the second is `reference_path`, or has the name of the first
  with the first of `beside` replaced by the second.
  """

  def make(
    name: str,
    source: Source,
    *,
    few_shot: int = 0,
    few_shot_split: str = "",
    source_language: str = source_language,
    target_language: str = target_language,
    reference_path: str = "",
    max_new_tokens: int = 256,
    stop: str | Sequence[str] = "\n",
    bleu_tokenizer: str = "13a",
  ) -> Task:
    languages = source_language, target_language

    def read(given: Source) -> list[AnswerItem]:
      if not text.is_text(given.path):
        return [schemas.translation(r, *languages) for r in sources.read_records(given)]
      reference = reference_path or (given.path.replace(*beside) if beside[0] else "")
      if not reference or reference == given.path:
        raise ConfigError(
          f"{name}: {given.path} holds one language; give the file of the translations as reference_path"
        )
      pairs = texts.read_lines(given, reference)
      return [schemas.translation_item(a, b, *languages) for a, b in pairs]

    items = _ask(source, Shots(few_shot, few_shot_split), read)
    return AnswerTask(name, items, "bleu", max_new_tokens, stop, bleu_tokenizer)

  return make


def lambada(name: str, source: Source, *, few_shot: int = 0, few_shot_split: str = "") -> Task:
  """The last word of a passage."""
  items = _ask(
    source, Shots(few_shot, few_shot_split), lambda s: [schemas.lambada(r) for r in _rows(s)]
  )
  return LastWordTask(name, items)


def perplexity(
  name: str,
  source: Source,
  *,
  window: int = 0,
  stride: int = 0,
  separator: str | None = None,
  heading: str | None = None,
  field: str = "text",
) -> Task:
  """Documents of any text, in windows as long as the model's context."""
  documents = texts.read(source, separator=separator, heading=heading, field=field)
  return TextTask(name, documents, window, stride, "token_perplexity", score_first=True)


def wikitext(
  name: str, source: Source, *, window: int = 0, stride: int = 0, field: str = "page"
) -> Task:
  """Pages of WikiText, rewritten; their words and bytes are counted as they were."""
  # A page begins with its title, one level above the headings of its sections.
  pages = texts.read(source, separator=None, heading=texts.WIKITEXT_TITLE, field=field, strip=False)
  plain = [texts.without_wikitext_marks(page) for page in pages]
  return TextTask(name, plain, window, stride, "word_perplexity", score_first=True, counted=pages)
