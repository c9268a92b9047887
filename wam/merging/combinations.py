"""Rules that combine the members entry by entry: the sum is all there is. No JAX here; see rules.py."""

from collections.abc import Generator
from typing import Any

from wam.merging.rules import Apply, Block, Group, weighted_sum

Steps = Generator[Any, Any, Apply]


def linear(group: Group, *, normalize: bool = True, extrapolate: bool = False) -> Steps:
  """Σ c_m θ_m / Σ c_m (model soups, arXiv 2203.05482; rewarded soups, arXiv 2306.04488).

  Args:
    group: with or without a base, which is not used.
    normalize: whether to divide by the sum of the coefficients.
    extrapolate: allows negative coefficients; checked by the caller.
  """
  del extrapolate
  yield from ()

  def apply(block: Block) -> Any:
    total = weighted_sum(block.members, block.coefficients)
    return total / sum(block.coefficients[1:], block.coefficients[0]) if normalize else total

  return apply


def task_arithmetic(group: Group, *, scale: float = 1.0) -> Steps:
  """θ_init + λ Σ c_m δ_m (Ilharco et al. 2023, arXiv 2212.04089)."""
  yield from ()

  def apply(block: Block) -> Any:
    total = weighted_sum(block.deltas(), block.coefficients)
    return block.base + scale * total

  return apply


def interpolation(group: Group, *, eta: float = 0.5, extrapolate: bool = False) -> Steps:
  """θ_init + η (θ - θ_init): LiTI of WARP, WiSE-FT; beyond η = 1 ExPO (Zheng et al. 2024, arXiv 2404.16792)."""
  del extrapolate
  yield from ()
  return lambda block: block.base + eta * block.delta(0)
