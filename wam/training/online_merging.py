"""Online merging (Lu et al. 2024, arXiv 2405.17931): every update of an optimizer is merged with τ_r = θ_ref - θ_base.

θ_t = θ_{t-1} + F(Δθ) ⊕ F(τ_r), where Δθ is what the optimizer would add, and τ_r what instruction tuning had added to
the pre-trained model. OnDARE: F keeps entries at random, ⊕ is (1 - α)·F(Δθ) + α·F(τ_r). OnTIES: F keeps the largest
entries of each matrix, and ⊕ adds up those whose sign is that of the sum. Of every K-th update only: the merge gap.

Where the authors' code differs from the paper it has a name here: kept entries are divided by p (rescale="inverse"),
and the mask of τ_r is drawn once (redraw=False). Left out: the code clips τ_r to ±1, and adds decoupled weight decay
after the merge; here it is a part of Δθ.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wam.core import algebra, rng, trees
from wam.core.errors import ConfigError, unknown_name
from wam.core.names import Leaf, describe
from wam.core.types import Params, PyTree
from wam.merging import bisection
from wam.training.state import Frozen

METHODS = ("dare", "ties")
RESCALES = ("none", "inverse")
ELECTIONS = ("unweighted", "weighted")


class OnlineMergingState(NamedTuple):
  """State of `OnlineMerging.optimizer`."""

  num_updates: jax.Array  # [] int32
  pending: PyTree  # what was added since the last merge; () where every update is merged
  inner: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineMerging:
  """How updates are merged.

  Attributes:
    alpha: α in [0, 1], the share of τ_r; the paper has 1e-7 to 1e-4.
    density: p in (0, 1], the share of the entries that F keeps; the paper goes down to 5e-4.
    method: "dare" or "ties".
    rescale: of "dare": "none" (paper), or "inverse": kept entries are divided by p (the authors' code).
    redraw: of "dare": whether the mask of τ_r is drawn for every merge, or once (the authors' code).
    elect: of "ties": the sign is that of Δθ + τ_r ("unweighted": paper and code), or of (1 - α)·Δθ + α·τ_r
      ("weighted"), which at α = 0 leaves Δθ as it is.
    every: K, updates from one merge to the next.
    seed: of the masks, which are drawn by the names of the leaves.

  Raises:
    ConfigError: if a number makes no sense; UnknownName: if there is no such method, rescaling or election.
  """

  alpha: float
  density: float
  method: str = "dare"
  rescale: str = "none"
  redraw: bool = True
  elect: str = "unweighted"
  every: int = 1
  seed: int = 0

  def __post_init__(self) -> None:
    names = {"method": METHODS, "rescale": RESCALES, "elect": ELECTIONS}
    for field, choices in names.items():
      if getattr(self, field) not in choices:
        raise unknown_name(f"{field} of online_merging", getattr(self, field), choices)
    if not 0 <= self.alpha <= 1:
      raise ConfigError(f"online_merging: alpha is {self.alpha}, expected 0 to 1")
    if not 0 < self.density <= 1:
      raise ConfigError(
        f"online_merging: density is {self.density}, expected a share of the entries above 0, at most 1"
      )
    if self.every < 1:
      raise ConfigError(f"online_merging: every is {self.every}, expected at least 1 update")
    if self.method == "ties" and self.rescale != "none":
      raise ConfigError("online_merging: rescale='inverse' is for entries kept at random, not ties")

  def reference(self, init: Params, base: Params) -> Params:
    """What `optimizer` wants as frozen["update"]: τ_r = init - base in float32, thinned out where that is for good.

    Raises:
      MismatchedTrees: if the two are of different shapes; names the leaves.
    """
    update = algebra.subtract(init, base).tree
    if self.method == "ties":
      return self._by_layer(update, lambda stream, layer, x: largest(x, self.density))
    return update if self.redraw else self._drawn(update, "reference", 0)

  def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer whose updates are merged; it moves every leaf, also those that `inner` leaves alone."""
    accepting = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> OnlineMergingState:
      pending = optax.tree.zeros_like(params) if self.every > 1 else ()
      return OnlineMergingState(jnp.zeros((), jnp.int32), pending, inner.init(params))

    def update(
      grads: PyTree,
      state: OnlineMergingState,
      params: PyTree | None = None,
      *,
      frozen: Frozen,
      **extra: Any,
    ) -> tuple[PyTree, OnlineMergingState]:
      updates, inner_state = accepting.update(grads, state.inner, params, frozen=frozen, **extra)
      count = state.num_updates + 1
      if self.every == 1:
        merged = self._merged(updates, frozen["update"], count)
        return merged, OnlineMergingState(count, (), inner_state)
      total = jax.tree.map(jnp.add, state.pending, updates)
      due = count % self.every == 0
      # What was added since the last merge is taken back, and its merge added in its place.
      at_merge = jax.tree.map(
        jnp.subtract, self._merged(total, frozen["update"], count), state.pending
      )
      chosen = jax.tree.map(lambda m, u: jnp.where(due, m, u), at_merge, updates)
      pending = jax.tree.map(lambda x: jnp.where(due, jnp.zeros_like(x), x), total)
      return chosen, OnlineMergingState(count, pending, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)

  def _merged(self, updates: PyTree, reference: PyTree, count: jax.Array) -> PyTree:
    """F(Δθ) ⊕ F(τ_r)."""
    if self.method == "ties":
      thin = self._by_layer(updates, lambda stream, layer, x: largest(x, self.density))
      return jax.tree.map(self._elected, thin, reference)
    thin = self._drawn(updates, "update", count)
    kept = self._drawn(reference, "reference", count) if self.redraw else reference
    return jax.tree.map(self._mixed, thin, kept)

  def _mixed(self, update: jax.Array, reference: jax.Array) -> jax.Array:
    return ((1 - self.alpha) * update + self.alpha * reference).astype(update.dtype)

  def _elected(self, update: jax.Array, reference: jax.Array) -> jax.Array:
    votes = update + reference if self.elect == "unweighted" else self._mixed(update, reference)
    sign = jnp.where(votes >= 0, 1.0, -1.0)
    agreeing = (jnp.where(jnp.sign(x) == sign, x, 0.0) for x in (update, reference))
    return self._mixed(*agreeing)

  def _drawn(self, tree: PyTree, stream: str, step: int | jax.Array) -> PyTree:
    """Every entry with probability p, the others 0."""
    if self.density == 1:
      return tree
    gain = 1 / self.density if self.rescale == "inverse" else 1.0

    def keep(name: str, layer: Any, x: jax.Array) -> jax.Array:
      key = rng.key(self.seed, f"online_merging/{stream}/{name}", step)
      mask = jax.random.bernoulli(jax.random.fold_in(key, layer), self.density, x.shape)
      return jnp.where(mask, x * gain, 0.0).astype(x.dtype)

    return self._by_layer(tree, keep)

  def _by_layer(self, tree: PyTree, function: Callable[[str, Any, jax.Array], jax.Array]) -> PyTree:
    """function(name, layer, matrix) for each layer of every leaf: the same whether layers are stacked or not."""
    described = {leaf.name: leaf for leaf in describe(tree)}

    def one(name: str, x: jax.Array) -> jax.Array:
      leaf = described[name]
      shared = _shared_name(leaf)
      if leaf.num_layers is None:
        return function(shared, leaf.layer or 0, x)
      return jax.vmap(lambda i, row: function(shared, i, row))(jnp.arange(leaf.num_layers), x)

    return trees.map_named(one, tree)


def largest(x: jax.Array, density: float) -> jax.Array:
  """The int(density·n) entries of largest magnitude, at least one, and all that tie with the last; the others 0.

  The authors' code keeps all entries of a tensor so small that int(density·n) is 0.
  """
  if density == 1:
    return x
  magnitude = jnp.abs(x).astype(jnp.float32)
  (edge,) = bisection.kth_largest([[magnitude]], [max(1, int(density * x.size))])
  return jnp.where(magnitude >= edge, x, jnp.zeros_like(x))


def _shared_name(leaf: Leaf) -> str:
  """The name of a leaf without the number of its layer."""
  if leaf.layer is None:
    return leaf.name
  return leaf.name.replace(f"{leaf.stem}/{leaf.layer}/", f"{leaf.stem}/", 1)
