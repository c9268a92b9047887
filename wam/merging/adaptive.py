"""Averages θ(a) = θ_0 + Σ_k a_k δ_k with a ratio for every part, and derivatives of any objective along the K parts.

δ_k is the update of the fine-tuning, restricted to part k. What a search over ratios needs is ⟨∇f(θ(a)), δ_k⟩: K
directional derivatives. Forward mode computes them beside the value, layer by layer: nothing is kept for a backward
pass, no gradient of the weights exists, a direction costs nothing in the layers before its part, and the averaged
weights and the directions are made a layer at a time. A decoder of 316 M parameters takes 96 MiB beside its two sets of
weights (K = 3, 512 tokens; a backward pass 3.4 GiB): benchmarks/adaptive.py.
Leaves out where the ratios come from (ratios.py) and the search (ratio_search.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import parts as partitions
from wam.core import trees
from wam.core.coefficients import broadcast
from wam.core.errors import ConfigError, check_same_trees, unknown_name
from wam.core.parts import Assignment, Parts
from wam.core.types import PyTree
from wam.merging import averages, shared_work
from wam.merging.members import accumulator, is_floating

SPLITS = ("paper", "code")
SCOPES = ("all", "linear")
ENDS = ("alpha", "first", "last", "init")
# The part of leaves outside the layers that have the mean ratio; it is not searched over.
FIXED = "fixed"

# (weights, *arguments) -> a scalar.
Objective = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Which leaves have which ratio; hashable.

  Attributes:
    parts: every leaf's part; untouched leaves keep the weights of θ_0.
    names: the K parts that have a ratio of their own, in order; other parts have the ratio α.
  """

  parts: Parts
  names: tuple[str, ...]

  def layers(self) -> dict[str, list[int]]:
    """The layers of each of the K parts, counted from 0."""
    found: dict[str, set[int]] = {name: set() for name in self.names}
    for leaf, (_, part) in zip(self.parts.leaves, self.parts.assignment, strict=True):
      numbered = enumerate(part) if isinstance(part, tuple) else [(leaf.layer, part)]
      for layer, name in numbered:
        if layer is not None and name in found:
          found[name].add(layer)
    return {name: sorted(layers) for name, layers in found.items()}

  def coefficients(self, ratios: Any, alpha: Any) -> dict[str, Any]:
    """The ratio of every part, from ratios [K] and α."""
    return dict.fromkeys(self.parts.names, alpha) | dict(zip(self.names, ratios, strict=True))


def layout(
  tree: PyTree,
  num_parts: int = 3,
  *,
  split: str = "paper",
  scope: str = "all",
  biases: bool = True,
  embeddings: str = "alpha",
  final_norm: str = "alpha",
  head: str = "alpha",
) -> Layout:
  """K consecutive groups of layers, and what becomes of the rest.

  Args:
    tree: a tree of arrays or shapes with one stack of layers.
    num_parts: K; 1 is vanilla averaging.
    split: of 26 layers in three, "paper" makes 8/9/9 (figure 6), "code" 8/8/10; of more than 30 in three, "code" makes
      11/10/rest. See `parts.by_depth`.
    scope: "all" leaves, or the "linear" ones: of the layers the matrices of attention and MLP, outside them the head.
      Other leaves are copied from θ_0, as the authors' code does.
    biases: whether those matrices' biases are averaged with them; for "linear".
    embeddings: "alpha" (the ratio α, not searched over), "first" or "last" (that part's ratio) or "init" (θ_0's).
    final_norm: likewise.
    head: likewise; the paper has "alpha". Tied to the embeddings, it follows those.

  Raises:
    UnknownName: for a name that does not exist. ConfigError: if there are fewer layers than parts.
  """
  if split not in SPLITS:
    raise unknown_name("split", split, SPLITS)
  if scope not in SCOPES:
    raise unknown_name("scope", scope, SCOPES)
  targets: dict[str, Any] = {}
  for name, target in (("embeddings", embeddings), ("final_norm", final_norm), ("head", head)):
    if target not in ENDS:
      raise unknown_name(f"ratio of {name}", target, ENDS)
    targets[name] = {"alpha": FIXED, "init": None}.get(target, target)
  rule: dict[str, Any] = {"split": "even" if split == "paper" else "floor"}
  names = [f"part {i + 1}" for i in range(num_parts)]
  if num_parts == 3:
    names = ["input", "middle", "output"]
    if split == "code" and len(_layers_of(tree)) > 30:
      rule = {"boundaries": (11, 21)}
  parts = partitions.by_depth(tree, num_parts, names=names, **rule, **targets)
  if scope == "linear":
    parts = parts.within(partitions.linear_only(tree, biases=biases, head=True))
  empty = [name for name in names if name not in parts.names]
  if empty:
    raise ConfigError(f"layout: no leaf of scope '{scope}' lies in the parts {', '.join(empty)}")
  return Layout(parts, tuple(names))


