"""Rules that need only the Gram matrix of the members, or of their task vectors: spheres, model stock, medians.

One `Sum` asks for all products; gram.py makes coefficients of them; `weighted_sum` makes the merge. With a base the
vectors are task vectors, which is what the papers on fine-tuned networks mean; without one they are the weights, whose
angles are so small that most spherical means are the linear one to rounding. No JAX here; see rules.py.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from wam.merging import gram
from wam.merging.rules import (
  Apply,
  Block,
  Group,
  Sum,
  coefficient_sum,
  keep_agreement,
  weighted_steps,
  weighted_sum,
)

Steps = Generator[Any, Any, Apply]
Array = Any

# mergekit's: between weights whose cosine is beyond this it interpolates linearly.
WEIGHTS_THRESHOLD = 0.9995


def _products(block: Block) -> tuple[Any, ...]:
  """The triangle of products of the (task) vectors in a block."""
  return gram.triangle(block.deltas(), lambda a, b: gram.inner(block.xp, a, b))


def _products_of_rows(block: Block) -> tuple[Any, ...]:
  return gram.triangle(block.deltas(), lambda a, b: gram.inner_of_rows(block.xp, a, b))


def _products_of_columns(block: Block) -> tuple[Any, ...]:
  return gram.triangle(block.deltas(), lambda a, b: gram.inner_of_columns(block.xp, a, b))


def _row(group: Group, coefficients: tuple[Any, ...], products: Array) -> Array:
  """Coefficients [M] in the dtype of the products."""
  xp = group.xp
  return xp.stack([xp.asarray(c) for c in coefficients]).astype(products.dtype)


def _shares(group: Group, products: Array) -> Array:
  """The coefficients divided by their sum: [M]."""
  row = _row(group, group.shared_coefficients(), products)
  return row / group.xp.sum(row)


def _combine(group: Group, block: Block, factors: Sequence[Any]) -> Array:
  """base + Σ c_m δ_m, or Σ c_m θ_m, with scalars or arrays that broadcast; equal members return themselves."""
  dtype = block.members[0].dtype
  merged = weighted_sum(block.members, [c.astype(dtype) for c in factors], block.base)
  if not group.exact:
    return merged
  affine = abs(sum(factors[1:], factors[0]) - 1) < 1e-6
  return keep_agreement(block, merged, affine)


def _combination(group: Group, row: Array) -> Apply:
  """The combination with coefficients [M]."""
  return lambda block: _combine(group, block, [row[m] for m in range(group.num_members)])


def _along_rows(group: Group, rows: Array) -> Apply:
  """The combination of a block [R, C] or [C] with coefficients [R, M] or [M], of every row its own."""
  return lambda block: _combine(
    group, block, [rows[..., m, None] for m in range(group.num_members)]
  )


def _along_columns(group: Group, rows: Array) -> Apply:
  """The combination of a block [R, C] with coefficients [C, M], of every column its own."""
  return lambda block: _combine(group, block, [rows[None, :, m] for m in range(group.num_members)])


def _by_gram(group: Group, coefficients_of: Callable[[Array, Array], Array]) -> Steps:
  """One request, and the combination with coefficients_of(Gram matrix, shares)."""
  coefficient_sum(group.shared_coefficients())
  (products,) = yield [Sum(_products)]
  matrix = gram.matrix(group.xp, products)
  return _combination(group, coefficients_of(matrix, _shares(group, matrix)))


def slerp(group: Group, *, dot_threshold: float | None = None) -> Steps:
  """The merge of the first m - 1 vectors is slerped towards member m, t = c_m / Σ_{j≤m} c_j (see `gram.slerp_rows`).

  With a base WARP's merge of task vectors (Ramé et al. 2024, arXiv 2406.16768, eq. 26), as in spherical.py. Without one
  mergekit's slerp of the weights, t → coefficients (1 - t, t); there a tensor that is zero in one member is averaged
  linearly, where mergekit counts it as orthogonal and scales the other by sin(tπ/2).

  Args:
    group: with or without a base.
    dot_threshold: linear where the cosine is beyond it; None: an angle of 1e-3 with a base, mergekit's 0.9995 without.
  """
  if dot_threshold is None and not group.has_base:
    dot_threshold = WEIGHTS_THRESHOLD
  return (
    yield from _by_gram(
      group,
      lambda products, shares: gram.slerp_rows(
        group.xp, products, shares, dot_threshold=dot_threshold
      )[0],
    )
  )


def nuslerp(group: Group, *, flatten: bool = True, row_wise: bool = False) -> Steps:
  """Slerp of two (task) vectors with t = c_2 / (c_1 + c_2), or ½ where that sum vanishes (mergekit's NuSLERP).

  A vector of zeros, say of a tensor that one network froze, is averaged linearly; mergekit counts it as orthogonal and
  scales the other by sin(tπ/2).

  Args:
    group: of two members and one tensor, with or without a base.
    flatten: whether the tensor is one vector.
    row_wise: otherwise: whether the vectors run along its first axis, in place of along the others together (mergekit:
      along the last, which is the same up to rank 2).
  """
  xp = group.xp
  first, second = group.shared_coefficients()
  total = first + second
  vanishing = abs(total) < 1e-6
  t = xp.where(vanishing, 0.5, second / xp.where(vanishing, 1.0, total))

  def rows(products: Any) -> Array:
    matrix = gram.matrix(xp, products)
    return gram.slerp_rows(xp, matrix, _row(group, (1 - t, t), matrix))[0]

  if flatten:
    (products,) = yield [Sum(_products)]
    return _combination(group, rows(products))
  if row_wise:
    (products, whole) = yield [Sum(_products_of_columns), Sum(_products)]
    columns, one = rows(products), rows(whole)
    # A tensor of rank 1 is one vector either way.
    kinds = _combination(group, one), _along_columns(group, columns)
    return lambda block: kinds[0 if _is_one_row(group, block) else 1](block)
  yield from ()
  return lambda block: _along_rows(group, rows(_products_of_rows(block)))(block)


def _is_one_row(group: Group, block: Block) -> bool:
  shape = block.members[0].shape
  return not shape or shape[-1] == group.num_entries


def multislerp(group: Group, *, normalize: bool = True) -> Steps:
  """The weighted mean of the unit vectors, made as long as the weighted mean of the norms (mergekit's Multi-SLERP).

  mergekit adds a step in the tangent space at that mean, which is nothing: the mean has no component off itself. (For
  the spherical mean that the step aims at see `karcher`.) Linear where the unit vectors cancel, and the base where all
  task vectors are zero; there mergekit stops the whole merge with an error. A single member is returned.

  Args:
    group: with or without a base.
    normalize: whether the coefficients are divided by their sum.
  """
  xp = group.xp
  coefficients = group.shared_coefficients()
  if normalize:
    coefficient_sum(coefficients)
  if group.num_members == 1:
    return lambda block: block.members[0]
  (products,) = yield [Sum(_products)]
  matrix = gram.matrix(xp, products)
  shares = _shares(group, matrix) if normalize else _row(group, coefficients, matrix)
  return _combination(group, gram.multislerp_rows(xp, matrix, shares))


def karcher(group: Group, *, num_steps: int = 20, tolerance: float = 0.0) -> Steps:
  """The Karcher mean of the directions, as long as the mean of the norms: no order among the members.

  See `gram.karcher_rows`. With a base of the task vectors, as in spherical.py, linear where one is zero. Without one of
  the weights, as in mergekit, whose members all count the same and which leaves zero tensors out of the mean direction.
  mergekit has num_steps = 10 and tolerance = 1e-5, some bits short of float32, and keeps unit vectors in the
  dtype of the inputs; in bfloat16 that loses a fifth of the update.

  Args:
    group: with or without a base.
    num_steps: of the iteration; converges to float32 in about ten.
    tolerance: a step shorter than this, in radians, ends it.
  """

  def coefficients_of(products: Array, shares: Array) -> Array:
    rows, _ = gram.karcher_rows(
      group.xp,
      products,
      shares,
      num_steps=num_steps,
      tolerance=tolerance,
      skip_zeros=not group.has_base,
    )
    return rows

  return (yield from _by_gram(group, coefficients_of))


def model_stock(group: Group, *, filter_wise: bool = False, clip: bool = False) -> Steps:
  """θ_init + t (mean of θ_m - θ_init), t = N cos / (1 + (N - 1) cos) (Jang et al. 2024, arXiv 2403.19522).

  cos is the mean cosine over all pairs of task vectors; the paper has N = 2, and mergekit the mean over pairs. It is
  that of the vectors however short they are; mergekit divides by 1e-6 at least, and with task vectors of 1e-5 on 2048
  entries takes t = 0.35 where it is 0.995.

  Args:
    group: with a base and two members or more.
    filter_wise: whether every row (the weights of one output) has its own t; a tensor of rank 1 is one row.
    clip: whether t is kept in [0, 1]; otherwise it is below 0 where the task vectors oppose each other on the whole.
  """
  xp = group.xp

  def share(products: Any) -> Array:
    """Of every task vector in the merge: t / N."""
    ratio = gram.stock_ratio(xp, gram.matrix(xp, products))
    return (xp.clip(ratio, 0.0, 1.0) if clip else ratio) / group.num_members

  def apply(block: Block, factor: Array) -> Array:
    # All count the same: multiplied once, not each.
    total = weighted_steps(block.members, [1.0] * len(block.members), block.base)
    total *= factor.astype(total.dtype)
    total += block.base
    if not group.exact:
      return total
    return keep_agreement(block, total, abs(factor * group.num_members - 1) < 1e-6)

  if filter_wise:
    yield from ()
    return lambda block: apply(block, share(_products_of_rows(block))[..., None])
  (products,) = yield [Sum(_products)]
  factor = share(products)
  return lambda block: apply(block, factor)


def geometric_median(group: Group, *, num_steps: int = 64) -> Steps:
  """The point with the least Σ c_m |θ - θ_m|: one member far out moves it no more than one near by (Weiszfeld 1937).

  Of two members with equal coefficients it is the middle, though every point between them has that sum.

  Args:
    group: a base is not used; a median does not depend on where distances are measured from.
    num_steps: of Weiszfeld's iteration; a median that is a member is found exactly.
  """
  xp = group.xp
  coefficient_sum(group.shared_coefficients())
  if group.num_members == 1:
    return lambda block: block.members[0]

  # Relative to the first member: distances that follow from products of whole weights would be lost to rounding.
  def around_first(block: Block) -> tuple[Any, ...]:
    first, *others = block.members
    return gram.triangle([x - first for x in others], lambda a, b: gram.inner(xp, a, b))

  (products,) = yield [Sum(around_first)]
  matrix = xp.pad(gram.matrix(xp, products), ((1, 0), (1, 0)))
  row = gram.median_rows(xp, matrix, _shares(group, matrix), num_steps=num_steps)

  def apply(block: Block) -> Array:
    first, *others = block.members
    factors = [row[m + 1].astype(first.dtype) for m in range(len(others))]
    return weighted_sum(others, factors, first)

  return apply
