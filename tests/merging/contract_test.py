"""One contract for every row of METHODS. A new method needs a row in CASES (cases.py), and its float64 twin."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.merging import by_blocks
from tests.merging.cases import (
  CASES,
  FIRST,
  SEED,
  given,
  importances_of,
  make,
  num_members,
  run,
  unrolled,
)
from wam.core import trees
from wam.core.errors import ConfigError, MismatchedTrees, UnknownName
from wam.merging import methods

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def assert_bits(a, b):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    x, y = np.asarray(a[name]), np.asarray(b[name])
    assert x.dtype == y.dtype, name
    assert x.tobytes() == y.tobytes(), name


def assert_near(a, b, rtol=2e-6, atol=1e-6):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
    np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=name)


# What depends on the formula is asked of every case, what depends on the machinery of one for every method.
every = pytest.mark.parametrize("case", CASES, ids=str)
each = pytest.mark.parametrize("case", FIRST, ids=str)
# Every leaf is a program to be compiled, a second for some methods: where one is enough it is this.
QUERY = "layers/attention/q/kernel"


def query(tree):
  return np.asarray(trees.flatten(tree)[QUERY], np.float32)


def test_every_method_has_a_case():
  assert {case.method for case in CASES} == set(methods.METHODS)


@each
def test_tree_shapes_and_dtypes_are_kept_and_members_are_not_mutated(case):
  init, members = given(case, [QUERY], ml_dtypes.bfloat16)
  before = jax.tree.map(np.copy, [init, *members])
  merged = run(case, init, members)
  assert jax.tree.structure(merged) == jax.tree.structure(init)
  for name, leaf in trees.flatten(merged).items():
    expected = trees.flatten(init)[name]
    assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype), name
  assert_bits(merged["counter"], init["counter"])
  for x, y in zip(before, [init, *members], strict=True):
    assert_bits(x, y)


def float64(tree):
  flat = trees.flatten(unrolled(tree))
  return {n: np.float64(x) for n, x in flat.items() if n != "counter"}


def expected_of(case, init, members):
  c = case.coefficients or [1.0] * len(members)
  # The numbers that the method sees: float32, or the shares that it makes of them.
  c = np.float64(np.float32(c))
  return case.twin(float64(init), [float64(m) for m in members], c)


@every
def test_float32_members_equal_the_float64_twin(case):
  init, members = given(case)
  merged = unrolled(run(case, init, members))
  merged.pop("counter")
  assert_near(merged, trees.unflatten(expected_of(case, init, members)), rtol=1e-6, atol=1e-6)


# Not SCE's selection: variances of bfloat16 numbers tie, and rounding decides in float32 which of them are largest.
@pytest.mark.parametrize("case", [c for c in CASES if (c in FIRST) != (c.method == "sce")], ids=str)
def test_bfloat16_members_equal_the_float64_twin_after_one_rounding(case):
  init, members = given(case, [QUERY], ml_dtypes.bfloat16)
  merged = trees.flatten(unrolled(run(case, init, members)))
  for name, exact in expected_of(case, init, members).items():
    result, rounded = np.asarray(merged[name]), exact.astype(ml_dtypes.bfloat16)
    # Members of 8 significant bits often average to the exact middle between two bfloat16 numbers ((2a + 5b + 3c)/10
    # in one case of ten); there the last bit of a coefficient decides. So: as near as the nearest, up to float32.
    error = np.abs(np.float64(result) - exact)
    best = np.abs(np.float64(rounded) - exact)
    slack = 5e-7 * (1 + np.abs(exact))
    assert (error <= best + slack).all(), name
    spacing = np.float64(np.spacing(rounded))
    clear = np.abs(best - np.abs(spacing) / 2) > slack
    assert clear.any(), name
    np.testing.assert_array_equal(result[clear], rounded[clear], err_msg=name)


@each
def test_equal_members_return_themselves(case):
  for dtype in (np.float32, ml_dtypes.bfloat16):
    init, (member, *_) = given(case, [QUERY], dtype)
    merged = run(case, init, [member] * num_members(case))
    if case.is_idempotent:
      assert_bits(merged, member)
    else:
      assert (query(merged) != query(member)).any()


@each
def test_all_the_coefficient_on_one_member_returns_it_bit_for_bit(case):
  if case.row.coefficients == "none" or not methods.promises(case.method, case.values)[1]:
    # Only where there are no coefficients, or a coefficient of 1 is not all that is done.
    assert case.row.coefficients == "none" or case.values.keys() & {"scale", "density"}
    return
  init, members = given(case, [QUERY])
  trees.flatten(members[0])[QUERY][0, 0, :3] = [-0.0, 1e-42, 1.0]  # also minus zero and subnormals
  for m, member in enumerate(members):
    one_hot = [float(i == m) for i in range(len(members))]
    assert_bits(run(case, init, members, one_hot), member)


@each
def test_order_of_members(case):
  init, members = given(case, [QUERY])
  coefficients = case.coefficients
  merged = run(case, init, members)
  reverse = run(case, init, members[::-1], coefficients and coefficients[::-1])
  if case.row.symmetric or (len(members) == 2 and not case.row.draws):  # slerp of two is symmetric
    assert_near(merged, reverse)
  else:
    assert np.abs(query(merged) - query(reverse)).max() > 1e-4


@each
def test_jit_equals_eager(case):
  init, members = given(case, [QUERY])
  eager = run(case, init, members)
  jitted = jax.jit(lambda i, m: run(case, i, m))(init, members)
  # Bit for bit where nothing is summed over a leaf; there the compiler may order sums in another way.
  if case.row.sums:
    assert_near(eager, jitted, rtol=1e-6, atol=1e-7)
  else:
    assert_bits(eager, jitted)


@each
def test_traced_coefficients_equal_static_ones(case):
  init, members = given(case, [QUERY])
  if case.coefficients is None:
    return
  traced = jax.jit(lambda c: run(case, init, members, c))(jnp.asarray(case.coefficients))
  assert_near(traced, run(case, init, members), rtol=1e-6, atol=1e-6)


@each
def test_a_stacked_population_equals_a_list(case):
  init, members = given(case, [QUERY])
  assert_bits(run(case, init, trees.stack(members)), run(case, init, members))


@each
def test_stacked_layers_equal_unstacked_layers(case):
  init, members = given(case)
  stacked = unrolled(run(case, init, members))
  apart = run(case, unrolled(init), [unrolled(m) for m in members])
  assert_near(stacked, apart, rtol=1e-6, atol=1e-7)


@each
def test_sharded_equals_unsharded(case):
  init, members = given(case, [QUERY])
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

  def place(leaf):
    # On the last axis that eight devices divide: also across a layer, never only between layers.
    axes = [i for i, n in enumerate(leaf.shape) if n % 8 == 0]
    spec = [None] * leaf.ndim
    if axes:
      spec[axes[-1]] = "fsdp"
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

  sharded = run(case, *jax.tree.map(place, (init, members)))
  sharding = trees.flatten(sharded)[QUERY].sharding
  assert len(sharding.device_set) == 8
  assert not sharding.is_fully_replicated
  assert_near(sharded, run(case, init, members), rtol=1e-6, atol=1e-7)


@every
def test_numpy_in_blocks_equals_trees_in_memory(case):
  init, members = (jax.tree.map(np.copy, x) for x in given(case))
  flat = [trees.flatten(unrolled(x)) for x in (init, *members)]
  flat = [{n: x for n, x in tree.items() if n != "counter"} for tree in flat]
  before = [{n: x.copy() for n, x in tree.items()} for tree in flat]
  weights = [trees.flatten(unrolled(importances_of(m))) for m in members]
  merged = by_blocks.merge(
    case.method,
    flat[1:],
    init=flat[0] if case.has_init else None,
    coefficients=case.coefficients,
    importances=weights if case.row.importances else None,
    seed=SEED if case.row.draws else None,
    **case.parameters,
  )
  expected = unrolled(run(case, init, members))
  expected.pop("counter")
  # Not bit for bit: XLA's CPU compiler fuses products and sums, NumPy rounds in between.
  assert_near(trees.unflatten(merged), expected, rtol=1e-6, atol=1e-7)
  # A block may be read again from the same memory.
  for x, y in zip(before, flat, strict=True):
    assert_bits(x, y)


@each
def test_mismatched_leaves_are_named(case):
  init, members = given(case)
  odd = members[-1] | {"final_norm": {"bias": np.zeros(8, np.float32)}}
  others = members[:-1]
  if others or case.has_init:
    with pytest.raises(MismatchedTrees, match=r"final_norm/bias.*final_norm/scale"):
      run(case, init, [*others, odd])
    counted = members[-1] | {"counter": np.array([0, 1], np.int32)}
    with pytest.raises(MismatchedTrees, match="'counter'"):
      run(case, init, [*others, counted])


def test_the_table_refuses_what_a_method_does_not_take():
  a, b = make(0), make(1)
  with pytest.raises(UnknownName, match="Did you mean 'slerp'"):
    methods.merge("slrp", [a, b])
  with pytest.raises(UnknownName, match="Did you mean 'scale'"):
    methods.merge("task_arithmetic", [a, b], init=a, scalee=2.0)
  with pytest.raises(ConfigError, match="give init"):
    methods.merge("model_stock", [a, b])
  with pytest.raises(ConfigError, match="leave it out"):
    methods.merge("lerp", [a, b], init=a)
  with pytest.raises(ConfigError, match="takes no coefficients"):
    methods.merge("model_stock", [a, b], init=a, coefficients=[1.0, 2.0])
  with pytest.raises(ConfigError, match="needs a seed"):
    methods.merge("dare_linear", [a, b], init=a)
  with pytest.raises(ConfigError, match="does not take a seed"):
    methods.merge("linear", [a, b], seed=0)
  with pytest.raises(ConfigError, match="needs importances"):
    methods.merge("fisher", [a, b])
  with pytest.raises(ConfigError, match=r"lerp merges 2 member\(s\), found 3"):
    methods.merge("lerp", [a, b, a])
  for name in ("lerp", "linear", "fisher", "geometric_median"):
    with pytest.raises(ConfigError, match="sum to zero"):
      importances = [importances_of(x) for x in (a, b)] if name == "fisher" else None
      methods.merge(name, [a, b], coefficients=[0.0, 0.0], importances=importances)
