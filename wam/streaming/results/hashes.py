"""SHA-256 of whole files, on several threads; those of files that have not changed are remembered between runs.

Leaves out what the hashes are for (manifest.py).
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from wam.checkpoints.untrusted import open_regular, read_json
from wam.core.errors import BadCheckpoint, ConfigError, MissingFile, WamError

Progress = Callable[[int, int], None]  # bytes hashed, bytes to be hashed

_PIECE = 1 << 20
# A file that is written to twice within a tick of the file system's clock bears the same time both times.
_SETTLED_NS = 2 * 10**9
_MAX_REMEMBERED = 10_000
_KIND = "wam sha256 1"
SHA256 = re.compile("[0-9a-f]{64}")


class _Mark(NamedTuple):
  """What tells whether a file has changed: bytes, times (ns) of content and of inode, and which inode it is."""

  size: int
  content_time: int
  inode_time: int
  inode: int
  device: int


def hash_files(
  paths: Iterable[str | os.PathLike[str]],
  *,
  threads: int = 2,
  progress: Progress | None = None,
  cache: bool = True,
) -> dict[pathlib.Path, str]:
  """The SHA-256 of the content of every file, in hexadecimal.

  With `cache`, a file is not read again whose real path, size, times, inode and device are those of an earlier call.
  Make and git rely on the same, and it saves a merge from reading all its inputs a second time. It does not see a
  change that leaves all of these as they were: by somebody who sets the clock back, or on a file system that does not
  keep times. Where a hash must prove something, pass `cache=False`; then nothing is looked up and nothing remembered.

  Args:
    paths: of regular files; links are followed.
    threads: how many files are read at a time, the largest first. One file is never split.
    progress: called in this thread about ten times a second with the bytes hashed and the bytes to be hashed.
    cache: whether to look hashes up, and to remember them, in $XDG_CACHE_HOME/wam/sha256.json (default ~/.cache). One
      that is damaged or cannot be written is done without.

  Returns:
    A hash for every path, in the order given.

  Raises:
    MissingFile: if a file does not exist.
    BadCheckpoint: if it is no regular file, cannot be read, or changes while it is read.
    ConfigError: if `threads` is not positive.
  """
  if threads < 1:
    raise ConfigError(f"threads: expected at least 1, found {threads}")
  given = [pathlib.Path(path) for path in paths]
  real = {path: _real(path) for path in given}
  marks = {name: _mark_of(name) for name in real.values()}
  known = _recall(marks) if cache else {}
  unknown = sorted(marks.keys() - known.keys(), key=lambda name: (-marks[name].size, name))
  hashed = _Hashing(unknown, marks).run(threads, progress)
  if cache:
    _remember({name: digest for name, digest in hashed.items() if _settled(marks[name])}, marks)
  found = known | hashed
  return {path: found[real[path]] for path in given}


def _real(path: pathlib.Path) -> str:
  try:
    return os.path.realpath(path)
  except ValueError as error:
    raise MissingFile(f"{path}: no such file") from error


def _mark_of(name: str) -> _Mark:
  try:
    return _mark(os.stat(name))
  except (FileNotFoundError, NotADirectoryError, ValueError) as error:
    raise MissingFile(f"{name}: no such file") from error
  except OSError as error:
    raise BadCheckpoint(f"{name}: cannot be read: {error.strerror}") from error


def _mark(status: os.stat_result) -> _Mark:
  times = status.st_mtime_ns, status.st_ctime_ns
  return _Mark(status.st_size, *times, status.st_ino, status.st_dev)


def _settled(mark: _Mark) -> bool:
  """Whether the file would bear another time if it were changed from now on."""
  return mark.content_time < time.time_ns() - _SETTLED_NS


class _Hashing:
  """Several threads that take files from one list."""

  def __init__(self, names: Sequence[str], marks: Mapping[str, _Mark]):
    self._names = names
    self._marks = marks
    self._total = sum(marks[name].size for name in names)
    self._todo = iter(names)
    self._lock = threading.Lock()
    self._stop = threading.Event()
    self._done = 0
    self._found: dict[str, str] = {}
    self._errors: list[Exception] = []

  def run(self, threads: int, progress: Progress | None) -> dict[str, str]:
    """Hashes all; the first error of any thread stops the others."""
    workers = [threading.Thread(target=self._work) for _ in self._names[:threads]]
    try:
      for worker in workers:
        worker.start()
      for worker in workers:
        while worker.is_alive():
          worker.join(0.1)
          if progress is not None:
            progress(self._done, self._total)
    finally:
      # Also when the user interrupts: threads that read on would keep the process from ending.
      self._stop.set()
    if self._errors:
      raise self._errors[0]
    if progress is not None:
      progress(self._done, self._total)
    return self._found

  def _work(self) -> None:
    buffer = memoryview(bytearray(_PIECE))
    try:
      while (name := self._next()) is not None:
        digest = self._hash(name, buffer)
        with self._lock:
          self._found[name] = digest
    except Exception as error:
      self._errors.append(error)
      self._stop.set()

  def _next(self) -> str | None:
    with self._lock:
      return None if self._stop.is_set() else next(self._todo, None)

  def _hash(self, name: str, buffer: memoryview) -> str:
    mark, sha256 = self._marks[name], hashlib.sha256()
    left = mark.size
    with open_regular(name, "a regular file") as file:
      while left and not self._stop.is_set():
        # Both release the interpreter's lock.
        count = self._read(name, file, buffer[: min(left, _PIECE)])
        sha256.update(buffer[:count])
        left -= count
        with self._lock:
          self._done += count
      now = _mark(os.fstat(file.fileno()))
    # The inode's time may change: a link to the file, or its modes.
    if now._replace(inode_time=mark.inode_time) != mark:
      raise _changed(name)
    return sha256.hexdigest()

  def _read(self, name: str, file: io.FileIO, buffer: memoryview) -> int:
    try:
      count = file.readinto(buffer)
    except OSError as error:
      raise BadCheckpoint(f"{name}: cannot be read: {error.strerror}") from error
    if not count:
      raise _changed(name)
    return count


def _changed(name: str) -> BadCheckpoint:
  return BadCheckpoint(f"{name}: changed while it was read; start again when it is complete")


def _cache_file() -> pathlib.Path | None:
  root = os.environ.get("XDG_CACHE_HOME", "")
  # The specification of the variable: a relative path is to be ignored.
  if not os.path.isabs(root):
    root = os.path.join(os.path.expanduser("~"), ".cache")
  return pathlib.Path(root, "wam", "sha256.json") if os.path.isabs(root) else None


def _load() -> dict[str, tuple[_Mark, str]]:
  """Real path -> what the file was, and its hash; empty where there is no cache, without what is malformed."""
  path = _cache_file()
  if path is None:
    return {}
  try:
    data = read_json(path, "cache of hashes")
  except WamError:
    return {}
  files = data.get("files")
  if data.get("kind") != _KIND or not isinstance(files, dict):
    return {}
  return {name: entry for name, value in files.items() if (entry := _entry(value)) is not None}


def _entry(value: object) -> tuple[_Mark, str] | None:
  match value:
    case [list(numbers), str(digest)] if len(numbers) == len(_Mark._fields):
      if all(type(x) is int for x in numbers) and SHA256.fullmatch(digest):
        return _Mark(*numbers), digest
  return None


def _recall(marks: Mapping[str, _Mark]) -> dict[str, str]:
  """The remembered hashes of the files that are as they were."""
  remembered = _load()
  return {
    name: remembered[name][1]
    for name, mark in marks.items()
    if name in remembered and remembered[name][0] == mark
  }


def _remember(hashes: Mapping[str, str], marks: Mapping[str, _Mark]) -> None:
  """Adds hashes to the cache, if it can be written; the oldest go."""
  path = _cache_file()
  if path is None or not hashes:
    return
  # Read again: another process may have added to it. What two add in the same moment, one of them will hash again.
  files = {name: entry for name, entry in _load().items() if name not in hashes}
  # JSON has no way to write the name of a file that is not Unicode.
  files |= {name: (marks[name], digest) for name, digest in hashes.items() if name.isprintable()}
  kept = dict(list(files.items())[-_MAX_REMEMBERED:])
  with contextlib.suppress(OSError, ValueError):
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps({"kind": _KIND, "files": kept}))


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes beside `path` under a name of its own and renames: readers see the old file or the new one."""
  descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
  try:
    with open(descriptor, "w", encoding="utf-8") as file:
      file.write(text)
    os.replace(draft, path)
  except OSError:
    os.unlink(draft)
    raise
