"""Rows of known data sets, as Hugging Face, TFDS, the original files and MosaicML's gauntlet have them, into items.

Each function takes a row and writes the prompt that lm-evaluation-harness 0.4 writes for its task of that name, so that
scores can be compared. Leaves out few-shot examples, where rows come from and which are taken (suites.py).
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from wam.core.errors import BadData
from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.items import SpansItem
from wam.data.readers import Record

LANGUAGES = {
  "cs": "Czech",
  "de": "German",
  "en": "English",
  "es": "Spanish",
  "fr": "French",
  "hi": "Hindi",
  "it": "Italian",
  "ja": "Japanese",
  "ro": "Romanian",
  "ru": "Russian",
  "zh": "Chinese",
}


def arc(record: Record) -> ChoiceItem:
  """AI2's ARC: question, choices {text, label}, answerKey; or the gauntlet's query, choices, gold."""
  if _is_gauntlet(record):
    question, choices, answer = _gauntlet(record, "Question: ")
  else:
    question = record.get("question", "string")
    columns = _columns(record, "choices")
    choices, labels = _strings(record, columns.get("text"), "choices.text"), columns.get("label")
    key = record.values.get("answerKey")
    if not isinstance(labels, list) or key not in labels or len(labels) != len(choices):
      raise BadData(f"{record.where}: answerKey {key!r} is none of the labels {labels!r}")
    answer = labels.index(key)
  return ChoiceItem(f"Question: {question}\nAnswer:", _spaced(choices), answer)


def piqa(record: Record) -> ChoiceItem:
  """PIQA: goal, sol1, sol2, label (0 or 1); or the gauntlet's query, choices, gold."""
  if _is_gauntlet(record):
    goal, choices, answer = _gauntlet(record, "Question: ")
  else:
    goal = record.get("goal", "string")
    choices = [record.get("sol1", "string"), record.get("sol2", "string")]
    answer = _label(record)
  return ChoiceItem(f"Question: {goal}\nAnswer:", _spaced(choices), answer)


def boolq(record: Record) -> ChoiceItem:
  """BoolQ: passage, question, and answer (a bool) or SuperGLUE's label; or the gauntlet's query, choices, gold."""
  if _is_gauntlet(record):
    query, choices, answer = _gauntlet(record, "Passage: ")
    passage, found, question = query.rpartition("\nQuestion: ")
    if not found or [c.lower() for c in choices] != ["no", "yes"]:
      raise BadData(
        f"{record.where}: expected 'Passage: ...', a line 'Question: ...' and the choices no, yes"
      )
  else:
    passage, question = record.get("passage", "string"), record.get("question", "string")
    given = record.values.get("answer")
    answer = int(given) if isinstance(given, bool) else _label(record)
  # SuperGLUE's questions have no question mark, the gauntlet's have one.
  prompt = f"{passage}\nQuestion: {question.removesuffix('?')}?\nAnswer:"
  return ChoiceItem(prompt, (" no", " yes"), answer)


def race(records: Sequence[Record]) -> list[ChoiceItem]:
  """RACE: an item an article, whose last question is asked after the others and their answers.

  Rows are articles with all their questions (EleutherAI's "problems", a Python literal; TFDS' lists), or one question
  each (Hugging Face's race), of which neighbours with one example_id and article belong together.
  """
  articles: list[tuple[str, list[tuple[str, list[str], int]]]] = []
  previous = None
  for record in records:
    article, problems = record.get("article", "string"), _race_problems(record)
    key = (record.values.get("example_id"), article)
    if key == previous:
      articles[-1][1].extend(problems)
    else:
      articles.append((article, problems))
    previous = key
  items = []
  for article, problems in articles:
    text = f"Article: {article}\n\n"
    for question, options, answer in problems[:-1]:
      # A gap at the end of a question is filled; any other question is answered on a line of its own.
      if question.endswith("  _  ."):
        text += question[:-5] + options[answer] + "\n"
      else:
        text += f"Question: {question}\nAnswer: {options[answer]}\n"
    question, options, answer = problems[-1]
    items.append(ChoiceItem(text + question, _spaced(options), answer))
  return items


def _race_problems(record: Record) -> list[tuple[str, list[str], int]]:
  """(question, options, index of the answer) of a row of any of the three schemas."""
  values = record.values
  if "problems" in values:
    text = record.get("problems", "string")
    try:
      rows = [(p["question"], p["options"], p["answer"]) for p in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError, KeyError) as error:
      raise BadData(
        f"{record.where}: 'problems' is no list of questions, options and answers"
      ) from error
  elif "questions" in values:
    rows = list(
      zip(values["questions"], values.get("options", []), values.get("answers", []), strict=False)
    )
  else:
    options = record.get("options", "list")
    rows = [(record.get("question", "string"), options, record.get("answer", "string"))]
  problems = []
  for question, options, letter in rows:
    place = "ABCDEFGH".find(letter) if isinstance(letter, str) and len(letter) == 1 else -1
    if not 0 <= place < len(options):
      raise BadData(f"{record.where}: the answer {letter!r} is none of {len(options)} options")
    problems.append((question, list(options), place))
  if not problems:
    raise BadData(f"{record.where}: an article without questions")
  return problems


