"""Single leaves of Orbax checkpoints: read straight to where they belong on a mesh, written group by group.

No process holds more than its own shards of the leaves that it asks for. All calls are made by every process of a
distributed run, with the same names in the same order. Leaves out whole trees (orbax.py).
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jax.tree_util import DictKey, SequenceKey
from orbax.checkpoint import v1 as ocp

from wam.checkpoints.orbax import CannotWrite, attempt_read, attempt_write, exists
from wam.core import trees
from wam.core.errors import ConfigError, MismatchedTrees, MissingFile

# The keys that lead to a leaf, as in jax.tree_util.
Path = tuple[Any, ...]


class SavedLeaves:
  """What the metadata of a checkpoint say, and its leaves on demand.

  Attributes:
    path: of the checkpoint.
    tree: a ShapeDtypeStruct for every leaf, to make parts and coefficients from.
    paths: where every leaf is in the tree, by name.
    shapes: shape and dtype of every array, by name.
    chunks: the shape of the pieces that an array was written in, by name: usually that of its shards.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the metadata.

    Raises:
      MissingFile: if there is no checkpoint; BadCheckpoint: if it cannot be read.
      ConfigError: names a leaf in float64 where JAX would round it.
    """
    self.path = pathlib.Path(path).absolute()
    if not exists(self.path):
      raise MissingFile(f"no Orbax checkpoint at {self.path}")
    saved = attempt_read(self.path, lambda: ocp.metadata(self.path).metadata)
    # Orbax takes `...` for a leaf that is not wanted.
    self._nothing = jax.tree.map(lambda _: ocp.PLACEHOLDER, saved)
    self.tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), _dtype(x)), saved)
    self._plain: dict[str, Any] = {}
    self.paths: dict[str, Path] = {}
    self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
    self.chunks: dict[str, tuple[int, ...]] = {}
    for path_, leaf in jax.tree_util.tree_leaves_with_path(saved, is_leaf=_is_empty):
      name = jax.tree_util.keystr(path_, simple=True, separator="/")
      self.paths[name] = path_
      if not hasattr(leaf, "shape"):
        self._plain[name] = leaf
        continue
      dtype = np.dtype(leaf.dtype)
      known = jax.dtypes.canonicalize_dtype(dtype)
      if known == dtype:
        self.shapes[name] = jax.ShapeDtypeStruct(leaf.shape, dtype)
        storage = leaf.storage_metadata
        self.chunks[name] = tuple(storage.chunk_shape or leaf.shape) if storage else leaf.shape
      elif np.issubdtype(dtype, np.floating):
        raise ConfigError(
          f"'{name}' of {self.path} is {dtype}, which JAX would round to {known}: set the environment"
          " variable JAX_ENABLE_X64=1"
        )
      else:
        self._plain[name] = np.empty(leaf.shape, dtype)

  @property
  def plain(self) -> list[str]:
    """Names of the leaves that are no arrays (numbers, texts, empty nodes), or that JAX has no dtype for."""
    return list(self._plain)

  def load(self, where: Mapping[str, Sharding]) -> dict[str, jax.Array]:
    """Reads arrays, each process the shards that it holds.

    Args:
      where: sharding by name, for the arrays wanted.

    Raises:
      BadCheckpoint: if one cannot be read.
    """
    shapes = self.shapes
    return self._load(
      {
        n: jax.ShapeDtypeStruct(shapes[n].shape, shapes[n].dtype, sharding=s)
        for n, s in where.items()
      }
    )

  def load_plain(self) -> dict[str, Any]:
    """The leaves of `plain`, whole on every host: numbers, texts, NumPy arrays, empty nodes."""
    empty = {n: x for n, x in self._plain.items() if _is_empty(x)}
    rest = {n: x for n, x in self._plain.items() if n not in empty}
    return empty | self._load(
      {n: x if isinstance(x, np.ndarray) else type(x) for n, x in rest.items()}
    )

  def _load(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
    if not wanted:
      return {}
    like = trees.map_named(lambda name, x: wanted.get(name, x), self._nothing)
    loaded = trees.flatten(attempt_read(self.path, lambda: ocp.load(self.path, like)))
    return {name: loaded[name] for name in wanted}


class GrowingCheckpoint:
  """A checkpoint that is written some leaves at a time; a context, at whose end it appears at its place.

  Until then everything lies in `<path>.partial_save`, which goes where the context ends with an error. What a killed
  run left there is removed when the next one begins.
  """

  def __init__(self, path: pathlib.Path, paths: Mapping[str, Path], *, extra: Any = None):
    """Makes room for it.

    Args:
      path: where it will be.
      paths: the place in the tree of every leaf that will be written, by name; as in `SavedLeaves`.
      extra: a JSON value kept beside the tree, for `orbax.load_extra`.

    Raises:
      ConfigError: if there is something at `path`.
    """
    self.path = pathlib.Path(path).absolute()
    check_free(self.path)
    self._paths = dict(paths)
    self._units = {name: _unit(path) for name, path in self._paths.items()}
    self._waiting: dict[str, Any] = {}
    self._open = set(self._paths)
    self._under_way: Any = None
    # As a JSON text, as in orbax.save.
    self._custom = {"extra": json.dumps(extra)}
    if jax.process_index() == 0:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._remove()
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"room for {self.path}")

  def __enter__(self) -> "GrowingCheckpoint":
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    """Moves the checkpoint to its place, or removes what there is of it.

    Raises:
      MismatchedTrees: names the leaves that were never written.
      CannotWrite: on a full disk.
    """
    if error is None and not self._open:
      self._settle()
      attempt_write(self.path, lambda: ocp.partial.finalize(self.path))
      return
    with contextlib.suppress(CannotWrite):
      self._settle()
    if jax.process_index() == 0:
      self._remove()
    if error is None:
      raise MismatchedTrees(f"{self.path}: never written: {', '.join(sorted(self._open))}")

  def write(self, leaves: Mapping[str, Any]) -> None:
    """Takes leaves; returns when they are on their way, before they are on disk.

    Raises:
      CannotWrite: if these or earlier leaves do not fit on the disk.
    """
    self._waiting |= leaves
    self._open -= leaves.keys()
    # Orbax adds to dictionaries, but not to lists: the leaves of a list wait until it is whole.
    blocked = {self._units[name] for name in self._open}
    ready = {n: x for n, x in self._waiting.items() if self._units[n] not in blocked}
    if not ready:
      return
    self._settle()
    self._waiting = {n: x for n, x in self._waiting.items() if n not in ready}
    tree = _nested({self._paths[name]: x for name, x in ready.items()})
    self._under_way = attempt_write(
      self.path, lambda: ocp.partial.save_async(self.path, tree, custom_metadata=self._custom)
    )

  def _settle(self) -> None:
    """Waits until what is under way is on disk."""
    if self._under_way is not None:
      response, self._under_way = self._under_way, None
      attempt_write(self.path, response.result)

  def _remove(self) -> None:
    for left in self.path.parent.iterdir():
      if left.name.startswith(f"{self.path.name}.partial_save"):
        shutil.rmtree(left)


def check_free(path: pathlib.Path) -> None:
  """Raises ConfigError if there is something at `path`."""
  if pathlib.Path(path).exists():
    raise ConfigError(f"{path} exists already: delete it, or give another directory")


def check_room(path: pathlib.Path, needed: int) -> None:
  """Raises CannotWrite unless the disk on which `path` will be has so many bytes free."""
  place = pathlib.Path(path).absolute()
  free = shutil.disk_usage(next(p for p in place.parents if p.exists())).free
  if needed > free:
    raise CannotWrite(
      f"{path}: the result takes {needed} bytes ({needed / 1e9:.1f} GB) on this disk, and {free}"
      f" ({free / 1e9:.1f} GB) are free; free some space or give a directory elsewhere"
    )


def _is_empty(node: Any) -> bool:
  return node is None or (isinstance(node, dict | list | tuple) and not node)


def _dtype(leaf: Any) -> Any:
  """The dtype of a leaf of the metadata; that of a text is no dtype of an array."""
  return np.dtype(leaf.dtype if hasattr(leaf, "dtype") else type(leaf))


def _unit(path: Path) -> Path:
  """The leaves that are written together: the path up to the first list."""
  for depth, key in enumerate(path):
    if not isinstance(key, DictKey):
      return path[:depth]
  return path


def _nested(flat: Mapping[Path, Any]) -> Any:
  """The tree of dictionaries and lists in which the leaves have these paths."""
  if () in flat:
    return flat[()]
  below: dict[Any, dict[Path, Any]] = {}
  for (first, *rest), leaf in flat.items():
    below.setdefault(first, {})[tuple(rest)] = leaf
  if any(isinstance(key, SequenceKey) for key in below):
    return [_nested(below[SequenceKey(i)]) for i in range(len(below))]
  return {key.key: _nested(part) for key, part in below.items()}
