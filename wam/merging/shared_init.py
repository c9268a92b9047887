"""Whether members come from one initialisation: the norms and cosines of their deltas, and the check that needs them.

Weights can be averaged where their runs started from one network, or from points of one trajectory (Ramé et al. 2024,
WARM, section 3; arXiv 2401.12187): strangers have permuted units and their average is no better than a random network.
Leaves out networks aligned by permutation.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import trees
from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.merging import members as aligned

# A delta δ that is orthogonal to θ_init and as long as it leaves a cosine of 0.71; a stranger has one around 0.
SMALLEST_COSINE = 0.5
VECTORS = ("scale", "bias")


class Kinship(NamedTuple):
  """How members lie to their init and to each other, over the matrices; float64.

  Scales of norms and biases, stacked or not, start from the same values in every network, and would make strangers look
  akin: leaves called "scale" or "bias" and those with one axis are left out. Every matrix is divided by the root mean
  square of its init, so that one of large numbers (a head) does not decide; one that starts at zero is left out.

  Attributes:
    cosines: [M], of θ_m and θ_init.
    norms: [M], |θ_m - θ_init| / |θ_init|; about √2 for a stranger.
    deltas: [M, M], cosines of the deltas θ_m - θ_init; 0 where one is zero.
  """

  cosines: np.ndarray
  norms: np.ndarray
  deltas: np.ndarray


def kinship(members: Any, init: Params) -> Kinship:
  """Measures members against an init.

  Args:
    members: a sequence of M trees, or one tree with a leading member axis.
    init: a tree like one of them.

  Raises:
    MismatchedTrees: names the leaves whose names, shapes or dtypes are not those of `init`.
    ConfigError: if there is no member, or `init` has no matrix that is not zero.
  """
  every = aligned.listed(members)
  labels = ["init", *(f"member {m}" for m in range(len(every)))]
  columns = aligned.columns([init, *every], names=labels)
  matrices = {
    name: values
    for name, values in columns.leaves.items()
    if np.ndim(values[0]) > 1
    and aligned.is_floating(values[0])
    and name.rsplit("/", 1)[-1] not in VECTORS
  }
  total = np.zeros((len(labels), len(labels)))
  between = np.zeros((len(every), len(every)))
  for values in matrices.values():
    products = np.asarray(_gram(values), np.float64)
    if products[0, 0] > 0:
      factor = np.size(values[0]) / products[0, 0]
      total += factor * products
      # Deltas by bilinearity would cancel: they are summed as they are.
      wide = [jnp.asarray(v, jnp.float32) for v in values]
      between += factor * np.asarray(_gram(tuple(v - wide[0] for v in wide[1:])), np.float64)
  size = np.sqrt(total[0, 0])
  if not size > 0:
    raise ConfigError("init: no matrix that is not zero, so there is nothing to compare")
  lengths = np.sqrt(np.diag(between))
  norms = np.sqrt(np.diag(total))[1:]
  products = np.outer(lengths, lengths)
  return Kinship(
    cosines=np.divide(total[0, 1:], size * norms, out=np.zeros(len(every)), where=norms > 0),
    norms=lengths / size,
    deltas=np.divide(between, products, out=np.zeros_like(between), where=products > 0),
  )


def check_shared_init(
  members: Any, init: Params, *, allow: bool = False, smallest: float = SMALLEST_COSINE
) -> Kinship:
  """Refuses members that do not come from `init` or from its trajectory.

  Args:
    members, init: as in `kinship`.
    allow: only measures.
    smallest: the cosine of θ_m and θ_init below which a member counts as a stranger.

  Returns:
    The figures.

  Raises:
    ConfigError: with the figures of all members; and what `kinship` raises.
  """
  found = kinship(members, init)
  strangers = [str(m) for m in np.flatnonzero(found.cosines < smallest)]
  if strangers and not allow:
    rows = zip(found.cosines, found.norms, strict=True)
    figures = "; ".join(
      f"member {m}: cosine {c:.3f}, |δ| / |init| {r:.3f}" for m, (c, r) in enumerate(rows)
    )
    matrix = np.array2string(found.deltas, precision=2, separator=", ").replace("\n", "")
    raise ConfigError(
      f"members that do not share the init: {', '.join(strangers)} (cosine to it below {smallest}). {figures}; cosines"
      f" of the deltas {matrix}. The average of such weights is no network that anybody trained; start all members from"
      " one checkpoint or from several of one run, or allow it"
    )
  return found


@jax.jit
def _gram(values: tuple[jax.Array, ...]) -> jax.Array:
  """Inner products of all pairs, float32 [M, M], without stacking the values."""
  wide = [v.astype(jnp.float32) for v in values]
  return jnp.stack([jnp.stack([jnp.sum(x * y) for y in wide]) for x in wide])


def unequal_leaves(members: Any, pattern: str) -> list[str]:
  """Names of the leaves matching the regex `pattern` as a whole that are not bit for bit equal in all members."""
  every = [trees.flatten(member) for member in aligned.listed(members)]
  names = [name for name in every[0] if re.fullmatch(pattern, name)]
  return [n for n in names if any(not np.array_equal(every[0][n], e[n]) for e in every[1:])]
