"""Rules on trees in memory, with jax.numpy: eager, under jit, on arrays sharded over a mesh.

A stacked leaf [L, ...] counts as L tensors: a rule that works tensor by tensor is mapped over the layers and gives what
it gives on unstacked ones, random masks included. Leaves out files (wam/streaming) and the rules themselves.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import counters
from wam.core.errors import ConfigError, check_same_trees
from wam.core.names import Leaf, describe
from wam.core.parts import Parts
from wam.core.types import PyTree
from wam.merging import rules
from wam.merging.members import Columns, accumulator, columns, is_floating, is_traced, member_coefficients
from wam.merging.rules import Block, Group, KthLargest, Rule, Sum
from wam.merging.spherical import partition


class _Piece(NamedTuple):
  """A tensor of a group: a leaf, one layer of a stacked leaf, or a stacked leaf that is mapped over."""

  leaf: str
  layer: int | None
  names: tuple[str, ...]  # of the tensor, or of every layer where mapped


def merge_trees(
  rule: Rule,
  members: Sequence[PyTree],
  init: PyTree | None,
  coefficients: Any,
  *,
  group: str | Parts = "leaf",
  seed: int | None = None,
  importances: Sequence[PyTree] | None = None,
  default_coefficient: float = 1.0,
  keep_agreement: bool = False,
  whole_rows: bool = False,
  out_dtype: Any = None,
  **parameters: Any,
) -> PyTree:
  """Merges trees by a rule; leaves that are not floating point must be equal in all and pass through.

  Args:
    rule: see wam/merging/rules.py.
    members: M trees.
    init: their common start, or None.
    coefficients: as `members.member_coefficients` takes them.
    group: which tensors make one vector for sums and thresholds; see `spherical.partition`.
    seed: of the random masks.
    importances: M trees like the members, for the methods that weigh entry by entry.
    default_coefficient: of a member, where none are given.
    keep_agreement: entries in which all members agree keep that value bit for bit.
    whole_rows: leaves of rank above 2 are seen as [first axis, rest].
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.
    **parameters: the rule's own.

  Raises:
    MismatchedTrees: names the leaves that do not agree.
    ConfigError: if the number of coefficients is not M.
  """
  names = [*(["init"] if init is not None else []), *(f"member {i}" for i in range(len(members)))]
  together = columns([*([init] if init is not None else []), *members], names=names)
  start = 0 if init is None else 1
  every = Columns(together.structure, {n: x[start:] for n, x in together.leaves.items()})
  table = member_coefficients(coefficients, every, len(members), default=default_coefficient)
  weights = _importance_leaves(importances, every)
  tree = every.rebuild([x[0] for x in every.leaves.values()])
  result: dict[str, Any] = {n: x[0] for n, x in together.leaves.items() if not is_floating(x[0])}
  slices: dict[str, dict[int, jax.Array]] = {}
  leaves = {leaf.name: leaf for leaf in describe(tree)}
  for pieces in _groups(tree, leaves, group):
    pieces = [p for p in pieces if is_floating(every.leaves[p.leaf][0])]
    if not pieces:
      continue
    arrays = [
      _take(p, together.leaves[p.leaf], table[p.leaf], weights.get(p.leaf, ())) for p in pieces
    ]
    dtypes = tuple(np.dtype(out_dtype or every.leaves[p.leaf][0].dtype) for p in pieces)
    merged = _merge_group(
      rule,
      [(a[0], a[2]) for a in arrays],
      [a[1] for a in arrays],
      {k: v for k, v in parameters.items() if isinstance(v, jax.Array)},
      static=_hashable({k: v for k, v in parameters.items() if not isinstance(v, jax.Array)}),
      pieces=tuple(pieces),
      has_base=init is not None,
      seed=seed,
      dtypes=dtypes,
      keep=keep_agreement,
      whole_rows=whole_rows,
      shared=_all_equal([a[1] for a in arrays]),
    )
    for piece, value in zip(pieces, merged, strict=True):
      if piece.layer is None:
        result[piece.leaf] = value
      else:
        slices.setdefault(piece.leaf, {})[piece.layer] = value
  for name, layers in slices.items():
    result[name] = jnp.stack([layers[i] for i in range(len(layers))])
  return every.rebuild([result[name] for name in every.leaves])


def _importance_leaves(
  importances: Sequence[PyTree] | None, every: Columns
) -> dict[str, tuple[Any, ...]]:
  if importances is None:
    return {}
  tree = every.rebuild([x[0] for x in every.leaves.values()])
  labels = ["the members", *(f"importances {i}" for i in range(len(importances)))]
  check_same_trees(tree, *importances, names=labels)
  flat = [jax.tree.leaves(x) for x in importances]
  return {n: tuple(x[i] for x in flat) for i, n in enumerate(every.leaves)}


def _groups(
  tree: PyTree, leaves: Mapping[str, Leaf], group: str | Parts
) -> list[list[_Piece]]:
  """The groups of pieces; stacked leaves stay whole where all of a group are mapped over together."""

  def mapped(leaf: Leaf) -> _Piece:
    length = leaf.num_layers
    names = tuple(leaf.spelled_out(i) for i in range(length)) if length else (leaf.name,)
    return _Piece(leaf.name, None, names)

  if group == "leaf":
    return [[mapped(leaf)] for leaf in leaves.values()]
  parts = partition(tree, group)
  if parts.untouched():
    raise ConfigError(f"every leaf must belong to a group; without one: {', '.join(parts.untouched())}")
  found: dict[str, list[_Piece]] = {}
  for name, part in parts.assignment:
    leaf = leaves[name]
    if isinstance(part, tuple):
      for i, p in enumerate(part):
        found.setdefault(str(p), []).append(_Piece(name, i, (leaf.spelled_out(i),)))
    else:
      found.setdefault(str(part), []).append(_Piece(name, None, (name,)))
  return list(found.values())


def _take(
  piece: _Piece, leaves: tuple[Any, ...], factors: Any, weights: tuple[Any, ...]
) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
  """The arrays, coefficients and importances of a piece."""
  if piece.layer is None:
    return leaves, factors, weights
  own = factors if np.ndim(factors) == 1 else factors[:, piece.layer]
  i = piece.layer
  return tuple(x[i] for x in leaves), own, tuple(x[i] for x in weights)


def _hashable(parameters: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
  as_tuple = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
  return tuple(sorted(as_tuple.items()))


@functools.partial(
  jax.jit,
  static_argnames=(
    "rule",
    "static",
    "pieces",
    "has_base",
    "seed",
    "dtypes",
    "keep",
    "whole_rows",
    "shared",
  ),
)
def _merge_group(
  rule: Rule,
  arrays: list[tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]],
  coefficients: list[jax.Array],
  dynamic: dict[str, jax.Array],
  *,
  static: tuple[tuple[str, Any], ...],
  pieces: tuple[_Piece, ...],
  has_base: bool,
  seed: int | None,
  dtypes: tuple[Any, ...],
  keep: bool,
  whole_rows: bool,
  shared: bool,
) -> list[jax.Array]:
  # Otherwise a larger program folds known coefficients into the sum and rounds in another order than this one.
  coefficients = [jax.lax.optimization_barrier(jnp.asarray(c)) for c in coefficients]
  parameters = dict(static) | dynamic

  def one(layer: Any, values: Any, factors: Any) -> list[jax.Array]:
    blocks = [
      _block(piece, layer, leaves, c, weights, has_base=has_base, seed=seed, rows=whole_rows)
      for piece, (leaves, weights), c in zip(pieces, values, factors, strict=True)
    ]
    num_members = len(blocks[0].members)
    known = Group(
      jnp,
      num_members,
      sum(b.members[0].size for b in blocks),
      has_base,
      blocks[0].coefficients if shared else None,
    )
    apply = rules.run(rule(known, **parameters), functools.partial(_evaluate, blocks))
    merged = [apply(b) for b in blocks]
    if keep:
      merged = [rules.keep_agreement(b, x) for b, x in zip(blocks, merged, strict=True)]
    shapes = [leaves[0].shape for leaves, _ in values]
    return [x.reshape(s).astype(d) for x, s, d in zip(merged, shapes, dtypes, strict=True)]

  length = len(pieces[0].names)
  if length == 1 and not (pieces[0].layer is None and _is_stacked(pieces[0])):
    return one(None, arrays, coefficients)
  axes = [None if c.ndim == 1 else 1 for c in coefficients]
  return jax.vmap(one, in_axes=(0, 0, axes))(jnp.arange(length), arrays, coefficients)


def _is_stacked(piece: _Piece) -> bool:
  """Whether the leaf of a piece has a layer axis that is mapped over."""
  return piece.names != (piece.leaf,)


def _all_equal(factors: Sequence[Any]) -> bool:
  """Whether the tensors of a group are known to have the same coefficients."""
  if len(factors) == 1:
    return True
  return not is_traced(list(factors)) and all(np.array_equal(factors[0], c) for c in factors)


def _block(
  piece: _Piece,
  layer: Any,
  leaves: tuple[jax.Array, ...],
  factors: jax.Array,
  weights: tuple[jax.Array, ...],
  *,
  has_base: bool,
  seed: int | None,
  rows: bool,
) -> Block:
  wide = accumulator(leaves[0].dtype)

  def see(x: jax.Array) -> jax.Array:
    x = x.astype(wide)
    return x.reshape(x.shape[0], -1) if rows and x.ndim > 2 else x

  values = [see(x) for x in leaves]
  shape = values[0].shape

  def bits(stream: str) -> jax.Array:
    assert seed is not None
    table = np.array([rules.key_words(seed, n, stream) for n in piece.names], np.uint32)
    words = table[0] if layer is None else jnp.asarray(table)[layer]
    row, column = places(shape)
    return counters.bits16((words[0], words[1]), row, column)

  return Block(
    jnp,
    tuple(values[1:] if has_base else values),
    values[0] if has_base else None,
    tuple(c.astype(wide) for c in factors),
    tuple(see(x) for x in weights),
    None if seed is None else bits,
  )


def places(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """The row and the column of every entry, as `counters.bits16` counts them; both broadcast to `shape`."""
  iota = functools.partial(jax.lax.broadcasted_iota, jnp.uint32, shape)
  if len(shape) < 2:
    zeros = jnp.zeros(shape, jnp.uint32)
    return zeros, (iota(0) if shape else zeros)
  column, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in range(len(shape) - 1, 0, -1):
    column = column + iota(axis) * np.uint32(stride)
    stride *= shape[axis]
  return iota(0), column


def _evaluate(blocks: Sequence[Block], requests: Sequence[Sum | KthLargest]) -> list[Any]:
  answers: list[Any] = []
  for request in requests:
    values = [request.function(b) for b in blocks]
    if isinstance(request, Sum):
      answers.append(jax.tree.map(lambda *x: functools.reduce(jnp.add, x), *values))
    else:
      answers.append(kth_largest(values, request.k))
  return answers


def kth_largest(arrays: Sequence[jax.Array], k: Any) -> jax.Array:
  """The exact k-th largest of non-negative numbers, by bisection on their bits; no sort, one sum a bit on a mesh.

  Args:
    arrays: of one floating dtype; together they hold the candidates.
    k: an integer, possibly traced, clipped into [1, number of candidates].
  """
  width = 32 if arrays[0].dtype.itemsize == 4 else 64
  kind = jnp.uint32 if width == 32 else jnp.uint64
  codes = [jax.lax.bitcast_convert_type(x, kind) for x in arrays]
  total = sum(x.size for x in arrays)
  wanted = jnp.clip(jnp.asarray(k), 1, total) if not isinstance(k, int) else min(max(k, 1), total)

  def enough(code: jax.Array) -> jax.Array:
    # Counts in two limbs: the entries of a whole model do not fit 32 bits.
    counts = [jnp.sum(x >= code, dtype=jnp.uint32) for x in codes]
    low = functools.reduce(jnp.add, [c & 0xFFFF for c in counts])
    high = functools.reduce(jnp.add, [c >> 16 for c in counts]) + (low >> 16)
    low = low & 0xFFFF
    if isinstance(wanted, int):
      first, second = np.uint32(wanted >> 16), np.uint32(wanted & 0xFFFF)
    else:
      first, second = (wanted >> 16).astype(jnp.uint32), (wanted & 0xFFFF).astype(jnp.uint32)
    return (high > first) | ((high == first) & (low >= second))

  def step(i: jax.Array, found: jax.Array) -> jax.Array:
    # The sign bit is never set.
    candidate = found | (jnp.ones((), kind) << (width - 2 - i).astype(kind))
    return jnp.where(enough(candidate), candidate, found)

  code = jax.lax.fori_loop(0, width - 1, step, jnp.zeros((), kind))
  return jax.lax.bitcast_convert_type(code, arrays[0].dtype)
