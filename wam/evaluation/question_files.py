"""The nested JSON files in which SQuAD and DROP are distributed, flattened into a row a question."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from wam.core.errors import BadData
from wam.data import readers, sources
from wam.data.readers import Record
from wam.data.sources import Source


def read(source: Source) -> list[Record] | None:
  """The questions of a .json file (also .gz) whose top is an object; None for any other source.

  * SQuAD: {"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers"}]}]}]}.
  * DROP: {name: {"passage", "qa_pairs": [{"question", "answer", "validated_answers"}]}}.

  A row is the question's object with title and context, or passage, put in.

  Raises:
    BadData: the file is an object of another form, or not JSON.
  """
  name, slice_ = sources.parse_split(source.split)
  if source.path.startswith(sources.TFDS_PREFIX) or name:
    return None
  path = sources.resolve(source.path, data_dir=source.data_dir, hint=source.hint)
  if path.is_dir() or readers.content_suffix(path) != ".json":
    return None
  content = _object(path)
  if content is None:
    return None
  rows = list(_squad(content["data"]) if "data" in content else _drop(content))
  records = [Record(row, f"{path}, question {n}") for n, row in enumerate(rows, start=1)]
  return sources.select(records, source, slice_, "questions")


def _object(path: pathlib.Path) -> dict[str, Any] | None:
  """The object that a file holds; None if it is a list, which is read elsewhere."""
  try:
    content = json.loads(readers.read_text(path))
  except ValueError as error:
    if isinstance(error, BadData):
      raise
    raise BadData(f"{path}: not JSON ({error}); is the file cut off?") from error
  if isinstance(content, list):
    return None
  nested = isinstance(content, dict) and (
    isinstance(content.get("data"), list)
    or all(isinstance(v, dict) and "qa_pairs" in v for v in content.values())
  )
  if not nested or not content:
    raise BadData(
      f"{path}: neither a list of objects nor a question file of SQuAD ('data') or DROP ('qa_pairs')"
    )
  return content


def _squad(articles: list[Any]) -> Iterator[dict[str, Any]]:
  for article in articles:
    for paragraph in article.get("paragraphs", []):
      for question in paragraph.get("qas", []):
        yield {"title": article.get("title", ""), "context": paragraph.get("context"), **question}


def _drop(passages: dict[str, Any]) -> Iterator[dict[str, Any]]:
  for passage in passages.values():
    for question in passage["qa_pairs"]:
      yield {"passage": passage.get("passage"), **question}
