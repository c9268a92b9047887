"""Durations in any unit, converted to steps once."""

import math
from collections.abc import Mapping

from wam.core.errors import ConfigError

UNITS = ("steps", "examples", "epochs", "percent")


def to_steps(
  spec: Mapping[str, float | None],
  name: str,
  *,
  total: int | None = None,
  examples_per_step: int | None = None,
  examples_per_epoch: int | None = None,
  default: int | None = None,
) -> int:
  """Steps meant by the one of `<name>_steps | _examples | _epochs | _percent` that is given in `spec`.

  Fractions of a step are rounded up for examples and epochs (all of them are seen) and to the nearest for percent.

  Args:
    spec: values by key; a key that is absent or None is not given. Other keys are ignored.
    name: of the duration ("warmup").
    total: steps of the whole training; needed for percent.
    examples_per_step: the global batch size; needed for examples and epochs.
    examples_per_epoch: size of the data set; needed for epochs.
    default: what to return when none is given; without it that is an error.

  Raises:
    ConfigError: if none or several are given, one is negative or not finite, or the size that its unit needs is
      missing.

  >>> to_steps({"warmup_percent": 10}, "warmup", total=250)
  25
  """
  keys = {f"{name}_{unit}": unit for unit in UNITS}
  given = {key: spec[key] for key in keys if spec.get(key) is not None}
  if not given and default is not None:
    return default
  if len(given) != 1:
    found = ", ".join(sorted(given)) or "none"
    raise ConfigError(f"{name}: give exactly one of {', '.join(keys)}; found {found}")
  ((key, value),) = given.items()
  assert value is not None
  if not math.isfinite(value) or value < 0:
    raise ConfigError(f"{key}: expected a number that is not negative, found {value}")

  def need(size: int | None, what: str) -> int:
    if not size:
      raise ConfigError(f"{key}: cannot be converted to steps without {what}; give {name}_steps")
    return size

  if keys[key] == "steps":
    if value != int(value):
      raise ConfigError(f"{key}: expected a whole number, found {value}")
    return int(value)
  if keys[key] == "percent":
    return round(value / 100 * need(total, "the number of steps of the whole training"))
  batch = need(examples_per_step, "the batch size")
  examples = value
  if keys[key] == "epochs":
    examples = value * need(examples_per_epoch, "the size of the data set")
  # 1e-9: 0.1 epochs of 30 examples are 3.0000000000000004 examples in floating point.
  return math.ceil(examples / batch - 1e-9)
