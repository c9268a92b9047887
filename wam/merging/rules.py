"""What a merge is, said once: for arrays in memory, under jit, on a mesh, and for files that are read piece by piece.

A rule is a generator function `rule(group, **parameters)`. It may ask for what has to be known of whole tensors, sums
(`Sum`) and exact order statistics (`KthLargest`), by yielding a list of requests, as often as it needs; it is sent the
answers, and returns `apply(block) -> merged entries`. Whoever drives it decides how the tensors are gone through:
`in_memory` takes whole leaves with jax.numpy, wam/streaming pieces of files with NumPy.

    def halve_outliers(group, *, share):
      (edge,) = yield [KthLargest(lambda b: abs(b.delta(0)), int(share * group.num_entries))]
      return lambda b: b.base + b.xp.where(abs(b.delta(0)) >= edge, 0.5, 1.0) * b.delta(0)

Rules use the functions that NumPy and jax.numpy share, found as `block.xp`, and never ask what a value is. No JAX here.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.core import counters
from wam.core.errors import ConfigError

Array = Any  # numpy.ndarray or jax.Array


@dataclasses.dataclass(frozen=True)
class Block:
  """The same entries of one tensor in every network.

  Attributes:
    xp: numpy or jax.numpy.
    members: M arrays of one shape, float32 (float64 where the tensors are).
    base: the weights that the members started from, of that shape; None where there are none.
    coefficients: M scalars.
    importances: M arrays of that shape, where the method takes them.
    bits: (stream) -> uniform uint16 of that shape; the same for an entry however the tensor is cut.
    memory: (name, mask) -> mask(), or what it was when this block was gone through before.
  """

  xp: Any
  members: tuple[Array, ...]
  base: Array | None
  coefficients: tuple[Any, ...]
  importances: tuple[Array, ...] = ()
  bits: Callable[[str], Array] | None = None
  memory: Callable[[str, Callable[[], Array]], Array] | None = None

  def delta(self, m: int) -> Array:
    """θ_m - θ_init of these entries."""
    return self.members[m] - self.base

  def deltas(self) -> list[Array]:
    """The task vectors of all members; the members themselves where there is no base."""
    if self.base is None:
      return list(self.members)
    return [x - self.base for x in self.members]

  def random_bits(self, stream: str) -> Array:
    """Uniform integers in [0, 65536), uint16: a mask of density p is `random_bits(stream) < p * 65536`."""
    if self.bits is None:
      raise ConfigError("this merge draws at random: it needs a seed")
    return self.bits(stream)

  def remembered(self, name: str, mask: Callable[[], Array]) -> Array:
    """A mask that comes out the same in every sweep; where there is room it is worked out in the first one only.

    Args:
      name: of the mask, its own among those of a rule.
      mask: makes it: bool, of the shape of the block.
    """
    return mask() if self.memory is None else self.memory(name, mask)


class Sum(NamedTuple):
  """A request: the sum of function(block) over all entries of the group.

  Attributes:
    function: Block -> an array or a tuple of arrays, already summed over the entries of the block.
  """

  function: Callable[[Block], Any]


class KthLargest(NamedTuple):
  """A request: the exact k-th largest of function(block) over all entries of the group.

  Attributes:
    function: Block -> an array >= 0 with one value an entry.
    k: from 1 to the number of entries, an integer, possibly traced; outside it is clipped into that range.
  """

  function: Callable[[Block], Array]
  k: Any


class Group(NamedTuple):
  """What is known before any entry is read: tensors that make one vector for sums and thresholds, usually one.

  Attributes:
    xp: numpy or jax.numpy.
    num_members: M.
    num_entries: of all tensors of the group together.
    has_base: whether there is a common start.
    coefficients: M scalars, or None where the tensors of the group have different ones.
    exact: whether the last bit of the accumulator's dtype is kept; otherwise a rule can spare itself the care for it.
  """

  xp: Any
  num_members: int
  num_entries: int
  has_base: bool
  coefficients: tuple[Any, ...] | None
  exact: bool = True

  def shared_coefficients(self) -> tuple[Any, ...]:
    """The coefficients, for methods that need one set a group.

    Raises:
      ConfigError: if they differ within the group.
    """
    if self.coefficients is None:
      raise ConfigError(
        "this method works on groups of tensors as one vector and needs one set of coefficients a"
        " group; give numbers, or group='leaf'"
      )
    return self.coefficients


Apply = Callable[[Block], Array]
Rule = Callable[..., Generator[Sequence[Sum | KthLargest], Any, Apply]]
# (requests) -> their answers.
Evaluate = Callable[[Sequence[Sum | KthLargest]], list[Any]]


def run(generator: Generator[Sequence[Sum | KthLargest], Any, Apply], evaluate: Evaluate) -> Apply:
  """Drives a rule to its end: answers its requests and returns its `apply`."""
  try:
    requests = next(generator)
    while True:
      requests = generator.send(evaluate(requests))
  except StopIteration as stop:
    return stop.value


def weighted_sum(
  leaves: Sequence[Array], factors: Sequence[Any], base: Array | None = None
) -> Array:
  """base + Σ_m c_m (x_m - base), or Σ_m c_m x_m without a base, in the order of the members.

  The one sum on which all averages stand. All arrays and factors are already in the accumulator's dtype.
  """
  total = weighted_steps(leaves, factors, base)
  if base is not None:
    total += base
  return total


def weighted_steps(
  leaves: Sequence[Array], factors: Sequence[Any], base: Array | None = None
) -> Array:
  """Σ_m c_m (x_m - base), or Σ_m c_m x_m without a base: a new array."""
  total = None
  for x, c in zip(leaves, factors, strict=True):
    if base is None:
      step = c * x
    else:
      # In place where the arrays are NumPy's: a pass over memory less.
      step = x - base
      if not is_one(c):
        step *= c
    if total is None:
      total = step
    else:
      total += step
  assert total is not None
  return total


def is_one(factor: Any) -> bool:
  """Whether a factor is known to be 1, so that a pass over memory can be left out (x · 1 = x); it may be traced."""
  return isinstance(factor, int | float | np.floating) and factor == 1


def coefficient_sum(coefficients: Sequence[Any]) -> Any:
  """Σ c_m, to be divided by.

  Raises:
    ConfigError: if the coefficients are known and cancel: the merge would be blown up without a sign of it.
  """
  total = sum(coefficients[1:], coefficients[0])
  if isinstance(total, float | np.floating) and abs(total) <= 1e-6 * sum(map(abs, coefficients)):
    raise ConfigError(
      f"the coefficients {[float(c) for c in coefficients]} sum to zero and cannot be normalised"
    )
  return total


def keep_agreement(block: Block, merged: Array, affine: Any = True) -> Array:
  """`merged`, but where all members agree that value itself, which rounding may have missed by a last bit.

  Args:
    block: what was merged.
    merged: of its shape; overwritten in NumPy.
    affine: whether the coefficients sum to 1, so that the value is the merge; broadcasts against the block.
  """
  xp = block.xp
  first, *others = block.members
  if not others or (xp is np and not np.any(affine)):
    return merged
  agree = affine
  for x in others:
    agree = agree & (x == first)
  if xp is not np:
    return xp.where(agree, first, merged)
  # NumPy chooses by a mask ten times as slowly as it does this to the bits.
  if agree.any():
    kind = np.uint32 if merged.dtype.itemsize == 4 else np.uint64
    mask = np.negative(agree.astype(kind))
    mask &= merged.view(kind) ^ first.view(kind)
    merged.view(kind)[...] ^= mask
  return merged


def keep_only(block: Block, merged: Array) -> Array:
  """`merged`, but that member itself where one coefficient is 1 and the others 0: the sum may miss a last bit."""
  for m, x in enumerate(block.members):
    only = block.coefficients[m] == 1
    for other in (*block.coefficients[:m], *block.coefficients[m + 1 :]):
      only = only & (other == 0)
    merged = block.xp.where(only, x, merged)
  return merged


def key_words(seed: int, name: str, stream: str) -> tuple[int, int]:
  """The key of a random stream of one tensor."""
  return counters.words(seed, f"merge/{stream}/{name}")
