"""Files that nobody vouches for: opened without waiting, read within bounds, shown in messages without doing harm.

A checkpoint from elsewhere may hold a pipe where a file is expected, a terabyte of zeros, JSON that takes gigabytes
when it is parsed, or a name that moves the cursor of a terminal. Leaves out what the content means.
"""

import io
import json
import os
import pathlib
import re
import reprlib
import stat
from collections.abc import Collection
from typing import Any

from wam.core.errors import BadCheckpoint, MissingFile, WamError

# Of a header or an index. The limit of the safetensors library for headers; the longest that are known have 20 MB.
MAX_BYTES = 100_000_000
# Parsed JSON takes up to 200 bytes a value where the text takes two; this keeps it under about 1 GB.
MAX_VALUES = 5_000_000

# Control characters steer terminals; half a character (a lone surrogate) cannot be written again.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# Without one of these bytes there is none of them in JSON: escapes, DEL, and what all of U+0080 to U+00BF begin with.
_MAY_HARM = (b"\\", b"\x7f", b"\xc2")

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxlist = _short.maxdict = 8
_short.maxstring = _short.maxother = 200
_short.maxlong = 40


def shown(value: Any) -> str:
  r"""The repr of a value for a message: shortened, control characters and lone surrogates escaped.

  >>> shown("model.norm")
  "'model.norm'"
  >>> print(shown("a\x1b[2J\n"))
  'a\x1b[2J\n'
  >>> print(shown(list(range(100))))
  [0, 1, 2, 3, 4, 5, 6, 7, ...]
  """
  return _short.repr(value)


def open_regular(path: str | os.PathLike[str], what: str) -> io.FileIO:
  """Opens a regular file, unbuffered; links are followed. A pipe or a device is refused, not waited for.

  Args:
    path: of the file.
    what: is expected there, for messages: "a safetensors file".

  Raises:
    MissingFile: if there is no such file.
    BadCheckpoint: if it is no regular file, or may not be read.
  """
  try:
    # A pipe that is opened without O_NONBLOCK waits for its writer. Asking first would leave a moment in between.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except (FileNotFoundError, NotADirectoryError, ValueError) as error:
    raise MissingFile(f"{path}: no such file; expected {what}") from error
  except OSError as error:
    raise BadCheckpoint(f"{path}: cannot be opened: {error.strerror}; expected {what}") from error
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise BadCheckpoint(f"{path}: is a directory, a pipe or a device; expected {what}")
  return io.FileIO(descriptor, "rb")


def check_regular(directory: str | os.PathLike[str], *, short: Collection[str] = ()) -> None:
  """Checks that a directory holds regular files and directories only, for libraries that open what they find there.

  Links to files are followed, links to directories are not: they could lead in a circle.

  Args:
    directory: with all that lies in it.
    short: names of files that are read as a whole and have at most `MAX_BYTES`.

  Raises:
    BadCheckpoint: names what would be waited for, would fill the memory, or cannot be read.
  """
  try:
    with os.scandir(directory) as entries:
      for entry in entries:
        if entry.is_dir(follow_symlinks=False):
          check_regular(entry.path, short=short)
        elif not entry.is_file():
          raise BadCheckpoint(
            f"{directory}: {shown(entry.name)} is no regular file (a pipe, a device, or a link that"
            " leads to none); the checkpoint is damaged"
          )
        elif entry.name in short and (size := entry.stat().st_size) > MAX_BYTES:
          raise BadCheckpoint(
            f"{directory}: {entry.name} has {size} bytes; at most {MAX_BYTES} are believed"
          )
  except OSError as error:
    if isinstance(error, WamError):
      raise
    raise BadCheckpoint(f"{directory}: cannot be read: {error.strerror}") from error


def read_json(
  path: str | os.PathLike[str], what: str, *, infinities: bool = False
) -> dict[str, Any]:
  """The JSON object that a file holds; arguments and errors as in `open_regular` and `parse_json`."""
  path = pathlib.Path(path)
  with open_regular(path, f"the {what}") as file:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
      raise BadCheckpoint(f"{path}: the {what} has {size} bytes; at most {MAX_BYTES} are believed")
    return parse_json(path, read_exactly(path, file, size), what, infinities=infinities)


def read_exactly(path: str | os.PathLike[str], file: io.FileIO, size: int) -> bytes:
  """The next `size` bytes.

  Raises:
    BadCheckpoint: if there are fewer, or they cannot be read.
  """
  parts = []
  try:
    while size and (part := file.read(size)):
      parts.append(part)
      size -= len(part)
  except OSError as error:
    raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error
  if size:
    raise BadCheckpoint(f"{path}: ends {size} bytes too early (truncated while it was read?)")
  return parts[0] if len(parts) == 1 else b"".join(parts)


def parse_json(
  path: str | os.PathLike[str], text: bytes, what: str, *, infinities: bool = False
) -> dict[str, Any]:
  """A JSON object in UTF-8, without duplicate keys, with keys that can be printed.

  Args:
    path: where the text is from, for messages.
    text: at most `MAX_BYTES`.
    what: it is, for messages: "header".
    infinities: whether Infinity and NaN, which JSON does not have, may stand for numbers: transformers writes them into
      the config.json of some families.

  Raises:
    BadCheckpoint: if it is anything else; names the file.
  """
  if len(text) > MAX_VALUES and sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
    raise BadCheckpoint(f"{path}: the {what} holds more than {MAX_VALUES} values; it is damaged")
  try:
    data = json.loads(
      text.decode("utf-8"),
      object_pairs_hook=_printable_object if any(x in text for x in _MAY_HARM) else _object,
      parse_constant=float if infinities else _constant,
    )
  except (ValueError, RecursionError) as error:
    raise BadCheckpoint(f"{path}: the {what} is not valid JSON: {error}") from error
  if not isinstance(data, dict):
    raise BadCheckpoint(f"{path}: the {what} is a {type(data).__name__}, expected an object")
  return data


def is_printable(name: str) -> bool:
  """Whether a name from a file may be printed and written: no control character and no half of one (surrogate)."""
  return not _HARMFUL.search(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise ValueError(f"the key {shown(twice)} occurs twice")
  return found


def _printable_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = _object(pairs)
  for key in found:
    if not is_printable(key):
      raise ValueError(f"the key {shown(key)} holds a control character or half a character")
  return found


def _constant(name: str) -> Any:
  raise ValueError(f"{name} is not a number that JSON knows")
