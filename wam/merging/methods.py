"""The table of merge methods: one rule each, what it needs, and what it promises.

`METHODS` is what the command line offers, what `merge` runs on trees in memory, what wam/streaming runs on files, and
what the contract test walks over: a new method is a rule, a row here and a row in the test. Importing the table does
not import JAX.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from wam.core.errors import ConfigError, unknown_name
from wam.core.types import PyTree
from wam.merging import combinations
from wam.merging.rules import Rule

if TYPE_CHECKING:
  from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of the table.

  Attributes:
    rule: what is done with the entries of a tensor; see rules.py.
    paper: where it comes from.
    init: whether the common start of the members is needed, may be given, or is not used.
    min_members: fewest members.
    max_members: most members; None is any number.
    coefficients: what is taken for a member: "trees" (numbers or trees that broadcast), "numbers", or "none".
    default_coefficient: of a member, where none are given; None is 1/M.
    symmetric: whether the order of the members (with their coefficients) does not matter.
    idempotent: whether equal members return themselves, bit for bit.
    one_hot: whether coefficient 1 on one member and 0 on the others returns it bit for bit.
    sums: whether numbers of the result depend on sums over whole tensors, whose last bits depend on their order.
    draws: whether it draws at random and takes a seed.
    whole_rows: whether its entries depend on others of their row (the first axis; a tensor of rank 1 is one row).
    importances: whether it takes one tree of importances a member.
    defaults: the parameters, with their default values.
    per_member: parameters of which every member may have its own: a number, or a sequence of M.
    function: (members, init, coefficients, **parameters) -> Params, where a function on trees does more than the rule
      alone (traced coefficients with derivatives, groups); None runs the rule by in_memory.merge_trees.
  """

  rule: Rule
  paper: str
  init: Literal["needed", "optional", "unused"] = "unused"
  min_members: int = 1
  max_members: int | None = None
  coefficients: Literal["trees", "numbers", "none"] = "trees"
  default_coefficient: float | None = None
  symmetric: bool = True
  idempotent: bool = True
  one_hot: bool = True
  sums: bool = False
  draws: bool = False
  whole_rows: bool = False
  importances: bool = False
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  per_member: tuple[str, ...] = ()
  function: Callable[..., PyTree] | None = None

  @property
  def needs_init(self) -> bool:
    """Whether it cannot do without the common start."""
    return self.init == "needed"


# The functions on trees load JAX, which a merge from disk to disk does without.


def _linear(members: PyTree, init: None, coefficients: Any, **parameters: Any) -> PyTree:
  from wam.merging import averages

  return averages.weighted_mean(members, coefficients, **parameters)


def _lerp(members: PyTree, init: None, coefficients: Any, **parameters: Any) -> PyTree:
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


def _liti(members: PyTree, init: PyTree, coefficients: None, **parameters: Any) -> PyTree:
  from wam.merging import averages
  from wam.merging.members import listed

  (member,) = listed(members)
  return averages.liti(init, member, **parameters)


def _task_arithmetic(members: PyTree, init: PyTree, coefficients: Any, **parameters: Any) -> PyTree:
  from wam.merging import task_vectors

  return task_vectors.task_arithmetic(init, members, coefficients, **parameters)


METHODS: Mapping[str, Method] = MappingProxyType(
  {
    "lerp": Method(
      combinations.linear,
      "Frankle et al. 2020, arXiv 1912.05671",
      min_members=2,
      max_members=2,
      defaults={"extrapolate": False},
      function=_lerp,
    ),
    "linear": Method(
      combinations.linear,
      "Model soups, arXiv 2203.05482; rewarded soups, arXiv 2306.04488",
      defaults={"normalize": True, "extrapolate": False},
      function=_linear,
    ),
    "liti": Method(
      combinations.interpolation,
      "WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903; WARP, arXiv 2406.16768; AMA, arXiv 2309.06256",
      init="needed",
      max_members=1,
      coefficients="none",
      idempotent=False,
      one_hot=False,
      defaults={"eta": 0.5, "extrapolate": False},
      function=_liti,
    ),
    "task_arithmetic": Method(
      combinations.task_arithmetic,
      "Ilharco et al. 2023, arXiv 2212.04089",
      init="needed",
      default_coefficient=1.0,
      idempotent=False,
      defaults={"scale": 1.0},
      function=_task_arithmetic,
    ),
  }
)


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
  values = {**method.defaults, **parameters}
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
    keep_agreement=method.idempotent,
    whole_rows=method.whole_rows,
    out_dtype=out_dtype,
    **per_member(name, values, len(members)),
  )
