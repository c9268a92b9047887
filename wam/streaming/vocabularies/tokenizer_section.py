"""The tokenizer section of a recipe, as plain data -> checked data. Leaves out what its words do (vocabulary.py)."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from wam.core.errors import ConfigError, did_you_mean, unknown_name


@dataclasses.dataclass(frozen=True)
class Override:
  """Whose row a token takes.

  Attributes:
    model: label of the model; empty for a row of zeros.
    token: whose row of that model; None where `token_id` says it.
    token_id: row of that model.
    force: whether models that have the token take that row too.
  """

  model: str
  token: str | None = None
  token_id: int | None = None
  force: bool = False


@dataclasses.dataclass(frozen=True)
class Wish:
  """A tokenizer section.

  Attributes:
    source: "base", "union" or a label.
    tokens: what is said of single tokens.
    multiple: what the number of rows is to be a multiple of; 0 for whatever it is.
  """

  source: str
  tokens: Mapping[str, Override] = dataclasses.field(default_factory=dict)
  multiple: int = 0


def read_wish(spec: Any, labels: Collection[str]) -> Wish:
  """Checks `tokenizer_source` (a string) or `tokenizer` (a mapping); see vocabulary.plan_vocabulary.

  Raises:
    ConfigError: a key or value is not understood; names it.
    UnknownName: a model is not among `labels`.
  """
  if isinstance(spec, str):
    return Wish(_source(spec, labels))
  if not isinstance(spec, Mapping):
    raise ConfigError(f"tokenizer: expected base, union, a model or a section, found {spec!r}")
  _check_keys("tokenizer", spec, ("source", "tokens", "pad_to_multiple_of"))
  multiple = spec.get("pad_to_multiple_of")
  if multiple is not None and (type(multiple) is not int or not 1 <= multiple <= 2**20):
    raise ConfigError(
      f"tokenizer.pad_to_multiple_of: expected a number of rows, found {multiple!r}"
    )
  tokens = spec.get("tokens") or {}
  if not isinstance(tokens, Mapping):
    raise ConfigError(f"tokenizer.tokens: expected token -> section, found {tokens!r}")
  return Wish(
    _source(spec.get("source", "union"), labels),
    {str(token): _override(str(token), entry, labels) for token, entry in tokens.items()},
    multiple or 0,
  )


def _source(source: Any, labels: Collection[str]) -> str:
  if not isinstance(source, str) or source not in ("base", "union", *labels):
    raise unknown_name("tokenizer source", str(source), ["base", "union", *labels])
  return source


def _override(token: str, entry: Any, labels: Collection[str]) -> Override:
  where = f"tokenizer.tokens.{token}"
  if not token:
    raise ConfigError("tokenizer.tokens: the empty string is no token")
  if not isinstance(entry, Mapping):
    raise ConfigError(f"{where}: expected {{source: ..., force: ...}}, found {entry!r}")
  _check_keys(where, entry, ("source", "force"))
  force = entry.get("force", False)
  if type(force) is not bool:
    raise ConfigError(f"{where}.force: expected true or false, found {force!r}")
  source = entry.get("source")
  if isinstance(source, str):
    return Override(_model(source, labels), token=token, force=force)
  if not isinstance(source, Mapping):
    raise ConfigError(
      f"{where}.source: expected a model, {{kind: zero}} or {{kind: model_token, model: ..., token: ...}},"
      f" found {source!r}"
    )
  kind = source.get("kind")
  if kind == "zero":
    _check_keys(f"{where}.source", source, ("kind",))
    return Override("", force=force)
  if kind != "model_token":
    raise unknown_name(f"kind of {where}.source", str(kind), ["zero", "model_token"])
  _check_keys(f"{where}.source", source, ("kind", "model", "token", "token_id"))
  other, token_id = source.get("token"), source.get("token_id")
  if (other is None) == (token_id is None):
    raise ConfigError(f"{where}.source: exactly one of token and token_id is needed")
  if (other is not None and not isinstance(other, str)) or (
    token_id is not None and (type(token_id) is not int or token_id < 0)
  ):
    raise ConfigError(f"{where}.source: token is a string and token_id a number from 0 on")
  return Override(_model(source.get("model"), labels), other, token_id, force)


def _model(label: Any, labels: Collection[str]) -> str:
  if not isinstance(label, str) or label not in labels:
    raise unknown_name("model", str(label), labels)
  return label


def _check_keys(where: str, section: Mapping[str, Any], known: Collection[str]) -> None:
  for key in section:
    if key not in known:
      raise ConfigError(
        f"{where}: unknown key {key!r}.{did_you_mean(str(key), known)} Choices: {', '.join(known)}"
      )
