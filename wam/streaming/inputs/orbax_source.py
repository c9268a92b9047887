"""Orbax checkpoints of any pytree, read in slices with TensorStore. Neither JAX nor Orbax is loaded.

An item of a checkpoint is a directory with _METADATA: JSON that lists the leaves of the tree and says how their arrays
are stored (one OCDBT database or a directory each, Zarr 2 or 3). Arrays lie there in chunks, as a rule what one device
held, compressed one by one, so a chunk must be decoded whole. Small chunks are kept in memory for a while. Arrays with
large ones are unpacked, chunk by chunk as they are asked for, into a temporary file without a name; the memory needed
is one chunk a thread (`OrbaxSource.chunk_bytes`).

Leaves out writing (sinks.py, checkpoints/orbax.py) and checkpoints of before Orbax 0.4, which have no _METADATA.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam.checkpoints.untrusted import check_regular, is_printable, read_json, shown
from wam.core.errors import BadCheckpoint
from wam.streaming.inputs import files
from wam.streaming.inputs.chunks import UnpackedArrays, boxes
from wam.streaming.plan import Reader

METADATA = "_METADATA"
_MANIFEST = "manifest.ocdbt"
_READ_WHOLE = (METADATA, _MANIFEST, ".zarray", "zarr.json")
# Decoded chunks that are kept in memory for all checkpoints together; larger chunks are unpacked to a file.
_CACHE_BYTES = 1 << 26
# For the tables of one database.
_DATABASE_CACHE_BYTES = 1 << 23
_LARGE_CHUNK_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class OrbaxSource:
  """An item of an Orbax checkpoint; a `Source`. Names are paths in the tree, joined by "/".

  Attributes:
    item: its directory.
    chunk_bytes: of the largest chunk once it is decoded: each reading thread may need as much memory.
  """

  label: str
  tensors: Mapping[str, Reader]
  item: pathlib.Path
  directory: pathlib.Path | None
  config: Mapping[str, Any] | None
  chunk_bytes: int
  unpacked: UnpackedArrays

  @property
  def files(self) -> Sequence[pathlib.Path]:
    """All files of the item, then those that lie beside a model of ours."""
    return [*sorted(p for p in self.item.rglob("*") if p.is_file()), *files.companions(self)]

  def close(self) -> None:
    """Frees the temporary files."""
    self.unpacked.clear()


@dataclasses.dataclass(frozen=True, slots=True)
class OrbaxReader:
  """One array of an Orbax checkpoint; a `Reader`.

  Attributes:
    name: its path in the tree.
    shape: of the array.
    dtype: as stored.
    origin: what the user called the checkpoint.
    array: the open TensorStore.
    unpacked: where arrays with large chunks are unpacked; None for others.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  origin: str
  array: Any
  unpacked: UnpackedArrays | None

  def read(self, start: int, stop: int) -> np.ndarray:
    """The entries [start, stop) in C order; see `plan.Reader`."""
    if start == stop:
      return np.empty(0, self.dtype)
    if self.unpacked is not None:
      return self.unpacked.read(self, start, stop)
    values = np.empty(stop - start, self.dtype)
    filled = 0
    for box in boxes(self.shape, start, stop):
      part = self.read_box(box)
      values[filled : filled + part.size] = part.ravel()
      filled += part.size
    return values

  def read_box(self, box: tuple[slice, ...]) -> np.ndarray:
    """A part of the array.

    Raises:
      BadCheckpoint: if data is missing or damaged.
    """
    try:
      return self.array[box].read().result()
    except (ValueError, OSError, RuntimeError) as error:
      raise BadCheckpoint(
        f"{self.origin}: tensor {shown(self.name)} cannot be read: {_first_line(error)}"
      ) from error

  @property
  def chunk_shape(self) -> tuple[int, ...]:
    """Of what is decoded at a time."""
    return chunk_shape(self.array)


