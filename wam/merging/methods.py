"""Merging by the name of a method, on trees in memory, and the checks of what a method is given.

The methods are in table.py. Importing this does not import JAX.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wam.core.errors import ConfigError, unknown_name
from wam.core.types import PyTree
from wam.merging.rules import Group
from wam.merging.table import METHODS, Method

if TYPE_CHECKING:
  from collections.abc import Sequence


def check_parameters(name: str, parameters: Mapping[str, Any]) -> Method:
  """The row of a method that has these parameters.

  Raises:
    UnknownName: if there is no such method or parameter.
  """
  if name not in METHODS:
    raise unknown_name("merge method", name, METHODS)
  method = METHODS[name]
  for parameter in parameters:
    if parameter not in method.defaults:
      raise unknown_name(f"parameter of {name}", parameter, method.defaults)
  return method


def check_members(
  name: str, num_members: int, *, has_init: bool, coefficients: "Sequence[Any] | Any | None" = None
) -> None:
  """Refuses a number of members, an init or coefficients that the method does not take.

  Raises:
    ConfigError: says what is wrong.
  """
  method = METHODS[name]
  if method.init == "needed" and not has_init:
    raise ConfigError(f"{name} needs the weights that the members started from: give init")
  if method.init == "unused" and has_init:
    raise ConfigError(f"{name} does not use an init: leave it out")
  if coefficients is not None and method.coefficients == "none":
    raise ConfigError(f"{name} takes no coefficients: leave them out")
  most = method.max_members
  if num_members < method.min_members or (most is not None and num_members > most):
    wanted = (
      f"{method.min_members}" if most == method.min_members else f"{method.min_members} or more"
    )
    if most is not None and most != method.min_members:
      wanted = f"{method.min_members} to {most}"
    raise ConfigError(f"{name} merges {wanted} member(s), found {num_members}")


def promises(name: str, parameters: Mapping[str, Any]) -> tuple[bool, bool]:
  """Whether a method keeps entries in which all members agree, and is one-hot (see `Method`), with these parameters.

  A scale or a bare sum is neither; what depends on a whole tensor keeps no entry for itself.
  """
  method = METHODS[name]
  scale = parameters.get("scale", 1.0)
  plain = isinstance(scale, int | float) and scale == 1
  mean = parameters.get("normalize", True) not in (False, "none")
  return method.idempotent and method.affine and plain and mean, method.one_hot and plain


def group_of(parameters: Mapping[str, Any], *, has_init: bool) -> Any:
  """Which tensors make one vector: the parameter `group`, and where that is None "layer" with an init, "leaf" without.

  So WARP's slerp of task vectors has one angle a layer, and mergekit's, of weights, one a tensor.
  """
  group = parameters.get("group", "leaf")
  return ("layer" if has_init else "leaf") if group is None else group


def per_member(name: str, values: Mapping[str, Any], num_members: int) -> dict[str, Any]:
  """The parameters, with those of which every member may have its own as tuples of M.

  Raises:
    ConfigError: if there are not M.
  """
  resolved = dict(values)
  for key in METHODS[name].per_member:
    value = resolved[key]
    if not isinstance(value, list | tuple):
      value = (value,) * num_members
    if len(value) != num_members:
      raise ConfigError(
        f"{name}: {key} has {len(value)} values, expected one or one for each of {num_members} members"
      )
    resolved[key] = tuple(value)
  return resolved


def _rehearse(
  name: str,
  parameters: Mapping[str, Any],
  coefficients: Any,
  num_members: int,
  *,
  has_init: bool,
) -> None:
  """Begins the rule with what is known now: under jit a coefficient is not, and could not be refused.

  Raises:
    ConfigError: what the rule has against its parameters or coefficients.
  """
  known = None
  if isinstance(coefficients, list | tuple | np.ndarray) and len(coefficients) == num_members:
    if all(isinstance(c, int | float | np.number) for c in coefficients):
      known = tuple(np.float32(c) for c in coefficients)
  elif coefficients is None:
    known = (np.float32(1),) * num_members
  if known is None:
    return
  values = per_member(name, parameters, num_members)
  values.pop("group", None)
  steps = METHODS[name].rule(Group(np, num_members, 1, has_init, known), **values)
  next(steps, None)
  steps.close()


def merge(
  name: str,
  members: PyTree,
  *,
  init: PyTree | None = None,
  coefficients: Any = None,
  importances: "Sequence[PyTree] | None" = None,
  seed: int | None = None,
  out_dtype: Any = None,
  **parameters: Any,
) -> PyTree:
  """Merges members by a method of the table.

  >>> import jax.numpy as jnp
  >>> members = [{"w": jnp.ones(2)}, {"w": jnp.zeros(2)}]
  >>> merge("linear", members, coefficients=[3.0, 1.0])["w"].tolist()
  [0.75, 0.75]

  Args:
    name: a key of METHODS.
    members: a sequence of M trees, or one tree with a leading member axis.
    init: the common start, for the methods that use it.
    coefficients: M numbers or trees; None is the method's default (equal, or 1 each for task arithmetic).
    importances: M trees, for the methods that weigh entry by entry.
    seed: for the methods that draw at random; the masks of a tensor depend on the seed and its name alone.
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.
    **parameters: the method's own, see `METHODS[name].defaults`.

  Raises:
    UnknownName: if there is no such method or parameter.
    ConfigError: if the init, a seed or importances are missing or given in vain, or the number of members or
      coefficients is wrong.
    MismatchedTrees: names the leaves that do not agree.
  """
  from wam.merging.in_memory import merge_trees
  from wam.merging.members import listed

  method = check_parameters(name, parameters)
  members = listed(members)
  check_members(name, len(members), has_init=init is not None, coefficients=coefficients)
  for what, wanted, value in (
    ("a seed", method.draws, seed),
    ("importances", method.importances, importances),
  ):
    if wanted != (value is not None):
      raise ConfigError(f"{name} {'needs' if wanted else 'does not take'} {what}")
  if importances is not None and len(importances) != len(members):
    raise ConfigError(f"expected importances of {len(members)} members, found {len(importances)}")
  values = {**method.defaults, **parameters}
  if "group" in values:
    values["group"] = group_of(values, has_init=init is not None)
  _rehearse(name, values, coefficients, len(members), has_init=init is not None)
  if method.function is not None:
    return method.function(members, init, coefficients, out_dtype=out_dtype, **values)
  default = method.default_coefficient
  return merge_trees(
    method.rule,
    members,
    init,
    coefficients,
    seed=seed,
    importances=importances,
    default_coefficient=1 / len(members) if default is None else default,
    keep_agreement=promises(name, values)[0],
    keep_only=promises(name, values)[1],
    whole_rows=method.whole_rows,
    out_dtype=out_dtype,
    **per_member(name, values, len(members)),
  )
