"""Checkpoints by Orbax: one tree in a directory, and the numbered checkpoints of a stage.

A checkpoint is written beside its place and renamed there, so that a kill or a full disk leaves the one before intact.
Leaves out what is in a training checkpoint (training/loop.py), single leaves (orbax_leaves.py) and Hugging Face
directories (safetensors.py).
"""

import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from wam.checkpoints.records import CannotWrite, writing
from wam.core.errors import BadCheckpoint, MissingFile, WamError, check_same_trees
from wam.core.types import PyTree

T = TypeVar("T")
# Orbax tells of every save and every closed thread at level WARNING or INFO.
logging.getLogger("absl").setLevel(logging.ERROR)
# A damaged checkpoint fails in many tasks at once; all but the first would be printed when they are collected.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
_MAPPED_CHUNK_BYTES = 1 << 22


def save(path: pathlib.Path, tree: PyTree, extra: Any = None) -> None:
  """Writes `tree`, and the JSON value `extra` beside it, to the new directory `path`; one that is there is replaced.

  Raises:
    CannotWrite: on a full disk.
  """
  path = pathlib.Path(path).absolute()
  # As a JSON text: Orbax would turn tuples and integer keys into something else.
  custom = {"extra": json.dumps(extra)}
  attempt_write(path, lambda: ocp.save(path, tree, overwrite=True, custom_metadata=custom))


def save_mapped(path: pathlib.Path, tree: PyTree) -> None:
  """Writes a tree of NumPy arrays, which may be larger than the memory if they are memory maps, to `path`.

  Nothing is copied beforehand. Chunks are small, so that slices can be read, and not compressed: Orbax would hold all
  compressed chunks until the end (measured: 0.4 GB of 0.5 GB of bfloat16 weights; uncompressed none).

  Raises:
    CannotWrite: on a full disk.
  """
  path = pathlib.Path(path).absolute()
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False
  context.array.saving.use_compression = False
  context.array.saving.storage_options.chunk_byte_size = _MAPPED_CHUNK_BYTES

  def save_it() -> None:
    with context:
      ocp.save(path, tree, overwrite=True, custom_metadata={"extra": json.dumps(None)})

  attempt_write(path, save_it)


def load_extra(path: pathlib.Path) -> Any:
  """The JSON value that `save` wrote beside the tree at `path`."""
  path = pathlib.Path(path).absolute()
  return json.loads(attempt_read(path, lambda: ocp.metadata(path).custom_metadata["extra"]))


def exists(path: pathlib.Path) -> bool:
  """Whether a whole checkpoint lies at `path`; a half-written one does not count."""
  path = pathlib.Path(path).absolute()
  return path.is_dir() and bool(ocp.is_orbax_checkpoint(path))


def load(path: pathlib.Path, like: PyTree | None = None) -> PyTree:
  """Reads the tree at `path`.

  Args:
    path: a directory written by `save` or by any Orbax of version 0 or 1.
    like: a tree of arrays or ShapeDtypeStructs: the structure, shapes, dtypes and shardings wanted. Without it the
      arrays come as they were saved, whole, on the first device.

  Raises:
    MissingFile: if there is no checkpoint.
    BadCheckpoint: if it cannot be read.
    MismatchedTrees: if names or shapes are not those of `like`; names the leaves.
  """
  path = pathlib.Path(path).absolute()
  if not exists(path):
    raise MissingFile(f"no Orbax checkpoint at {path}")
  saved = attempt_read(path, lambda: ocp.metadata(path).metadata)
  if like is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved)
  else:
    check_same_trees(like, saved, names=["what is expected", str(path)])
  return attempt_read(path, lambda: ocp.load(path, _abstract(like)))


class Checkpoints:
  """The numbered checkpoints of one directory: `<directory>/<step>`.

  Each holds a tree and a JSON object. All calls are made by every process of a distributed run.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int | None = 2):
    """Opens the directory, creating it if needed; what a killed run left half-written is removed.

    Args:
      directory: where the checkpoints lie.
      keep: how many of the newest stay; None for all.
    """
    policies = ocp.training.preservation_policies
    self.directory = pathlib.Path(directory).absolute()
    self._checkpointer = ocp.training.Checkpointer(
      self.directory,
      # When to save is the caller's decision.
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.PreserveAll() if keep is None else policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  @property
  def steps(self) -> Sequence[int]:
    """The steps of the whole checkpoints, ascending."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  @property
  def latest(self) -> int | None:
    """The newest step, or None."""
    return self.steps[-1] if self.steps else None

  def save(self, step: int, tree: PyTree, extra: Any = None) -> None:
    """Writes the checkpoint of `step`, replacing one that is there; returns when it is on disk.

    Args:
      step: its number.
      tree: any pytree of arrays.
      extra: a JSON value kept beside it (the position of the input).

    Raises:
      CannotWrite: on a full disk; the checkpoints before are intact.
    """
    custom = {"extra": json.dumps(extra)}
    attempt_write(
      self.directory / str(step),
      lambda: self._checkpointer.save(
        step, tree, force=True, overwrite=step in self.steps, custom_metadata=custom
      ),
    )

  def load(self, step: int, like: PyTree) -> PyTree:
    """The tree of `step`, with the structure, dtypes and shardings of `like`.

    Raises:
      MissingFile: if there is no such step; BadCheckpoint: if it cannot be read.
    """
    if step not in self.steps:
      raise MissingFile(f"no checkpoint of step {step} in {self.directory}; found {self.steps}")
    path = self.directory / str(step)
    return attempt_read(path, lambda: self._checkpointer.load(step, _abstract(like)))

  def extra(self, step: int) -> Any:
    """The JSON value that was saved with `step`."""
    path = self.directory / str(step)
    return json.loads(
      attempt_read(path, lambda: self._checkpointer.metadata(step).custom_metadata)["extra"]
    )

  def close(self) -> None:
    """Ends the background threads."""
    self._checkpointer.close()


def remove(directory: pathlib.Path) -> None:
  """Deletes a directory of checkpoints, if it is there (by the first process of a distributed run)."""
  if jax.process_index() == 0:
    shutil.rmtree(directory, ignore_errors=True)


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
  )


def attempt_write(path: pathlib.Path, save_it: Callable[[], T]) -> T:
  """The value of `save_it`; turns what Orbax raises on a full disk into `CannotWrite`."""
  with writing("a checkpoint", path):
    try:
      return save_it()
    except (ValueError, RuntimeError) as error:
      # TensorStore reports a failed write as a ValueError whose text holds the operating system's message.
      if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
        raise OSError(None, "no space left on the device") from error
      raise


def attempt_read(path: pathlib.Path, load_it: Callable[[], T]) -> T:
  """The value of `load_it`; turns what Orbax raises of a damaged checkpoint into `BadCheckpoint`."""
  try:
    return load_it()
  except WamError:
    raise
  except (OSError, ValueError, KeyError, TypeError, RuntimeError, ExceptionGroup) as error:
    cause: BaseException = error
    while isinstance(cause, BaseExceptionGroup):
      cause = cause.exceptions[0]
    first = str(cause).strip().split("\n")[0][:300]
    raise BadCheckpoint(
      f"the checkpoint {path} cannot be read: {first}. If it is damaged, delete the directory: the run goes on from"
      " the one before"
    ) from error


__all__ = [
  "CannotWrite",
  "Checkpoints",
  "attempt_read",
  "attempt_write",
  "exists",
  "load",
  "load_extra",
  "remove",
  "save",
  "save_mapped",
]
