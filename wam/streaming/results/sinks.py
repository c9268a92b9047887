"""Where a merge is written: a Hugging Face directory or an Orbax checkpoint, in place, and seen only when it is whole.

Every output has its place in a preallocated file before anything is computed; several threads write there by position.
What is written can be resumed after a kill, see partial.py. Leaves out what lies beside the weights (config, tokenizer,
manifest): the caller hands it to `finish`.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from wam.checkpoints import safetensors
from wam.checkpoints.headers import build_header
from wam.core.errors import ConfigError
from wam.streaming.plan import Output
from wam.streaming.results.partial import NEW, FlushClock, Partial, PlannedFile

# Content, the path of a file to copy, or a function from the directory with all that goes before it to the content.
Extra = bytes | pathlib.Path | Callable[[pathlib.Path], bytes]

_STAGING = "staging"
# Of a tensor in the staging file: wide enough for every number, and for vector loads.
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where an output lies: byte offset in a file of the partial directory."""

  file: str
  start: int


class _FileSink:
  """Outputs at fixed places of preallocated files; the common part of both sinks.

  Attributes:
    directory: where the merge will appear.
    partial: where it lies until then.
    resumed: how many outputs an interrupted run has left complete.
    discarded: why what an interrupted run left was removed; None if nothing was.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    outputs: Sequence[Output],
    files: Mapping[str, PlannedFile],
    places: Mapping[str, _Place],
    *,
    fingerprint: str,
    overwrite: bool,
    extra_bytes: int = 0,
  ):
    self._outputs = {x.name: x for x in outputs}
    self._places = places
    self._partial = Partial(
      pathlib.Path(directory),
      files,
      names=frozenset(self._outputs),
      fingerprint=fingerprint,
      overwrite=overwrite,
      extra_bytes=extra_bytes,
    )
    self.directory, self.partial = self._partial.directory, self._partial.path
    self._done = self._partial.resumed
    self.resumed, self.discarded = len(self._done), self._partial.discarded
    self._complete = set(self._done)
    self._lock = threading.Lock()
    self._clock = FlushClock()
    self._descriptors: dict[str, int] = {}
    try:
      with self._partial.writing():
        for file in files:
          self._descriptors[file] = os.open(self.partial / file, os.O_RDWR | os.O_CLOEXEC)
    except BaseException:
      self.abandon()
      raise

  def done(self) -> frozenset[str]:
    """Names of the outputs that an interrupted run has already written."""
    return self._done

  def write(self, name: str, start: int, values: np.ndarray) -> None:
    """Writes entries of the output `name` from `start` on (C order), in its dtype. Called by several threads at once.

    Raises:
      CannotWrite: if the disk is full, or fails.
    """
    output, place = self._outputs[name], self._places[name]
    if values.dtype != output.dtype or not 0 <= start <= output.num_entries - values.size:
      raise ValueError(
        f"'{name}': {values.size} entries of {values.dtype} from {start} on do not fit"
        f" {output.num_entries} of {output.dtype}"
      )
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    position = place.start + start * output.dtype.itemsize
    with self._partial.writing():
      while content.size:
        count = os.pwrite(self._descriptors[place.file], content.data, position)
        content, position = content[count:], position + count

  def complete(self, name: str) -> None:
    """All of the output is written: an interrupted run need not make it again.

    Raises:
      CannotWrite: if the disk is full, or fails.
    """
    with self._partial.writing():
      with self._lock:
        self._partial.complete(name)
        self._complete.add(name)
        due, covered = self._clock.is_due(), self._partial.num_complete
      if due:
        self._flush(covered)

  def _flush(self, covered: int) -> None:
    try:
      for descriptor in self._descriptors.values():
        os.fsync(descriptor)
      with self._lock:
        self._partial.flushed(covered)
    finally:
      self._clock.done()

  def finish(self, extra: Mapping[str, Extra] | None = None, *, flush: bool = False) -> None:
    """Adds what lies beside the weights and makes all appear in its place at once.

    Args:
      extra: relative path -> content, a file to copy, or a function that is called with the directory when everything
        before it is there (a manifest with hashes) and gives the content.
      flush: whether to wait until everything has reached the disk. Without it a power cut within the next half minute
        may leave files of the right size with wrong content, as after `cp`; `wam merge --verify` finds that.

    Raises:
      CannotWrite: if the disk is full, or fails; the merge can be resumed.
    """
    missing = self._outputs.keys() - self._complete
    if missing:
      raise ValueError(f"{len(missing)} outputs are not complete: {', '.join(sorted(missing)[:5])}")
    with self._partial.writing():
      self._build(self._partial.new)
      for name, content in (extra or {}).items():
        self._add(name, content)
      self._close_files()
      self._partial.publish(flush=flush)

  def _build(self, new: pathlib.Path) -> None:
    raise NotImplementedError

  def _add(self, name: str, content: Extra) -> None:
    new = self._partial.new
    path = new / name
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
      raise ValueError(f"{name!r} leads out of the directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pathlib.Path):
      shutil.copyfile(content, path)
    else:
      path.write_bytes(content if isinstance(content, bytes) else content(new))

  def abandon(self) -> None:
    """Leaves what is complete for another run to go on from."""
    self._close_files()
    self._partial.close()

  def _close_files(self) -> None:
    for descriptor in self._descriptors.values():
      with contextlib.suppress(OSError):
        os.close(descriptor)
    self._descriptors = {}

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.abandon()


class SafetensorsSink(_FileSink):
  """A Hugging Face directory: safetensors in shards, with an index where there are several. See `_FileSink`.

  Shards and index are those of `checkpoints.safetensors.plan_shards`; headers are written first, tensors lie in the
  order of the outputs (wider numbers first within a shard, see `build_header`).
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    outputs: Sequence[Output],
    *,
    fingerprint: str,
    shard_bytes: int = 5 * 10**9,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
  ):
    """Makes the files beside `directory`, or finds them as an interrupted merge has left them.

    Args:
      directory: where the merge will appear: does not exist or is empty.
      outputs: all tensors, in their order.
      fingerprint: of all that decides about the content: recipe, inputs with sizes and times, versions. What an
        interrupted merge with another one has left is removed.
      shard_bytes: size of a shard, at most, unless one tensor is larger.
      metadata: of every file; default {"format": "pt"}.
      overwrite: whether `directory` may hold files; all of them are replaced at the end, and kept until then.

    Raises:
      ConfigError: if `directory` holds files, another process is merging into it, or a tensor cannot be stored.
      CannotWrite: if the disk has too little room, or may not be written to.
    """
    by_name = _by_name(outputs)
    sizes = {name: output.num_bytes for name, output in by_name.items()}
    self._sizes = sizes
    self._shards = safetensors.plan_shards(sizes, shard_bytes)
    files: dict[str, PlannedFile] = {}
    places: dict[str, _Place] = {}
    for shard, names in self._shards.items():
      tensors = {name: (by_name[name].dtype, by_name[name].shape) for name in names}
      header, starts = build_header(tensors, metadata)
      file = f"{NEW}/{shard}"
      files[file] = PlannedFile(header, len(header) + sum(sizes[name] for name in names))
      places |= {name: _Place(file, starts[name]) for name in names}
    super().__init__(
      directory, outputs, files, places, fingerprint=fingerprint, overwrite=overwrite
    )

  def _build(self, new: pathlib.Path) -> None:
    if len(self._shards) > 1:
      (new / safetensors.INDEX).write_text(safetensors.index_text(self._shards, self._sizes))


