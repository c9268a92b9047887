"""Safetensors directories as Hugging Face lays them out: headers first, then one tensor at a time.

Three steps that do not know each other: read and check the headers (`read_header`, `read_directory`: nothing in a file
is believed before it is checked), get at the data (`open_tensor`, memory-mapped), and write (`plan_shards`,
`write_tensors`, inside `new_directory`, which leaves nothing half-written). NumPy only. Leaves out what tensors mean.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from wam.core.errors import BadCheckpoint, ConfigError, MissingFile, WamError

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
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The library's own limit; a longer header is an attack or garbage.
_MAX_HEADER_BYTES = 100_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


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


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  keys = [key for key, _ in pairs]
  if len(set(keys)) < len(keys):
    twice = sorted({key for key in keys if keys.count(key) > 1})
    raise ValueError(f"the key {twice[0]!r} occurs twice")
  return dict(pairs)


def _parse_json(path: pathlib.Path, text: bytes, what: str) -> dict[str, Any]:
  """A JSON object without duplicate keys, or BadCheckpoint."""
  try:
    data = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
  except (ValueError, RecursionError) as error:
    raise BadCheckpoint(f"{path}: the {what} is not valid JSON: {error}") from error
  if not isinstance(data, dict):
    raise BadCheckpoint(f"{path}: the {what} is a {type(data).__name__}, expected an object")
  return data


def _is_size(value: Any) -> bool:
  return type(value) is int and value >= 0


def _tensor_info(
  path: pathlib.Path, name: str, entry: Any, *, data_start: int, data_bytes: int
) -> TensorInfo:
  """Checks one entry of a header by itself."""

  def bad(problem: str) -> BadCheckpoint:
    return BadCheckpoint(f"{path}: tensor '{name}': {problem}; the file is damaged")

  if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
    raise bad(f"expected dtype, shape and data_offsets, found {str(entry)[:80]}")
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise bad(f"unknown dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
  if not isinstance(shape, list) or not all(_is_size(x) for x in shape):
    raise bad(f"shape {str(shape)[:80]} is not a list of sizes")
  if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(x) for x in offsets):
    raise bad(f"data_offsets {str(offsets)[:80]} are not two positions")
  begin, end = offsets
  if begin > end or end > data_bytes:
    raise bad(
      f"data_offsets [{begin}, {end}] lie outside the {data_bytes} bytes of data (truncated?)"
    )
  expected = math.prod(shape) * DTYPES[dtype].itemsize
  if end - begin != expected:
    raise bad(f"shape {shape} of {dtype} takes {expected} bytes, data_offsets span {end - begin}")
  return TensorInfo(name, DTYPES[dtype], tuple(shape), path, data_start + begin, end - begin)


def _check_layout(path: pathlib.Path, tensors: Sequence[TensorInfo], start: int, size: int) -> None:
  """The tensors, in the order of the data, must cover it without overlap or gap."""
  position, before = start, "the header"
  for tensor in tensors:
    if tensor.start != position:
      how = "overlaps" if tensor.start < position else "leaves a gap after"
      raise BadCheckpoint(f"{path}: tensor '{tensor.name}' {how} {before}; the file is damaged")
    position, before = tensor.start + tensor.num_bytes, f"tensor '{tensor.name}'"
  if position != size:
    raise BadCheckpoint(
      f"{path}: {size - position} bytes after {before} belong to no tensor; the file is damaged"
    )


def read_header(path: str | os.PathLike[str]) -> Header:
  """Reads the header of one file and checks all of it; no tensor data is read.

  Raises:
    MissingFile: if there is no such file.
    BadCheckpoint: if the file is truncated or malformed; names file and tensor.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingFile(f"{path}: no such file; expected a safetensors file")
  size = path.stat().st_size
  with path.open("rb") as file:
    prefix = file.read(8)
    if len(prefix) < 8:
      raise BadCheckpoint(f"{path}: {size} bytes are too few for a safetensors file (truncated?)")
    (length,) = struct.unpack("<Q", prefix)
    if length > size - 8 or length > _MAX_HEADER_BYTES:
      raise BadCheckpoint(
        f"{path}: the header claims {length} bytes, the file has {size - 8} (truncated, or not"
        " safetensors; a large file in git may be an LFS pointer that was never fetched)"
      )
    text = file.read(length)
  data = _parse_json(path, text, "header")
  metadata = data.pop("__metadata__", {})
  if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
    raise BadCheckpoint(f"{path}: __metadata__ must map strings to strings")
  start = 8 + length
  tensors = [
    _tensor_info(path, name, entry, data_start=start, data_bytes=size - start)
    for name, entry in data.items()
  ]
  tensors.sort(key=lambda tensor: (tensor.start, tensor.num_bytes))
  _check_layout(path, tensors, start, size)
  return Header({tensor.name: tensor for tensor in tensors}, metadata)


def _weight_map(index: pathlib.Path) -> dict[str, str]:
  """The checked map from tensor to shard; shards are plain names, so an index cannot reach out of its directory."""
  data = _parse_json(index, index.read_bytes(), "index")
  weight_map = data.get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise BadCheckpoint(f"{index}: expected a non-empty object weight_map")
  for name, shard in weight_map.items():
    plain = isinstance(shard, str) and shard == os.path.basename(shard) and "\\" not in shard
    if not plain or not shard.endswith(".safetensors") or "\0" in shard:
      raise BadCheckpoint(
        f"{index}: tensor '{name}' is said to lie in {shard!r}; expected the name of a"
        " .safetensors file in the same directory"
      )
  return weight_map