def chunk_shape(array: Any) -> tuple[int, ...]:
  """The shape of what TensorStore decodes at a time; at most that of the array."""
  chunk = array.chunk_layout.read_chunk.shape or array.shape
  return tuple(min(c or n, n) for c, n in zip(chunk, array.shape, strict=True))


def open_checkpoint(path: pathlib.Path, label: str) -> OrbaxSource:
  """Opens a checkpoint that holds one item with arrays, or such an item itself.

  Raises:
    BadCheckpoint: if there are several items, none, or one that is incomplete or damaged; names what is there.
  """
  item = _item(path)
  check_regular(item, short=_READ_WHOLE)
  metadata = read_json(item / METADATA, "metadata of Orbax")
  names = _leaves(item, metadata)
  arrays = _open_arrays(item, metadata, names, _CACHE_BYTES)
  dtypes = {name: _dtype(item, name, array) for name, array in arrays.items()}
  chunks = {n: math.prod(chunk_shape(a)) * dtypes[n].itemsize for n, a in arrays.items()}
  _check_memory(item, arrays, dtypes)
  large = {n: stored for n, stored in names.items() if chunks[n] > _LARGE_CHUNK_BYTES}
  # These are kept unpacked; to keep them in memory as well would be a waste.
  arrays |= _open_arrays(item, metadata, large, 0)
  unpacked = UnpackedArrays()
  tensors: dict[str, Reader] = {
    n: OrbaxReader(n, tuple(a.shape), dtypes[n], label, a, unpacked if n in large else None)
    for n, a in arrays.items()
  }
  largest = max(chunks.values(), default=0)
  config = files.read_config(path)
  directory = None if config is None else path
  return OrbaxSource(label, tensors, item, directory, config, largest, unpacked)