def _layers_of(tree: PyTree) -> set[str]:
  """The names of the layers, stacked or not."""
  return {name for name in partitions.by_layer(tree).names if name.rpartition(" ")[2].isdecimal()}


def merge(
  layout: Layout,
  init: PyTree,
  tuned: PyTree,
  ratios: Any,
  *,
  alpha: float | jax.Array,
  extrapolate: bool = False,
  out_dtype: Any = None,
) -> PyTree:
  """The average with these ratios (eq. 5 of the paper); exact at 0 and 1, as `averages.lerp` is.

  Args:
    layout: of trees like these.
    init: θ_0, before RLHF.
    tuned: θ, after it.
    ratios: K numbers; 1 takes θ.
    alpha: the ratio of what has none of its own.
    extrapolate: allows ratios outside [0, 1], which the coded form can have.
    out_dtype: dtype of the floating-point leaves; default that of the trees.

  Raises:
    ConfigError: if a ratio is outside [0, 1] and `extrapolate` is not set, or their number is wrong.
    MismatchedTrees: names the leaves that do not agree.
  """
  _check_ratios(layout, ratios)
  by_part = layout.coefficients(list(ratios), alpha)
  steps = partitions.coefficients(layout.parts, by_part)
  return averages.lerp(init, tuned, steps, extrapolate=extrapolate, out_dtype=out_dtype)


def value(objective: Objective, layout: Layout) -> Callable[..., jax.Array]:
  """(ratios [K], α, θ_0, θ, *arguments) -> objective(θ(ratios), *arguments); for use under jit.

  The weights are those of `merge` up to rounding, for any ratios; each is made where it is used, so that θ(ratios) need
  not be held as a whole. Not to be differentiated: see `forward` and `reverse`.
  """

  def evaluate(ratios: Any, alpha: Any, init: PyTree, tuned: PyTree, *arguments: Any) -> jax.Array:
    def on_leaves(flat: dict[str, jax.Array], *arguments: Any) -> jax.Array:
      return objective(jax.tree.unflatten(jax.tree.structure(init), flat.values()), *arguments)

    merged = _merged(layout, ratios, alpha, init, tuned)
    return shared_work.share(on_leaves)(_late(merged, trees.flatten(init)), *arguments)

  return evaluate


def forward(objective: Objective, layout: Layout) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """As `value`, with the derivatives [K] with respect to the ratios, in forward mode.

  Layers that are one subtree each are best: of a stacked leaf a direction is as large as the leaf, with zeros in other
  parts' layers, and loops over layers run once a direction. With K parts of equal depth the work is that of about
  2.5 + K/2 evaluations (K = 3: 4; the value is computed once), and the memory that of one and of K more sets of
  activations of the layer at work: weights and directions are made where they are used.

  The objective's derivatives are in the dtype of the weights, as are those of a backward pass.
  """

  def evaluate(
    ratios: Any, alpha: Any, init: PyTree, tuned: PyTree, *arguments: Any
  ) -> tuple[jax.Array, jax.Array]:
    def on_leaves(flat: Any, directions: Any, *arguments: Any) -> tuple[jax.Array, jax.Array]:
      found, slopes = None, []
      for direction in directions:

        def along(moving: Mapping[str, jax.Array]) -> jax.Array:
          leaves = (flat | dict(moving)).values()
          return objective(jax.tree.unflatten(jax.tree.structure(init), leaves), *arguments)

        moving = {leaf: flat[leaf] for leaf in direction}
        found, slope = jax.jvp(along, (moving,), (direction,))
        slopes.append(slope.astype(jnp.float32))
      assert found is not None
      return found, jnp.stack(slopes)

    ends = trees.flatten(init), trees.flatten(tuned)
    merged = _late(_merged(layout, ratios, alpha, init, tuned), ends[0])
    directions = [_late(_directions(layout, name, *ends), ends[0]) for name in layout.names]
    return shared_work.share(on_leaves)(merged, directions, *arguments)

  return evaluate


