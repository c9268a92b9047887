"""The chat template of the output: a text, a model's, or the one that most of the inputs have. No Jinja is run here."""

import collections
import json
import pathlib
from collections.abc import Collection, Mapping

from wam.core.errors import ConfigError
from wam.streaming.plan import Source
from wam.streaming.vocabularies.tokenizer_files import CHAT_TEMPLATE, TOKENIZER_CONFIG, read_json

_OLD_FILE = "chat_template.json"


def check(wanted: str, labels: Collection[str] = ()) -> None:
  """Refuses what cannot be a template, before anything is opened.

  Args:
    wanted: see `choose`.
    labels: what the models are called.

  Raises:
    ConfigError: if it is a short name, as mergekit has for some.
  """
  if wanted != "auto" and wanted not in labels and "{" not in wanted:
    raise ConfigError(
      f"chat_template: expected 'auto', a model or the text of a template (Jinja), found {wanted!r};"
      " templates by name are not shipped: name a model that has it, or paste the text"
    )


def template_of(source: Source) -> str | None:
  """The default chat template of a checkpoint; None where it has none."""
  directory = source.directory
  if directory is None:
    return None
  if (directory / CHAT_TEMPLATE).is_file():
    return (directory / CHAT_TEMPLATE).read_text(encoding="utf-8")
  for name in (TOKENIZER_CONFIG, _OLD_FILE):
    path = directory / name
    found = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
      named = {x.get("name"): x.get("template") for x in found if isinstance(x, dict)}
      found = named.get("default")
    if isinstance(found, str):
      return found
  return None


def choose(wanted: str, sources: Mapping[str, Source]) -> tuple[str | None, list[str]]:
  """The template that is wanted, and notes.

  Args:
    wanted: "auto" for the one that most sources have (of several the first), the name of a source, or its text.
    sources: by name, in the order of the recipe.

  Raises:
    ConfigError: the model that is named has none.
  """
  if wanted in sources:
    text = template_of(sources[wanted])
    if text is None:
      raise ConfigError(f"chat_template: '{wanted}' has none")
    return text, []
  if wanted != "auto":
    return wanted, []
  found = {name: template_of(source) for name, source in sources.items()}
  counts = collections.Counter(text.strip() for text in found.values() if text is not None)
  if not counts:
    return None, ["chat_template: auto, but no model has one"]
  ((text, count),) = counts.most_common(1)
  owner = next(n for n, x in found.items() if x is not None and x.strip() == text)
  return found[owner], [
    f"chat_template: that of {owner}, as {count} of {len(found)} models have it"
  ]


def put(
  template: str, files: Mapping[str, bytes | pathlib.Path]
) -> dict[str, bytes | pathlib.Path]:
  """Tokenizer files with another chat template."""
  changed = {name: content for name, content in files.items() if name != _OLD_FILE}
  changed[CHAT_TEMPLATE] = template.encode("utf-8")
  config = changed.get(TOKENIZER_CONFIG)
  if config is not None:
    data = read_json(config) if isinstance(config, pathlib.Path) else json.loads(config)
    if "chat_template" in data:
      # It would stand beside the file and say something else.
      del data["chat_template"]
      changed[TOKENIZER_CONFIG] = (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
  return changed
