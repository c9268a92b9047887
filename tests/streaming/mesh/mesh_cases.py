"""What the merges on a mesh are tested with: every row of METHODS, on one process and on two."""

import numpy as np

from wam.core import trees
from wam.merging import methods
from wam.merging.methods import METHODS

# Any that leave their defaults, at which some methods keep everything.
PARAMETERS = {
  "density": 0.5,
  "select_topk": 0.5,
  "gamma": 0.1,
  "epsilon": 0.2,
  "filter_wise": True,
}
SHAPES = {
  "embed/embedding": (16, 8),
  "layers/attention/q/kernel": (4, 8, 2, 8),
  "layers/mlp_norm/scale": (4, 8),
}


def make(seed, spread=1.0, around=None):
  """A network with stacked layers and a counter."""
  random = np.random.default_rng(seed)
  flat = {n: spread * random.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
  if around is not None:
    flat = {n: x + trees.flatten(around)[n] for n, x in flat.items()}
  return trees.unflatten(flat) | {"counter": np.array([3, 2**30 + 1], np.int32)}


def networks():
  """All networks by name."""
  init = make(100)
  found = {"init": init}
  found |= {f"member {i}": make(i, 0.1, init) for i in range(3)}
  for i in range(3):
    found[f"importances {i}"] = {
      n: trees.map_named(lambda _, x: np.abs(x), x) for n, x in make(10 + i).items()
    }
  return found


CASES = [
  (name, with_init)
  for name, row in METHODS.items()
  for with_init in {"needed": [True], "optional": [True, False], "unused": [False]}[row.init]
]


def arguments(name, with_init, get):
  """(members, keywords) of a merge; get(name) is a network, or where it lies."""
  row = METHODS[name]
  count = min(3, row.max_members or 3)
  keywords = {k: v for k, v in PARAMETERS.items() if k in row.defaults}
  if row.draws:
    keywords["seed"] = 5
  if row.coefficients != "none":
    keywords["coefficients"] = [0.2, 0.5, 0.3][:count]
  if with_init:
    keywords["init"] = get("init")
  if row.importances:
    keywords["importances"] = [get(f"importances {i}") for i in range(count)]
  return [get(f"member {i}") for i in range(count)], keywords


def expected(name, with_init):
  """The merge in memory, on one device."""
  members, keywords = arguments(name, with_init, networks().get)
  return methods.merge(name, members, **keywords)


def assert_equal(name, found, wanted):
  """Bit for bit where nothing is summed over a tensor or a row."""
  found, wanted = trees.flatten(found), trees.flatten(wanted)
  assert found.keys() == wanted.keys()
  for leaf in found:
    x, y = np.asarray(found[leaf]), np.asarray(wanted[leaf])
    assert (x.dtype, x.shape) == (y.dtype, y.shape), leaf
    if METHODS[name].sums or METHODS[name].whole_rows:
      np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7, err_msg=f"{name}: {leaf}")
    else:
      assert x.tobytes() == y.tobytes(), f"{name}: {leaf}"
