"""A merge in the making: a directory beside OUT with preallocated files, a journal of what is complete, and a lock.

    .OUT.wam-partial/
      journal       lines of JSON: the fingerprint, then the name of every output that is complete
      new/          becomes OUT when all is done
      old/          what OUT was before, for the moment between the two renames

A merge that was killed goes on where it was. After a crash of the machine only what had reached the disk counts: the
journal says which boot of the machine its lines are from, and what was flushed to the disk since. Leaves out what the
files mean (sinks.py).
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from wam.checkpoints.records import CannotWrite
from wam.core.errors import ConfigError, WamError

JOURNAL, NEW, OLD = "journal", "new", "old"
# Seconds after which `complete` flushes what was written to the disk. A power cut costs as much work, and short merges
# do not pay for it.
FLUSH_SECONDS = 60.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


class PlannedFile(NamedTuple):
  """A file of the merge: how it begins, and how many bytes it will have in all."""

  beginning: bytes
  num_bytes: int


def preallocate(descriptor: int, num_bytes: int) -> None:
  """Gives a file its size, and where the file system can, its place on the disk.

  Raises:
    OSError: if the disk is full.
  """
  try:
    if num_bytes:
      os.posix_fallocate(descriptor, 0, num_bytes)
  except AttributeError:  # macOS
    os.ftruncate(descriptor, num_bytes)
  except OSError as error:
    if error.errno not in _UNSUPPORTED:
      raise
    os.ftruncate(descriptor, num_bytes)


class Partial:
  """The directory beside OUT, locked by this process.

  Attributes:
    path: the directory.
    new: what becomes OUT.
    resumed: names of the outputs that an earlier run has completed.
    discarded: why what an earlier run had left was removed; None if it was not.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    files: Mapping[str, PlannedFile],
    *,
    names: frozenset[str],
    fingerprint: str,
    overwrite: bool,
    extra_bytes: int,
  ):
    """Locks the directory, and preallocates the files or finds them as an interrupted run has left them.

    Args:
      directory: OUT.
      files: by path relative to the directory.
      names: of the outputs.
      fingerprint: of all that decides about the content; what was left under another one is removed.
      overwrite: whether OUT may exist and hold files.
      extra_bytes: that will be needed on the disk beside the files.

    Raises:
      ConfigError: if OUT holds files, or another process is merging into it.
      CannotWrite: if the disk has too little room, or may not be written to.
    """
    # A link to an empty directory elsewhere: the partial directory must be on the same disk.
    self.directory = pathlib.Path(os.path.realpath(directory))
    if not self.directory.name:
      raise ConfigError(f"{directory}: name a directory that can be made")
    self._overwrite = overwrite
    self.path = self.directory.with_name(f".{self.directory.name}.wam-partial")
    self.new = self.path / NEW
    self.resumed: frozenset[str] = frozenset()
    self.discarded: str | None = None
    self._check_out()
    sizes = json.dumps([[f, p.num_bytes, p.beginning.hex()] for f, p in files.items()])
    self._identity = {
      "fingerprint": fingerprint,
      "files": hashlib.sha256(sizes.encode()).hexdigest(),
    }
    with self.writing():
      self._make()
      self._journal = _Journal(self.path / JOURNAL, self.directory)
      try:
        self._open(files, names, extra_bytes)
      except BaseException:
        if not self.resumed:
          shutil.rmtree(self.path, ignore_errors=True)
        self._journal.close()
        raise

  def _check_out(self) -> None:
    exists = os.path.lexists(self.directory)
    if exists and not self.directory.is_dir():
      raise ConfigError(f"{self.directory}: is not a directory; name another one")
    if exists and not self._overwrite and any(self.directory.iterdir()):
      raise ConfigError(
        f"{self.directory}: exists and is not empty; name a new directory, remove it, or give"
        " --overwrite to replace it once the merge is complete"
      )

  def _make(self) -> None:
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.path.mkdir(exist_ok=True)

  def _open(self, files: Mapping[str, PlannedFile], names: frozenset[str], extra: int) -> None:
    self._put_back()
    content, self.discarded = self._journal.read(self._identity, names)
    if content is not None and not all(self._is_ours(f, p) for f, p in files.items()):
      content, self.discarded = None, "files in it are missing or damaged"
    if content is None:
      self._clear()
    else:
      self.resumed = content
    needed = sum(p.num_bytes for p in files.values()) + extra
    self._check_room(needed - sum(self._allocated(file) for file in files))
    if content is None:
      self._journal.begin(self._identity)
      for file, planned in files.items():
        self._allocate(file, planned)

  def _put_back(self) -> None:
    """Undoes half a replacement: a run that was killed between the renames of `publish`."""
    old = self.path / OLD
    if old.is_dir() and not os.path.lexists(self.directory):
      old.rename(self.directory)
    shutil.rmtree(old, ignore_errors=True)

  def _is_ours(self, file: str, planned: PlannedFile) -> bool:
    path = self.path / file
    try:
      with path.open("rb") as found:
        same = found.read(len(planned.beginning)) == planned.beginning
    except OSError:
      return False
    return same and path.stat().st_size == planned.num_bytes

  def _clear(self) -> None:
    for entry in self.path.iterdir():
      if entry.name != JOURNAL:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

  def _allocated(self, file: str) -> int:
    path = self.path / file
    return path.stat().st_blocks * 512 if path.is_file() else 0

  def _check_room(self, needed: int) -> None:
    free = shutil.disk_usage(self.path).free
    if needed > free:
      raise CannotWrite(
        f"{self.directory}: the merge needs {needed} bytes ({needed / 1e9:.1f} GB) on this disk, and"
        f" {free} ({free / 1e9:.1f} GB) are free; free some space or name a directory elsewhere"
      )

  def _allocate(self, file: str, planned: PlannedFile) -> None:
    path = self.path / file
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
      preallocate(descriptor, planned.num_bytes)
      os.pwrite(descriptor, planned.beginning, 0)
    finally:
      os.close(descriptor)

  def complete(self, name: str) -> None:
    """Notes that an output is complete. Calls must not overlap."""
    self._journal.append(name)

  def flushed(self, names: int) -> None:
    """Notes that the first so many outputs that were completed have reached the disk."""
    self._journal.append({"flushed": names})
    self._journal.flush()

  @property
  def num_complete(self) -> int:
    """How many outputs are complete, those of earlier runs included."""
    return self._journal.num_names

  def publish(self, *, flush: bool) -> None:
    """Renames `new` to OUT and removes the rest."""
    if flush:
      _flush_tree(self.new)
    self._check_out()
    old = self.path / OLD
    replaces = os.path.lexists(self.directory) and any(self.directory.iterdir())
    if replaces:
      self.directory.rename(old)
    try:
      self.new.rename(self.directory)
    except OSError:
      if replaces:
        old.rename(self.directory)
      raise
    if flush:
      _flush_directory(self.directory.parent)
    shutil.rmtree(self.path, ignore_errors=True)
    self._journal.close()

  def close(self) -> None:
    """Lets another process go on."""
    self._journal.close()

  @contextlib.contextmanager
  def writing(self) -> Iterator[None]:
    """Turns an OSError inside into CannotWrite, which says what becomes of what was written."""
    try:
      yield
    except OSError as error:
      if isinstance(error, WamError):
        raise
      full = error.errno in _FULL
      reason = "the disk is full" if full else f"{error.strerror or error}"
      kept = (
        f" What is complete is kept in {self.path}: give the same command again to go on"
        if self.path.is_dir()
        else ""
      )
      remedy = "free some space" if full else "mend that"
      raise CannotWrite(
        f"{self.directory}: could not be written: {reason}; {remedy} or name another directory.{kept}"
      ) from error


