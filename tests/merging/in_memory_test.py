"""Rules on trees: groups and stacked layers against NumPy, one program a shape, no leaf gathered on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.merging.collectives import sent
from tests.streaming.mesh import mesh_cases
from wam.core import counters, parts, trees
from wam.merging import in_memory, methods, rules
from wam.merging.methods import METHODS
from wam.merging.rules import KthLargest, Sum

pytestmark = pytest.mark.usefixtures("strict_dtypes")

L = 4
SHAPES = {
  "embed/embedding": (16, 8),
  "layers/attention/q/kernel": (L, 8, 16),
  "layers/mlp/up/kernel": (L, 8, 2, 8),
  "layers/mlp_norm/scale": (L, 8),
  "final_norm/scale": (8,),
}
SEED = 7


def scaled(group, *, share=0.3):
  """Keeps the largest entries of every delta, divides by the norm of the deltas' sum: thresholds, then a sum."""
  edges = yield [
    KthLargest(lambda b, m=m: b.xp.abs(b.delta(m)), max(1, int(share * group.num_entries)))
    for m in range(group.num_members)
  ]

  def total(b):
    deltas = b.deltas()
    kept = [b.xp.where(b.xp.abs(d) >= e, d, 0.0) for d, e in zip(deltas, edges, strict=True)]
    return rules.weighted_sum(kept, b.coefficients)

  ((square, _),) = yield [Sum(lambda b: (b.xp.sum(total(b) ** 2), b.xp.sum(total(b))))]
  return lambda b: b.base + total(b) / b.xp.sqrt(square)


def dropped(group, *, density=0.5):
  """Drops entries at random."""
  yield from ()

  def apply(b):
    edge = round(density * counters.RANGE)
    kept = [b.xp.where(b.random_bits(f"mask {m}") < edge, d, 0.0) for m, d in enumerate(b.deltas())]
    return b.base + rules.weighted_sum(kept, b.coefficients)

  return apply


def by_rows(group):
  """Divides every row by its sum of absolute values."""
  yield from ()

  def apply(b):
    total = rules.weighted_sum(b.members, b.coefficients)
    return total / b.xp.sum(b.xp.abs(total), axis=-1, keepdims=True)

  return apply


def make(seed):
  random = np.random.default_rng(seed)
  return trees.unflatten({n: random.normal(size=s).astype(np.float32) for n, s in SHAPES.items()})


INIT, A, B = make(0), make(1), make(2)


def unrolled(tree):
  """Tensors by their unrolled names."""
  flat = {}
  for name, leaf in trees.flatten(tree).items():
    if name.startswith("layers/"):
      flat |= {name.replace("layers/", f"layers/{i}/"): x for i, x in enumerate(leaf)}
    else:
      flat[name] = leaf
  return flat


def twin_scaled(vectors, share, coefficients):
  """`scaled` of one vector, in float64: vectors are those of the init and the members."""
  base, *members = [np.float64(x) for x in vectors]
  total = 0.0
  for x, c in zip(members, coefficients, strict=True):
    delta = x - base
    edge = np.sort(np.abs(delta))[::-1][max(1, int(share * delta.size)) - 1]
    total = total + c * np.where(np.abs(delta) >= edge, delta, 0)
  return base + total / np.sqrt((total**2).sum())


def layer_of(name):
  return name.split("/")[1] if name.startswith("layers/") else name


def third_of(name):
  return "first" if name in ("embed/embedding",) or layer_of(name) in ("0", "2") else "rest"


THIRDS = parts.by_regex(INIT, {"first": r"embed/embedding|layers/[02]/.*", "rest": ".*"})


@pytest.mark.parametrize(
  ("group", "part_of"),
  [("leaf", str), ("layer", layer_of), ("global", lambda n: "all"), (THIRDS, third_of)],
  ids=["leaf", "layer", "global", "parts"],
)
def test_groups_are_vectors(group, part_of):
  share, coefficients = 0.3, [0.75, 0.5]
  merged = unrolled(
    in_memory.merge_trees(scaled, [A, B], INIT, coefficients, group=group, share=share)
  )
  flat = [unrolled(t) for t in (INIT, A, B)]
  for part in {part_of(n) for n in merged}:
    names = [n for n in merged if part_of(n) == part]
    vectors = [np.concatenate([f[n].ravel() for n in names]) for f in flat]
    found = np.concatenate([np.ravel(merged[n]) for n in names])
    expected = twin_scaled(vectors, share, coefficients)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6, err_msg=part)


@pytest.mark.parametrize(
  ("rule", "group"),
  [
    (scaled, "leaf"),
    (dropped, "leaf"),
    (by_rows, "leaf"),
    (scaled, "layer"),
    (scaled, "global"),
    (by_rows, "global"),
    (scaled, THIRDS),
    (dropped, THIRDS),
  ],
  ids=lambda x: getattr(x, "__name__", str(x)[:6]),
)
def test_stacked_layers_equal_unstacked_ones(rule, group):
  apart = [trees.unflatten(unrolled(t)) for t in (INIT, A, B)]
  if group is THIRDS:
    unrolled_group = parts.by_regex(
      apart[0], {"first": r"embed/embedding|layers/[02]/.*", "rest": ".*"}
    )
  else:
    unrolled_group = group
  # Coefficients that differ by layer, where a vector lies within one.
  by_layer = group in ("leaf", "layer")
  c = np.linspace(0.2, 0.8, L, dtype=np.float32) if by_layer else np.full(L, 0.4, np.float32)
  stacked = jax.tree.map(lambda _: np.float32(0.4), INIT)
  stacked["layers"] = jax.tree.map(lambda _: c, INIT["layers"])
  single = {
    n: c[int(layer_of(n))] if n.startswith("layers/") else np.float32(0.4) for n in unrolled(INIT)
  }
  keywords = {"seed": SEED, "whole_rows": rule is by_rows}
  one = in_memory.merge_trees(rule, [A, B], INIT, [stacked, 0.5], group=group, **keywords)
  two = in_memory.merge_trees(
    rule, apart[1:], apart[0], [trees.unflatten(single), 0.5], group=unrolled_group, **keywords
  )
  for name, x in unrolled(one).items():
    # Sums are made in another order.
    rtol, atol = (1e-6, 1e-7) if rule is scaled else (0, 0)
    np.testing.assert_allclose(x, trees.flatten(two)[name], rtol, atol, err_msg=name)


