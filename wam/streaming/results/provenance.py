"""How every tensor of a merge was made, as plain data for the manifest. Leaves out files and hashes (manifest.py)."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wam.streaming.plan import Output, Plan, Reader

_NUMBER = re.compile(r"(?<=[./])(0|[1-9]\d{0,8})(?=[./])")


def merges(plan: Plan) -> list[dict[str, Any]]:
  """How every tensor was made; tensors that were made in the same way share an entry."""
  labels = {
    id(reader): label
    for label, source in plan.sources.items()
    for reader in source.tensors.values()
  }
  entries: dict[str, dict[str, Any]] = {}
  names: dict[str, list[str]] = {}
  for output in plan.outputs:
    how = _how(output, labels)
    key = json.dumps(how, sort_keys=True)
    entries.setdefault(key, how)
    names.setdefault(key, []).append(output.name)
  return [entries[key] | {"tensors": fold(names[key])} for key in entries]


def _how(output: Output, labels: Mapping[int, str]) -> dict[str, Any]:
  readers = [*output.members, *output.importances]
  if output.base is not None:
    readers.append(output.base)
  # The engine's rule: float64 where an input is.
  wide = any(reader.dtype == np.float64 for reader in readers)
  how: dict[str, Any] = {
    "method": output.method,
    "members": [_read_from(reader, output, labels) for reader in output.members],
    "coefficients": plain(output.coefficients),
    "parameters": plain(output.parameters),
    "accumulated_in": "float64" if wide else "float32",
    "stored_in": str(output.dtype),
  }
  if output.base is not None:
    how["base"] = _read_from(output.base, output, labels)
  if output.importances:
    how["importances"] = [_read_from(reader, output, labels) for reader in output.importances]
  if output.group not in ("", output.name):
    how["group"] = output.group
  if output.stream not in ("", output.name):
    how["stream"] = output.stream
  return how


def _read_from(reader: Reader, output: Output, labels: Mapping[int, str]) -> dict[str, str]:
  """Which input, where that is known, and which tensor, where it does not bear the output's name."""
  origin = labels.get(id(reader)) or getattr(reader, "origin", None)
  found = {"input": str(origin)} if origin else {}
  return found | ({"tensor": reader.name} if reader.name != output.name else {})


def fold(names: Iterable[str]) -> dict[str, str]:
  """Names that differ in their first number only, as one: the number becomes *, and its ranges the value.

  >>> fold(["h.0.w", "h.1.w", "h.3.w", "norm"])
  {'h.*.w': '0-1,3', 'norm': ''}
  """
  names = list(names)
  ambiguous = any("*" in name for name in names)
  numbers: dict[str, list[int]] = {}
  for name in names:
    match = _NUMBER.search(name)
    if match is None or ambiguous:
      numbers[name] = []
    else:
      numbers.setdefault(f"{name[: match.start()]}*{name[match.end() :]}", []).append(int(match[0]))
  return {name: _ranges(sorted(found)) for name, found in numbers.items()}


def _ranges(numbers: Sequence[int]) -> str:
  ranges: list[list[int]] = []
  for number in numbers:
    if ranges and number == ranges[-1][1] + 1:
      ranges[-1][1] = number
    else:
      ranges.append([number, number])
  return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


def plain(value: Any) -> Any:
  """What JSON can hold: arrays and tuples as lists, NaN and infinities and whatever else as their names."""
  if isinstance(value, np.generic | np.ndarray):
    value = value.tolist()
  if isinstance(value, Mapping):
    return {str(key): plain(each) for key, each in value.items()}
  if isinstance(value, set | frozenset):
    value = sorted(value, key=str)
  if isinstance(value, list | tuple):
    return [plain(each) for each in value]
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  return str(value)
