"""Prompts alone, and prompts with completions for supervised tuning. Leaves out chat templates (tokenizers.py)."""

import re
import string
from collections.abc import Mapping
from typing import Any

from wam.core.errors import BadData, ConfigError
from wam.data import sources, text
from wam.data.examples import Example
from wam.data.readers import Record


def load_prompts(spec: Mapping[str, Any]) -> list[str]:
  """The prompts that a spec describes; see sources.py for the keys that all specs share.

  Its own keys:

  * fields: {"prompt": the field's name}.
  * template: instead, how a prompt is written from fields, such as "Question: {question}\\nAnswer:".
  * separator: text files: what stands between prompts; default a line each.
  * first_words: keep only so many words from the beginning, to continue from there.

  Raises:
    WamError: says which file and line, or which key.
  """
  return sources.splat(_load_prompts, spec, "prompt")


def load_examples(spec: Mapping[str, Any]) -> list[Example]:
  """The prompts with completions that a spec describes; the keys of `load_prompts`, and these:

  * fields: {"prompt": name, "completion": name}.
  * completion_prefix: put before every completion, such as " " behind a prompt that ends in "Answer:".

  A text file gives examples with an empty prompt, or with `first_words` the beginning as prompt and the rest, blank
  included, as completion; texts that are no longer than that are left out.
  """
  return sources.splat(_load_examples, spec, "example")


def _load_prompts(
  source: sources.Source,
  *,
  fields: Mapping[str, str] | None = None,
  template: str | None = None,
  separator: str = "\n",
  first_words: int | None = None,
) -> list[str]:
  name = sources.field_names(fields, {"prompt": "prompt"})["prompt"]
  if text.is_text(source.path):
    prompts = text.read_documents(source, separator=separator, heading=None, strip=True)
  else:
    records = sources.read_records(source)
    prompts = [write_prompt(record, name, template) for record in records]
  if first_words is None:
    return prompts
  return [prompt[: beginning(prompt, first_words)] for prompt in prompts]


def _load_examples(
  source: sources.Source,
  *,
  fields: Mapping[str, str] | None = None,
  template: str | None = None,
  separator: str = "\n",
  first_words: int | None = None,
  completion_prefix: str = "",
) -> list[Example]:
  names = sources.field_names(fields, {"prompt": "prompt", "completion": "completion"})
  if not text.is_text(source.path):
    if first_words is not None:
      raise ConfigError("example spec: first_words belongs to text files")
    return [
      Example(
        write_prompt(record, names["prompt"], template),
        completion_prefix + record.get(names["completion"], "string"),
      )
      for record in sources.read_records(source)
    ]
  documents = text.read_documents(source, separator=separator, heading=None, strip=True)
  if first_words is None:
    return [Example("", document) for document in documents]
  cuts = [(document, beginning(document, first_words)) for document in documents]
  examples = [Example(d[:cut], d[cut:]) for d, cut in cuts if cut < len(d)]
  if not examples:
    raise BadData(f"{source.path}: no text has more than {first_words} words")
  return examples


def beginning(document: str, words: int) -> int:
  """How many characters the first so many words take.

  >>> "Once upon  a time"[: beginning("Once upon  a time", 3)]
  'Once upon  a'
  """
  if words < 1:
    raise ConfigError(f"first_words is {words}; expected at least 1")
  match = re.match(rf"\s*(?:\S+\s+){{0,{words - 1}}}\S+", document)
  return match.end() if match else len(document)


def write_prompt(record: Record, field: str, template: str | None) -> str:
  """The prompt of a row: a field, or a template with fields filled in.

  Raises:
    BadData: a field is missing or no string.
    ConfigError: the template is malformed.
  """
  if template is None:
    return record.get(field, "string")
  try:
    pieces = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ConfigError(
      f"template {template!r}: {error}; a literal brace is written twice"
    ) from error
  return "".join(
    literal + (record.get(name, "string") if name is not None else "")
    for literal, name, _, _ in pieces
  )
