"""How members that sparsification.py has thinned out are added up: all that is left, or what agrees on a sign.

The order of operations is mergekit's: coefficient · delta, sum, division, scale, base; so are its float32 results. Few
passes over the arrays, in place where they are NumPy's; a mask is multiplied with, because NumPy's `where` takes ten
times as long. No JAX here; see rules.py.
"""

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

from wam.core.errors import unknown_name
from wam.merging.rules import Apply, Array, Block, Group, KthLargest, Sum
from wam.merging.sparsification import Thinned

Steps = Generator[Sequence[Sum | KthLargest], Any, Apply]

DIVISORS = ("weights", "count", "none")
ELECTIONS = ("weighted", "unweighted")
ZERO_SIGNS = ("positive", "majority")


def added(group: Group, thinned: Thinned, scale: Any, normalize: str | bool) -> Apply:
  """θ_init + λ Σ c_m δ'_m / divisor.

  Args:
    group: what is merged.
    thinned: the members.
    scale: λ.
    normalize: "weights" (True): by Σ c_m, by 1 where that is below 1e-8; "none" (False).
  """
  by_weights = _divisor(normalize, ("weights", "none")) == "weights"
  gains = thinned.gains or (None,) * group.num_members

  def apply(block: Block) -> Array:
    total: Any = None
    members = zip(thinned.thin(block), block.coefficients, gains, strict=True)
    for (delta, keep), coefficient, gain in members:
      factor = _factor(coefficient, gain, delta.dtype)
      if keep is not None:
        factor = keep.astype(delta.dtype) * factor
      delta *= factor
      total = delta if total is None else _plus(total, delta)
    if by_weights:
      weight = sum(block.coefficients[1:], block.coefficients[0])
      total /= block.xp.where(abs(weight) < 1e-8, 1, weight).astype(total.dtype)
    return _finished(block, total, scale)

  return apply


def elected(
  group: Group,
  thinned: Thinned,
  scale: Any,
  normalize: str | bool,
  elect: str = "weighted",
  zero_sign: str = "positive",
) -> Steps:
  """θ_init + λ Σ c_m δ'_m / divisor over the members whose sign, entry by entry, is that of the sum of all.

  Args:
    group: what is merged.
    thinned: the members.
    scale: λ.
    normalize: "weights" (True): by Σ c_m of those that agree, by 1 where that is 0; "count": by their number; "none"
      (False).
    elect: "weighted": the sum is Σ c_m δ'_m, and c_m δ'_m has to agree; "unweighted": Σ δ'_m and δ'_m.
    zero_sign: where the sum is zero: "positive", or "majority": the sign of most entries of the group.

  Raises:
    UnknownName: lists the choices.
  """
  for kind, name, choices in (("elect", elect, ELECTIONS), ("zero_sign", zero_sign, ZERO_SIGNS)):
    if name not in choices:
      raise unknown_name(kind, str(name), choices)
  election = _Election(
    thinned,
    thinned.gains or (None,) * group.num_members,
    elect == "weighted",
    _divisor(normalize, DIVISORS),
  )
  zero_is_positive: Any = True
  if zero_sign == "majority":
    ((positive, negative),) = yield [Sum(election.count)]
    zero_is_positive = positive >= negative
  return lambda block: _finished(block, election.merged(block, zero_is_positive), scale)


@dataclasses.dataclass(frozen=True)
class _Election:
  """What is elected by whom."""

  thinned: Thinned
  gains: tuple[Any, ...]
  weighted: bool
  divisor: str

  def votes(self, block: Block) -> tuple[list[Array], list[Array | None], Array]:
    """The deltas, what is kept of them, and the sum that elects."""
    deltas, keeps, total = [], [], None
    members = zip(self.thinned.thin(block), block.coefficients, self.gains, strict=True)
    for (delta, keep), coefficient, gain in members:
      factor = _factor(coefficient if self.weighted else 1.0, gain, delta.dtype)
      if keep is None:
        vote = delta * factor
      else:
        vote = keep.astype(delta.dtype)
        vote *= factor
        vote *= delta
      total = vote if total is None else _plus(total, vote)
      deltas.append(delta)
      keeps.append(keep)
    assert total is not None
    return deltas, keeps, total

  def count(self, block: Block) -> tuple[Any, Any]:
    """How many entries elect plus, and minus."""
    total = self.votes(block)[2]
    xp, dtype = block.xp, total.dtype
    return xp.sum((total > 0).astype(dtype)), xp.sum((total < 0).astype(dtype))

  def agrees(self, delta: Array, keep: Array | None, coefficient: Any, up: Array) -> Array:
    """Where a member has the elected sign."""
    # A negative coefficient turns the vote round.
    same = (delta > 0) == (up ^ (coefficient < 0) if self.weighted else up)
    if keep is not None:
      same &= keep
    if not self.thinned.nonzero:
      same &= delta != 0
    if self.weighted and self.divisor == "count":
      same &= coefficient != 0
    return same

  def merged(self, block: Block, zero_is_positive: Any) -> Array:
    """The sum or mean of what agrees."""
    deltas, keeps, votes = self.votes(block)
    up = votes >= 0 if zero_is_positive is True else (votes > 0) | ((votes == 0) & zero_is_positive)
    total: Any = None
    weights: Any = None
    members = zip(deltas, keeps, block.coefficients, self.gains, strict=True)
    for delta, keep, coefficient, gain in members:
      share = self.agrees(delta, keep, coefficient, up).astype(delta.dtype)
      if self.divisor == "weights":
        share *= coefficient
      if self.divisor != "none":
        weights = share if weights is None else _plus(weights, share)
      delta *= share
      rest = 1.0 if self.divisor == "weights" else coefficient
      if gain is not None or self.divisor != "weights":
        delta *= _factor(rest, gain, delta.dtype)
      total = delta if total is None else _plus(total, delta)
    if self.divisor != "none":
      weights += (weights == 0).astype(weights.dtype)
      total /= weights
    return total


def _divisor(normalize: str | bool, choices: Sequence[str]) -> str:
  name = normalize
  if isinstance(normalize, bool):
    name = "weights" if normalize else "none"
  if name not in choices:
    raise unknown_name("normalize", str(name), choices)
  return str(name)


def _factor(coefficient: Any, gain: Any | None, dtype: Any) -> Any:
  """c · gain, no wider than the arrays, which it would widen."""
  if gain is None:
    return coefficient
  product = coefficient * gain
  return product if type(gain) is float else product.astype(dtype)


def _plus(total: Array, more: Array) -> Array:
  total += more
  return total


def _finished(block: Block, total: Array, scale: Any) -> Array:
  """θ_init + λ·total."""
  if not (isinstance(scale, int | float) and scale == 1):
    total *= scale
  total += block.base
  return total
