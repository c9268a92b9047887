"""Arcee fusion: the entries of one network that matter most are put into another. No JAX here; see rules.py."""

from collections.abc import Generator
from typing import Any

from wam.core.errors import unknown_name
from wam.merging.rules import Apply, Block, Group, KthLargest

Steps = Generator[Any, Any, Apply]
Array = Any

QUANTILES = ("lower", "linear")


def arcee_fusion(group: Group, *, quantiles: str = "lower") -> Steps:
  """θ_init + δ where |δ| · KL(softmax(θ row) ‖ softmax(θ_init row)) ≥ median + 1.5 IQR, else θ_init (Arcee's fusion).

  The quantiles are exact, over all entries of the tensor; mergekit takes them of a million entries drawn at random
  where there are more. The divergence is worked out without the cancellation that leaves noise in mergekit's (and with
  bfloat16 inputs nothing else), so that entries next to the threshold may differ from its.

  Args:
    group: with a base and one member; blocks hold whole rows. A tensor of rank 1 is one row.
    quantiles: of values between two ranks: the "lower" one, as mergekit, or "linear" between them, as torch.quantile.

  Raises:
    UnknownName: if there are no such quantiles.
  """
  if quantiles not in QUANTILES:
    raise unknown_name("quantiles", quantiles, QUANTILES)
  last = group.num_entries - 1
  # Quarters of the ranks, ascending from 0, in whole numbers: floats cannot count the entries of a large tensor.
  places = [divmod(q * last, 4) for q in (1, 2, 3)]
  ranks = sorted({min(r + i, last) for r, _ in places for i in range(1 + (quantiles == "linear"))})
  found = yield [KthLargest(importance, group.num_entries - r) for r in ranks]
  at = dict(zip(ranks, found, strict=True))

  def quantile(rank: int, quarters: int) -> Any:
    below = at[rank]
    if quantiles == "lower":
      return below
    return below + quarters / 4 * (at[min(rank + 1, last)] - below)

  low, median, high = (quantile(*place) for place in places)
  threshold = median + 1.5 * (high - low)

  def apply(block: Block) -> Array:
    # A product, not a choice: a mask at random takes NumPy many times as long to choose by.
    step = block.delta(0)
    step *= (importance(block) >= threshold).astype(step.dtype)
    step += block.base
    return step

  return apply


def importance(block: Block) -> Array:
  """|δ| times the divergence of the row."""
  return abs(block.delta(0)) * divergence(block.xp, block.members[0], block.base)


def divergence(xp: Any, rows: Array, others: Array) -> Array:
  """KL(softmax(rows) ‖ softmax(others)) along the last axis, which is kept: >= 0, in nats.

  With q = softmax(others) and d the difference of the rows less its mean under q, p = q eᵈ / S and
  KL = Σ q (eᵈ - 1) d / S - log S, S = 1 + Σ q (eᵈ - 1): sums of small numbers where d is small, not of logarithms that
  cancel. The relative error is about that of a float over |d|; of the sum of p log(p/q) it is that over d².
  """
  if not rows.shape:
    rows, others = rows[None], others[None]
  q = others - xp.max(others, -1, keepdims=True)
  q = xp.exp(q)
  q /= xp.sum(q, -1, keepdims=True)
  d = rows - others
  d -= xp.sum(q * d, -1, keepdims=True)
  # Beyond this eᵈ overflows, and any threshold is passed.
  d = xp.minimum(d, 80.0)
  q *= xp.expm1(d)
  excess = xp.sum(q, -1, keepdims=True)
  q *= d
  return xp.maximum(xp.sum(q, -1, keepdims=True) / (1 + excess) - xp.log1p(excess), 0.0)
