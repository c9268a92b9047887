"""Rules on trees in memory, with jax.numpy: eager, under jit, on arrays sharded over a mesh.

A stacked leaf [L, ...] counts as L tensors: a rule that works tensor by tensor is mapped over the layers and gives what
it gives on unstacked ones, random masks included. One program is compiled for every shape, whatever the leaves are
called. Leaves out files (wam/streaming) and the rules themselves.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import counters
from wam.core.errors import check_same_trees
from wam.core.names import describe
from wam.core.parts import Parts
from wam.core.types import PyTree
from wam.merging import pace, pieces, rules
from wam.merging.bisection import kth_largest
from wam.merging.members import (
  Columns,
  accumulator,
  columns,
  is_floating,
  is_traced,
  member_coefficients,
)
from wam.merging.pieces import Batch
from wam.merging.rules import Block, Group, KthLargest, Rule, Sum


class _Program(NamedTuple):
  """All that a compiled program depends on besides shapes. No names: leaves of one shape share it."""

  rule: Rule
  parameters: tuple[tuple[str, Any], ...]
  stacked: tuple[bool, ...]  # for every piece
  mapped: bool
  has_base: bool
  shared: bool  # whether the pieces have the same coefficients
  draws: bool
  dtypes: tuple[Any, ...]
  keep: bool
  only: bool
  rows: bool


class _Values(NamedTuple):
  """The arrays of a piece; stacked ones have a leading layer axis in all but, possibly, the coefficients."""

  leaves: tuple[Any, ...]  # the base first, where there is one
  importances: tuple[Any, ...]
  coefficients: Any  # [M] or [M, L]
  words: Mapping[str, Any]  # by stream: uint32 [2] or [L, 2]


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
  keep_only: bool = False,
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
    keep_only: all the coefficient on one member returns it bit for bit.
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
  described = {leaf.name: leaf for leaf in describe(tree)}
  dynamic = {k: v for k, v in parameters.items() if isinstance(v, jax.Array)}
  static = _hashable({k: v for k, v in parameters.items() if k not in dynamic})
  cut: dict[str, list[Any]] = {}
  for number, batch in enumerate(pieces.batches(tree, described, group)):
    batch = Batch(
      tuple(p for p in batch.pieces if is_floating(every.leaves[p.leaf][0])), batch.mapped
    )
    if not batch.pieces:
      continue
    values = [_values(p, together.leaves, weights, table) for p in batch.pieces]
    program = _Program(
      rule=rule,
      parameters=static,
      stacked=tuple(p.layers is not None for p in batch.pieces),
      mapped=batch.mapped,
      has_base=init is not None,
      shared=_all_equal([v.coefficients for v in values], mapped=batch.mapped),
      draws=seed is not None,
      dtypes=tuple(np.dtype(out_dtype or every.leaves[p.leaf][0].dtype) for p in batch.pieces),
      keep=keep_agreement,
      only=keep_only,
      rows=whole_rows,
    )
    if seed is not None:
      values = _with_words(program, values, dynamic, batch, seed)
    results = _run(program, values, dynamic)
    pace.keep(number, results)
    for piece, value in zip(batch.pieces, results, strict=True):
      cut.setdefault(piece.leaf, []).append((piece, value))
  merged = {n: pieces.put_together(x) for n, x in cut.items()}
  return every.rebuild([merged.get(n, x[0]) for n, x in every.leaves.items()])


def _values(
  piece: pieces.Piece,
  leaves: Mapping[str, Any],
  weights: Mapping[str, tuple[Any, ...]],
  table: Mapping[str, Any],
) -> _Values:
  """What is merged for a piece, without its random words."""
  return _Values(
    tuple(pieces.take(piece, x) for x in leaves[piece.leaf]),
    tuple(pieces.take(piece, x) for x in weights.get(piece.leaf, ())),
    pieces.take_coefficients(piece, table[piece.leaf]),
    {},
  )


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


def _hashable(parameters: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
  as_tuple = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
  return tuple(sorted(as_tuple.items()))


def _all_equal(factors: Sequence[Any], *, mapped: bool) -> bool:
  """Whether the tensors of a vector are known to have the same coefficients."""
  if len(factors) == 1 and (mapped or np.ndim(factors[0]) == 1):
    return True
  if is_traced(list(factors)):
    return False
  if mapped:
    return all(np.array_equal(factors[0], c) for c in factors)
  # [M] or [M, L]: all of it is one set.
  first = np.asarray(factors[0]).reshape(len(factors[0]), -1)[:, :1]
  return all((np.asarray(c).reshape(len(first), -1) == first).all() for c in factors)


def _with_words(
  program: _Program,
  values: Sequence[_Values],
  dynamic: Mapping[str, Any],
  batch: Batch,
  seed: int,
) -> list[_Values]:
  """The values with the key words of every random stream that the rule asks for."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (values, dynamic))
  leaves, structure = jax.tree.flatten(shapes)
  streams = _streams(program, structure, tuple(leaves))
  made = []
  for piece, value in zip(batch.pieces, values, strict=True):
    words = {
      s: np.array([rules.key_words(seed, n, s) for n in piece.names], np.uint32) for s in streams
    }
    made.append(
      value._replace(
        words=words if piece.layers is not None else {s: w[0] for s, w in words.items()}
      )
    )
  return made


