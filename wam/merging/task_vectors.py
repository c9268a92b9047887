"""Arithmetic on task vectors: θ_init + λ Σ w_m (θ_m - θ_init). Leaves out sparsified and sign-elected variants."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from wam.core.errors import ConfigError
from wam.core.types import PyTree
from wam.merging.members import (
  Columns,
  columns,
  combine_leaf,
  is_floating,
  is_traced,
  listed,
  member_coefficients,
)


def task_arithmetic(
  init: PyTree,
  members: PyTree,
  coefficients: Any = None,
  *,
  scale: float = 1.0,
  out_dtype: Any = None,
) -> PyTree:
  """θ_init + λ Σ_m w_m (θ_m - θ_init) (Ilharco et al. 2023, arXiv 2212.04089, section 2).

  The coefficients are not normalised, and negative ones (forgetting) are allowed. λ·w = 1 on one member and 0 on the
  others returns that member bit for bit.

  Args:
    init: θ_init, the common start.
    members: M trees, or one tree with a leading member axis.
    coefficients: w: M numbers or trees, or a tree with leaves [M] or [M, L]; default 1 each (a sum, not a mean).
    scale: λ.
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.

  Raises:
    MismatchedTrees: names the leaves that do not agree, or integer leaves that differ.
    ConfigError: if the number of coefficients is not M, or one is not finite.
  """
  trees = listed(members)
  names = ["init", *(f"member {i}" for i in range(len(trees)))]
  together = columns([init, *trees], names=names)
  every = Columns(together.structure, {n: x[1:] for n, x in together.leaves.items()})
  table = member_coefficients(coefficients, every, len(trees), default=1.0)
  if not is_traced(scale) and not np.isfinite(float(scale)):
    raise ConfigError(f"task_arithmetic: scale must be finite, found {scale}")
  merged = []
  for name, (start, *leaves) in together.leaves.items():
    if not is_floating(start):
      merged.append(start)
      continue
    factors = jnp.asarray(scale, jnp.float32) * table[name]
    dtype = np.dtype(out_dtype or start.dtype)
    # Where the coefficients sum to 1, members that agree are already the answer.
    whole = jnp.abs(factors.sum(0) - 1) < 1e-6
    merged.append(combine_leaf(tuple(leaves), factors, dtype=dtype, base=start, affine=whole))
  return every.rebuild(merged)
