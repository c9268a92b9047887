"""The header of a safetensors file: where each tensor lies. Nothing that is read is believed before it is checked.

Format: https://huggingface.co/docs/safetensors (8 bytes of length, JSON, data). Leaves out directories and data.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from wam.checkpoints.untrusted import MAX_BYTES, open_regular, parse_json, read_exactly, shown
from wam.core.errors import BadCheckpoint, ConfigError

# Name in the header -> NumPy dtype.
DTYPES: dict[str, np.dtype] = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "U16": np.dtype(np.uint16),
  "I16": np.dtype(np.int16),
  "U32": np.dtype(np.uint32),
  "I32": np.dtype(np.int32),
  "U64": np.dtype(np.uint64),
  "I64": np.dtype(np.int64),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype(np.float32),
  "F64": np.dtype(np.float64),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
# What NumPy can hold: axes, and bytes of an array (were its empty axes of size 1).
_MAX_RANK = 64
_MAX_TENSOR_BYTES = 2**63 - 1
_HALF = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor lies, from a checked header.

  Attributes:
    name: of the tensor.
    dtype: of the stored numbers.
    shape: of the tensor.
    path: of the file.
    start: byte offset from the beginning of the file.
    num_bytes: how many bytes it takes.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  path: pathlib.Path
  start: int
  num_bytes: int


@dataclasses.dataclass(frozen=True)
class Header:
  """The checked header of one file.

  Attributes:
    tensors: by name, in the order of the data.
    metadata: the strings under __metadata__.
  """

  tensors: dict[str, TensorInfo]
  metadata: dict[str, str]


def _is_size(value: Any) -> bool:
  return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
  """Whether it is a string that can be written again: JSON can hold half a character."""
  return isinstance(value, str) and not _HALF.search(value)


def _num_bytes(shape: Sequence[int], dtype: np.dtype) -> int | None:
  """How many bytes an array takes; None if NumPy cannot hold it, were there memory enough."""
  if len(shape) > _MAX_RANK:
    return None
  # Step by step: the product of a long list of long numbers would take hours.
  num_bytes = dtype.itemsize
  for size in shape:
    num_bytes *= max(size, 1)
    if num_bytes > _MAX_TENSOR_BYTES:
      return None
  return num_bytes if all(shape) else 0


def _tensor_info(
  path: pathlib.Path, name: str, entry: Any, *, data_start: int, data_bytes: int
) -> TensorInfo:
  """Checks one entry of a header by itself."""

  def bad(problem: str) -> BadCheckpoint:
    return BadCheckpoint(f"{path}: tensor {shown(name)}: {problem}; the file is damaged")

  if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
    raise bad(f"expected dtype, shape and data_offsets, found {shown(entry)}")
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise bad(f"unknown dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}")
  if not isinstance(shape, list) or not all(_is_size(x) for x in shape):
    raise bad(f"shape {shown(shape)} is not a list of sizes")
  if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(x) for x in offsets):
    raise bad(f"data_offsets {shown(offsets)} are not two positions")
  begin, end = offsets
  if begin > end or end > data_bytes:
    raise bad(
      f"data_offsets {shown(offsets)} lie outside the {data_bytes} bytes of data (truncated?)"
    )
  expected = _num_bytes(shape, DTYPES[dtype])
  if expected is None:
    raise bad(f"no array can have the shape {shown(shape)}")
  if end - begin != expected:
    raise bad(f"shape {shape} of {dtype} takes {expected} bytes, data_offsets span {end - begin}")
  return TensorInfo(name, DTYPES[dtype], tuple(shape), path, data_start + begin, end - begin)


def _check_layout(path: pathlib.Path, tensors: Sequence[TensorInfo], start: int, size: int) -> None:
  """The tensors, in the order of the data, must cover it without overlap or gap."""

  def after(number: int) -> str:
    return f"tensor {shown(tensors[number - 1].name)}" if number else "the header"

  position = start
  for number, tensor in enumerate(tensors):
    if tensor.start != position:
      how = "overlaps" if tensor.start < position else "leaves a gap after"
      raise BadCheckpoint(
        f"{path}: tensor {shown(tensor.name)} {how} {after(number)}; the file is damaged"
      )
    position += tensor.num_bytes
  if position != size:
    raise BadCheckpoint(
      f"{path}: {size - position} bytes after {after(len(tensors))} belong to no tensor; the file is"
      " damaged"
    )


def read_header(path: str | os.PathLike[str]) -> Header:
  """Reads the header of one file and checks all of it; no tensor data is read.

  Raises:
    MissingFile: if there is no such file.
    BadCheckpoint: if the file is truncated or malformed; names file and tensor.
  """
  path = pathlib.Path(path)
  with open_regular(path, "a safetensors file") as file:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
      raise BadCheckpoint(f"{path}: {size} bytes are too few for a safetensors file (truncated?)")
    (length,) = struct.unpack("<Q", read_exactly(path, file, 8))
    if length > size - 8:
      raise BadCheckpoint(
        f"{path}: the header claims {length} bytes, the file has {size - 8} (truncated, or not"
        " safetensors; a large file in git may be an LFS pointer that was never fetched)"
      )
    if length > MAX_BYTES:
      raise BadCheckpoint(
        f"{path}: the header claims {length} bytes; at most {MAX_BYTES} are believed"
      )
    data = parse_json(path, read_exactly(path, file, length), "header")
  metadata = data.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(_is_text(x) for x in metadata.values()):
    raise BadCheckpoint(f"{path}: __metadata__ must map strings to strings")
  start = 8 + length
  tensors = [
    _tensor_info(path, name, entry, data_start=start, data_bytes=size - start)
    for name, entry in data.items()
  ]
  tensors.sort(key=lambda tensor: (tensor.start, tensor.num_bytes))
  _check_layout(path, tensors, start, size)
  return Header({tensor.name: tensor for tensor in tensors}, metadata)


def build_header(
  tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
  metadata: Mapping[str, str] | None = None,
) -> tuple[bytes, dict[str, int]]:
  """The beginning of a file that holds `tensors`, and where each of them lies.

  The data follows in the order given, except that wider numbers come first: there are no gaps in the format, and
  readers that map a file need every number at a multiple of its width.

  Args:
    tensors: name -> (dtype, shape).
    metadata: strings for __metadata__; default {"format": "pt"}, without which transformers refuses a file.

  Returns:
    The bytes before the data (a multiple of 8), and name -> byte offset from the beginning of the file.

  Raises:
    ConfigError: if a name or a dtype cannot be stored; names the tensor.
  """
  entries: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
  position, starts = 0, {}
  for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
    if name == "__metadata__":
      raise ConfigError("a tensor cannot be called '__metadata__' in a safetensors file")
    if dtype not in _CODES:
      raise ConfigError(f"tensor '{name}': a safetensors file cannot hold {dtype}")
    end = position + math.prod(shape) * dtype.itemsize
    entries[name] = {
      "dtype": _CODES[dtype],
      "shape": list(shape),
      "data_offsets": [position, end],
    }
    starts[name], position = position, end
  text = json.dumps(entries, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  if len(text) > MAX_BYTES:
    raise ConfigError(f"the names of {len(tensors)} tensors do not fit into one header; use shards")
  header = struct.pack("<Q", len(text)) + text
  return header, {name: len(header) + start for name, start in starts.items()}