def reverse(objective: Objective, layout: Layout) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """As `forward`, by one backward pass: keeps activations, and makes the gradient of every weight on the way."""

  def evaluate(ratios: Any, alpha: Any, init: PyTree, tuned: PyTree, *arguments: Any) -> jax.Array:
    merged = _merged(layout, ratios, alpha, init, tuned)
    leaves = [make(1.0) if callable(make) else make for make in merged.values()]
    return objective(jax.tree.unflatten(jax.tree.structure(init), leaves), *arguments)

  return jax.value_and_grad(evaluate)


MODES = {"forward": forward, "reverse": reverse}


def _merged(layout: Layout, ratios: Any, alpha: Any, init: PyTree, tuned: PyTree) -> dict[str, Any]:
  """By leaf a function from a factor of 1 to θ_0 + a·(θ - θ_0), cast once; θ_0's leaf where that stays."""
  _check_ratios(layout, ratios)
  check_same_trees(init, tuned, names=["init", "tuned"])
  by_part = {None: 0.0} | layout.coefficients([ratios[k] for k in range(len(layout.names))], alpha)

  def make(one: Any, x: Any, y: Any, part: Assignment) -> jax.Array:
    wide = accumulator(x.dtype)
    if isinstance(part, tuple):
      ratio = jnp.stack([jnp.asarray(by_part[p], wide) for p in part])
    else:
      ratio = jnp.asarray(by_part[part], wide)
    start, step = x.astype(wide), broadcast(ratio * jnp.asarray(one, wide), x)
    return (start + step * (y.astype(wide) - start)).astype(x.dtype)

  found: dict[str, Any] = {}
  leaves = zip(layout.parts.assignment, jax.tree.leaves(init), jax.tree.leaves(tuned), strict=True)
  for (name, part), x, y in leaves:
    if part is None or not is_floating(x):
      found[name] = x
    else:
      found[name] = functools.partial(make, x=x, y=y, part=part)
  return found


def _directions(
  layout: Layout, name: str, init: Mapping[str, jax.Array], tuned: Mapping[str, jax.Array]
) -> dict[str, Any]:
  """By leaf of a part: a function from a factor of 1 to δ_k, which covers the leaf or some of its layers."""

  def make(one: Any, x: Any, y: Any, inside: np.ndarray) -> jax.Array:
    wide = accumulator(x.dtype)
    step = jnp.asarray(one, wide) * (y.astype(wide) - x.astype(wide))
    return (step if inside.all() else jnp.where(broadcast(inside, x), step, 0.0)).astype(x.dtype)

  found = {}
  for leaf, part in layout.parts.assignment:
    inside = np.array([p == name for p in part] if isinstance(part, tuple) else part == name)
    if inside.any() and is_floating(init[leaf]):
      found[leaf] = functools.partial(make, x=init[leaf], y=tuned[leaf], inside=inside)
  return found


def _late(makers: Mapping[str, Any], like: Mapping[str, jax.Array]) -> dict[str, Any]:
  """Operands that are computed where a layer needs them; what needs no computing as it is."""
  found = {}
  for name, make in makers.items():
    shape = jax.ShapeDtypeStruct(np.shape(like[name]), like[name].dtype)
    found[name] = shared_work.Late(shape, make) if callable(make) else make
  return found


def _check_ratios(layout: Layout, ratios: Any) -> None:
  if np.shape(ratios) != (len(layout.names),):
    raise ConfigError(
      f"expected {len(layout.names)} ratios, one for each of {', '.join(layout.names)}; found shape"
      f" {np.shape(ratios)}"
    )
