"""Which tensors of a tree make one vector, and how a stacked leaf [L, ...] is cut for that.

A stacked leaf counts as L tensors. Where every layer is a vector of its own ("leaf", "layer") it is not cut at all: the
rule is mapped over the layers, which leaves a sharded leaf where it lies. Leaves out what is done with the vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import ConfigError
from wam.core.names import Leaf
from wam.core.parts import Parts
from wam.core.types import PyTree
from wam.merging.spherical import partition


class Piece(NamedTuple):
  """A leaf, or some layers of a stacked leaf.

  Attributes:
    leaf: its name.
    names: of its tensors: the leaf's own, or those of its layers as if unrolled.
    layers: of a stacked leaf, in ascending order; None for any other leaf.
    whole: whether these are all the layers.
  """

  leaf: str
  names: tuple[str, ...]
  layers: tuple[int, ...] | None = None
  whole: bool = True


class Batch(NamedTuple):
  """Pieces that are worked on in one program.

  Attributes:
    pieces: of one vector; of L vectors where mapped.
    mapped: whether layer i of all the pieces together is a vector, for every i.
  """

  pieces: tuple[Piece, ...]
  mapped: bool


def batches(tree: PyTree, leaves: Mapping[str, Leaf], group: str | Parts) -> list[Batch]:
  """The vectors of a tree, those of all layers together where the layers are alike.

  Args:
    tree: arrays or anything with a shape.
    leaves: `names.describe` of it, by name.
    group: see `spherical.partition`.

  Raises:
    ConfigError: names the leaves that belong to no group.
  """
  if group == "leaf":
    return [
      Batch((_piece(x, range(x.num_layers or 0)),), x.num_layers is not None)
      for x in leaves.values()
    ]
  parts = partition(tree, group)
  if parts.untouched():
    raise ConfigError(
      f"every leaf must belong to a group; without one: {', '.join(parts.untouched())}"
    )
  vectors: dict[str, dict[str, list[int]]] = {}
  for name, part in parts.assignment:
    for i, p in enumerate(part if isinstance(part, tuple) else (part,)):
      vectors.setdefault(str(p), {}).setdefault(name, []).append(i)
  found: list[Batch] = []
  alike: dict[tuple[str, ...], list[int]] = {}
  for vector in vectors.values():
    stacked = all(leaves[n].num_layers is not None for n in vector)
    indices = set(map(tuple, vector.values()))
    if stacked and len(indices) == 1 and len(next(iter(indices))) == 1:
      alike.setdefault(tuple(vector), []).append(next(iter(indices))[0])
    else:
      found.append(Batch(tuple(_piece(leaves[n], i) for n, i in vector.items()), mapped=False))
  for names, indices_ in alike.items():
    found.append(Batch(tuple(_piece(leaves[n], sorted(indices_)) for n in names), mapped=True))
  return found


def _piece(leaf: Leaf, layers: Sequence[int]) -> Piece:
  if leaf.num_layers is None:
    return Piece(leaf.name, (leaf.name,))
  names = tuple(leaf.spelled_out(i) for i in layers)
  return Piece(leaf.name, names, tuple(layers), len(layers) == leaf.num_layers)


def take(piece: Piece, leaf: Any) -> Any:
  """The entries of a piece: the leaf itself, or some of its layers."""
  if piece.whole:
    return leaf
  assert piece.layers is not None
  first, last = piece.layers[0], piece.layers[-1] + 1
  return leaf[first:last] if last - first == len(piece.layers) else leaf[np.array(piece.layers)]


def take_coefficients(piece: Piece, table: Any) -> Any:
  """The coefficients of a piece: [M], or [M, number of its layers]."""
  if piece.whole or np.ndim(table) == 1:
    return table
  return table[:, np.array(piece.layers)]


def put_together(pieces: Sequence[tuple[Piece, jax.Array]]) -> jax.Array:
  """A leaf from the pieces that it was cut into."""
  if pieces[0][0].whole:
    return pieces[0][1]
  order = np.concatenate([np.array(p.layers) for p, _ in pieces])
  joined = jnp.concatenate([x for _, x in pieces])
  return joined if (np.diff(order) == 1).all() else joined[np.argsort(order)]
