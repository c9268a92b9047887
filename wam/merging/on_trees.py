"""What a method of the table does with trees where that is more than its rule: derivatives, exact ends, groups.

Each function takes (members, init, coefficients, **parameters). The modules behind them load JAX, which a merge from
disk to disk does without: they are imported when they are called.
"""

from typing import Any

from wam.core.errors import ConfigError
from wam.core.types import PyTree
from wam.merging import directions


def linear(members: PyTree, init: None, coefficients: Any, **parameters: Any) -> PyTree:
  """averages.weighted_mean."""
  from wam.merging import averages

  return averages.weighted_mean(members, coefficients, **parameters)


def lerp(members: PyTree, init: None, coefficients: Any, **parameters: Any) -> PyTree:
  """averages.lerp with t the second coefficient's share."""
  from wam.merging import averages
  from wam.merging.members import columns, is_traced, listed, member_coefficients

  a, b = listed(members)
  every = columns([a, b])
  table = member_coefficients(coefficients, every, 2, default=0.5)
  sums = [c.sum(0) for c in table.values()]
  if not is_traced(sums) and any(bool((s == 0).any()) for s in sums):
    raise ConfigError("lerp: the two coefficients sum to zero and cannot be normalised")
  t = every.rebuild([c[1] / s for c, s in zip(table.values(), sums, strict=True)])
  return averages.lerp(a, b, t, **parameters)


def liti(members: PyTree, init: PyTree, coefficients: None, **parameters: Any) -> PyTree:
  """averages.liti."""
  from wam.merging import averages
  from wam.merging.members import listed

  (member,) = listed(members)
  return averages.liti(init, member, **parameters)


def task_arithmetic(members: PyTree, init: PyTree, coefficients: Any, **parameters: Any) -> PyTree:
  """task_vectors.task_arithmetic."""
  from wam.merging import task_vectors

  return task_vectors.task_arithmetic(init, members, coefficients, **parameters)


def slerp(members: PyTree, init: PyTree | None, coefficients: Any, **parameters: Any) -> PyTree:
  """Of task vectors (spherical.slerp_iterative), or of the weights where there is no init."""
  from wam.merging import spherical

  if init is None:
    return _of_weights(directions.slerp, members, coefficients, **parameters)
  return spherical.slerp_iterative(init, members, coefficients, **parameters)


def karcher(members: PyTree, init: PyTree | None, coefficients: Any, **parameters: Any) -> PyTree:
  """Of task vectors (spherical.karcher_mean), or of the weights where there is no init."""
  from wam.merging import spherical

  if init is None:
    return _of_weights(directions.karcher, members, coefficients, **parameters)
  return spherical.karcher_mean(init, members, coefficients, **parameters)


def _of_weights(rule: Any, members: PyTree, coefficients: Any, **parameters: Any) -> PyTree:
  from wam.merging.in_memory import merge_trees
  from wam.merging.members import listed

  members = listed(members)
  return merge_trees(
    rule,
    members,
    None,
    coefficients,
    default_coefficient=1 / len(members),
    keep_only=True,
    **parameters,
  )
