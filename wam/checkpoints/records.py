"""Records of a run: one JSON object a line, appended and flushed, so that a killed run loses half a line at most.

Leaves out TensorBoard (training) and everything that reads meaning into the records (report). Imports no JAX.
"""

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from wam.core.errors import BadData, MissingFile, WamError

FILE_NAME = "records.jsonl"


class CannotWrite(WamError, OSError):  # noqa: N818 (reads better without a suffix, as in FileNotFound)
  """The disk is full, or a file cannot be written for another reason."""


@contextlib.contextmanager
def writing(what: str, path: pathlib.Path) -> Iterator[None]:
  """Turns an OSError inside into `CannotWrite`, naming what was being written and where."""
  try:
    yield
  except OSError as error:
    if isinstance(error, WamError):
      raise
    raise CannotWrite(
      f"could not write {what} to {path}: {error.strerror or error}. What was there before is intact;"
      " free some space (or mend the permissions) and give the same command again"
    ) from error


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes `text` beside `path` and renames it there: a reader or a kill sees the old file or the new one.

  Raises:
    CannotWrite: on a full disk; `path` is as it was.
  """
  draft = path.with_name(f".{path.name}.draft")
  with writing(path.name, path):
    try:
      with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
      draft.replace(path)
    except OSError:
      draft.unlink(missing_ok=True)
      raise


def is_time(field: str) -> bool:
  """Whether a field of a record depends on the clock: "time", "seconds", "*_seconds" and "*_per_second"."""
  return field in ("time", "seconds") or field.endswith(("_seconds", "_per_second"))


def without_times(record: Mapping[str, Any]) -> dict[str, Any]:
  """The record without the fields that depend on the clock; what two runs of one command agree on."""
  return {name: value for name, value in record.items() if not is_time(name)}


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """All records of a file, or of `records.jsonl` in a directory. A torn last line is left out.

  Raises:
    MissingFile: if there is none.
    BadData: if a whole line is not a JSON object; names the line.
  """
  path = pathlib.Path(path)
  path = path / FILE_NAME if path.is_dir() else path
  if not path.is_file():
    raise MissingFile(f"no records at {path}; expected the workdir of a run or its {FILE_NAME}")
  lines = path.read_text(encoding="utf-8").split("\n")
  # What follows the last newline was being written when the run was killed.
  return [_parse(line, path, number) for number, line in enumerate(lines[:-1], 1)]


class Records:
  """The open `records.jsonl` of a workdir.

  Opening truncates a torn last line. With `active=False` (every process but the first) nothing is read or written.
  """

  def __init__(self, workdir: pathlib.Path, *, active: bool = True):
    self.path = pathlib.Path(workdir) / FILE_NAME
    self._active = active
    self._file: io.TextIOWrapper | None = None
    if active:
      with writing(FILE_NAME, self.path):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _truncate_torn_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

  def append(self, *, kind: str, stage: str, step: int, **fields: Any) -> None:
    """Writes one record, whole and flushed. NumPy scalars become numbers, arrays become lists.

    Raises:
      CannotWrite: on a full disk.
    """
    if self._file is None:
      return
    record = {"kind": kind, "stage": stage, "step": int(step), **fields}
    with writing(FILE_NAME, self.path):
      self._file.write(json.dumps(record, default=_plain) + "\n")
      self._file.flush()

  def drop(self, unwanted: Callable[[Mapping[str, Any]], bool]) -> int:
    """Removes the records for which `unwanted` holds; returns how many. The file is replaced atomically."""
    if self._file is None:
      return 0
    self.sync()
    records = read(self.path)
    kept = [record for record in records if not unwanted(record)]
    if len(kept) < len(records):
      self._file.close()
      write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
      self._file = self.path.open("a", encoding="utf-8")
    return len(records) - len(kept)

  def drop_after(self, stage: str, step: int) -> int:
    """Removes what a stage wrote after `step`: a resumed run writes it again. Returns how many records went."""
    return self.drop(lambda record: record["stage"] == stage and record["step"] > step)

  def sync(self) -> None:
    """Makes sure that what was appended is on the disk; called before a checkpoint that relies on it."""
    if self._file is not None:
      with writing(FILE_NAME, self.path):
        self._file.flush()
        os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()
      self._file = None


def _parse(line: str, path: pathlib.Path, number: int) -> dict[str, Any]:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise BadData(f"{path}:{number}: not JSON ({error.msg}); remove the line") from error
  if not isinstance(record, dict):
    raise BadData(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
  return record


def _truncate_torn_line(path: pathlib.Path) -> None:
  if not path.exists():
    return
  with path.open("rb+") as file:
    content = file.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
      file.truncate(end)


def _plain(value: Any) -> Any:
  """What json cannot write: NumPy and JAX scalars and arrays, paths."""
  if isinstance(value, pathlib.PurePath):
    return str(value)
  return np.asarray(value).tolist()