def _refuse_no_safetensors(directory: pathlib.Path) -> WamError:
  pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
  if pickles:
    return BadCheckpoint(
      f"{directory}: holds {', '.join(pickles)} but no safetensors; pickles can run any code when"
      " they are opened and are refused. Convert it where you trust it: AutoModelForCausalLM"
      ".from_pretrained(OLD).save_pretrained(NEW) of transformers writes safetensors"
    )
  return MissingFile(f"{directory}: expected {SINGLE} or {INDEX}, found neither")


def read_directory(directory: str | os.PathLike[str]) -> dict[str, TensorInfo]:
  """All tensors of a directory by name, from checked headers only.

  Raises:
    MissingFile: if the directory, or a shard that the index names, does not exist.
    BadCheckpoint: if a header or the index is malformed, index and shards disagree, or there are only pickles.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise MissingFile(f"{directory}: no such directory; expected one with {SINGLE} or {INDEX}")
  index, single = directory / INDEX, directory / SINGLE
  if not index.is_file():
    if not single.is_file():
      raise _refuse_no_safetensors(directory)
    return read_header(single).tensors
  weight_map = _weight_map(index)
  shards = sorted(set(weight_map.values()))
  missing = [shard for shard in shards if not (directory / shard).is_file()]
  if missing:
    raise MissingFile(f"{directory}: {INDEX} names shards that do not exist: {', '.join(missing)}")
  unlisted = {p.name for p in directory.glob("model*.safetensors")} - set(shards)
  if unlisted:
    raise BadCheckpoint(
      f"{index}: does not name {', '.join(sorted(unlisted))}, which lie beside it; either the"
      " index is incomplete or these files are left from another model: remove them"
    )
  found: dict[str, TensorInfo] = {}
  for shard in shards:
    tensors = read_header(directory / shard).tensors
    listed = {name for name, file in weight_map.items() if file == shard}
    problems = [f"lacks '{name}', which the index lists" for name in sorted(listed - set(tensors))]
    problems += [f"holds '{n}', which the index does not list" for n in set(tensors) - listed]
    if problems:
      raise BadCheckpoint(f"{directory / shard}: " + "; ".join(sorted(problems)))
    found |= tensors
  return found


def open_tensor(tensor: TensorInfo) -> np.ndarray:
  """The tensor as a read-only memory map: nothing is read before it is used."""
  if not tensor.num_bytes:
    return np.zeros(tensor.shape, tensor.dtype)
  raw = np.memmap(tensor.path, np.uint8, mode="r", offset=tensor.start, shape=(tensor.num_bytes,))
  return raw.view(tensor.dtype).reshape(tensor.shape)


def plan_shards(num_bytes: Mapping[str, int], shard_bytes: int) -> dict[str, list[str]]:
  """File name -> names of its tensors, in the given order; a shard holds at most `shard_bytes`, or one tensor.

  >>> plan_shards({"a": 4, "b": 4, "c": 1}, 5)
  {'model-00001-of-00002.safetensors': ['a'], 'model-00002-of-00002.safetensors': ['b', 'c']}
  >>> plan_shards({"a": 4, "b": 4}, 8)
  {'model.safetensors': ['a', 'b']}

  Raises:
    ConfigError: if `shard_bytes` is not positive.
  """
  if shard_bytes < 1:
    raise ConfigError(f"shard_bytes: expected at least 1, found {shard_bytes}")
  shards: list[list[str]] = [[]]
  used = 0
  for name, size in num_bytes.items():
    if shards[-1] and used + size > shard_bytes:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  if len(shards) == 1:
    return {SINGLE: shards[0]}
  total = len(shards)
  return {f"model-{i:05d}-of-{total:05d}.safetensors": names for i, names in enumerate(shards, 1)}


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A temporary sibling that becomes `directory` when the block ends well, and vanishes when it does not.

  Raises:
    ConfigError: if `directory` exists and is not empty.
    WamError: if the disk is full or may not be written to.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ConfigError(f"{directory}: exists and is not empty; name a new directory or remove it")
  temporary: pathlib.Path | None = None
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(
      tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent)
    )
    inside = temporary / "new"
    inside.mkdir()  # mkdtemp is private; this one gets the modes that the umask allows
    yield inside
    # POSIX: replaces an empty directory in one step.
    os.rename(inside, directory)
  except (OSError, safetensors.SafetensorError) as error:
    if isinstance(error, WamError):
      raise
    raise WamError(
      f"{directory}: could not be written: {_reason(error)}. Nothing was left behind"
    ) from error
  finally:
    if temporary is not None:
      shutil.rmtree(temporary, ignore_errors=True)


def _reason(error: Exception) -> str:
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
  if full or "No space left" in str(error):
    return "the disk is full; free some space or name another disk"
  return str(error)


def write_tensors(
  directory: pathlib.Path,
  num_bytes: Mapping[str, int],
  tensor: Callable[[str], np.ndarray],
  *,
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes shards and, when there are several, the index. Holds one shard in memory at a time.

  Args:
    directory: exists; use `new_directory`.
    num_bytes: name -> size in bytes, in the order to be written.
    tensor: gives the array of a name.
    shard_bytes: the size of a shard, at most.
  """
  plan = plan_shards(num_bytes, shard_bytes)
  for file, names in plan.items():
    path = directory / file
    path.touch()
    mode = path.stat().st_mode
    arrays = {name: np.asarray(tensor(name), order="C") for name in names}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(mode)  # the library creates files that only their owner can read
  if len(plan) > 1:
    index = {
      "metadata": {"total_size": sum(num_bytes.values())},
      "weight_map": {name: file for file, names in plan.items() for name in names},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
