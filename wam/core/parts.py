"""Parts: which leaves of a network a coefficient speaks for.

A builder reads leaf names and shapes (arrays or `jax.ShapeDtypeStruct`s) and gives every leaf a part: depth groups,
layer ranges, regexes, kinds (attention, MLP, norms, embeddings, head), linear matrices only. First match wins, every
leaf is covered or an error names it, and what stays untouched is listed by `Parts.untouched()`. `coefficients` turns
one number a part into a tree that broadcasts against the leaves. Leaves out the reading of names (names.py).
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import ConfigError, MismatchedTrees, UncoveredLeaves, unknown_name
from wam.core.names import KINDS, Leaf, describe
from wam.core.types import PyTree

# A leaf's part; None where it is untouched; one entry per layer for a stacked leaf.
Assignment = str | None | tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Parts:
  """A part for every leaf of a tree; hashable, so it can be a static argument of a jitted function."""

  names: tuple[str, ...]
  assignment: tuple[tuple[str, Assignment], ...]  # (leaf, part), in the order of the tree
  structure: Any  # the PyTreeDef of the tree
  leaves: tuple[Leaf, ...] = dataclasses.field(repr=False)

  def indices(self) -> dict[str, np.ndarray]:
    """By leaf name the index of its part in `names`: shape [], or [L] for a stacked leaf; -1 is untouched."""
    place = {None: -1} | {name: i for i, name in enumerate(self.names)}
    return {
      leaf: np.array(place[part] if not isinstance(part, tuple) else [place[p] for p in part])
      for leaf, part in self.assignment
    }

  def untouched(self) -> list[str]:
    """Names of the leaves that belong to no part; single layers of a stacked leaf are spelled out."""
    return self._where(None)

  def members(self, part: str) -> list[str]:
    """Names of the leaves of a part; single layers of a stacked leaf are spelled out.

    Raises:
      UnknownName: if there is no such part.
    """
    if part not in self.names:
      raise unknown_name("part", part, self.names)
    return self._where(part)

  def _where(self, wanted: str | None) -> list[str]:
    found = []
    for leaf, (name, part) in zip(self.leaves, self.assignment, strict=True):
      if part == wanted or (isinstance(part, tuple) and set(part) == {wanted}):
        found.append(name)
      elif isinstance(part, tuple):
        found += [leaf.spelled_out(i) for i, p in enumerate(part) if p == wanted]
    return found

  def within(self, other: "Parts") -> "Parts":
    """These parts, without the leaves that `other` leaves untouched: by_depth(t).within(linear_only(t))."""
    return _combine(self, other, lambda mine, theirs: mine if theirs is not None else None)

  def times(self, other: "Parts") -> "Parts":
    """The intersections "mine/theirs" of two partitions: by_depth(t).times(by_kind(t))."""
    return _combine(
      self, other, lambda a, b: f"{a}/{b}" if a is not None and b is not None else None
    )


def _make(structure: Any, leaves: Sequence[Leaf], parts: Sequence[Assignment]) -> Parts:
  """Parts named in the order in which the leaves first use them."""
  used = dict.fromkeys(
    name for part in parts for name in (part if isinstance(part, tuple) else (part,))
  )
  used.pop(None, None)
  names = tuple(leaf.name for leaf in leaves)
  return Parts(
    tuple(n for n in used if n is not None),
    tuple(zip(names, parts, strict=True)),
    structure,
    tuple(leaves),
  )


def _reordered(parts: Parts, names: Sequence[str]) -> Parts:
  """The same parts, listed in this order (parts without a leaf are dropped)."""
  return dataclasses.replace(parts, names=tuple(n for n in names if n in parts.names))


def _combine(a: Parts, b: Parts, rule: Any) -> Parts:
  if [n for n, _ in a.assignment] != [n for n, _ in b.assignment]:
    raise MismatchedTrees("the two partitions are of different trees: their leaf names differ")
  combined: list[Assignment] = []
  for (_, x), (_, y) in zip(a.assignment, b.assignment, strict=True):
    if not isinstance(x, tuple) and not isinstance(y, tuple):
      combined.append(rule(x, y))
      continue
    length = len(x) if isinstance(x, tuple) else len(y)  # type: ignore[arg-type]
    xs = x if isinstance(x, tuple) else (x,) * length
    ys = y if isinstance(y, tuple) else (y,) * length
    combined.append(tuple(rule(p, q) for p, q in zip(xs, ys, strict=True)))
  made = _make(a.structure, a.leaves, combined)
  order = [rule(x, y) for x in a.names for y in b.names]
  return _reordered(made, list(dict.fromkeys(order)))


def _num_layers(leaves: Sequence[Leaf]) -> int:
  """The number of layers of the only stack of layers."""
  stems = sorted({leaf.stem for leaf in leaves if leaf.in_layers()})
  if len(stems) != 1:
    raise ConfigError(
      f"expected one stack of layers, found {len(stems)}: {', '.join(stems) or 'no leaf names a layer'}."
      " Use by_regex"
    )
  return max(leaf.num_layers or (leaf.layer or 0) + 1 for leaf in leaves if leaf.in_layers())


def _covered(parts: Parts, what: str) -> Parts:
  missing = parts.untouched()
  if missing:
    raise UncoveredLeaves(
      f"{what} leaves {len(missing)} leaves without a part: {', '.join(missing)}."
      " Add a rule for them, or pass cover=False to leave them untouched"
    )
  return parts


def whole(tree: PyTree) -> Parts:
  """One part, "all", that holds every leaf."""
  leaves = describe(tree)
  every: list[Assignment] = [("all",) * x.num_layers if x.num_layers else "all" for x in leaves]
  return _make(jax.tree.structure(tree), leaves, every)


def by_leaf(tree: PyTree) -> Parts:
  """A part for every leaf; a stacked leaf is as many parts as it has layers, named as if unrolled."""
  leaves = describe(tree)
  every: list[Assignment] = [
    tuple(x.spelled_out(i) for i in range(x.num_layers)) if x.num_layers else x.name for x in leaves
  ]
  return _make(jax.tree.structure(tree), leaves, every)


def by_layer(tree: PyTree) -> Parts:
  """A part for every layer ("layers 3"), and one for every leaf outside the layers (embedding, final norm, head)."""
  leaves = describe(tree)
  parts: list[Assignment] = []
  for leaf in leaves:
    if leaf.num_layers is not None:
      parts.append(tuple(f"{leaf.stem} {i}" for i in range(leaf.num_layers)))
    else:
      parts.append(leaf.name if leaf.layer is None else f"{leaf.stem} {leaf.layer}")
  return _make(jax.tree.structure(tree), leaves, parts)


def by_kind(tree: PyTree) -> Parts:
  """The parts "embeddings", "attention", "mlp", "norms" and "head", as far as the tree has them.

  Raises:
    UncoveredLeaves: names the leaves whose names say nothing.
  """
  leaves = describe(tree)
  kinds: list[Assignment] = [(x.kind,) * x.num_layers if x.num_layers else x.kind for x in leaves]
  parts = _make(jax.tree.structure(tree), leaves, kinds)
  return _covered(_reordered(parts, KINDS), "by_kind")


def linear_only(tree: PyTree, *, biases: bool = False, head: bool = False) -> Parts:
  """The part "linear": the matrices of attention and MLP. Everything else is untouched.

  The alignment-tax authors' merge is of this kind: norms and embeddings stay those of the pre-RLHF model.

  Args:
    tree: a tree of arrays or shapes.
    biases: include the biases of those matrices, as the authors' code does.
    head: add the part "head": the matrix of the language-model head.
  """
  leaves = describe(tree)
  parts: list[Assignment] = []
  for leaf in leaves:
    is_bias = leaf.rank < 2 or re.search(r"(?:^|[/._])(?:bias|b)$", leaf.name) is not None
    part = "linear" if leaf.kind in ("attention", "mlp") and (biases or not is_bias) else None
    if head and leaf.kind == "head" and (biases or not is_bias):
      part = "head"
    parts.append((part,) * leaf.num_layers if leaf.num_layers else part)
  return _make(jax.tree.structure(tree), leaves, parts)


def by_regex(
  tree: PyTree,
  patterns: Mapping[str, str] | Sequence[tuple[str | None, str]],
  *,
  cover: bool = True,
) -> Parts:
  """Parts from (part, pattern) rules; the first pattern that matches a whole leaf name wins.

  A layer of a stacked leaf is matched under its unrolled name ("layers/3/mlp/up/kernel") and under its stacked one,
  so that one set of rules serves both layouts.

  Args:
    tree: a tree of arrays or shapes.
    patterns: ordered rules {part: pattern} or [(part, pattern), ...]; the part None leaves matches untouched.
    cover: whether every leaf must match a rule.

  Raises:
    UncoveredLeaves: names the leaves that no pattern matches.
    ConfigError: if a pattern is not a regular expression.
  """
  pairs = list(patterns.items()) if isinstance(patterns, Mapping) else list(patterns)
  try:
    rules = [(part, re.compile(pattern)) for part, pattern in pairs]
  except re.error as error:
    raise ConfigError(f"by_regex: {error.pattern!r} is not a regular expression: {error}") from None
  uncovered = []

  def find(*names: str) -> str | None:
    for part, rule in rules:
      if any(rule.fullmatch(name) for name in names):
        return part
    uncovered.append(names[0])
    return None

  leaves, parts = describe(tree), []
  for leaf in leaves:
    if leaf.num_layers:
      parts.append(tuple(find(leaf.spelled_out(i), leaf.name) for i in range(leaf.num_layers)))
    else:
      parts.append(find(leaf.name))  # type: ignore[arg-type]
  if cover and uncovered:
    raise UncoveredLeaves(
      f"by_regex leaves {len(uncovered)} leaves without a part: {', '.join(uncovered)}. Add a rule for"
      " them, with the part None to leave them untouched"
    )
  made = _make(jax.tree.structure(tree), leaves, parts)
  return _reordered(made, [p for p in dict.fromkeys(p for p, _ in pairs) if p is not None])


def layer_ranges(
  tree: PyTree,
  ranges: Mapping[str, tuple[int, int]],
  *,
  embeddings: str | None = "first",
  final_norm: str | None = "last",
  head: str | None = "last",
  cover: bool = True,
) -> Parts:
  """Parts from half-open layer ranges [start, stop), counted from 0; the first range that holds a layer wins.

  Args:
    tree: a tree of arrays or shapes with one stack of layers.
    ranges: {part: (start, stop)}, from input to output.
    embeddings: where embeddings belong: "first" or "last" range, the name of a part of their own, None untouched.
    final_norm: where other leaves outside the layers belong, such as the final norm.
    head: where the head belongs.
    cover: whether every layer must lie in a range.

  Raises:
    UncoveredLeaves: names the leaves in no range.
    ConfigError: if the tree does not have exactly one stack of layers, or a range is empty or too long.
  """
  leaves = describe(tree)
  total = _num_layers(leaves)
  for name, (start, stop) in ranges.items():
    if not 0 <= start < stop <= total:
      raise ConfigError(
        f"layer_ranges: '{name}' is [{start}, {stop}), but the layers are [0, {total})"
      )
  named = list(ranges)
  place = {"first": named[0], "last": named[-1]}

  def part_of_layer(layer: int) -> str | None:
    return next((n for n, (start, stop) in ranges.items() if start <= layer < stop), None)

  parts: list[Assignment] = []
  exempt = set()
  for leaf in leaves:
    if leaf.num_layers is not None:
      parts.append(tuple(part_of_layer(i) for i in range(leaf.num_layers)))
    elif leaf.layer is not None:
      parts.append(part_of_layer(leaf.layer))
    else:
      is_embedding = leaf.kind == "embeddings" or "embed" in leaf.name.split("norm")[0].lower()
      target = head if leaf.kind == "head" else embeddings if is_embedding else final_norm
      parts.append(place.get(target, target) if target is not None else None)
      exempt.add(leaf.name)
  made = _make(jax.tree.structure(tree), leaves, parts)
  uncovered = [n for n in made.untouched() if n not in exempt]
  if cover and uncovered:
    raise UncoveredLeaves(
      f"layer_ranges leaves {len(uncovered)} leaves without a part: {', '.join(uncovered)}. Widen a"
      " range, or pass cover=False to leave them untouched"
    )
  own = [n for n in (embeddings, final_norm, head) if n is not None]
  before = [n for n in own[:1] if n not in place]
  return _reordered(made, list(dict.fromkeys([*before, *named, *own])))


def by_depth(
  tree: PyTree,
  num_parts: int = 3,
  *,
  boundaries: Sequence[int] | None = None,
  split: Literal["even", "floor"] = "even",
  names: Sequence[str] | None = None,
  embeddings: str | None = "first",
  final_norm: str | None = "last",
  head: str | None = "last",
) -> Parts:
  """Consecutive groups of layers, from input to output.

  Three parts are called "input", "middle" and "output"; other numbers "part 1", "part 2", ...

  The alignment-tax paper splits its 26 layers in two ways: its text 1-8, 9-17, 18-26 (split="even": 8/9/9, the later
  parts take one layer of the remainder each), its code 8/8/10 (split="floor": the last part takes the whole
  remainder). For more than 30 layers the code cuts at layers 11 and 21: boundaries=(11, 21).

  Args:
    tree: a tree of arrays or shapes with one stack of layers.
    num_parts: number of groups, ignored where `boundaries` are given.
    boundaries: the first layer, counted from 0, of every group but the first.
    split: what becomes of the remainder.
    names: names of the groups.
    embeddings: as in `layer_ranges`, like final_norm and head.
    final_norm: where other leaves outside the layers belong.
    head: where the head belongs.

  Raises:
    ConfigError: if there are fewer layers than groups, or boundaries do not rise.
  """
  total = _num_layers(describe(tree))
  if boundaries is None:
    if not 1 <= num_parts <= total:
      raise ConfigError(f"by_depth: cannot make {num_parts} parts of {total} layers")
    size, rest = divmod(total, num_parts)
    late = {"even": rest, "floor": 0}
    if split not in late:
      raise unknown_name("split", split, late)
    sizes = [size + (i >= num_parts - late[split]) for i in range(num_parts - 1)]
    boundaries = [int(b) for b in np.cumsum(sizes)]
  edges = [0, *boundaries, total]
  if any(start >= stop for start, stop in itertools.pairwise(edges)):
    raise ConfigError(f"by_depth: boundaries {list(boundaries)} must rise inside (0, {total})")
  if names is None:
    thirds = ("input", "middle", "output")
    names = thirds if len(edges) == 4 else [f"part {i + 1}" for i in range(len(edges) - 1)]
  if len(set(names)) != len(edges) - 1:
    raise ConfigError(f"by_depth: expected {len(edges) - 1} different names, found {list(names)}")
  ranges = {n: (a, b) for n, (a, b) in zip(names, itertools.pairwise(edges), strict=True)}
  return layer_ranges(tree, ranges, embeddings=embeddings, final_norm=final_norm, head=head)


def coefficients(
  parts: Parts,
  values: Mapping[str, float | jax.Array],
  *,
  default: float | None = None,
  untouched: float = 0.0,
) -> PyTree:
  """A tree of coefficients from one value a part: float32 scalars, or [L] for stacked leaves.

  Args:
    parts: a partition of the tree.
    values: a number, possibly traced, for every part.
    default: the number for parts that `values` does not name; None makes that an error.
    untouched: the number for untouched leaves; 0 keeps the first end point of `lerp`, that is the init.

  Raises:
    UnknownName: if `values` names a part that does not exist.
    ConfigError: if a part has no value and there is no default.
  """
  for name in values:
    if name not in parts.names:
      raise unknown_name("part", name, parts.names)
  missing = [name for name in parts.names if name not in values]
  if missing and default is None:
    raise ConfigError(f"coefficients: no value for the parts {', '.join(missing)}; give a default")
  by_part = [values.get(name, default) for name in parts.names]
  # Index -1, the untouched leaves, finds the last entry.
  table = jnp.stack([jnp.asarray(v, jnp.float32) for v in [*by_part, untouched]])
  return parts.structure.unflatten([table[i] for i in parts.indices().values()])
