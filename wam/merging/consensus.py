"""The methods that thin out task vectors before they add them up, with and without an election of signs.

θ_init + λ (Σ c_m δ'_m) / divisor, with δ'_m what sparsification.py leaves of δ_m. In the `_ties` variants, ties, della
and sce the members elect a sign entry by entry, that of their sum, and only what agrees is added up; a zero never does.
Left out: how this is computed (elections.py). No JAX here; see rules.py.

Parameters that are shared by the methods:

density: share of the entries that is kept, of every member.
scale: λ, after the division.
normalize: the divisor. "weights" (or True): Σ c_m over those that were added up, 1 where that is 0 (mergekit); without
  election Σ c_m over all, 1 where it is below 1e-8. "count": the number of those that were added up, which is the mean
  of the TIES paper; only with election. "none" (or False): 1.
rescale: "l1" (or True), "probability" or "none" (or False), see sparsification.random; ties and breadcrumbs do not have
  "probability".
elect: "weighted" elects by Σ c_m δ'_m (mergekit), "unweighted" by Σ δ'_m (the TIES paper, PEFT).
zero_sign: the sign where that sum is zero: "positive" (mergekit, PEFT), or "majority": the one that more entries of the
  group have elected (the TIES paper); "positive" again where they are as many.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wam.core.errors import ConfigError
from wam.merging import gram, sparsification
from wam.merging.elections import Steps, added, elected
from wam.merging.rules import Array, Block, Group, KthLargest, Sum
from wam.merging.sparsification import Thinned

_NO_PROBABILITY = ("l1", "none")


def ties(
  group: Group,
  *,
  density: Sequence[float],
  scale: Any = 1.0,
  normalize: str | bool = "weights",
  rescale: str | bool = "none",
  elect: str = "weighted",
  zero_sign: str = "positive",
) -> Steps:
  """Trim to the largest magnitudes, elect signs, average what agrees (TIES, Yadav et al. 2023, arXiv 2306.01708).

  The paper is group="global", normalize="count", elect="unweighted", zero_sign="majority"; the other defaults are
  mergekit's, which trims tensor by tensor.
  """
  rescale = sparsification.rescaling("ties", rescale, _NO_PROBABILITY)
  thinned = yield from sparsification.largest(group, density)
  thinned = yield from sparsification.rescaled(group, thinned, density, rescale)
  return (yield from elected(group, thinned, scale, normalize, elect, zero_sign))


def dare_linear(
  group: Group,
  *,
  density: Sequence[float],
  scale: Any = 1.0,
  normalize: str | bool = "none",
  rescale: str | bool = "l1",
) -> Steps:
  """Drop entries at random and rescale the others (DARE, Yu et al. 2023, arXiv 2311.03099)."""
  return added(group, (yield from sparsification.random(group, density, rescale)), scale, normalize)


def dare_ties(
  group: Group,
  *,
  density: Sequence[float],
  scale: Any = 1.0,
  normalize: str | bool = "none",
  rescale: str | bool = "l1",
  elect: str = "weighted",
  zero_sign: str = "positive",
) -> Steps:
  """DARE, then the sign election of TIES."""
  thinned = yield from sparsification.random(group, density, rescale)
  return (yield from elected(group, thinned, scale, normalize, elect, zero_sign))


def della_linear(
  group: Group,
  *,
  density: Sequence[float],
  epsilon: Sequence[float],
  scale: Any = 1.0,
  normalize: str | bool = "none",
  rescale: str | bool = "l1",
) -> Steps:
  """Drop entries with probabilities by rank, and add up (DELLA, Deep et al. 2024, arXiv 2406.11617)."""
  thinned = yield from sparsification.ranked(group, density, epsilon, rescale)
  return added(group, thinned, scale, normalize)


def della(
  group: Group,
  *,
  density: Sequence[float],
  epsilon: Sequence[float],
  scale: Any = 1.0,
  normalize: str | bool = "weights",
  rescale: str | bool = "l1",
  elect: str = "weighted",
  zero_sign: str = "positive",
) -> Steps:
  """Drop entries with probabilities by rank, elect signs, average what agrees (DELLA, arXiv 2406.11617)."""
  thinned = yield from sparsification.ranked(group, density, epsilon, rescale)
  return (yield from elected(group, thinned, scale, normalize, elect, zero_sign))


def breadcrumbs(
  group: Group,
  *,
  density: Sequence[float],
  gamma: Sequence[float],
  scale: Any = 1.0,
  normalize: str | bool = "none",
  rescale: str | bool = "none",
) -> Steps:
  """Drop the largest and the smallest magnitudes, and add up (Davari & Belilovsky 2023, arXiv 2312.06795)."""
  rescale = sparsification.rescaling("breadcrumbs", rescale, _NO_PROBABILITY)
  thinned = yield from sparsification.middle(group, density, gamma)
  thinned = yield from sparsification.rescaled(group, thinned, density, rescale)
  return added(group, thinned, scale, normalize)


def breadcrumbs_ties(
  group: Group,
  *,
  density: Sequence[float],
  gamma: Sequence[float],
  scale: Any = 1.0,
  normalize: str | bool = "none",
  rescale: str | bool = "none",
  elect: str = "weighted",
  zero_sign: str = "positive",
) -> Steps:
  """Model breadcrumbs, then the sign election of TIES."""
  rescale = sparsification.rescaling("breadcrumbs_ties", rescale, _NO_PROBABILITY)
  thinned = yield from sparsification.middle(group, density, gamma)
  thinned = yield from sparsification.rescaled(group, thinned, density, rescale)
  return (yield from elected(group, thinned, scale, normalize, elect, zero_sign))


def sce(group: Group, *, select_topk: float = 1.0) -> Steps:
  """Select by variance, weigh by energy, erase minority signs (FuseChat's SCE, Wan et al. 2024, arXiv 2408.07990).

  Select: the k = int(select_topk · positions in which the members differ) entries with the largest variance over the
  members; 1 selects all. Calculate: w_m = Σ δ_m² / Σ_j Σ δ_j² over the selected entries of the group. Erase: the sign
  of Σ δ_m is elected, and the mean with weights w_m taken of what agrees.

  mergekit takes equal weights where the mean squares sum to less than 1e-6, which is everywhere after RLHF, and divides
  by no less than 1e-6; here the weights are equal only where nothing moved, and the mean is a mean.

  Args:
    group: the tensors that have one threshold and one set of weights; at least two members where entries are selected.
    select_topk: the share of the positions.
  """
  sparsification.check_shares("select_topk", [select_topk])
  if select_topk < 1 and group.num_members < 2:
    raise ConfigError("sce: select_topk below 1 selects by variance over members, found one member")
  xp = group.xp
  edge: Any = None
  if select_topk < 1:
    (moved,) = yield [Sum(lambda block: xp.sum((_spread(block) > 0).astype(_dtype(block))))]
    # In float32, as mergekit counts.
    k = (moved.astype(np.float32) * np.float32(select_topk)).astype(int)
    (edge,) = yield [KthLargest(_spread, k)]
    edge = xp.where(k > 0, sparsification.above(xp, edge), np.inf)

  def thin(block: Block) -> Iterator[tuple[Array, Array | None]]:
    keep = None
    if edge is not None:
      keep = block.remembered("sce", lambda: _spread(block) >= edge.astype(_dtype(block)))
    for delta in block.deltas():
      yield delta, keep

  def energies(block: Block) -> tuple[Any, ...]:
    sums = []
    for delta, keep in thin(block):
      kept = delta if keep is None else delta * keep.astype(delta.dtype)
      sums.append(gram.inner(xp, delta, kept))
    return tuple(sums)

  (energy,) = yield [Sum(energies)]
  total = sum(energy[1:], energy[0])
  nothing = total == 0
  safe = xp.where(nothing, 1, total)
  weights = [xp.where(nothing, 1 / group.num_members, e / safe) for e in energy]
  mean = yield from elected(group, Thinned(thin), 1.0, "weights", "unweighted")

  def apply(block: Block) -> Array:
    dtype = _dtype(block)
    shares = tuple(w.astype(dtype) for w in weights)
    return mean(dataclasses.replace(block, coefficients=shares))

  return apply


def _spread(block: Block) -> Array:
  """M times the variance over the members: exactly 0 where they agree."""
  first, *others = block.deltas()
  others = [x - first for x in others]
  mean = sum(others[1:], others[0]) / len(block.members)
  total = mean * mean
  for x in others:
    x -= mean
    x *= x
    total += x
  return total


def _dtype(block: Block) -> Any:
  return block.members[0].dtype
