"""Recipes as plain data: the keys of a recipe file, checked by name, and back to what is written into the manifest.

What the keys mean is said in recipes.py. Nothing here opens a checkpoint or knows a merge method.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from wam.core.errors import ConfigError, unknown_name

NOTHING: Mapping[str, Any] = MappingProxyType({})


def _nothing() -> Mapping[str, Any]:
  return NOTHING


_TOP = (
  "merge_method",
  "base_model",
  "models",
  "slices",
  "modules",
  "parameters",
  "dtype",
  "out_dtype",
  "tokenizer_source",
  "tokenizer",
  "chat_template",
  "name",
  # Ours.
  "origin",
  "group",
  "seed",
  "accept_config_differences",
)
# Keys that mean something to mergekit, and why they are refused here.
_REFUSED = {
  "residual_weight": "mergekit reads it and does nothing with it; leave it out",
  "experts": "mixtures of experts are not built here",
  "gate_mode": "mixtures of experts are not built here",
  "genome": "searches over merges are not run from recipes",
  "override_architecture": "the architecture is read from the names of the tensors; leave it out",
  "revision": "nothing is downloaded: download that revision and give its directory",
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A model of a merge.

  Attributes:
    model: as the user called it.
    layer_range: [start, stop) for a source of a slice; None is all layers.
    parameters: settings of this model.
    importances: checkpoint of its importances, for methods that take them.
  """

  model: str
  layer_range: tuple[int, int] | None = None
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=_nothing)
  importances: str | None = None


@dataclasses.dataclass(frozen=True)
class OutputSlice:
  """Layers of the output, made of as many layers of every source."""

  sources: tuple[Entry, ...]
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=_nothing)
  base: str | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A recipe, as read: nothing is resolved. Either `models` or `slices` is empty."""

  method: str
  models: tuple[Entry, ...] = ()
  slices: tuple[OutputSlice, ...] = ()
  base: str | None = None
  origin: str | None = None
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=_nothing)
  module: str | None = None
  module_parameters: Mapping[str, Any] = dataclasses.field(default_factory=_nothing)
  dtype: str | None = None
  out_dtype: str | None = None
  tokenizer: Mapping[str, Any] | None = None
  chat_template: str | None = None
  name: str | None = None
  group: str | None = None
  seed: int = 0
  accept_config_differences: tuple[str, ...] = ()

  def every_slice(self) -> tuple[OutputSlice, ...]:
    """The slices; all models as one where there are none."""
    return self.slices or (OutputSlice(self.models),)

  def referenced(self) -> list[str]:
    """The models by name, each once, in the order in which the recipe lists them; base and origin come first."""
    listed = [entry.model for part in self.every_slice() for entry in part.sources]
    bases = [self.base, self.origin, *(part.base for part in self.slices)]
    return list(dict.fromkeys(x for x in [*bases, *listed] if x is not None))

  def __post_init__(self) -> None:
    for where, part in zip(self._places(), self.every_slice(), strict=True):
      names = [entry.model for entry in part.sources]
      if not names:
        raise ConfigError(f"{where}: expected at least one model, found none")
      twice = sorted({n for n in names if names.count(n) > 1})
      if twice:
        raise ConfigError(
          f"{where}: {', '.join(twice)} occurs twice; list every model once and give it the sum of"
          " the weights"
        )

  def _places(self) -> list[str]:
    return [f"slices[{i}]" for i in range(len(self.slices))] or ["models"]


def check_keys(data: Any, known: Sequence[str], where: str) -> Mapping[str, Any]:
  """The mapping itself, once all its keys are known.

  Raises:
    ConfigError: if it is not a mapping.
    UnknownName: names the first key that is not known.
  """
  if not isinstance(data, Mapping):
    raise ConfigError(f"{where}: expected keys with values, found {_shown(data)}")
  for key in data:
    if key in _REFUSED:
      raise ConfigError(f"{where}: '{key}' is not supported: {_REFUSED[key]}")
    if key not in known:
      raise unknown_name(f"key of {where}", str(key), known)
  return data


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any, where: str) -> str:
  if not isinstance(value, str) or not value:
    raise ConfigError(f"{where}: expected a text, found {_shown(value)}")
  return value


def _optional_text(data: Mapping[str, Any], key: str, where: str) -> str | None:
  value = data.get(key)
  return None if value is None else _text(value, f"{where}: {key}")


def model_name(value: Any, where: str) -> str:
  """A model as text; mergekit's long form {model: {path: A}, lora: {path: B}} becomes "A+B"."""
  if not isinstance(value, Mapping):
    return _text(value, where)
  parts = []
  for key in check_keys(value, ("model", "lora"), where):
    part = value[key]
    if isinstance(part, Mapping):
      if part.get("revision") is None:
        part = {k: v for k, v in part.items() if k != "revision"}
      part = check_keys(part, ("path",), f"{where}: {key}").get("path")
    if part is not None:
      parts.append((key != "model", _text(part, f"{where}: {key}")))
  return "+".join(text for _, text in sorted(parts))


