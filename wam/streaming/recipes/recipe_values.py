"""Values of recipe parameters: numbers, gradients over the layers, filters on tensor names, and values per part.

A setting is a scalar; a list of scalars, piecewise linear in t = layer / (n - 1) of the slice; a list of {filter,
value}, of which the first counts whose filter is a substring of the tensor's name (`*` or none fits all); or, ours,
{parts, values} with a partition of core/parts.py. Leaves out which setting goes before which (recipe_methods.py).
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from wam.core.errors import ConfigError, unknown_name

# "rescale" and "normalize" are names, of which mergekit knows two, true and false.
KINDS = ("number", "count", "flag", "name", "rescale", "normalize")
_FLAGS = {
  **dict.fromkeys(("true", "yes", "on", "1"), True),
  **dict.fromkeys(("false", "no", "off", "0"), False),
}
_PARTITIONS = (
  "by_depth",
  "by_kind",
  "by_layer",
  "by_leaf",
  "by_regex",
  "layer_ranges",
  "linear_only",
  "whole",
)
# What a bare value stands for: `by_depth: 3` is `by_depth: {num_parts: 3}`.
_FIRST = {"by_depth": "num_parts", "by_regex": "patterns", "layer_ranges": "ranges"}


class Place(NamedTuple):
  """The tensor that a setting is resolved for.

  Attributes:
    name: what filters look at; of the input for settings of a model, else of the output.
    t: from 0 in the first layer of the slice to 1 in the last; 0 outside the layers.
    output: its name in the output, which partitions look at.
  """

  name: str
  t: float
  output: str


def scalar(value: Any, kind: str, where: str) -> Any:
  """A number, whole number, flag or name from what the file says; numbers may be texts, as YAML reads 1e-4.

  Raises:
    ConfigError: says where, and what was expected.
  """

  def bad(expected: str) -> ConfigError:
    return ConfigError(f"{where}: expected {expected}, found {value!r}")

  if kind in ("rescale", "normalize") and not (
    isinstance(value, str) and value.lower() not in _FLAGS
  ):
    names = {"rescale": ("none", "l1"), "normalize": ("none", "weights")}[kind]
    return names[scalar(value, "flag", where)]
  if kind in ("name", "rescale", "normalize"):
    if not isinstance(value, str):
      raise bad("a name")
    return value
  if kind == "flag":
    text = str(value).lower()
    if not isinstance(value, bool | int | str) or text not in _FLAGS:
      raise bad("true or false")
    return _FLAGS[text]
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    raise bad("a number")
  try:
    number = float(value)
  except ValueError:
    raise bad("a number") from None
  if not math.isfinite(number):
    raise bad("a finite number")
  if kind == "count" and number != int(number):
    raise bad("a whole number")
  return int(number) if kind == "count" else number


def _is_scalar(value: Any) -> bool:
  return isinstance(value, bool | int | float | str)


def _conditions(setting: Any) -> list[Any] | None:
  """The {filter, value} pairs of a setting; None where it is something else."""
  if isinstance(setting, Mapping) and "parts" not in setting:
    return [setting]
  if isinstance(setting, list) and setting and not all(map(_is_scalar, setting)):
    return setting
  return None


def check(setting: Any, kind: str, where: str) -> None:
  """Refuses a setting that is malformed anywhere, also where no tensor would look.

  Raises:
    ConfigError: says where.
    UnknownName: names a key or a partition that does not exist.
  """
  conditions = _conditions(setting)
  if conditions is not None:
    for i, condition in enumerate(conditions):
      _check_condition(condition, kind, f"{where}[{i}]" if len(conditions) > 1 else where)
  elif isinstance(setting, Mapping):
    _check_parts(setting, kind, where)
  elif isinstance(setting, list):
    if not setting:
      raise ConfigError(f"{where}: the gradient is empty; give its values from first to last layer")
    for value in setting:
      scalar(value, kind, where)
  else:
    scalar(setting, kind, where)


def _check_condition(condition: Any, kind: str, where: str) -> None:
  if not isinstance(condition, Mapping) or "value" not in condition:
    raise ConfigError(f"{where}: expected {{filter, value}}, found {condition!r}")
  for key in condition:
    if key not in ("filter", "value"):
      raise unknown_name(f"key of {where}", str(key), ("filter", "value"))
  text = condition.get("filter")
  if text is not None and (not isinstance(text, str) or not text):
    raise ConfigError(f"{where}: filter: expected a part of a tensor's name, found {text!r}")
  if _conditions(condition["value"]) is not None:
    raise ConfigError(f"{where}: filters cannot be nested; write one list of filters")
  check(condition["value"], kind, where)


def _check_parts(setting: Mapping[str, Any], kind: str, where: str) -> None:
  known = ("parts", "values", "default", "untouched")
  for key in setting:
    if key not in known:
      raise unknown_name(f"key of {where}", str(key), known)
  values = setting.get("values")
  if not isinstance(values, Mapping):
    raise ConfigError(f"{where}: values: expected a value for every part, found {values!r}")
  for part, value in values.items():
    scalar(value, kind, f"{where}: part {part}")
  for key in ("default", "untouched"):
    if setting.get(key) is not None:
      scalar(setting[key], kind, f"{where}: {key}")
  _arguments(setting["parts"], where)


def _arguments(spec: Any, where: str) -> tuple[str, dict[str, Any]]:
  """The name of the partition that a spec builds, and its arguments as written."""
  if isinstance(spec, str):
    spec = {spec: None}
  if not isinstance(spec, Mapping):
    raise ConfigError(
      f"{where}: parts: expected a partition such as {{by_depth: 3}}, found {spec!r}"
    )
  for key in spec:
    if key not in (*_PARTITIONS, "within", "times"):
      raise unknown_name(f"partition in {where}", str(key), (*_PARTITIONS, "within", "times"))
  names = [key for key in spec if key in _PARTITIONS]
  if len(names) != 1:
    raise ConfigError(
      f"{where}: parts: expected one of {', '.join(_PARTITIONS)}, found {', '.join(names) or 'none'}"
    )
  (name,) = names
  value = spec[name]
  first = _FIRST.get(name)
  if value is None or value is True:
    return name, {}
  if first is not None and not (
    isinstance(value, Mapping) and (first in value or first == "num_parts")
  ):
    return name, {first: value}
  if not isinstance(value, Mapping):
    raise ConfigError(f"{where}: {name}: expected options by name, found {value!r}")
  return name, dict(value)


class Partitions:
  """The partitions that a recipe names, of the tensors of the output; built when first needed, for they load JAX.

  Attributes:
    shapes: of the tensors of the output by name; to be set before anything is resolved.
  """

  def __init__(self) -> None:
    """Of an output of which nothing is known yet."""
    self.shapes: Mapping[str, tuple[int, ...]] = {}
    self._built: dict[str, Any] = {}

  def _build(self, spec: Any, where: str) -> Any:
    import jax
    import numpy as np

    from wam.core import parts

    tree = {name: jax.ShapeDtypeStruct(x, np.dtype(np.float32)) for name, x in self.shapes.items()}
    name, arguments = _arguments(spec, where)
    function = getattr(parts, name)
    known = list(inspect.signature(function).parameters)[1:]
    for key in arguments:
      if key not in known:
        raise unknown_name(f"option of {name} in {where}", str(key), known)
    if name == "by_regex" and isinstance(arguments["patterns"], list):
      arguments["patterns"] = [tuple(rule) for rule in arguments["patterns"]]
    built = function(tree, **arguments)
    if isinstance(spec, Mapping):
      for how in ("within", "times"):
        if spec.get(how) is not None:
          built = getattr(built, how)(self._build(spec[how], where))
    return built

  def value(self, setting: Mapping[str, Any], output: str, kind: str, where: str) -> Any:
    """The value of the part that a tensor belongs to; `untouched`, default 0, where it belongs to none.

    Raises:
      UnknownName: if a value is given for a part that does not exist.
      ConfigError: if a part has no value, or a stacked tensor is in several parts.
    """
    key = repr(setting["parts"])
    if key not in self._built:
      self._built[key] = self._build(setting["parts"], where)
    parts = self._built[key]
    values, default = setting["values"], setting.get("default")
    for name in values:
      if name not in parts.names:
        raise unknown_name(f"part in {where}", str(name), parts.names)
    missing = [name for name in parts.names if name not in values]
    if missing and default is None:
      raise ConfigError(f"{where}: no value for the parts {', '.join(missing)}; give a default")
    part = dict(parts.assignment)[output]
    if isinstance(part, tuple):
      if len(set(part)) > 1:
        raise ConfigError(
          f"{where}: '{output}' holds all layers in one array, which belong to different parts; this"
          " needs one tensor a layer"
        )
      part = part[0]
    if part is None:
      return scalar(setting.get("untouched", 0), kind, where)
    return scalar(values.get(part, default), kind, where)


def _matched(setting: Any, name: str) -> Any:
  """What of a setting counts for a tensor: a scalar, a gradient or parts; None where no filter fits."""
  conditions = _conditions(setting)
  if conditions is None:
    return setting
  for condition in conditions:
    text = condition.get("filter")
    if text is None or text == "*" or text in name:
      return condition["value"]
  return None


def evaluate(
  setting: Any, place: Place, kind: str, *, partitions: Partitions, where: str
) -> Any | None:
  """The value of a setting for one tensor; None where no filter fits.

  >>> evaluate([0, 1, 0], Place("x", 0.25, "x"), "number", partitions=Partitions(), where="t")
  0.5
  """
  value = _matched(setting, place.name)
  if value is None:
    return None
  if isinstance(value, Mapping):
    return partitions.value(value, place.output, kind, where)
  if not isinstance(value, list):
    return scalar(value, kind, where)
  points = [scalar(x, kind, where) for x in value]
  position = place.t * (len(points) - 1)
  low = int(position)
  if kind not in ("number", "count"):
    # Flags and names have nothing in between.
    return points[low]
  high = min(len(points) - 1, low + 1)
  share = position - low
  return scalar((1 - share) * points[low] + share * points[high], kind, where)


def gradient(setting: Any, name: str) -> list[Any] | None:
  """The gradient that counts for a tensor, if its ends differ."""
  value = _matched(setting, name)
  uneven = isinstance(value, list) and value and value[0] != value[-1]
  return value if uneven else None


def filters(setting: Any) -> Iterator[str]:
  """The texts that a setting looks for in names."""
  for condition in _conditions(setting) or ():
    text = condition.get("filter")
    if text is not None and text != "*":
      yield text