class OrbaxSink(_FileSink):
  """An Orbax checkpoint: a tree with the outputs' names, cut at "/", as paths. See `_FileSink`.

  Outputs go to a staging file first, which Orbax then reads through a memory map: while it saves, the disk holds the
  merge twice, the memory only what is being written. Containers come back as dicts, lists with their indices as keys.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    outputs: Sequence[Output],
    *,
    fingerprint: str,
    overwrite: bool = False,
  ):
    """Makes the staging file beside `directory`, or finds it; arguments and errors as for `SafetensorsSink`.

    Raises:
      ConfigError: also if names cannot be paths of one tree, or Orbax could not tell them apart.
    """
    by_name = _by_name(outputs)
    _check_paths(by_name)
    places: dict[str, _Place] = {}
    position = 0
    for name, output in by_name.items():
      places[name] = _Place(_STAGING, position)
      position += -(-output.num_bytes // _ALIGNMENT) * _ALIGNMENT
    super().__init__(
      directory,
      outputs,
      {_STAGING: PlannedFile(b"", position)},
      places,
      fingerprint=fingerprint,
      overwrite=overwrite,
      extra_bytes=position,
    )

  def _build(self, new: pathlib.Path) -> None:
    from wam.checkpoints import orbax

    shutil.rmtree(new, ignore_errors=True)
    tree: dict[str, Any] = {}
    for name in self._outputs:
      *parents, last = name.split("/")
      node = tree
      for key in parents:
        node = node.setdefault(key, {})
      node[last] = self._map(name)
    orbax.save_mapped(new, tree)

  def _map(self, name: str) -> np.ndarray:
    """An output in the staging file."""
    output = self._outputs[name]
    if not output.num_bytes:
      return np.zeros(output.shape, output.dtype)
    start = self._places[name].start
    raw = np.memmap(self.partial / _STAGING, np.uint8, "r", offset=start, shape=(output.num_bytes,))
    return raw.view(np.ndarray).view(output.dtype).reshape(output.shape)


def _by_name(outputs: Sequence[Output]) -> dict[str, Output]:
  by_name = {x.name: x for x in outputs}
  if len(by_name) < len(outputs):
    names = [x.name for x in outputs]
    twice = sorted({n for n in names if names.count(n) > 1})
    raise ConfigError(f"outputs occur twice: {', '.join(twice)}")
  return by_name


def _check_paths(names: Mapping[str, Output]) -> None:
  """Orbax stores a leaf under its path joined by dots, and none without entries."""
  problems = [f"'{name}' has no entries" for name, x in names.items() if not x.num_entries]
  stored: dict[str, str] = {}
  for name in names:
    parts = name.split("/")
    if not all(parts):
      problems.append(f"'{name}' has an empty part")
    for depth in range(1, len(parts)):
      above = "/".join(parts[:depth])
      if above in names:
        problems.append(f"'{name}' lies inside the tensor '{above}'")
    other = stored.setdefault(name.replace("/", "."), name)
    if other != name:
      problems.append(f"'{other}' and '{name}' would be stored under one name")
  if problems:
    raise ConfigError(f"Orbax cannot hold these tensors: {'; '.join(problems)}")