class _Journal:
  """Lines of JSON, appended one by one; the open file holds the lock."""

  def __init__(self, path: pathlib.Path, directory: pathlib.Path):
    self.num_names = 0
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    self._file = os.open(path, flags, 0o666)
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # The one before may have finished, and removed the file, between our opening and locking it.
      is_ours = path.exists() and os.path.samestat(os.fstat(self._file), path.stat())
    except OSError as error:
      # Some network file systems know no locks; there the user must see to it.
      is_ours = error.errno in _UNSUPPORTED or error.errno == errno.ENOLCK
    if not is_ours:
      os.close(self._file)
      raise ConfigError(f"{directory}: another process is merging into it; wait until it is done")

  def read(
    self, identity: Mapping[str, str], names: frozenset[str]
  ) -> tuple[frozenset[str] | None, str | None]:
    """The names of what is complete; None, and why not, if the journal is empty, damaged or of another merge."""
    content = os.pread(self._file, os.fstat(self._file).st_size, 0)
    lines = content.split(b"\n")
    # What follows the last newline was being written when the run was killed.
    os.ftruncate(self._file, len(content) - len(lines.pop()))
    if not lines:
      return None, None
    try:
      header, *entries = [json.loads(line) for line in lines]
      if header != identity:
        return None, "it was left by a merge of other inputs, or by another recipe"
      found = _fold(entries, names)
    except (ValueError, TypeError, KeyError):
      return None, "its journal is damaged"
    self.num_names = len(found)
    self.append({"boot": _boot()})
    return frozenset(found), None

  def begin(self, identity: Mapping[str, str]) -> None:
    """Empties it and writes the first lines."""
    os.ftruncate(self._file, 0)
    self.num_names = 0
    self.append(dict(identity))
    self.append({"boot": _boot()})

  def append(self, entry: Any) -> None:
    """Writes one line, at once and whole."""
    line = json.dumps(entry).encode() + b"\n"
    if os.write(self._file, line) < len(line):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    self.num_names += isinstance(entry, str)

  def flush(self) -> None:
    """Waits until it has reached the disk."""
    os.fsync(self._file)

  def close(self) -> None:
    """Gives the lock back."""
    if self._file >= 0:
      os.close(self._file)
      self._file = -1