def test_random_bits_are_those_of_the_counters():
  zeros = jax.tree.map(np.zeros_like, INIT)
  ones = jax.tree.map(np.ones_like, INIT)
  merged = in_memory.merge_trees(dropped, [ones], zeros, [1.0], seed=SEED, density=0.25)
  for name, x in unrolled(merged).items():
    rows = np.arange(x.shape[0] if x.ndim > 1 else 1, dtype=np.uint32)
    key = rules.key_words(SEED, name, "mask 0")
    bits = counters.bits16_run(key, rows, 0, x.size // len(rows))
    np.testing.assert_array_equal(x, (bits < 0.25 * 65536).reshape(x.shape), name)


def test_one_program_a_shape_whatever_the_names():
  layers = 32
  shapes = {"q/kernel": (8, 8), "k/kernel": (8, 4), "v/kernel": (8, 4), "norm/scale": (8,)}
  tree = {
    f"layers/{i}/{n}": np.ones(s, np.float32) for i in range(layers) for n, s in shapes.items()
  }
  tree = trees.unflatten(tree)
  for rule, group, programs in [
    (dropped, "leaf", 3),
    (scaled, "leaf", 3),
    (scaled, "layer", 1),
    (dropped, "layer", 1),
  ]:
    in_memory._run.clear_cache()
    in_memory._streams.cache_clear()
    in_memory.merge_trees(rule, [tree, tree], tree, [0.5, 0.5], group=group, seed=SEED)
    assert in_memory._run._cache_size() == programs, (rule, group)
    traced = in_memory._streams.cache_info().misses
    in_memory.merge_trees(rule, [tree, tree], tree, [0.25, 0.5], group=group, seed=SEED + 1)
    assert in_memory._run._cache_size() == programs
    assert in_memory._streams.cache_info().misses == traced


def on_mesh(tree, axis):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  def place(leaf):
    fits = [i for i, n in enumerate(leaf.shape) if n % 8 == 0]
    spec = [None] * leaf.ndim
    if fits:
      spec[fits[axis]] = "x"
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

  return jax.tree.map(place, tree)


WIDE = {n: tuple(8 * k for k in s) for n, s in SHAPES.items()}


@pytest.mark.parametrize(
  ("rule", "group", "axis"),
  [
    (scaled, "leaf", 0),
    (scaled, "leaf", -1),
    (scaled, "layer", -1),
    (scaled, "global", 0),
    (dropped, "layer", 0),
    (dropped, "global", -1),
  ],
)
def test_nothing_of_the_size_of_a_shard_leaves_its_device(rule, group, axis):
  """On 8 devices, stacked leaves sharded over the layers or over their last axis."""
  init, a, b = (
    on_mesh(
      {
        n: jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32)
        for n, s in WIDE.items()
      },
      axis,
    )
    for i in range(3)
  )
  merge = lambda i, *m: in_memory.merge_trees(rule, m, i, [0.5, 0.5], group=group, seed=SEED)  # noqa: E731
  compiled = jax.jit(merge).lower(init, a, b).compile()
  smallest = min(x.addressable_shards[0].data.size for x in init.values())
  assert smallest == 8
  # For every layer of every leaf and member one number may be summed over the devices: thresholds are counted out.
  assert {name for name, _ in sent(compiled)} <= {"all-reduce"}
  assert all(size <= 2 * 3 * 8 * L for _, size in sent(compiled)), sent(compiled)
  assert bool(sent(compiled)) == (rule is scaled)
  merged, expected = compiled(init, a, b), merge(*jax.device_get((init, a, b)))
  for name, x in merged.items():
    assert x.sharding.is_equivalent_to(init[name].sharding, x.ndim), name
    if rule is dropped:
      np.testing.assert_array_equal(x, expected[name])
    else:
      np.testing.assert_allclose(x, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "with_init"), mesh_cases.CASES)
def test_no_method_gathers_a_leaf(name, with_init):
  """A stacked leaf of rank 4 over its last axis, which rows of [first axis, rest] would cut: then over its rows."""
  row, shape = METHODS[name], (4, 8, 8, 16)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = PartitionSpec(None, "x") if row.whole_rows else PartitionSpec(None, None, None, "x")
  where = NamedSharding(mesh, spec)
  leaf = {"layers/q/kernel": jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)}
  members, keywords = mesh_cases.arguments(name, with_init, lambda _: leaf)
  trees_ = {k: keywords.pop(k) for k in ("init", "importances") if k in keywords}
  compiled = (
    jax.jit(lambda m, t: methods.merge(name, m, **t, **keywords)).lower(members, trees_).compile()
  )
  (result,) = compiled.output_shardings.values()
  assert result.is_equivalent_to(where, 4)
  # Sums for every layer: of the products of three members and a base, or of the rows.
  assert all(what == "all-reduce" and size <= 4 * 16 for what, size in sent(compiled)), sent(
    compiled
  )
