"""The checkpoints of a merge on a mesh: do they agree, which leaves come together, and the leaves themselves.

Everything is decided from metadata; `Inputs.load` is all that reads weights.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from wam.checkpoints.orbax_leaves import SavedLeaves
from wam.core import trees
from wam.core.errors import ConfigError, MismatchedTrees, check_same_trees, unknown_name
from wam.core.names import describe
from wam.merging import pieces
from wam.merging.members import is_floating
from wam.merging.spherical import GROUPS

Arrays = dict[str, Any]  # arrays, or their shapes


class Given(NamedTuple):
  """Some leaves of every input, by name, on the mesh."""

  init: Arrays | None
  members: list[Arrays]
  importances: list[Arrays] | None

  def trees(self) -> list[Arrays]:
    """Those of the init, the members and the importances."""
    return [*([self.init] if self.init else []), *self.members, *(self.importances or [])]


class Inputs:
  """The checkpoints, open and found to agree.

  Attributes:
    init: the common start, or None.
    members: M checkpoints.
    importances: M checkpoints, or None.
    shapes: shape and dtype of every array, by name.
    leaves: what the names of the arrays say, by name.
  """

  def __init__(
    self,
    members: Sequence[pathlib.Path],
    init: pathlib.Path | None,
    importances: Sequence[pathlib.Path] | None,
  ):
    """Reads the metadata.

    Raises:
      MissingFile: if a checkpoint does not exist; BadCheckpoint: if its metadata cannot be read.
      MismatchedTrees: names every leaf that does not agree in name, shape or dtype.
    """
    self.init = None if init is None else SavedLeaves(init)
    self.members = [SavedLeaves(path) for path in members]
    self.importances = None if importances is None else [SavedLeaves(p) for p in importances]
    self.shapes = self.first.shapes
    _check_agreement(self.networks)
    check_same_trees(
      self.shapes,
      *(x.shapes for x in self.importances or []),
      names=[str(x.path) for x in (self.first, *(self.importances or []))],
    )
    self.leaves = {leaf.name: leaf for leaf in describe(self.shapes)}

  @property
  def networks(self) -> list[SavedLeaves]:
    """The init, if there is one, and the members."""
    return [*([self.init] if self.init else []), *self.members]

  @property
  def first(self) -> SavedLeaves:
    """Whose form the result has."""
    return self.networks[0]

  @property
  def labels(self) -> list[str]:
    """What to call the inputs in messages, in the order of `Given.trees`."""
    return [str(x.path) for x in (*self.networks, *(self.importances or []))]

  def floating(self) -> list[str]:
    """Names of the leaves that are merged; all others are the same in all."""
    return [name for name, x in self.shapes.items() if is_floating(x)]

  def load(self, names: Iterable[str], where: Mapping[str, NamedSharding]) -> Given:
    """Reads these leaves of every input."""
    wanted = {name: where[name] for name in names}
    return Given(
      None if self.init is None else self.init.load(wanted),
      [x.load(wanted) for x in self.members],
      None if self.importances is None else [x.load(wanted) for x in self.importances],
    )

  def load_same(self, where: Mapping[str, NamedSharding]) -> dict[str, Any]:
    """Reads what is not merged: leaves that are not floating point, numbers, texts.

    Raises:
      MismatchedTrees: names those that differ between the init and the members.
    """
    names = [name for name in self.shapes if not is_floating(self.shapes[name])]
    wanted = {name: where[name] for name in names}
    first, *rest = (x.load(wanted) | x.load_plain() for x in self.networks)
    problems = [
      f"'{name}' differs between {self.labels[0]} and {label}"
      for label, other in zip(self.labels[1:], rest, strict=False)
      for name in first
      if not _equal(first[name], other[name])
    ]
    if problems:
      raise MismatchedTrees(
        f"{len(problems)} leaves that cannot be averaged do not agree: {'; '.join(problems)}"
      )
    return first

  def portions(
    self, group: Any, where: Mapping[str, NamedSharding], device_bytes: int
  ) -> list[list[str]]:
    """The leaves in portions: as many as their inputs on one device have room for, vectors of several leaves whole.

    Args:
      group: "leaf", "layer" or "global".
      where: sharding by name.
      device_bytes: the room on a device.

    Raises:
      UnknownName: if there is no such group.
    """
    if not isinstance(group, str):
      raise ConfigError(
        f"group: on a mesh one of {', '.join(GROUPS)}, found {type(group).__name__}"
      )
    if group not in GROUPS:
      raise unknown_name("group", group, GROUPS)
    num_inputs = len(self.labels)
    found: list[list[str]] = [[]]
    filled = 0
    for vector in self._vectors(group):
      size = num_inputs * sum(shard_bytes(self.shapes[n], where[n]) for n in vector)
      if found[-1] and filled + size > device_bytes:
        found.append([])
        filled = 0
      found[-1] += vector
      filled += size
    return [names for names in found if names]

  def _vectors(self, group: str) -> list[list[str]]:
    """The leaves, those together that share a vector."""
    of: dict[str, list[str]] = {name: [name] for name in self.shapes}
    for batch in pieces.batches(self.shapes, self.leaves, group):
      joined = list(dict.fromkeys(n for p in batch.pieces for n in of[p.leaf]))
      of |= dict.fromkeys(joined, joined)
    floating = set(self.floating())
    vectors = {id(x): [n for n in x if n in floating] for x in of.values()}
    return list(vectors.values())


def _check_agreement(networks: Sequence[SavedLeaves]) -> None:
  labels = [str(x.path) for x in networks]
  check_same_trees(*(dict.fromkeys(x.plain, 0) | x.shapes for x in networks), names=labels)
  first = networks[0].shapes
  problems = [
    f"'{name}' is {x.dtype} in {label} but {first[name].dtype} in {labels[0]}"
    for label, network in zip(labels[1:], networks[1:], strict=True)
    for name, x in network.shapes.items()
    if x.dtype != first[name].dtype
  ]
  if problems:
    raise MismatchedTrees(f"{len(problems)} leaves do not agree: {'; '.join(problems)}")


def _equal(x: Any, y: Any) -> bool:
  """Whether two leaves hold the same; arrays on the mesh are compared there."""
  if isinstance(x, jax.Array):
    return bool(jnp.array_equal(x, y))
  return bool(np.array_equal(x, y))


def shard_bytes(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
  """What one device holds of an array."""
  return int(np.prod(sharding.shard_shape(shape.shape))) * np.dtype(shape.dtype).itemsize


def local_bytes(array: jax.Array) -> int:
  """What this process holds of an array; what several of its devices hold counts once."""
  found = {str(shard.index): shard.data.nbytes for shard in array.addressable_shards}
  return sum(found.values())


def by_name(coefficients: Any, names: Iterable[str]) -> Any:
  """Coefficients with every tree as {name: value}, without what is no array of the checkpoint."""
  wanted = set(names)

  def flat(tree: Any) -> Any:
    if jax.tree_util.all_leaves([tree]):
      return tree
    return {n: x for n, x in trees.flatten(tree).items() if n in wanted}

  if isinstance(coefficients, list | tuple) and not hasattr(coefficients, "_fields"):
    return [flat(c) for c in coefficients]
  return None if coefficients is None else flat(coefficients)


def cut(coefficients: Any, names: Sequence[str]) -> Any:
  """The coefficients, as `by_name` gives them, of some leaves."""
  if isinstance(coefficients, list):
    return [cut(c, names) for c in coefficients]
  return {n: coefficients[n] for n in names} if isinstance(coefficients, dict) else coefficients
