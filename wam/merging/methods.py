"""The table of merge methods: one signature, what each needs, and what it promises.

`METHODS` is what the command line offers and what the contract test walks over: a new method is a function, a row
here and nothing else. Every row's function is `function(members, init, coefficients, **parameters) -> Params`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from wam.core.errors import ConfigError, unknown_name
from wam.core.types import PyTree
from wam.merging import averages, spherical, task_vectors
from wam.merging.members import columns, is_traced, listed, member_coefficients

MergeFunction = Callable[..., PyTree]


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of the table.

  Attributes:
    function: (members, init, coefficients, **parameters) -> Params.
    paper: where it comes from.
    needs_init: whether the common start of the members is needed.
    min_members: fewest members.
    max_members: most members; None is any number.
    coefficients: what is taken for a member: "trees" (numbers or trees that broadcast), "numbers", or "none".
    symmetric: whether the order of the members (with their coefficients) does not matter.
    idempotent: whether equal members return themselves.
    one_hot: whether coefficient 1 on one member and 0 on the others returns it bit for bit.
    defaults: the parameters, with their default values.
  """

  function: MergeFunction
  paper: str
  needs_init: bool = False
  min_members: int = 1
  max_members: int | None = None
  coefficients: Literal["trees", "numbers", "none"] = "trees"
  symmetric: bool = True
  idempotent: bool = True
  one_hot: bool = True
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _weighted_mean(members: PyTree, init: None, coefficients: Any, **parameters: Any) -> PyTree:
  return averages.weighted_mean(members, coefficients, **parameters)


def _uniform_mean(members: PyTree, init: None, coefficients: None, **parameters: Any) -> PyTree:
  return averages.uniform_mean(members, **parameters)


def _lerp(members: PyTree, init: None, coefficients: Any, **parameters: Any) -> PyTree:
  a, b = listed(members)
  every = columns([a, b])
  table = member_coefficients(coefficients, every, 2, default=0.5)
  sums = [c.sum(0) for c in table.values()]
  if not is_traced(sums) and any(bool((s == 0).any()) for s in sums):
    raise ConfigError("lerp: the two coefficients sum to zero and cannot be normalised")
  t = every.rebuild([c[1] / s for c, s in zip(table.values(), sums, strict=True)])
  return averages.lerp(a, b, t, **parameters)


def _liti(members: PyTree, init: PyTree, coefficients: None, **parameters: Any) -> PyTree:
  (member,) = listed(members)
  return averages.liti(init, member, **parameters)


def _slerp(members: PyTree, init: PyTree, coefficients: Any, **parameters: Any) -> PyTree:
  return spherical.slerp_iterative(init, members, coefficients, **parameters)


def _karcher(members: PyTree, init: PyTree, coefficients: Any, **parameters: Any) -> PyTree:
  return spherical.karcher_mean(init, members, coefficients, **parameters)


def _task_arithmetic(members: PyTree, init: PyTree, coefficients: Any, **parameters: Any) -> PyTree:
  return task_vectors.task_arithmetic(init, members, coefficients, **parameters)


METHODS: Mapping[str, Method] = MappingProxyType(
  {
    "lerp": Method(
      _lerp,
      "Frankle et al. 2020, arXiv 1912.05671",
      min_members=2,
      max_members=2,
      defaults={"extrapolate": False},
    ),
    "weighted_mean": Method(
      _weighted_mean,
      "Rewarded soups, Ramé et al. 2023, arXiv 2306.04488",
      defaults={"normalize": True, "extrapolate": False},
    ),
    "uniform_mean": Method(
      _uniform_mean,
      "Model soups, Wortsman et al. 2022, arXiv 2203.05482",
      coefficients="none",
      one_hot=False,
    ),
    "liti": Method(
      _liti,
      "WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903; WARP, arXiv 2406.16768",
      needs_init=True,
      max_members=1,
      coefficients="none",
      idempotent=False,
      one_hot=False,
      defaults={"eta": 0.5, "extrapolate": False},
    ),
    "slerp": Method(
      _slerp,
      "WARP, Ramé et al. 2024, arXiv 2406.16768, eq. 26",
      needs_init=True,
      coefficients="numbers",
      symmetric=False,
      defaults={"group": "layer"},
    ),
    "karcher_mean": Method(
      _karcher,
      "Karcher 1977 on the sphere of task vectors; merging: arXiv 2603.04972",
      needs_init=True,
      coefficients="numbers",
      defaults={"group": "layer"},
    ),
    "task_arithmetic": Method(
      _task_arithmetic,
      "Ilharco et al. 2023, arXiv 2212.04089",
      needs_init=True,
      idempotent=False,
      defaults={"scale": 1.0},
    ),
  }
)


def merge(
  name: str,
  members: PyTree,
  *,
  init: PyTree | None = None,
  coefficients: Any = None,
  out_dtype: Any = None,
  **parameters: Any,
) -> PyTree:
  """Merges members by a method of the table.

  >>> import jax.numpy as jnp
  >>> members = [{"w": jnp.ones(2)}, {"w": jnp.zeros(2)}]
  >>> merge("weighted_mean", members, coefficients=[3.0, 1.0])["w"].tolist()
  [0.75, 0.75]

  Args:
    name: a key of METHODS.
    members: a sequence of M trees, or one tree with a leading member axis.
    init: the common start, for the methods that need it.
    coefficients: M numbers or trees; None is the method's default (equal, or 1 each for task arithmetic).
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.
    **parameters: the method's own, see `METHODS[name].defaults`.

  Raises:
    UnknownName: if there is no such method or parameter.
    ConfigError: if the init is missing or given in vain, or the number of members or coefficients is wrong.
    MismatchedTrees: names the leaves that do not agree.
  """
  if name not in METHODS:
    raise unknown_name("merge method", name, METHODS)
  method = METHODS[name]
  for parameter in parameters:
    if parameter not in method.defaults:
      raise unknown_name(f"parameter of {name}", parameter, method.defaults)
  if (init is not None) != method.needs_init:
    raise ConfigError(
      f"{name} needs the weights that the members started from: give init"
      if method.needs_init
      else f"{name} does not use an init: leave it out"
    )
  if coefficients is not None and method.coefficients == "none":
    raise ConfigError(f"{name} takes no coefficients: leave them out")
  members = listed(members)
  num_members, most = len(members), method.max_members
  if num_members < method.min_members or (most is not None and num_members > most):
    wanted = (
      f"{method.min_members}" if most == method.min_members else f"{method.min_members} or more"
    )
    raise ConfigError(f"{name} merges {wanted} member(s), found {num_members}")
  values = {**method.defaults, **parameters}
  return method.function(members, init, coefficients, out_dtype=out_dtype, **values)
