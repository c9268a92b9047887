"""Arrays that are stored in chunks: which boxes a run of entries is, and how large chunks are decoded only once.

Where chunks are too large to be decoded for every read, they are unpacked into temporary files as they are needed.
The files have no names, so that nothing is left behind; they lie in TMPDIR, else in /var/tmp, which unlike /tmp is not
kept in memory. Only the arrays in use stay.
"""

import errno
import itertools
import math
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from wam.checkpoints.records import CannotWrite
from wam.streaming.results.partial import preallocate

# The newest arrays stay, however large they are; older ones while they take no more than this together.
_KEPT = 4
_KEPT_BYTES = 1 << 32


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
  """The entries [start, stop) of an array in C order, cut into boxes that together hold them in that order.

  >>> [tuple((s.start, s.stop) for s in box) for box in boxes((4, 3), 1, 10)]
  [((0, 1), (1, 3)), ((1, 3), (0, 3)), ((3, 4), (0, 1))]
  """
  if not shape:
    yield ()
    return
  inner, row = shape[1:], math.prod(shape[1:])
  (first, head), (last, tail) = divmod(start, row), divmod(stop, row)
  if first == last:
    yield from ((slice(first, first + 1), *box) for box in boxes(inner, head, tail))
    return
  if head:
    yield from ((slice(first, first + 1), *box) for box in boxes(inner, head, row))
    first += 1
  if first < last:
    yield (slice(first, last), *(slice(0, n) for n in inner))
  if tail:
    yield from ((slice(last, last + 1), *box) for box in boxes(inner, 0, tail))


class ChunkedReader(Protocol):
  """An array that is decoded in chunks."""

  @property
  def name(self) -> str: ...  # noqa: D102
  @property
  def shape(self) -> tuple[int, ...]: ...  # noqa: D102
  @property
  def dtype(self) -> np.dtype: ...  # noqa: D102
  @property
  def chunk_shape(self) -> tuple[int, ...]: ...  # noqa: D102

  def read_box(self, box: tuple[slice, ...]) -> np.ndarray: ...  # noqa: D102


class UnpackedArrays:
  """The arrays of one checkpoint that are unpacked at the moment."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._arrays: dict[str, Unpacked] = {}

  def read(self, reader: ChunkedReader, start: int, stop: int) -> np.ndarray:
    """The entries [start, stop) of an array in C order."""
    with self._lock:
      array = self._arrays.pop(reader.name, None) or Unpacked(reader)
      self._arrays[reader.name] = array  # now the newest
      self._forget()
    return array.read(start, stop)

  def _forget(self) -> None:
    """Drops the oldest. A thread that reads one of them keeps its memory map until it is done."""
    while (
      len(self._arrays) > _KEPT and sum(x.num_bytes for x in self._arrays.values()) > _KEPT_BYTES
    ):
      self._arrays.pop(next(iter(self._arrays)))

  def clear(self) -> None:
    """Drops all."""
    with self._lock:
      self._arrays.clear()


class Unpacked:
  """One array in a file without a name; chunks are decoded when they are first touched."""

  def __init__(self, reader: ChunkedReader):
    self._reader = reader
    self._chunk = reader.chunk_shape
    self._lock = threading.Lock()
    self._done: set[tuple[int, ...]] = set()
    self.num_bytes = math.prod(reader.shape) * reader.dtype.itemsize
    self._values = _temporary(reader, self.num_bytes)

  def read(self, start: int, stop: int) -> np.ndarray:
    """The entries [start, stop) in C order."""
    for box in boxes(self._reader.shape, start, stop):
      ranges = (
        range(s.start // c, (s.stop - 1) // c + 1) for s, c in zip(box, self._chunk, strict=True)
      )
      for chunk in itertools.product(*ranges):
        self._unpack(chunk)
    return np.array(self._values.reshape(-1)[start:stop])

  def _unpack(self, chunk: tuple[int, ...]) -> None:
    with self._lock:
      if chunk in self._done:
        return
      sides = zip(chunk, self._chunk, self._reader.shape, strict=True)
      box = tuple(slice(i * size, min((i + 1) * size, length)) for i, size, length in sides)
      self._values[box] = self._reader.read_box(box)
      self._done.add(chunk)


def _temporary(reader: ChunkedReader, num_bytes: int) -> Any:
  """A writable memory map of a file without a name, with room for the array on the disk."""
  directory = os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else None)
  try:
    with tempfile.TemporaryFile(dir=directory, prefix="wam-") as file:
      # A full disk gives an error here, and not a signal when the map is written to.
      preallocate(file.fileno(), num_bytes)
      return np.memmap(file, reader.dtype, "r+", shape=reader.shape)
  except OSError as error:
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
    raise CannotWrite(
      f"'{reader.name}' must be unpacked into a temporary file of {num_bytes} bytes in"
      f" {directory or pathlib.Path(tempfile.gettempdir())}: {reason}. Set TMPDIR to a directory"
      " with more room"
    ) from error
