"""Texts: documents for language modelling and for held-out likelihood. Leaves out tokenisation (encoding.py)."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from wam.core.errors import ConfigError, unknown_name
from wam.data import readers, sources

FORMATS = ("text", "rows")


def load_texts(spec: Mapping[str, Any]) -> list[str]:
  """The documents that a spec describes; see sources.py for the keys that all specs share.

  Its own keys:

  * format: "text" (one file of running text) or "rows" (a field of every row); default by the file's name.
  * separator: text: what stands between documents, such as "<|endoftext|>" or a blank line.
  * heading: text: instead, a regular expression that matches the first line of every document.
  * strip: text: take white space off both ends of a document (default yes). Empty documents are dropped.
  * fields: rows: {"text": the field's name}.

  Without separator or heading the file is one document.

  Raises:
    WamError: says which file and line, or which key.
  """
  return sources.splat(_load_texts, spec, "text")


def _load_texts(
  source: sources.Source,
  *,
  format: str | None = None,
  separator: str | None = None,
  heading: str | None = None,
  strip: bool = True,
  fields: Mapping[str, str] | None = None,
) -> list[str]:
  name = sources.field_names(fields, {"text": "text"})["text"]
  if format is None:
    format = "text" if is_text(source.path) else "rows"
  if format == "rows":
    if separator is not None or heading is not None:
      raise ConfigError("text spec: separator and heading belong to format 'text', not to 'rows'")
    return [record.get(name, "string") for record in sources.read_records(source)]
  if format != "text":
    raise unknown_name("text format", format, FORMATS)
  return read_documents(source, separator=separator, heading=heading, strip=strip)


def is_text(path: str) -> bool:
  """Whether a file is running text by its name."""
  name = path.removesuffix(".gz")
  return not path.startswith(sources.TFDS_PREFIX) and name.endswith((".txt", ".md", ".text"))


def read_documents(
  source: sources.Source,
  *,
  separator: str | None,
  heading: str | None,
  strip: bool,
) -> list[str]:
  """The documents of one text file; see `load_texts`."""
  if separator is not None and heading is not None:
    raise ConfigError("text spec: give separator or heading, not both")
  if separator == "":
    raise ConfigError("text spec: the separator is empty; leave it out for one document a file")
  name, slice_ = sources.parse_split(source.split)
  path = sources.resolve(source.path, data_dir=source.data_dir, hint=source.hint)
  if name or path.is_dir():
    what = "a directory" if path.is_dir() else "one file without named splits"
    raise ConfigError(f"{path} is {what}; running text is read from a file, split='[{slice_}]'")
  text = readers.read_text(path)
  if separator is not None:
    documents = text.split(separator)
  elif heading is not None:
    documents = _split_at(text, heading)
  else:
    documents = [text]
  if strip:
    documents = [document.strip() for document in documents]
  documents = [document for document in documents if document]
  return sources.select(documents, source, slice_, "documents")


def _split_at(text: str, heading: str) -> list[str]:
  """Cuts before every line that the expression matches at its start."""
  try:
    pattern = re.compile(heading, re.MULTILINE)
  except re.error as error:
    raise ConfigError(
      f"text spec: heading {heading!r} is no regular expression: {error}"
    ) from error
  starts = [
    m.start() for m in pattern.finditer(text) if m.start() == 0 or text[m.start() - 1] == "\n"
  ]
  cuts = [0, *starts, len(text)]
  return [text[a:b] for a, b in itertools.pairwise(cuts)]
