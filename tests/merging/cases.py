"""The rows of the contract test: for every method of METHODS how it is called, and its float64 twin."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.merging import consensus_test, twins
from tests.merging.twins import layer_groups, on_rows, on_vectors
from wam.core import trees
from wam.merging import methods

SEED = consensus_test.SEED
# Few, and alike when unrolled: every shape is compiled for every case.
SHAPES = {
  "final_norm/scale": (8,),
  "layers/attention/q/kernel": (4, 16, 8),
  "layers/mlp/conv/kernel": (4, 8, 2, 4),
}


def make(seed, dtype=np.float32, spread=1.0, around=None):
  """A network with stacked layers and a counter."""
  random = np.random.default_rng(seed)
  flat = {n: spread * random.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
  if around is not None:
    flat = {n: x + trees.flatten(around)[n].astype(np.float32) for n, x in flat.items()}
  tree = trees.unflatten({n: x.astype(dtype) for n, x in flat.items()})
  return tree | {"counter": np.array([3, 2**30 + 1], np.int32)}


def unrolled(tree):
  """The same network with its layers apart."""
  flat = {}
  for name, leaf in trees.flatten(tree).items():
    if name.startswith("layers/"):
      flat |= {name.replace("layers/", f"layers/{i}/", 1): x for i, x in enumerate(leaf)}
    else:
      flat[name] = leaf
  return trees.unflatten(flat)


def some(tree, names):
  """A network with these leaves only, and the counter."""
  flat = trees.flatten(tree)
  return trees.unflatten({n: flat[n] for n in flat if n in (*names, "counter")})


class Case(NamedTuple):
  method: str
  coefficients: Any
  twin: Any
  parameters: dict[str, Any] = {}  # noqa: RUF012
  with_init: bool | None = None  # None: where it is needed

  def __str__(self):
    start = {None: "", True: "-init", False: "-weights"}[self.with_init]
    return self.method + start + "".join(f"-{k}-{v}" for k, v in self.parameters.items())

  @property
  def row(self):
    return methods.METHODS[self.method]

  @property
  def has_init(self):
    return self.row.init == "needed" if self.with_init is None else self.with_init

  @property
  def values(self):
    return {**self.row.defaults, **self.parameters}

  @property
  def is_idempotent(self):
    plain = self.values.get("scale", 1.0) == 1 and self.values.get("normalize", True)
    return self.row.idempotent and plain


THREE = [0.2, 0.5, 0.3]
TWO = [0.25, 0.75]
of_weights = functools.partial(on_vectors, of_weights=True)


def restacked(flat):
  """Leaves of stacked layers from those of unrolled ones."""
  layers = {}
  for name, x in flat.items():
    if name.startswith("layers/"):
      layers.setdefault("layers/" + name.split("/", 2)[2], []).append(x)
  return {n: x for n, x in flat.items() if not n.startswith("layers/")} | {
    n: np.stack(x) for n, x in layers.items()
  }


def thinned(method, **parameters):
  """A case of a method on thinned task vectors, whose twin takes stacked leaves."""

  def twin(init, members, c):
    stacked = restacked(init), [restacked(m) for m in members]
    if method == "sce":
      return consensus_test.twin_sce(*stacked, **{"select_topk": 1.0, **parameters})
    return consensus_test.twin(method, *stacked, c, **parameters)

  return Case(method, None if method == "sce" else [0.4, 1.1, 0.7], twin, parameters)


CASES = [
  Case("arcee_fusion", None, twins.arcee_fusion),
  Case(
    "arcee_fusion",
    None,
    functools.partial(twins.arcee_fusion, quantiles="linear"),
    {"quantiles": "linear"},
  ),
  Case("expo", None, functools.partial(twins.liti, eta=1.3)),
  Case("expo", None, functools.partial(twins.liti, eta=1.1), {"alpha": 0.1}),
  Case("fisher", THREE, twins.fisher),
  Case("fisher", None, functools.partial(twins.fisher, floor=0.5), {"floor": 0.5}),
  Case("fisher", THREE, functools.partial(twins.fisher, floor=0), {"floor": 0}),
  Case("geometric_median", THREE, of_weights(twins.geometric_median)),
  Case(
    "geometric_median",
    None,
    on_vectors(twins.geometric_median, layer_groups, of_weights=True),
    {"group": "layer"},
  ),
  Case("karcher", THREE, on_vectors(twins.karcher, layer_groups), with_init=True),
  Case("karcher", THREE, of_weights(twins.karcher), with_init=False),
  Case("lerp", [0.7, 0.3], twins.mean),
  Case("linear", THREE, twins.mean),
  Case("linear", None, twins.mean),
  Case("linear", [0.2, 0.7, 0.3], twins.total, {"normalize": False}),
  Case("liti", None, twins.liti),
  Case("liti", None, functools.partial(twins.liti, eta=0.25), {"eta": 0.25}),
  Case("model_stock", None, on_vectors(twins.model_stock)),
  Case("model_stock", None, on_vectors(twins.model_stock, twins.whole), {"group": "global"}),
  Case("model_stock", None, on_rows(twins.model_stock), {"filter_wise": True}),
  Case(
    "model_stock", None, on_vectors(functools.partial(twins.model_stock, clip=True)), {"clip": True}
  ),
  Case("multislerp", THREE, on_vectors(twins.multislerp), with_init=True),
  Case("multislerp", None, of_weights(twins.multislerp), with_init=False),
  Case("nearswap", None, functools.partial(twins.nearswap, t=0.05), {"t": 0.05}),
  Case("nuslerp", TWO, on_vectors(twins.slerp()), with_init=True),
  Case("nuslerp", TWO, of_weights(twins.slerp()), with_init=False),
  Case("nuslerp", TWO, on_rows(twins.slerp()), {"flatten": False}, with_init=True),
  Case(
    "nuslerp",
    TWO,
    on_rows(twins.slerp(), along=0),
    {"flatten": False, "row_wise": True},
    with_init=True,
  ),
  Case("passthrough", None, twins.passthrough),
  Case("passthrough", None, functools.partial(twins.passthrough, scale=0.7), {"scale": 0.7}),
  Case("slerp", THREE, on_vectors(twins.slerp(), layer_groups), with_init=True),
  Case("slerp", TWO, on_vectors(twins.slerp(), layer_groups), with_init=True),
  Case("slerp", TWO, of_weights(twins.slerp(0.9995)), with_init=False),
  Case("slerp", TWO, of_weights(twins.slerp(0.9)), {"dot_threshold": 0.9}, with_init=False),
  Case("task_arithmetic", [0.4, -0.3, 0.5], twins.task_arithmetic),
  Case(
    "task_arithmetic",
    None,
    functools.partial(twins.task_arithmetic, scale=0.4),
    {"scale": 0.4},
  ),
  Case("wise_ft", None, functools.partial(twins.liti, eta=0.3), {"eta": 0.3}),
  thinned("breadcrumbs", density=0.6, gamma=0.1),
  thinned("breadcrumbs_ties", density=0.6, gamma=0.1),
  thinned("dare_linear", density=0.5),
  thinned("dare_ties", density=0.5),
  thinned("della", density=0.5),
  thinned("della_linear", density=0.5),
  thinned("sce", select_topk=0.5),
  thinned("sce"),
  thinned("ties", density=0.5),
]
# The first case of every method, with an init and without.
FIRST = list({(c.method, c.with_init): c for c in reversed(CASES)}.values())[::-1]


def num_members(case):
  if case.coefficients is not None:
    return len(case.coefficients)
  return case.row.max_members or 3


def given(case, names=None, dtype=np.float32, spread=0.1):
  """The init and the members of a case, with these leaves; by default all, or two where the method has had them all."""
  if names is None:
    names = [n for n in SHAPES if case in FIRST or "attention" not in n]
  init = make(100, dtype)
  members = [make(i, dtype, spread, init) for i in range(num_members(case))]
  return some(init, names), [some(m, names) for m in members]


def importances_of(member):
  """The squares of the weights, so that they follow a member wherever it goes."""
  return jax.tree.map(lambda x: x if x.dtype == np.int32 else x.astype(np.float32) ** 2, member)


def run(case, init, members, coefficients="own"):
  listed = members if isinstance(members, list) else trees.unstack(members)
  return methods.merge(
    case.method,
    members,
    init=init if case.has_init else None,
    coefficients=case.coefficients if coefficients == "own" else coefficients,
    importances=[importances_of(m) for m in listed] if case.row.importances else None,
    seed=SEED if case.row.draws else None,
    **case.parameters,
  )