def _check_memory(
  item: pathlib.Path, arrays: Mapping[str, Any], dtypes: Mapping[str, np.dtype]
) -> None:
  """Refuses chunks that cannot be decoded: TensorStore ends the process when memory that it asks for is not there."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  for name, array in arrays.items():
    chunk = array.chunk_layout.read_chunk.shape or array.shape
    needed = math.prod(max(n, 1) for n in chunk) * dtypes[name].itemsize
    if needed > memory:
      raise BadCheckpoint(
        f"{item}: {shown(name)} is stored in chunks of {needed} bytes, this machine has {memory} of"
        " memory; save the checkpoint in smaller chunks, if it is not damaged"
      )


def _item(path: pathlib.Path) -> pathlib.Path:
  """The directory with the metadata: `path`, or the only one in it."""
  if ".orbax-checkpoint-tmp" in path.name:
    raise BadCheckpoint(f"{path}: the Orbax checkpoint was never completed")
  if (path / METADATA).is_file():
    return path
  items = sorted(p.parent for p in path.glob(f"*/{METADATA}"))
  if len(items) == 1:
    return items[0]
  if items:
    raise BadCheckpoint(
      f"{path}: holds {len(items)} items, {', '.join(p.name for p in items)}; name the one that"
      f" holds the weights, for instance {items[0]}"
    )
  raise BadCheckpoint(
    f"{path}: no item of this Orbax checkpoint has {METADATA}, which lists its arrays. If it was"
    " written by an Orbax of before 0.4, load and save it with a current one; else it was never"
    " completed"
  )


def _leaves(item: pathlib.Path, metadata: Mapping[str, Any]) -> dict[str, str]:
  """Name -> name in storage of every array, in the order of the tree."""
  tree = metadata.get("tree_metadata")
  if not isinstance(tree, dict) or not all(isinstance(x, dict) for x in tree.values()):
    raise BadCheckpoint(f"{item / METADATA}: expected tree_metadata with an entry a leaf")
  names: dict[str, str] = {}
  other = []
  for entry in tree.values():
    keys = entry.get("key_metadata")
    value = entry.get("value_metadata")
    if not isinstance(keys, list) or not isinstance(value, dict):
      raise BadCheckpoint(f"{item / METADATA}: expected keys and a value, found {shown(entry)}")
    path = [str(key.get("key")) for key in keys if isinstance(key, dict)]
    name = "/".join(path)
    if value.get("skip_deserialize"):
      continue  # an empty container, or None
    if value.get("value_type") == "string":
      other.append(name)
    if not is_printable(name):
      raise BadCheckpoint(
        f"{item / METADATA}: the name {shown(name)} holds a control character or half a character"
      )
    if name in names:
      raise BadCheckpoint(f"{item / METADATA}: two leaves are called {shown(name)}")
    names[name] = ".".join(path)
  if other:
    raise BadCheckpoint(
      f"{item}: {', '.join(map(shown, other))} are texts, which cannot be merged; save the weights as"
      " an item of their own"
    )
  return names


def _open_arrays(
  item: pathlib.Path, metadata: Mapping[str, Any], names: Mapping[str, str], cache_bytes: int
) -> dict[str, Any]:
  """The open TensorStores by name; no data is read."""
  import tensorstore

  is_database = bool(metadata.get("use_ocdbt", (item / _MANIFEST).is_file()))
  if is_database and not (item / _MANIFEST).is_file():
    raise BadCheckpoint(f"{item}: has no {_MANIFEST}; the Orbax checkpoint was never completed")
  # What is remembered of a database is not checked again when it is opened once more, hence a memory of its own.
  database = {"cache_pool#ocdbt": {"total_bytes_limit": _DATABASE_CACHE_BYTES}}
  context = tensorstore.Context(database, parent=_context(cache_bytes))
  opening = {}
  for name, stored in names.items():
    spec = {
      "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
      "kvstore": _place(item, stored, is_database=is_database),
      # A checkpoint may have been replaced by another one at the same place since it was last opened.
      "recheck_cached_data": "open",
      "recheck_cached_metadata": "open",
      # What was all zeros used to be left out; since it is not, a missing chunk is damage.
      "fill_missing_data_reads": not metadata.get("store_array_data_equal_to_fill_value", False),
    }
    opening[name] = tensorstore.open(spec, read=True, open=True, context=context)
  arrays = {}
  problems = []
  for name, future in opening.items():
    try:
      arrays[name] = future.result()
    except (ValueError, OSError, RuntimeError) as error:
      problems.append(f"{shown(name)}: {_first_line(error)}")
  if problems:
    raise BadCheckpoint(f"{item}: {len(problems)} arrays cannot be opened: {'; '.join(problems)}")
  return arrays


def _place(item: pathlib.Path, stored: str, *, is_database: bool) -> dict[str, Any]:
  path = os.path.abspath(item)
  if is_database:
    base = {"driver": "file", "path": f"{path}/"}
    cache = "cache_pool#ocdbt"
    return {"driver": "ocdbt", "base": base, "path": f"{stored}/", "cache_pool": cache}
  if not set(stored.split("/")).isdisjoint(("", ".", "..")):
    raise BadCheckpoint(f"{item / METADATA}: the name {shown(stored)} leads out of the checkpoint")
  return {"driver": "file", "path": f"{path}/{stored}/"}


@functools.cache
def _context(cache_bytes: int) -> Any:
  """Shared by all checkpoints, so that one bound holds for all."""
  import tensorstore

  return tensorstore.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})


def _dtype(item: pathlib.Path, name: str, array: Any) -> np.dtype:
  try:
    dtype = np.dtype(array.dtype.numpy_dtype)
  except (TypeError, AttributeError, ValueError) as error:
    raise BadCheckpoint(f"{item}: {shown(name)} is of type {array.dtype}, not numbers") from error
  if dtype.hasobject:
    raise BadCheckpoint(f"{item}: {shown(name)} is of type {array.dtype}, not numbers")
  return dtype


def _first_line(error: Exception) -> str:
  return shown(str(error).strip().split("\n")[0])