@functools.lru_cache(maxsize=1024)
def _streams(program: _Program, structure: Any, leaves: tuple[Any, ...]) -> tuple[str, ...]:
  """The random streams that a rule asks for, found by tracing it once."""
  values, dynamic = jax.tree.unflatten(structure, leaves)
  asked: dict[str, None] = {}

  class Words(dict[str, Any]):
    def __missing__(self, stream: str) -> jax.Array:
      asked[stream] = None
      return jnp.zeros(2, jnp.uint32)

  def trace(values: list[_Values], dynamic: Mapping[str, Any]) -> list[jax.Array]:
    return _body(program, values, dynamic, listen=Words())

  jax.eval_shape(trace, values, dynamic)
  return tuple(asked)


@functools.partial(jax.jit, static_argnums=0)
def _run(
  program: _Program, values: list[_Values], dynamic: Mapping[str, jax.Array]
) -> list[jax.Array]:
  return _body(program, values, dynamic)


def _body(
  program: _Program,
  values: Sequence[_Values],
  dynamic: Mapping[str, jax.Array],
  listen: Mapping[str, Any] | None = None,
) -> list[jax.Array]:
  """The merged pieces. `listen` takes the place of the key words where these are not known yet."""
  # Otherwise a larger program folds known coefficients into the sum and rounds in another order than this one.
  values = [
    v._replace(coefficients=jax.lax.optimization_barrier(jnp.asarray(v.coefficients)))
    for v in values
  ]
  if not program.mapped:
    return _vector(program, values, dynamic, program.stacked, listen)
  one = functools.partial(
    _vector,
    program,
    dynamic=dynamic,
    stacked=(False,) * len(values),
    listen=listen,
  )
  return jax.vmap(one, in_axes=([_axes(v) for v in values],))(values)


def _axes(values: _Values) -> Any:
  """Where the layer axis of stacked values is."""
  along = None if values.coefficients.ndim == 1 else 1
  return _Values(0, 0, along, 0)  # type: ignore[arg-type]


def _vector(
  program: _Program,
  values: Sequence[_Values],
  dynamic: Mapping[str, jax.Array],
  stacked: tuple[bool, ...],
  listen: Mapping[str, Any] | None,
) -> list[jax.Array]:
  """The merged pieces of one vector."""

  def on_block(function: Callable[[Block], Any], v: _Values) -> Any:
    return function(_block(v, program, listen))

  def on_piece(function: Callable[[Block], Any], v: _Values, layered: bool) -> Any:
    """function(block): of a stacked piece for every layer, with a leading layer axis."""
    one = functools.partial(on_block, function)
    return jax.vmap(one, in_axes=(_axes(v),))(v) if layered else one(v)

  def evaluate(requests: Sequence[Sum | KthLargest]) -> list[Any]:
    answers: dict[int, Any] = {}
    candidates: dict[int, list[jax.Array]] = {}
    for i, request in enumerate(requests):
      found = [on_piece(request.function, v, s) for v, s in zip(values, stacked, strict=True)]
      if isinstance(request, KthLargest):
        candidates[i] = found
        continue
      sums = [
        jax.tree.map(lambda x: x.sum(0), x) if s else x for x, s in zip(found, stacked, strict=True)
      ]
      answers[i] = jax.tree.map(lambda *x: functools.reduce(jnp.add, x), *sums)
    if candidates:
      ks = [requests[i].k for i in candidates]  # type: ignore[union-attr]
      answers |= zip(candidates, kth_largest(list(candidates.values()), ks), strict=True)
    return [answers[i] for i in range(len(requests))]

  first = values[0].coefficients.astype(accumulator(values[0].leaves[0].dtype))
  known = Group(
    jnp,
    len(first),
    sum(v.leaves[0].size for v in values),
    program.has_base,
    tuple(first if first.ndim == 1 else first[:, 0]) if program.shared else None,
  )
  parameters = dict(program.parameters) | dict(dynamic)
  apply = rules.run(program.rule(known, **parameters), evaluate)

  def finish(block: Block) -> jax.Array:
    merged = apply(block)
    if program.keep:
      merged = rules.keep_agreement(block, merged)
    return rules.keep_only(block, merged) if program.only else merged

  merged = [on_piece(finish, v, s) for v, s in zip(values, stacked, strict=True)]
  shapes = [v.leaves[0].shape for v in values]
  return [x.reshape(s).astype(d) for x, s, d in zip(merged, shapes, program.dtypes, strict=True)]


def _block(values: _Values, program: _Program, listen: Mapping[str, Any] | None) -> Block:
  """What a rule sees of one tensor."""
  wide = accumulator(values.leaves[0].dtype)

  def see(x: jax.Array) -> jax.Array:
    x = x.astype(wide)
    return x.reshape(x.shape[0], -1) if program.rows and x.ndim > 2 else x

  arrays = [see(x) for x in values.leaves]

  def bits(stream: str) -> jax.Array:
    words = (values.words if listen is None else listen)[stream]
    return counters.bits16((words[0], words[1]), *places(arrays[0].shape))

  return Block(
    jnp,
    tuple(arrays[program.has_base :]),
    arrays[0] if program.has_base else None,
    tuple(c.astype(wide) for c in values.coefficients),
    tuple(see(x) for x in values.importances),
    bits if program.draws else None,
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
