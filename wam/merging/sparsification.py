"""Which entries of a task vector stay: the largest, a middle band, a random share, or a share drawn by rank.

Every generator here is a part of a rule (`yield from` it): it asks for what has to be known of whole tensors and
returns what becomes of the members. Thresholds are exact, and all entries that tie with one are kept: deltas of
bfloat16 weights are quantised, a fifth of a tensor can share a magnitude, and none of it is better than the rest.
(mergekit keeps those of the tied that its sort puts first.) Comparisons with NaN are false: it is dropped without a
sign, and who drives the rule looks for it. elections.py adds the members up. No JAX here; see rules.py.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.core import counters
from wam.core.errors import ConfigError, unknown_name
from wam.merging import gram, ranks
from wam.merging.rules import Array, Block, Group, KthLargest, Sum

# Block -> (delta, mask of the kept entries) of each member; the delta is a new array, the mask None where all are kept.
Thin = Callable[[Block], Iterator[tuple[Array, Array | None]]]

RESCALES = ("l1", "probability", "none")
# The smallest normal float32: a delta below it counts as zero, which is never among the largest.
TINY = 2.0**-126


class Thinned(NamedTuple):
  """The members after trimming or masking.

  Attributes:
    thin: gives deltas and masks.
    gains: what makes up for the dropped entries: M scalars, still to be multiplied with; None is 1 each. Python floats,
      or arrays of any floating dtype.
    nonzero: whether the masks are false where a delta is zero.
  """

  thin: Thin
  gains: tuple[Any, ...] | None = None
  nonzero: bool = False


Thinning = Generator[Sequence[Sum | KthLargest], Any, Thinned]


def above(xp: Any, edge: Any) -> Any:
  """A threshold as it was found, but above zero."""
  return xp.maximum(edge, edge.dtype.type(TINY))


def check_shares(name: str, values: Sequence[float]) -> None:
  """Refuses shares of the entries that lie outside [0, 1].

  Raises:
    ConfigError: names the parameter and the value.
  """
  for value in values:
    if not 0 <= value <= 1:
      raise ConfigError(f"{name} is a share of the entries, from 0 to 1, found {value}")


def rescaling(method: str, rescale: str | bool, choices: Sequence[str] = RESCALES) -> str:
  """The name of a rescaling; True is mergekit's "l1", False is "none".

  Raises:
    UnknownName: if the method does not have it; lists the choices.
  """
  name = rescale
  if isinstance(rescale, bool):
    name = "l1" if rescale else "none"
  if name not in choices:
    raise unknown_name(f"rescale of {method}", str(name), choices)
  return str(name)


def _magnitude(block: Block, m: int) -> Array:
  return block.xp.abs(block.delta(m))


def largest(group: Group, density: Sequence[float]) -> Thinning:
  """Keeps the k = max(1, int(density·n)) largest magnitudes of the n entries of a group (TIES, arXiv 2306.01708).

  Args:
    group: the tensors that are trimmed as one: each alone (mergekit), or all (the paper).
    density: of each member; 1 keeps everything, 0 nothing.
  """
  check_shares("density", density)
  asked = [m for m, d in enumerate(density) if 0 < d < 1]
  edges: dict[int, Any] = {m: np.inf for m, d in enumerate(density) if d == 0}
  if asked:
    found = yield [
      KthLargest(functools.partial(_magnitude, m=m), max(1, int(density[m] * group.num_entries)))
      for m in asked
    ]
    edges |= {m: above(group.xp, x) for m, x in zip(asked, found, strict=True)}

  def thin(block: Block) -> Iterator[tuple[Array, Array | None]]:
    for m in range(group.num_members):
      delta = block.delta(m)
      # Two comparisons are cheaper than the magnitude and one.
      yield delta, (delta >= edges[m]) | (delta <= -edges[m]) if m in edges else None

  return Thinned(thin, nonzero=len(edges) == group.num_members)


def middle(group: Group, density: Sequence[float], gamma: Sequence[float]) -> Thinning:
  """Drops the largest and the smallest magnitudes (Model Breadcrumbs, Davari & Belilovsky 2023, arXiv 2312.06795).

  Of n entries the int(gamma·n) largest go, and as many of the smallest as leave int(density·n); where the two shares
  overlap, fewer of the largest go. Of a tensor so small that nothing would be left, one entry is kept (mergekit zeroes
  it: up to 0.1.4 where gamma·n < 1, in 0.1.5 where density·n < 1).

  Args:
    group: the tensors that are trimmed as one.
    density: of each member; 1 keeps everything, also the largest, and 0 nothing.
    gamma: share of the largest that each member loses.
  """
  check_shares("density", density)
  check_shares("gamma", gamma)
  xp, size = group.xp, group.num_entries
  bands: dict[int, tuple[Any, Any]] = {}
  requests: list[KthLargest] = []
  for m, (share, top) in enumerate(zip(density, gamma, strict=True)):
    if 0 < share < 1:
      kept = max(1, int(share * size))
      dropped = min(int(top * size), size - kept)
      magnitude = functools.partial(_magnitude, m=m)
      requests += [KthLargest(magnitude, dropped + 1), KthLargest(magnitude, dropped + kept)]
  found = iter((yield requests) if requests else ())
  for m, share in enumerate(density):
    if 0 < share < 1:
      upper, lower = next(found), next(found)
      bands[m] = (above(xp, lower), upper)
    elif share == 0:
      bands[m] = (np.inf, 0.0)

  def thin(block: Block) -> Iterator[tuple[Array, Array | None]]:
    for m in range(group.num_members):
      delta = block.delta(m)
      if m not in bands:
        yield delta, None
        continue
      lower, upper = bands[m]
      magnitude = xp.abs(delta)
      yield delta, (magnitude >= lower) & (magnitude <= upper)

  return Thinned(thin, nonzero=len(bands) == group.num_members)


def random(group: Group, density: Sequence[float], rescale: str | bool) -> Thinning:
  """Keeps each entry with probability `density` (DARE, Yu et al. 2023, arXiv 2311.03099).

  Args:
    group: of one tensor.
    density: of each member, rounded to a multiple of 2^-16 (but no less than one); 1 draws nothing.
    rescale: what the kept entries are multiplied with: "l1" gives the tensor's delta the L1 norm that it had, as
      mergekit does (and does not do below a norm of 1e-7); "probability" is the 1/density of the paper; or "none".
      The first two agree in large tensors; in small ones "l1" varies much.
  """
  check_shares("density", density)
  rescale = rescaling("dare", rescale)
  limits = [max(1, round(d * counters.RANGE)) if d else 0 for d in density]

  def thin(block: Block) -> Iterator[tuple[Array, Array | None]]:
    for m, limit in enumerate(limits):
      if limit >= counters.RANGE:
        yield block.delta(m), None
        continue
      stream, edge = f"dare/{m}", np.uint16(limit)
      draw = functools.partial(_below, block, stream, edge)
      yield block.delta(m), block.remembered(stream, draw)

  if rescale == "probability":
    return Thinned(thin, tuple(counters.RANGE / x if x else 1.0 for x in limits))
  return (yield from rescaled(group, Thinned(thin), density, rescale))


def _below(block: Block, stream: str, limit: Any) -> Array:
  return block.random_bits(stream) < limit


def ranked(
  group: Group, density: Sequence[float], epsilon: Sequence[float], rescale: str | bool
) -> Thinning:
  """Keeps entries with a probability that grows with their rank (DELLA, Deep et al. 2024, arXiv 2406.11617).

  p = density - epsilon + 2·epsilon·(r - 1)/(n - 1), with r = 1 for the smallest magnitude of the n entries of a row,
  rounded to multiples of 2^-16; p = density where a row has one entry (mergekit stops there with an error of the random
  generator). Each place of the first axis has a row; a tensor of rank 1 is one. See ranks.py.

  Args:
    group: of one tensor.
    density: of each member; 1 draws nothing, 0 keeps nothing.
    epsilon: half the width of the window of probabilities of each member.
    rescale: as for `random`; "probability", the paper's, divides each kept entry by its own p.

  Raises:
    ConfigError: if a window does not lie inside (0, 1).
  """
  check_shares("density", density)
  rescale = rescaling("della", rescale)
  for d, e in zip(density, epsilon, strict=True):
    if 0 < d < 1 and not (e >= 0 and d - e > 0 and d + e < 1):
      raise ConfigError(
        f"della: the window density ± epsilon must lie inside (0, 1), found density {d} and"
        f" epsilon {e}; give a smaller epsilon"
      )

  def draw(block: Block, m: int, delta: Array) -> tuple[Array, Array]:
    """The magnitudes in rows, and which ranks of them stay."""
    rows = block.xp.abs(delta).reshape(-1, delta.shape[-1] if delta.ndim else 1)
    p = ranks.probabilities(rows.shape[-1], density[m], epsilon[m])
    return rows, ranks.drawn(block.random_bits(f"della/{m}").reshape(rows.shape), p)

  def mask(block: Block, m: int, delta: Array) -> Array:
    return ranks.by_place(block.xp, *draw(block, m, delta)).reshape(delta.shape)

  def thin(block: Block) -> Iterator[tuple[Array, Array | None]]:
    xp = block.xp
    for m, share in enumerate(density):
      delta = block.delta(m)
      if not 0 < share < 1:
        yield delta, None if share else xp.zeros(delta.shape, bool)
      elif rescale == "probability":
        rows, keep = draw(block, m, delta)
        p = ranks.probabilities(rows.shape[-1], share, epsilon[m]).astype(rows.dtype)
        gain = ranks.by_place(xp, rows, keep.astype(rows.dtype) / p[None, :]).reshape(delta.shape)
        delta *= gain
        yield delta, gain > 0
      else:
        yield delta, block.remembered(f"della/{m}", functools.partial(mask, block, m, delta))

  def in_order(block: Block) -> Iterator[tuple[Array, Array | None]]:
    """The same entries in any order, which is enough for sums."""
    if block.memory is not None:
      yield from thin(block)
      return
    # Masks that nobody will remember need no places: the sorted magnitudes are half the work.
    for m, share in enumerate(density):
      delta = block.delta(m)
      if not 0 < share < 1:
        yield delta, None
        continue
      rows, keep = draw(block, m, delta)
      yield block.xp.sort(rows, axis=-1), keep

  if rescale != "l1":
    return Thinned(thin)
  known = yield from rescaled(group, Thinned(in_order), density, rescale)
  return known._replace(thin=thin)


def rescaled(group: Group, thinned: Thinned, density: Sequence[float], rescale: str) -> Thinning:
  """Adds gains that give every member the L1 norm it had before, where `rescale` is "l1"; 1 where nothing was kept."""
  if rescale != "l1" or all(d in (0, 1) for d in density):
    return thinned
  xp = group.xp

  def norms(block: Block) -> tuple[Any, ...]:
    sums = []
    for delta, keep in thinned.thin(block):
      magnitude = xp.abs(delta)
      before = gram.total(xp, magnitude)
      if keep is None:
        sums += [before, before]
        continue
      sums += [before, gram.inner(xp, magnitude, keep.astype(magnitude.dtype))]
    return tuple(sums)

  (answer,) = yield [Sum(norms)]
  gains = []
  for before, after in zip(answer[::2], answer[1::2], strict=True):
    some = after > 0
    gains.append(xp.where(some, before / xp.where(some, after, 1), 1))
  return thinned._replace(gains=tuple(gains))
