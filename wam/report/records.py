"""Reads the two files of a run directory that a report is made of: `config.json` and `records.jsonl`.

A run may be in progress: a missing config and a last line that is still being written become notices, not errors.
Leaves out: everything numeric (`points`), and writing (the runs write their own records).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wam.checkpoints import records as stored
from wam.core.errors import BadData, MissingFile

Record = dict[str, Any]

CONFIG_FILE = "config.json"
RECORDS_FILE = stored.FILE_NAME

# What a record of each kind must hold to be usable; kinds that are not listed pass unread.
REQUIRED_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
  "metric": {"stage": str, "step": (int, float)},
  "stage": {"stage": str},
  "point": {"family": str, "label": str},
  "front": {"family": str, "x": str, "y": str, "hypervolume": (int, float)},
  "task": {"name": str},
  "heldout": {"stage": str},
  "selection": {"family": str, "label": str, "rule": str, "split": str},
  "measurement": {"study": str, "family": str, "label": str, "values": dict},
  "samples": {"family": str, "label": str, "prompts": list, "completions": list},
  "fit": {"family": str, "curve": str, "values": dict},
  "cosines": {"values": dict},
}
# What must be an object where it is there at all.
OBJECTS = {"point": ("scores", "coefficients"), "measurement": ("x", "halves"), "samples": ("x",)}
_TYPES: dict[Any, str] = {str: "text", dict: "an object", list: "a list"}


class Run(NamedTuple):
  """What the two files of a run say."""

  name: str  # of the run directory
  config: Record
  command: str | None  # starts the run again
  versions: dict[str, str]
  records: list[Record]
  notices: list[str]  # what is missing or was ignored, in plain words

  def of_kind(self, kind: str) -> list[Record]:
    """Returns the records of one kind, in the order in which they were written."""
    return of_kind(self.records, kind)


def of_kind(records: Sequence[Record], kind: str) -> list[Record]:
  """Returns the records of one kind, in the order in which they were written."""
  return [record for record in records if record["kind"] == kind]


def read_run(workdir: Path | str) -> Run:
  """Reads and checks the records of a run.

  Args:
    workdir: run directory; `records.jsonl` must be there, `config.json` may still be missing.

  Raises:
    MissingFile: the directory or its records do not exist.
    BadData: there are no records, or a line (named by its number) cannot be used.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise MissingFile(
      f"run directory '{workdir}' does not exist; a report needs the directory that was given"
      " to `wam run` as --workdir"
    )
  path = workdir / RECORDS_FILE
  if not path.is_file():
    raise MissingFile(
      f"'{workdir}' holds no {RECORDS_FILE}; expected a directory written by `wam run`"
    )
  records, notices = read_records(path)
  header, header_notices = _read_config(workdir / CONFIG_FILE)
  return Run(
    name=workdir.resolve().name,
    config=header["config"] if isinstance(header.get("config"), dict) else {},
    command=header["command"] if isinstance(header.get("command"), str) else None,
    versions={str(k): str(v) for k, v in _mapping(header, "versions").items()},
    records=records,
    notices=notices + header_notices,
  )


def read_records(path: Path) -> tuple[list[Record], list[str]]:
  """Reads a JSONL file of records; a torn last line is ignored with a notice.

  Raises:
    BadData: no records, a line that is no JSON object, or a record that lacks a field.
  """
  try:
    records = stored.read(path)
  except UnicodeDecodeError as error:
    raise BadData(
      f"{path}: not text in UTF-8 ({error}); expected one JSON record a line"
    ) from error
  if not records:
    raise BadData(f"{path} holds no records yet; start the run, or wait for its first stage")
  for number, record in enumerate(records, 1):
    _check(record, f"{path}:{number}")
  torn = not path.read_bytes().endswith(b"\n")
  notice = f"The last line of {RECORDS_FILE} is incomplete (still being written, or cut by a kill) and was ignored."
  return records, [notice] if torn else []


def finite(value: Any) -> float | None:
  """Returns a number as a float, or None where `value` is no finite number (booleans are none)."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return float(value) if math.isfinite(value) else None


def _check(record: Record, where: str) -> None:
  if not isinstance(record.get("kind"), str):
    raise BadData(f"{where}: expected a JSON object with a text field 'kind', found {record}")
  for field, types in REQUIRED_FIELDS.get(record["kind"], {}).items():
    value = record.get(field)
    if not isinstance(value, types) or isinstance(value, bool):
      found = "nothing" if value is None else repr(value)
      expected = _TYPES.get(types, "a number")
      raise BadData(
        f"{where}: a record of kind '{record['kind']}' needs '{field}' ({expected}), found {found}"
      )
  for field in OBJECTS.get(record["kind"], ()):
    if not isinstance(record.get(field, {}), dict):
      raise BadData(
        f"{where}: '{field}' of a {record['kind']} must be an object, found {record[field]!r}"
      )
  if record["kind"] == "samples" and len(record["prompts"]) != len(record["completions"]):
    raise BadData(
      f"{where}: expected one completion a prompt, found {len(record['prompts'])} prompts and"
      f" {len(record['completions'])} completions"
    )


def _read_config(path: Path) -> tuple[Record, list[str]]:
  if not path.is_file():
    return {}, [f"{CONFIG_FILE} is missing: the page cannot show the config nor the command."]
  try:
    header = json.loads(path.read_bytes())
  except ValueError as error:
    raise BadData(f"{path}: not JSON ({error}); expected the config that the run wrote") from error
  if not isinstance(header, dict):
    raise BadData(f"{path}: expected a JSON object with config, command and versions")
  return header, []


def _mapping(header: Record, name: str) -> Record:
  value = header.get(name)
  return value if isinstance(value, dict) else {}
