"""Safetensors directories as Hugging Face lays them out: headers first, then one tensor at a time.

Three steps that do not know each other: read and check the headers (`read_directory`, and `read_header` of headers.py:
nothing in a file is believed before it is checked), get at the data (`open_tensor`, memory-mapped), and write
(`plan_shards`, `write_tensors`, inside `new_directory`, which leaves nothing half-written). NumPy only. Leaves out what
tensors mean.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import safetensors
import safetensors.numpy

from wam.checkpoints.headers import Header as Header
from wam.checkpoints.headers import TensorInfo, read_header
from wam.checkpoints.untrusted import read_json, shown
from wam.core.errors import BadCheckpoint, ConfigError, MissingFile, WamError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def _shards(index: pathlib.Path) -> dict[str, set[str]]:
  """Shard -> names of its tensors, from a checked index. Shards are plain names, so it cannot reach elsewhere."""
  weight_map = read_json(index, "index").get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise BadCheckpoint(f"{index}: expected a non-empty object weight_map")
  shards: dict[str, set[str]] = {}
  for name, shard in weight_map.items():
    plain = isinstance(shard, str) and shard == os.path.basename(shard) and "\\" not in shard
    if not plain or not shard.endswith(".safetensors") or not shard.isprintable():
      raise BadCheckpoint(
        f"{index}: tensor {shown(name)} is said to lie in {shown(shard)}; expected the name of a"
        " .safetensors file in the same directory"
      )
    shards.setdefault(shard, set()).add(name)
  return shards


def _refuse_no_safetensors(directory: pathlib.Path, files: Sequence[str]) -> WamError:
  pickles = [file for file in files if file.endswith(_PICKLES)]
  if pickles:
    return BadCheckpoint(
      f"{directory}: holds {_listed(pickles)} but no safetensors; pickles can run any code when"
      " they are opened and are refused. Convert it where you trust it: AutoModelForCausalLM"
      ".from_pretrained(OLD).save_pretrained(NEW) of transformers writes safetensors"
    )
  shards = [file for file in files if _SHARD.fullmatch(file)]
  beside = f", only {_listed(shards)}" if shards else ""
  return MissingFile(f"{directory}: expected {SINGLE} or {INDEX}, found neither{beside}")


def _listed(files: Iterable[str]) -> str:
  return ", ".join(file if file.isprintable() else shown(file) for file in sorted(files))


def read_directory(directory: str | os.PathLike[str]) -> dict[str, TensorInfo]:
  """All tensors of a directory by name, from checked headers only.

  Files may be links, as in the cache of the Hugging Face hub; where they lead is not asked.

  Raises:
    MissingFile: if the directory, or a shard that the index names, does not exist.
    BadCheckpoint: if a header or the index is malformed, index and shards disagree, there are only pickles, or files
      of two models lie side by side, so that nobody can tell which is meant.
  """
  directory = pathlib.Path(directory)
  if not os.path.isdir(directory):
    raise MissingFile(f"{directory}: no such directory; expected one with {SINGLE} or {INDEX}")
  try:
    files = sorted(os.listdir(directory))
  except OSError as error:
    raise BadCheckpoint(f"{directory}: cannot be read: {error.strerror}") from error
  if INDEX in files:
    return _read_sharded(directory, files)
  if SINGLE not in files:
    raise _refuse_no_safetensors(directory, files)
  shards = [file for file in files if _SHARD.fullmatch(file)]
  if shards:
    raise BadCheckpoint(
      f"{directory}: holds {SINGLE} and, without an index, {_listed(shards)}; which of them is the"
      " model? Remove the files that are left from another one"
    )
  return read_header(directory / SINGLE).tensors


def _read_sharded(directory: pathlib.Path, files: Sequence[str]) -> dict[str, TensorInfo]:
  index = directory / INDEX
  shards = _shards(index)
  ours = {f for f in files if f.startswith("model") and f.endswith(".safetensors")}
  if ours - shards.keys():
    raise BadCheckpoint(
      f"{index}: does not name {_listed(ours - shards.keys())}, which lie beside it; it names"
      f" {_listed(shards)}. Either the index is incomplete, or files of two models lie side by side:"
      " remove those that are left from another one"
    )
  missing = [shard for shard in shards if not os.path.exists(directory / shard)]
  if missing:
    raise MissingFile(f"{directory}: {INDEX} names shards that do not exist: {_listed(missing)}")
  found: dict[str, TensorInfo] = {}
  for shard, listed in sorted(shards.items()):
    tensors = read_header(directory / shard).tensors
    problems = [f"lacks {shown(n)}, which the index lists" for n in listed - tensors.keys()]
    problems += [
      f"holds {shown(n)}, which the index does not list" for n in tensors.keys() - listed
    ]
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


def index_text(plan: Mapping[str, Sequence[str]], num_bytes: Mapping[str, int]) -> str:
  """The content of the index file for the shards of `plan_shards`; `total_size` is in bytes."""
  index = {
    "metadata": {"total_size": sum(num_bytes.values())},
    "weight_map": {name: file for file, names in plan.items() for name in names},
  }
  return json.dumps(index, indent=2, sort_keys=True) + "\n"


def check_new(directory: pathlib.Path) -> None:
  """Raises ConfigError if `directory` exists and is not an empty directory."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ConfigError(f"{directory}: exists and is not empty; name a new directory or remove it")


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A temporary sibling that becomes `directory` when the block ends well, and vanishes when it does not.

  Raises:
    ConfigError: if `directory` exists and is not empty.
    WamError: if the disk is full or may not be written to.
  """
  directory = pathlib.Path(directory)
  check_new(directory)
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
    (directory / INDEX).write_text(index_text(plan, num_bytes))