def _fold(entries: list[Any], names: frozenset[str]) -> list[str]:
  """The names that can be relied on now."""
  found: list[str] = []
  flushed, boot = 0, None
  for entry in [*entries, {"boot": _boot()}]:
    if isinstance(entry, str):
      if entry not in names:
        raise ValueError(f"{entry} is none of the outputs")
      found.append(entry)
    elif "flushed" in entry:
      flushed = int(entry["flushed"])
    else:
      if boot is not None and entry["boot"] != boot:
        del found[flushed:]
      boot = entry["boot"]
  return found


def _boot() -> str:
  """Differs between one start of the machine and the next; empty where this cannot be known."""
  try:
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return ""


def _flush_tree(directory: pathlib.Path) -> None:
  for path in directory.rglob("*"):
    if path.is_file():
      descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
      try:
        os.fsync(descriptor)
      finally:
        os.close(descriptor)
  for path in [p for p in directory.rglob("*") if p.is_dir()]:
    _flush_directory(path)
  _flush_directory(directory)


def _flush_directory(directory: pathlib.Path) -> None:
  descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


class FlushClock:
  """Says when it is time to flush: FLUSH_SECONDS after the last time, to one thread only."""

  def __init__(self) -> None:
    self._last = time.monotonic()
    self._busy = False

  def is_due(self) -> bool:
    """Whether the caller should flush now, and call `done` afterwards. Calls must not overlap."""
    if self._busy or time.monotonic() - self._last < FLUSH_SECONDS:
      return False
    self._busy = True
    return True

  def done(self) -> None:
    """Starts to count again."""
    self._last = time.monotonic()
    self._busy = False
