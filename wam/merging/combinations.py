"""Rules that combine the members entry by entry: the sum is all there is. No JAX here; see rules.py."""

from collections.abc import Generator
from typing import Any

from wam.merging.rules import (
  Apply,
  Block,
  Group,
  coefficient_sum,
  is_one,
  weighted_steps,
  weighted_sum,
)

Steps = Generator[Any, Any, Apply]


def linear(group: Group, *, normalize: bool = True, extrapolate: bool = False) -> Steps:
  """Σ c_m θ_m / Σ c_m (model soups, arXiv 2203.05482; rewarded soups, arXiv 2306.04488).

  Args:
    group: with or without a base, which is not used.
    normalize: whether to divide by the sum of the coefficients.
    extrapolate: allows negative coefficients; checked by the caller.
  """
  del extrapolate
  if normalize and group.coefficients is not None:
    coefficient_sum(group.coefficients)
  yield from ()

  def apply(block: Block) -> Any:
    total = weighted_sum(block.members, block.coefficients)
    if normalize:
      divisor = coefficient_sum(block.coefficients)
      if not is_one(divisor):
        total /= divisor
    return total

  return apply


def task_arithmetic(group: Group, *, scale: float = 1.0) -> Steps:
  """θ_init + λ Σ c_m δ_m (Ilharco et al. 2023, arXiv 2212.04089)."""
  yield from ()

  def apply(block: Block) -> Any:
    total = weighted_steps(block.members, block.coefficients, block.base)
    if not is_one(scale):
      total *= scale
    total += block.base
    return total

  return apply


def interpolation(group: Group, *, eta: float = 0.5, extrapolate: bool = False) -> Steps:
  """(1 - η) θ_init + η θ, in the form θ_init + η (θ - θ_init): LiTI of WARP (arXiv 2406.16768), WiSE-FT (2109.01903).

  With an η for every part it is the merge of the alignment-tax paper (AMA, arXiv 2309.06256): η is that paper's α,
  which multiplies the network after RLHF. In the authors' code the α of a part multiplies the network before it
  (η = 1 - α), and every parameter that is not of a linear layer (norms, embeddings) is copied from before RLHF (η = 0).
  Beyond η = 1 it is `extrapolation` with alpha = η - 1.

  Args:
    group: with a base and one member.
    eta: η.
    extrapolate: allows η outside [0, 1]; checked by the caller.
  """
  del extrapolate
  yield from ()

  def apply(block: Block) -> Any:
    step = block.delta(0)
    step *= eta
    step += block.base
    return step

  return apply


def extrapolation(group: Group, *, alpha: float = 0.3) -> Steps:
  """θ + α (θ - θ_init): ExPO, from SFT through alignment and on (Zheng et al. 2024, arXiv 2404.16792).

  Args:
    group: with a base (SFT) and one member (trained on preferences).
    alpha: α; the paper finds 0.1 to 0.5 good.
  """
  yield from ()

  def apply(block: Block) -> Any:
    step = block.delta(0)
    step *= alpha
    step += block.members[0]
    return step

  return apply


def passthrough(group: Group, *, scale: float = 1.0) -> Steps:
  """λ θ: one member as it is, or scaled (mergekit's passthrough, with which its recipes stack layers)."""
  yield from ()
  return lambda block: block.members[0] if is_one(scale) else scale * block.members[0]


def nearswap(group: Group, *, t: float = 1e-4) -> Steps:
  """a θ + (1 - a) θ_init, a = min(t / |θ - θ_init|, 1) entry by entry: entries within t of each other are swapped.

  From Alchemonaut's QuartetAnemoi-70B, as in mergekit. Entries further apart move towards the member by t.

  Args:
    group: with a base and one member.
    t: in units of the weights.
  """
  yield from ()

  def apply(block: Block) -> Any:
    xp, member, base = block.xp, block.members[0], block.base
    share = xp.clip(t / xp.maximum(xp.abs(member - base), 1e-6), 0.0, 1.0)
    total = share * member
    total += (1 - share) * base
    return total

  return apply


def fisher(group: Group, *, floor: float = 1e-6) -> Steps:
  """Σ c_m F_m θ_m / Σ c_m F_m, entry by entry (Matena & Raffel 2022, arXiv 2111.09832, eq. 4).

  F_m are importances: the diagonal of a Fisher matrix, E_x E_{y~p} [(∂ log p(y|x) / ∂θ)²], or anything else that is not
  negative. They are taken as given: the paper's division by their norm, where members differ in scale, is the caller's.
  Where no importance is left of an entry (a floor of 0) the mean with the coefficients alone is taken.

  Args:
    group: with importances.
    floor: importances below it count as it, as in the authors' code; mind it where importances are small throughout.
  """
  if group.coefficients is not None:
    coefficient_sum(group.coefficients)
  yield from ()

  def apply(block: Block) -> Any:
    xp = block.xp
    weights = []
    for importance, c in zip(block.importances, block.coefficients, strict=True):
      weight = xp.maximum(importance, floor)
      weight *= c
      weights.append(weight)
    total, divisor = weighted_sum(block.members, weights), sum(weights[1:], weights[0])
    if floor > 0:
      total /= divisor
      return total
    nothing = divisor == 0
    mean = weighted_sum(block.members, block.coefficients) / coefficient_sum(block.coefficients)
    return xp.where(nothing, mean, total / xp.where(nothing, 1.0, divisor))

  return apply