def _parameters(data: Mapping[str, Any], where: str) -> Mapping[str, Any]:
  value = data.get("parameters")
  if value is None:
    return NOTHING
  if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
    raise ConfigError(f"{where}: parameters: expected names with values, found {_shown(value)}")
  return dict(value)


def _list(value: Any, where: str) -> list[Any]:
  if not isinstance(value, list) or not value:
    raise ConfigError(f"{where}: expected a list of at least one, found {_shown(value)}")
  return value


def _entry(data: Any, where: str, *, in_slice: bool) -> Entry:
  if isinstance(data, str) and not in_slice:
    return Entry(data)
  known = ("model", *(["layer_range"] if in_slice else []), "parameters", "importances")
  data = check_keys(data, known, where)
  for key in known[: 2 if in_slice else 1]:
    if data.get(key) is None:
      raise ConfigError(f"{where}: '{key}' is missing")
  layers = None
  if in_slice:
    layers = data["layer_range"]
    whole = isinstance(layers, list | tuple) and all(type(x) is int for x in layers)
    if not whole or len(layers) != 2 or not 0 <= layers[0] < layers[1]:
      raise ConfigError(
        f"{where}: layer_range: expected [start, stop) with 0 <= start < stop, found {_shown(layers)}"
      )
    layers = (layers[0], layers[1])
  return Entry(
    model_name(data["model"], f"{where}: model"),
    layers,
    _parameters(data, where),
    _optional_text(data, "importances", where),
  )


def _slice(data: Any, where: str) -> OutputSlice:
  data = check_keys(data, ("sources", "parameters", "base_model"), where)
  sources = tuple(
    _entry(x, f"{where}: sources[{i}]", in_slice=True)
    for i, x in enumerate(_list(data.get("sources"), f"{where}: sources"))
  )
  lengths = {x.layer_range[1] - x.layer_range[0] for x in sources if x.layer_range}
  if len(lengths) > 1:
    ranges = ", ".join(f"{x.model} {list(x.layer_range or ())}" for x in sources)
    raise ConfigError(f"{where}: the sources of a slice need as many layers each, found {ranges}")
  base = data.get("base_model")
  return OutputSlice(
    sources,
    _parameters(data, where),
    None if base is None else model_name(base, f"{where}: base_model"),
  )


