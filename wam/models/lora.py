"""Low-rank adapters (Hu et al. 2021): W + (alpha/r)·A B for the linear matrices of a decoder, the rest untouched.

Adapters are a tree of their own, {"layers": {"mlp": {"gate": {"lora_a", "lora_b"}, ...}}}, in the layout of the weights
that they belong to; only they are trained, and `fuse` gives the weights that models, merges and exports take. A pass
multiplies with the fused matrices: no model has to know adapters, at the price of a second copy of those matrices and
of their gradient. Leaves out files (training/adapters.py) and DoRA.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from wam.core import trees
from wam.core.errors import ConfigError, MismatchedTrees, check_same_trees, unknown_name
from wam.core.types import Params

GROUPS = {"mlp": ("gate", "up", "down"), "attention": ("q", "k", "v", "o")}
MODULES = {m: f"{group}/{m}" for group, members in GROUPS.items() for m in members}
AVERAGES = ("factors", "products")
A, B = "lora_a", "lora_b"
_LAYER = re.compile(r"((?:^|/)layers/)(\d+)/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """Which matrices are adapted, and how.

  Attributes:
    rank: r, of A [inputs, r] and B [r, outputs].
    alpha: the product is multiplied by alpha / rank.
    targets: "mlp", "attention", a single matrix (q, k, v, o, gate, up, down), or several of these joined by "+".
    dropout: probability with which an input of A is left out while training. It is drawn once for a microbatch, since
      the matrices are fused; PEFT draws for every token.

  Raises:
    ConfigError: if a number makes no sense; UnknownName: if there is no such target.
  """

  rank: int
  alpha: float = 32.0
  targets: str = "mlp"
  dropout: float = 0.0

  def __post_init__(self) -> None:
    if self.rank < 1:
      raise ConfigError(f"lora: rank is {self.rank}, expected at least 1")
    if not (math.isfinite(self.alpha) and self.alpha > 0):
      raise ConfigError(f"lora: alpha is {self.alpha}, expected a positive number")
    if not 0 <= self.dropout < 1:
      raise ConfigError(f"lora: dropout is {self.dropout}, expected at least 0 and less than 1")
    for target in self.targets.split("+"):
      if target not in GROUPS and target not in MODULES:
        raise unknown_name("target of lora", target, (*GROUPS, *MODULES))

  @property
  def scaling(self) -> float:
    """What the product of the factors is multiplied by."""
    return self.alpha / self.rank

  @property
  def modules(self) -> tuple[str, ...]:
    """The adapted matrices of a layer: "mlp/gate" and the like."""
    chosen = [m for t in self.targets.split("+") for m in GROUPS.get(t, (t,))]
    return tuple(path for module, path in MODULES.items() if module in chosen)

  def init(self, params: Params, key: jax.Array) -> Params:
    """Fresh adapters: A uniform in ±1/√inputs (Kaiming's bound, as PEFT draws it), B zero, so `fuse` gives `params`.

    Args:
      params: weights of a decoder, stacked or unrolled; both layouts draw the same numbers.
      key: a typed jax key.

    Returns:
      float32 leaves "<module>/lora_a" [(L,) inputs, r] and "<module>/lora_b" [(L,) r, outputs].

    Raises:
      ConfigError: if `params` has none of the target matrices.
    """
    pattern = re.compile(rf"((?:.*/)?(?:{'|'.join(self.modules)}))/kernel")
    flat: dict[str, jax.Array] = {}
    for name, leaf in trees.flatten(params).items():
      found = pattern.fullmatch(name)
      if found is None:
        continue
      inputs, outputs = leaf.shape[-2:]
      drawn = _uniform(key, found[1], (*leaf.shape[:-2], inputs, self.rank))
      flat[f"{found[1]}/{A}"] = (2 * drawn - 1) / math.sqrt(inputs)
      flat[f"{found[1]}/{B}"] = jnp.zeros((*leaf.shape[:-2], self.rank, outputs), jnp.float32)
    if not flat:
      raise ConfigError(
        f"lora: the weights have no {', '.join(self.modules)} (as in 'layers/0/mlp/gate/kernel')"
      )
    return trees.unflatten(flat)

  def fuse(self, params: Params, adapters: Params) -> Params:
    """W + (alpha/r)·A B for every adapted matrix, in float32, cast to the dtype of W; other leaves as they are.

    Raises:
      MismatchedTrees: if there are adapters of matrices that `params` does not have.
    """
    factors = trees.flatten(adapters)
    adapted = {name.removesuffix(f"/{A}"): x for name, x in factors.items() if name.endswith(A)}
    absent = {f"{name}/kernel" for name in adapted} - trees.flatten(params).keys()
    if absent:
      raise MismatchedTrees(
        f"adapters of matrices that the weights do not have: {', '.join(sorted(absent))}; both must"
        " be stacked, or both unrolled"
      )

    def leaf(name: str, kernel: jax.Array) -> jax.Array:
      module = name.removesuffix("/kernel")
      if module not in adapted:
        return kernel
      delta = self.scaling * product(adapted[module], factors[f"{module}/{B}"])
      return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)

    return trees.map_named(leaf, params)

  def drop(self, adapters: Params, key: jax.Array) -> Params:
    """The adapters for one pass of training: inputs of every A left out at random, the others scaled up."""
    if not self.dropout:
      return adapters

    def leaf(name: str, x: jax.Array) -> jax.Array:
      if not name.endswith(A):
        return x
      kept = _uniform(key, name, (*x.shape[:-1], 1)) >= self.dropout
      return x * kept / (1 - self.dropout)

    return trees.map_named(leaf, adapters)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """A B in full float32: [(L,) inputs, r] and [(L,) r, outputs] -> [(L,) inputs, outputs]."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def average(
  members: Sequence[tuple[Lora, Params]],
  coefficients: Sequence[float] | None = None,
  *,
  of: str = "products",
) -> tuple[Lora, Params]:
  """One adapter from several of the same base.

  "factors" averages A and B separately, as Rewarded Soups (Ramé et al. 2023) and Personalized Soups do. Its product is
  not the average of the products, but Σ_ij c_i c_j A_i B_j; the two agree where all A, or all B, are equal. "products"
  gives the average of the fused weights exactly, by factors side by side: its rank is the sum of the ranks.

  Args:
    members: adapters and what they are; the same matrices. "factors" needs equal rank and alpha.
    coefficients: one for each; default 1/M. Those of "factors" must sum to 1.
    of: "factors" or "products".

  Raises:
    UnknownName: if there is no such average.
    ConfigError: if members or coefficients do not fit.
    MismatchedTrees: names the matrices that are not adapted in all.
  """
  if of not in AVERAGES:
    raise unknown_name("average of adapters", of, AVERAGES)
  count = len(members)
  weights = [1 / count for _ in members] if coefficients is None else list(coefficients)
  if not count or len(weights) != count:
    raise ConfigError(f"average: {count} adapters and {len(weights)} coefficients")
  first = members[0][0]
  kinds = {(lora.rank, lora.alpha) for lora, _ in members}
  if of == "factors":
    if len(kinds) > 1:
      raise ConfigError(
        f"average: factors of different rank or alpha {sorted(kinds)} cannot be averaged; average"
        " their products"
      )
    if not math.isclose(sum(weights), 1, rel_tol=1e-6):
      raise ConfigError(
        f"average: the coefficients of factors sum to {sum(weights)}, expected 1: the product goes"
        " with their square"
      )
    check_same_trees(*(adapters for _, adapters in members))
    return first, jax.tree.map(lambda *xs: _weighted(weights, xs), *(a for _, a in members))
  names = [set(trees.names(adapters)) for _, adapters in members]
  if different := sorted(set().union(*(names[0] ^ each for each in names))):
    raise MismatchedTrees(f"average: not adapted in all members: {', '.join(different)}")
  rank = sum(lora.rank for lora, _ in members)
  scaled = [
    trees.map_named(
      lambda n, x, s=c * lora.scaling / first.scaling: s * x if n.endswith(A) else x, adapters
    )
    for c, (lora, adapters) in zip(weights, members, strict=True)
  ]
  joined = trees.map_named(
    lambda n, *xs: jnp.concatenate(xs, axis=-1 if n.endswith(A) else -2), *scaled
  )
  return dataclasses.replace(first, rank=rank, alpha=first.scaling * rank), joined


def _weighted(weights: Sequence[float], leaves: Sequence[jax.Array]) -> jax.Array:
  total = weights[0] * leaves[0].astype(jnp.float32)
  for c, x in zip(weights[1:], leaves[1:], strict=True):
    total = total + c * x.astype(jnp.float32)
  return total


def _uniform(key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
  """Numbers in [0, 1), for each matrix from a stream of its own: the same whether layers are stacked or not."""
  found = _LAYER.search(name)
  module = _LAYER.sub(r"\1", name)
  own = jax.random.fold_in(key, zlib.crc32(module.encode()))
  if len(shape) == 2:
    return jax.random.uniform(jax.random.fold_in(own, int(found[2]) if found else 0), shape)
  keys = jax.vmap(lambda layer: jax.random.fold_in(own, layer))(jnp.arange(shape[0]))
  return jax.vmap(lambda k: jax.random.uniform(k, shape[1:]))(keys)
