"""What recipes call methods and their parameters, in mergekit's words and in ours.

Every name leads to a row of `wam.merging.methods.METHODS`. mergekit's names for parameters stand beside the row's own.
Leaves out what the parameters come to for a tensor (recipe_settings.py).
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from wam.core.errors import ConfigError, unknown_name
from wam.merging.table import METHODS, Method


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A name that recipes may use.

  Attributes:
    target: our parameter; "coefficients", "t", or "" where it has no effect; "share" divides by the sum of the weights.
    kind: one of `recipe_values.KINDS`.
    per_model: whether models may have their own.
    note: what to say where it has no effect.
  """

  target: str
  kind: str = "number"
  per_model: bool = False
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Dialect:
  """How recipes speak of a method.

  Attributes:
    base: what base_model is: the "start" of the task vectors; such a start where it is "given"; the "first" of two
      members; a "member" like the others; or the "donor" of config and tokenizer only.
    weight: whether every member must have one.
    parameters: by name.
    required: parameters of ours that have no default in mergekit.
    of_weights: mergekit's defaults, where they are not ours: for merges of weights, not of task vectors.
  """

  base: Literal["start", "given", "first", "member", "donor"]
  weight: bool
  parameters: Mapping[str, Parameter]
  required: tuple[str, ...] = ()
  of_weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_WEIGHT = {"weight": Parameter("coefficients", per_model=True)}
_CONSENSUS = {
  **_WEIGHT,
  "lambda": Parameter("scale"),
  "density": Parameter("density", per_model=True),
  "gamma": Parameter("gamma", per_model=True),
  "epsilon": Parameter("epsilon", per_model=True),
  "normalize": Parameter("normalize", "normalize"),
  "rescale": Parameter("rescale", "rescale"),
}


def _without_effect(why: str, kind: str = "number") -> Parameter:
  return Parameter("", kind, note=f"has no effect: {why}")


_EXACT = _without_effect("nothing here needs a bound on small numbers")


def _only(*names: str) -> dict[str, Parameter]:
  return {name: _CONSENSUS[name] for name in ("weight", "lambda", "normalize", "rescale", *names)}


# What mergekit 0.1.5 knows: what base_model is there, and its own names of parameters.
_MERGEKIT: Mapping[str, tuple[str, Mapping[str, Parameter]]] = {
  "linear": ("member", {**_WEIGHT, "normalize": Parameter("normalize", "flag")}),
  "slerp": ("first", {"t": Parameter("t")}),
  "nuslerp": (
    "given",
    {
      **_WEIGHT,
      "nuslerp_row_wise": Parameter("row_wise", "flag"),
      "nuslerp_flatten": Parameter("flatten", "flag"),
    },
  ),
  "multislerp": (
    "given",
    {
      **_WEIGHT,
      "normalize_weights": Parameter("normalize", "flag"),
      "eps": _EXACT,
    },
  ),
  "karcher": (
    "member",
    {"max_iter": Parameter("num_steps", "count"), "tol": Parameter("tolerance")},
  ),
  "task_arithmetic": ("start", _only("density")),
  "ties": ("start", _only("density")),
  "dare_linear": ("start", _only("density")),
  "dare_ties": ("start", _only("density")),
  "breadcrumbs": ("start", _only("density", "gamma")),
  "breadcrumbs_ties": ("start", _only("density", "gamma")),
  "della": ("start", _only("density", "epsilon")),
  "della_linear": ("start", _only("density", "epsilon")),
  "model_stock": ("start", {"filter_wise": Parameter("filter_wise", "flag")}),
  "sce": ("start", {"select_topk": Parameter("select_topk")}),
  "nearswap": ("start", {"t": Parameter("t")}),
  "arcee_fusion": ("start", {}),
  "passthrough": ("donor", {"scale": Parameter("scale", per_model=True)}),
}
# Where its iteration ends says which last bits come out.
_OF_WEIGHTS = {"karcher": {"num_steps": 10, "tolerance": 1e-5}}
_NOT_HERE = {
  "ram": "RAM is not built here",
  "ramplus_tl": "RAM+ is not built here",
}


def method_name(name: str) -> str:
  """The name itself, a key of METHODS.

  Raises:
    ConfigError: if it is a method of mergekit that is not built here.
    UnknownName: if there is no such method.
  """
  if name in _NOT_HERE:
    raise ConfigError(f"merge_method '{name}': {_NOT_HERE[name]}")
  if name not in METHODS:
    raise unknown_name("merge_method", name, METHODS)
  return name


def _kind(name: str, default: Any) -> str:
  if name == "rescale" or (name == "normalize" and isinstance(default, str)):
    return name
  if isinstance(default, bool):
    return "flag"
  if isinstance(default, int):
    return "count"
  return "name" if isinstance(default, str) else "number"


@functools.cache
def dialect(method: str) -> Dialect:
  """How recipes speak of a method, a key of METHODS."""
  row = METHODS[method]
  base, theirs = _MERGEKIT.get(method, (None, {}))
  if base is None:
    base = {"needed": "start", "optional": "given", "unused": "donor"}[row.init]
    base = "first" if method == "lerp" else base
  own = {
    key: Parameter(key, _kind(key, value), key in row.per_member)
    for key, value in row.defaults.items()
    if key != "group"
  }
  if row.coefficients != "none":
    own |= _WEIGHT
  if method == "lerp":
    own["t"] = Parameter("t")
  translated = {name: _translated(p, row) for name, p in theirs.items()}
  translated["int8_mask"] = _without_effect("it changes how mergekit stores masks", "flag")
  return Dialect(
    base,  # type: ignore[arg-type]
    method in _MERGEKIT and "weight" in theirs,
    MappingProxyType(own | translated),
    ("t",) if method == "nearswap" else (),
    _OF_WEIGHTS.get(method, {}),
  )


def _translated(parameter: Parameter, row: Method) -> Parameter:
  """A parameter of mergekit, led to what our row has for it."""
  target = parameter.target
  if target == "normalize" and target in row.defaults:
    return dataclasses.replace(parameter, kind=_kind(target, row.defaults[target]))
  if target in ("", "coefficients", *row.defaults):
    own = target in ("", "coefficients", *row.per_member) or row.max_members == 1
    return dataclasses.replace(parameter, per_model=parameter.per_model and own)
  if target == "t":
    return parameter
  if target == "normalize":
    return dataclasses.replace(parameter, target="share", kind="flag")
  # mergekit takes density and rescale wherever task vectors are, also where nothing is dropped.
  return dataclasses.replace(
    parameter, target="", note="has no effect: this method drops no entries (as in mergekit)"
  )
