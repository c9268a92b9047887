"""A small driver of rules with NumPy: tensors cut into blocks, sums in float64, order statistics by sorting.

It does what wam/streaming does, without files and threads: the same rule must give the same merge.
"""

import numpy as np

from tests.merging import twins
from wam.core import counters
from wam.merging import rules
from wam.merging.methods import METHODS, group_of, per_member
from wam.merging.rules import Block, Group, Sum

GROUPS = {"leaf": twins.leaf_groups, "layer": twins.layer_groups, "global": twins.whole}


def merge(name, members, *, init=None, coefficients=None, importances=None, seed=None, **given):
  """The merge of flat dicts of unrolled float32 leaves.

  Args:
    name: a key of METHODS.
    members: M dicts.
    init: their common start.
    coefficients: M numbers.
    importances: M dicts.
    seed: of the random masks.
    **given: parameters of the method.
  """
  method = METHODS[name]
  values = per_member(name, {**method.defaults, **given}, len(members))
  groups = GROUPS[group_of(values, has_init=init is not None)](members[0])
  values.pop("group", None)
  if coefficients is None:
    default = method.default_coefficient
    coefficients = [1 / len(members) if default is None else default] * len(members)
  c = tuple(np.float32(x) for x in coefficients)
  result = {}
  for names in groups:
    blocks = {
      n: list(_blocks(n, members, init, c, importances, seed, whole_rows=method.whole_rows))
      for n in names
    }
    size = sum(members[0][n].size for n in names)
    known = Group(np, len(members), size, init is not None, c)
    every = [b for n in names for b in blocks[n]]
    apply = rules.run(method.rule(known, **values), lambda r, every=every: _answers(r, every))
    for n in names:
      merged = np.concatenate([np.asarray(apply(b)).ravel() for b in blocks[n]])
      assert merged.dtype == np.float32, "a rule widened float32 arrays"
      result[n] = merged.reshape(members[0][n].shape)
  return result


def _blocks(name, members, init, c, importances, seed, *, whole_rows):
  """Three blocks of a leaf, seen as a matrix: of whole rows, or of parts of its only row."""
  shape = members[0][name].shape
  rows = shape[0] if len(shape) > 1 else 1
  matrix = [x[name].reshape(rows, -1) for x in (*members, *(importances or ()))]
  start = None if init is None else init[name].reshape(rows, -1)
  columns = matrix[0].shape[1]
  if rows > 1 or whole_rows:
    places = [(r, r + -(-rows // 3), 0, columns) for r in range(0, rows, -(-rows // 3))]
  else:
    places = [(0, 1, i, i + -(-columns // 3)) for i in range(0, columns, -(-columns // 3))]
  for first, last, left, right in places:
    last, right = min(last, rows), min(right, columns)
    cut = [np.ascontiguousarray(x[first:last, left:right]) for x in matrix]

    def bits(stream, where=(first, last, left, right)):
      first, last, left, right = where
      words = rules.key_words(seed, name, stream)
      return counters.bits16_run(words, np.arange(first, last), left, right)

    yield Block(
      np,
      tuple(cut[: len(members)]),
      None if start is None else np.ascontiguousarray(start[first:last, left:right]),
      c,
      tuple(cut[len(members) :]),
      None if seed is None else bits,
    )


def _answers(requests, blocks):
  answers = []
  for request in requests:
    values = [request.function(b) for b in blocks]
    if isinstance(request, Sum):
      answers.append(_add(values))
    else:
      candidates = np.sort(np.concatenate([v.ravel() for v in values]))
      k = min(max(int(request.k), 1), candidates.size)
      answers.append(candidates[candidates.size - k])
  return answers


def _add(values):
  if isinstance(values[0], tuple):
    return tuple(_add(x) for x in zip(*values, strict=True))
  return sum(np.asarray(x, np.float64) for x in values)