def _contents(data: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The models or the slices."""
  if data.get("models") is not None:
    entries = enumerate(_list(data["models"], f"{where}: models"))
    return {"models": tuple(_entry(x, f"models[{i}]", in_slice=False) for i, x in entries)}
  parts = enumerate(_list(data["slices"], f"{where}: slices"))
  return {"slices": tuple(_slice(x, f"slices[{i}]") for i, x in parts)}


def _module(data: Any, where: str) -> dict[str, Any]:
  if not isinstance(data, Mapping) or len(data) != 1:
    names = ", ".join(map(str, data)) if isinstance(data, Mapping) else _shown(data)
    raise ConfigError(
      f"{where}: modules: expected one module of one architecture, found {names}. Models of several"
      " modules are merged as a whole: list them under 'models'"
    )
  (name, content), *_ = data.items()
  content = check_keys(content, ("models", "slices", "parameters"), f"module {name}")
  if (content.get("models") is None) == (content.get("slices") is None):
    raise ConfigError(f"module {name}: exactly one of 'models' and 'slices' must be given")
  parameters = _parameters(content, f"module {name}")
  return {"module": name, "module_parameters": parameters} | _contents(content, f"module {name}")


def _tokenizer(data: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
  source, spec = data.get("tokenizer_source"), data.get("tokenizer")
  if source is not None and spec is not None:
    raise ConfigError(f"{where}: give tokenizer_source or tokenizer, not both")
  if source is not None:
    return {"source": model_name(source, f"{where}: tokenizer_source")}
  if spec is None:
    return None
  spec = check_keys(spec, ("source", "tokens", "pad_to_multiple_of"), f"{where}: tokenizer")
  found = {k: v for k, v in spec.items() if v is not None}
  return found | {"source": model_name(found.get("source", "union"), f"{where}: tokenizer: source")}


def from_data(data: Any, *, where: str = "the recipe") -> Recipe:
  """A recipe from the content of a file.

  Args:
    data: nested mappings and lists.
    where: what to call it in errors.

  Raises:
    UnknownName: names a key that does not exist.
    ConfigError: if a key is missing, of the wrong kind, or contradicts another.
  """
  data = check_keys(data, _TOP, where)
  method = data.get("merge_method")
  if method is None:
    raise ConfigError(f"{where}: 'merge_method' is missing")
  given = [key for key in ("models", "slices", "modules") if data.get(key) is not None]
  if len(given) != 1:
    raise ConfigError(
      f"{where}: exactly one of 'models', 'slices' and 'modules' must be given, found"
      f" {', '.join(given) or 'none'}"
    )
  content = _module(data["modules"], where) if "modules" in given else _contents(data, where)
  models: dict[str, Any] = {
    field: None if data.get(key) is None else model_name(data[key], f"{where}: {key}")
    for field, key in (("base", "base_model"), ("origin", "origin"))
  }
  seed = data.get("seed")
  if seed is not None and type(seed) is not int:
    raise ConfigError(f"{where}: seed: expected a whole number, found {_shown(seed)}")
  accepted = data.get("accept_config_differences") or []
  if not isinstance(accepted, list) or not all(isinstance(x, str) for x in accepted):
    raise ConfigError(f"{where}: accept_config_differences: expected a list of keys of config.json")
  texts: dict[str, Any] = {
    key: _optional_text(data, key, where)
    for key in ("dtype", "out_dtype", "chat_template", "name", "group")
  }
  return Recipe(
    _text(method, f"{where}: merge_method"),
    parameters=_parameters(data, where),
    tokenizer=_tokenizer(data, where),
    seed=seed or 0,
    accept_config_differences=tuple(accepted),
    **models,
    **texts,
    **content,
  )


def _entry_data(entry: Entry) -> dict[str, Any]:
  data = {
    "model": entry.model,
    "layer_range": list(entry.layer_range) if entry.layer_range else None,
    "parameters": dict(entry.parameters) or None,
    "importances": entry.importances,
  }
  return {key: value for key, value in data.items() if value is not None}


def as_data(recipe: Recipe) -> dict[str, Any]:
  """The recipe as plain data, for the manifest: `from_data(as_data(r)) == r`."""
  content: dict[str, Any] = {"models": [_entry_data(x) for x in recipe.models]}
  if recipe.slices:
    content = {"slices": []}
    for part in recipe.slices:
      whole = {
        "sources": [_entry_data(x) for x in part.sources],
        "parameters": dict(part.parameters) or None,
        "base_model": part.base,
      }
      content["slices"].append({k: v for k, v in whole.items() if v is not None})
  if recipe.module is not None:
    if recipe.module_parameters:
      content["parameters"] = dict(recipe.module_parameters)
    content = {"modules": {recipe.module: content}}
  data = {
    "merge_method": recipe.method,
    "name": recipe.name,
    "base_model": recipe.base,
    "origin": recipe.origin,
    **content,
    "parameters": dict(recipe.parameters) or None,
    "group": recipe.group,
    "seed": recipe.seed,
    "dtype": recipe.dtype,
    "out_dtype": recipe.out_dtype,
    "tokenizer": None if recipe.tokenizer is None else dict(recipe.tokenizer),
    "chat_template": recipe.chat_template,
    "accept_config_differences": list(recipe.accept_config_differences) or None,
  }
  return {key: value for key, value in data.items() if value is not None}