def squad(record: Record) -> AnswerItem:
  """SQuAD v1.1: context, question, answers {text}, and the article's title where it is known."""
  title = record.values.get("title")
  answers = _columns(record, "answers")
  references = _strings(record, answers.get("text"), "answers.text")
  if not references:
    raise BadData(
      f"{record.where}: no answer; this is SQuAD v1.1, which has no unanswerable questions"
    )
  head = f"Title: {title}\n\n" if isinstance(title, str) and title else ""
  context, question = record.get("context", "string"), record.get("question", "string")
  prompt = f"{head}Background: {context}\n\nQuestion: {question}\n\nAnswer:"
  return AnswerItem(prompt, tuple(dict.fromkeys(references)))


def drop(record: Record) -> SpansItem:
  """DROP: passage, question, and one of these.

  * answer and validated_answers {number, date, spans}, as in the original file and EleutherAI's copy.
  * answer and validated_answers as strings (TFDS), where of several spans only the first was kept.
  * answers_spans {spans} (Hugging Face's drop), which does not say which spans belong together: each counts by itself.
  """
  values = record.values
  if "answers_spans" in values:
    spans = _columns(record, "answers_spans").get("spans")
    references = [_drop_answer(record, span) for span in spans or []]
  else:
    given = [values.get("answer"), *_rows(record, values.get("validated_answers") or [])]
    references = [_drop_answer(record, answer) for answer in given]
  references = [r for r in references if r and r[0].strip()]
  if not references:
    raise BadData(f"{record.where}: no answer; found {sorted(values)}")
  prompt = f"{record.get('passage', 'string')} {record.get('question', 'string')}"
  return SpansItem(prompt, tuple(dict.fromkeys(references)))


def _drop_answer(record: Record, answer: Any) -> tuple[str, ...]:
  """The spans of one annotator's answer: a number, several spans or a date."""
  if isinstance(answer, str):
    return (answer,)
  if not isinstance(answer, Mapping):
    raise BadData(f"{record.where}: an answer is {answer!r}; expected number, date and spans")
  if answer.get("number") not in (None, ""):
    return (str(answer["number"]),)
  if answer.get("spans"):
    return tuple(_strings(record, answer["spans"], "spans"))
  date = answer.get("date") or {}
  return (" ".join(str(date.get(part) or "") for part in ("day", "month", "year")).strip(),)


def translation(record: Record, source: str, target: str) -> AnswerItem:
  """WMT: translation {fr, en} (Hugging Face) or the fields themselves (TFDS); languages by their codes."""
  texts = record.values.get("translation", record.values)
  for language in (source, target):
    if not isinstance(texts, Mapping) or not isinstance(texts.get(language), str):
      have = ", ".join(map(str, texts)) if isinstance(texts, Mapping) else repr(texts)
      raise BadData(f"{record.where}: no text in '{language}'; found {have}")
  return translation_item(texts[source], texts[target], source, target)


def translation_item(text: str, reference: str, source: str, target: str) -> AnswerItem:
  """The prompt that asks for a translation, languages by their names where they are known."""
  source, target = LANGUAGES.get(source, source), LANGUAGES.get(target, target)
  return AnswerItem(f"{source} phrase: {text}\n{target} phrase:", (reference,))


def lambada(record: Record) -> Example:
  """LAMBADA: a passage (text, or TFDS' passage), or the gauntlet's context and continuation; asks for the last word."""
  values = record.values
  if "context" in values:
    context, word = record.get("context", "string"), record.get("continuation", "string").strip()
  else:
    text = record.get("text" if "text" in values else "passage", "string").rstrip()
    context, _, word = text.rpartition(" ")
  if not context.strip() or not word:
    raise BadData(f"{record.where}: expected a passage and its last word, one of them is empty")
  return Example(context.rstrip(" "), " " + word)


def _is_gauntlet(record: Record) -> bool:
  return "query" in record.values and "gold" in record.values


def _gauntlet(record: Record, head: str) -> tuple[str, list[str], int]:
  query, choices = record.get("query", "string"), record.get("choices", "list")
  answer = record.get("gold", "whole number")
  if not 0 <= answer < len(choices):
    raise BadData(
      f"{record.where}: 'gold' is {answer}, which is no index into {len(choices)} choices"
    )
  return query.removeprefix(head).rstrip(), choices, answer


def _label(record: Record) -> int:
  label = record.get("label", "whole number")
  if label not in (0, 1):
    hidden = "; the answers of a test split are hidden, take the validation split"
    raise BadData(f"{record.where}: label is {label}, expected 0 or 1{hidden if label < 0 else ''}")
  return int(label)


def _columns(record: Record, field: str) -> Mapping[str, Any]:
  """A field that is a dict of lists, or a list of dicts, as a dict of lists."""
  value = record.values.get(field)
  if isinstance(value, Mapping):
    return value
  if isinstance(value, list) and all(isinstance(row, Mapping) for row in value):
    return {key: [row.get(key) for row in value] for row in value[:1] for key in row}
  record.get(field, "list")  # says that it is missing
  raise BadData(f"{record.where}: field '{field}' should be an object or a list of objects")


def _rows(record: Record, value: Any) -> list[Any]:
  """A list, or a dict of lists as the list of its rows."""
  if isinstance(value, list):
    return value
  if not isinstance(value, Mapping) or not all(isinstance(v, list) for v in value.values()):
    raise BadData(f"{record.where}: expected a list of answers, found {value!r:.60}")
  if len({len(column) for column in value.values()}) > 1:
    raise BadData(f"{record.where}: lists of answers differ in length")
  return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _strings(record: Record, value: Any, name: str) -> list[str]:
  if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
    raise BadData(f"{record.where}: '{name}' should be a list of strings, found {value!r:.60}")
  return value


def _spaced(choices: Sequence[str]) -> tuple[str, ...]:
  return tuple(" " + choice for choice in choices)
