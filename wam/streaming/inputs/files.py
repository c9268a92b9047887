"""Tensors in safetensors files, read piece by piece by several threads, and the checkpoint that they make up.

Reads go by position into new arrays, not through a memory map: a file that was cut short gives an error and no
SIGBUS, and what was read lies in the page cache alone. Leaves out what a user may name as a checkpoint (sources.py).
"""

import dataclasses
import math
import os
import pathlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from wam.checkpoints.headers import TensorInfo
from wam.checkpoints.untrusted import open_regular, read_json, shown
from wam.core.errors import BadCheckpoint
from wam.streaming.plan import Reader, Source
from wam.streaming.vocabularies.tokenizer_files import donor_files

CONFIG = "config.json"


class OpenFile:
  """A file that is opened when it is first read, once for all threads, and not inherited by child processes."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._lock = threading.Lock()
    self._file: BinaryIO | None = None
    self._closed = False

  def read_into(self, array: np.ndarray, position: int, name: str) -> None:
    """Fills an array of bytes from `position` on; `name` is the tensor that they belong to, for messages.

    Raises:
      BadCheckpoint: if the file ends before, or cannot be read.
    """
    descriptor = self._descriptor()
    filled = 0
    while filled < array.size:
      try:
        count = os.preadv(descriptor, [array[filled:].data], position + filled)
      except OSError as error:
        raise BadCheckpoint(
          f"{self.path}: tensor {shown(name)} cannot be read: {error.strerror}"
        ) from error
      if not count:
        raise BadCheckpoint(
          f"{self.path}: ends {array.size - filled} bytes before what is read of tensor"
          f" {shown(name)}; it has become shorter since its header was read. Wait until it is"
          " complete, or fetch it again"
        )
      filled += count

  def _descriptor(self) -> int:
    file = self._file
    if file is None:
      with self._lock:
        if self._closed:
          raise ValueError(f"{self.path} was closed")
        if self._file is None:
          self._file = open_regular(self.path, "a safetensors file")
        file = self._file
    return file.fileno()

  def close(self) -> None:
    """Closes it for good; no thread may be reading."""
    with self._lock:
      self._closed = True
      if self._file is not None:
        self._file.close()
        self._file = None

  def __del__(self) -> None:
    self.close()


@dataclasses.dataclass(frozen=True, slots=True)
class TensorReader:
  """One tensor of a safetensors file; a `Reader`.

  Attributes:
    name: of the tensor.
    shape: of the tensor.
    dtype: as stored.
    origin: what the user called the checkpoint.
    file: where it lies.
    start: byte offset from the beginning of the file.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  origin: str
  file: OpenFile
  start: int

  def read(self, start: int, stop: int) -> np.ndarray:
    """The entries [start, stop) in C order, in a new array; see `plan.Reader`."""
    values = np.empty(stop - start, self.dtype)
    position = self.start + start * self.dtype.itemsize
    self.file.read_into(values.view(np.uint8), position, self.name)
    return values


def readers(tensors: Iterable[TensorInfo], *, origin: str) -> dict[str, Reader]:
  """Readers of tensors by name, in the order given; those in one file share its descriptor."""
  files: dict[pathlib.Path, OpenFile] = {}
  return {
    t.name: TensorReader(
      t.name, t.shape, t.dtype, origin, files.setdefault(t.path, OpenFile(t.path)), t.start
    )
    for t in tensors
  }


def read_whole(reader: Reader) -> np.ndarray:
  """All of a tensor, in its shape."""
  return reader.read(0, math.prod(reader.shape)).reshape(reader.shape)


@dataclasses.dataclass(frozen=True)
class FileSource:
  """A checkpoint in safetensors files; a `Source`.

  Attributes:
    weights: the files that hold the tensors, and their index.
  """

  label: str
  tensors: Mapping[str, Reader]
  weights: Sequence[pathlib.Path]
  config: Mapping[str, Any] | None
  directory: pathlib.Path | None

  @property
  def files(self) -> Sequence[pathlib.Path]:
    """The weights, then what lies beside them."""
    return [*self.weights, *companions(self)]

  def close(self) -> None:
    """Closes the files."""
    for reader in self.tensors.values():
      if isinstance(reader, TensorReader):
        reader.file.close()


def companions(source: Source) -> list[pathlib.Path]:
  """The files beside the weights that a merge looks at or copies: config.json first, then tokenizer and generation."""
  if source.directory is None:
    return []
  config = source.directory / CONFIG
  return [*([config] if config.is_file() else []), *donor_files(source).values()]


def read_config(directory: pathlib.Path) -> dict[str, Any] | None:
  """The content of config.json; None where there is none.

  Raises:
    BadCheckpoint: if it is not a JSON object, or says that the weights are quantised.
  """
  path = directory / CONFIG
  if not path.is_file():
    return None
  config = read_json(path, "config", infinities=True)
  quantization = config.get("quantization_config")
  if quantization:
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    raise BadCheckpoint(
      f"{path}: the weights are quantised ({shown(method)}); numbers without their scales cannot be"
      " merged. Give the checkpoint that was quantised, or one that was converted back"
    )
  return config
