"""The angles between the task vectors of an episode's members, for the records (Ramé et al. 2024, WARP, figures 10-11).

Leaves out merging.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.types import Params
from wam.merging import spherical

QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


def angles(init: Params, members: Sequence[Params]) -> dict[str, float]:
  """Cosines over all pairs of M ≥ 2 members; tensors in which one of a pair has not moved are left out.

  Args:
    init: where the task vectors δ_m = θ_m - θ_init start.
    members: M trees.

  Returns:
    "layers": mean of cos Ω over layers (and what lies outside of them) and pairs; "whole": of the task vectors as one
    vector each, mean over pairs; "p05" to "p95": quantiles over single tensors and pairs; "weights": of the weights
    themselves, θ_i and θ_j, mean over pairs; "norm": mean of |δ_m| / |θ_init|; "norm_ratio": smallest |δ_m| by largest;
    "lerp_shrinkage": |mean of δ_m| by mean |δ_m| for vectors of equal norm at that angle, √((1 + (M - 1) cos Ω) / M).
    Where nothing moved at all, cosines are left out.
  """
  members = list(members)
  found: dict[str, float] = {}
  by_layer = _pairs(spherical.slerp_blend(init, members, group="layer"))
  by_leaf = _pairs(spherical.slerp_blend(init, members, group="leaf"))
  whole = spherical.slerp_blend(init, members, group="global")
  together = _pairs(whole)
  if by_layer.size:
    found["layers"] = float(by_layer.mean())
  if by_leaf.size:
    found |= {name: float(np.quantile(by_leaf, q)) for name, q in QUANTILES.items()}
  if together.size:
    cosine, M = float(together.mean()), len(members)
    found["whole"] = cosine
    found["lerp_shrinkage"] = float(np.sqrt(max(0.0, (1 + (M - 1) * cosine) / M)))
  zero = jax.tree.map(jnp.zeros_like, init)
  weights = _pairs(spherical.slerp_blend(zero, members, group="global"))
  if weights.size:
    found["weights"] = float(weights.mean())
  norms = np.asarray(whole.norms, np.float64)[0]
  size = float(np.asarray(spherical.slerp_blend(zero, [init], group="global").norms)[0, 0])
  found["norm"] = float(norms.mean() / size) if size > 0 else 0.0
  found["norm_ratio"] = float(norms.min() / norms.max()) if norms.max() > 0 else 1.0
  return found


def _pairs(blend: Any) -> np.ndarray:
  """The cosines of all groups and pairs i < j of which both task vectors are not zero: [K] float64."""
  norms, cosines = np.asarray(blend.norms), np.asarray(blend.cosines, np.float64)
  i, j = np.triu_indices(norms.shape[1], k=1)
  moved = (norms[:, i] > 0) & (norms[:, j] > 0)
  return np.asarray(cosines[:, i, j][moved])
