"""Every row of METHODS on a mesh of eight devices, from Orbax to Orbax, against the merge in memory on one device."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.streaming.mesh import mesh_cases
from tests.streaming.mesh.mesh_cases import CASES, SHAPES, assert_equal
from wam.checkpoints import orbax
from wam.checkpoints.orbax_leaves import SavedLeaves
from wam.core import counters, parts, trees
from wam.core.errors import ConfigError, MismatchedTrees, MissingFile, NonFinite, UnknownName
from wam.merging import in_memory, methods, rules
from wam.merging.methods import METHODS
from wam.streaming import engine
from wam.streaming.mesh.on_mesh import merge_checkpoints

WORKER = pathlib.Path(__file__).with_name("on_mesh_worker.py")
SIZE = 4 * sum(int(np.prod(s)) for s in SHAPES.values())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Where the networks lie, each written from eight devices."""
  directory = tmp_path_factory.mktemp("checkpoints")
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

  def place(leaf):
    fits = [i for i, n in enumerate(leaf.shape) if n % 8 == 0]
    spec = [None] * (fits[0] if fits else 0) + ["x"] * bool(fits)
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

  for name, tree in mesh_cases.networks().items():
    orbax.save(directory / name, jax.tree.map(place, tree))
  return directory


@pytest.fixture
def mesh():
  return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


# One of every kind; compiling all of them for eight devices takes more than a minute.
QUICK = {"linear", "slerp", "model_stock", "ties", "dare_linear", "fisher", "della", "passthrough"}


@pytest.mark.parametrize(
  ("name", "with_init"),
  [pytest.param(*case, marks=[] if case[0] in QUICK else pytest.mark.slow) for case in CASES],
)
def test_every_method_equals_the_merge_in_memory(name, with_init, saved, mesh, tmp_path):
  members, keywords = mesh_cases.arguments(name, with_init, lambda x: saved / x)
  report = merge_checkpoints(name, members, tmp_path / "out", mesh=mesh, **keywords)
  assert_equal(name, orbax.load(tmp_path / "out"), mesh_cases.expected(name, with_init))
  assert sorted(report.survival) == sorted(SHAPES)
  assert report.bytes_written == SIZE
  num_inputs = len(members) * (1 + METHODS[name].importances) + with_init
  assert report.bytes_read == SIZE * num_inputs


def run_two(saved, results, cases):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, str(WORKER), str(saved), str(results), address, str(i), json.dumps(cases)],
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    for i in range(2)
  ]
  try:
    errors = [process.communicate(timeout=300)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == [0, 0], errors
  return [json.loads((results / f"notes{i}.json").read_text()) for i in range(2)]


def check_two(saved, results, cases):
  notes = run_two(saved, results, cases)
  for name, with_init in cases:
    key = f"{name} {with_init}"
    assert_equal(name, orbax.load(results / key), mesh_cases.expected(name, with_init))
    row = METHODS[name]
    num_inputs = (min(3, row.max_members or 3)) * (1 + row.importances) + with_init
    # Vectors of few entries may lie on all devices.
    small = 4 * int(np.prod(SHAPES["layers/mlp_norm/scale"]))
    for note in (x[key] for x in notes):
      assert SIZE / 2 <= note["held"] / num_inputs <= SIZE / 2 + small / 2
      assert SIZE / 2 <= note["written"] <= SIZE / 2 + small / 2
    assert notes[0][key]["update"] == notes[1][key]["update"]


@pytest.mark.slow
def test_two_processes_equal_one_and_read_half_each(saved, mesh, tmp_path):
  large = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  for i in range(2):
    # Of noise, that cannot be compressed.
    values = np.random.default_rng(i).normal(size=(1024, 2048)).astype(np.float32)
    orbax.save(saved / f"large {i}", {"kernel": jax.device_put(values, large)})
  check_two(saved, tmp_path, [("slerp", True), ("della", True)])
  notes = [json.loads((tmp_path / f"notes{i}.json").read_text())["large"] for i in range(2)]
  size = 2 * 4 * 1024 * 2048
  assert [x["held"] for x in notes] == [size / 2] * 2
  # Of the files, too, and not only of what is kept; floats of noise can be compressed by a tenth.
  assert all(0.4 * size < x["read"] < 0.6 * size for x in notes), notes
  found = orbax.load(tmp_path / "large merged")["kernel"]
  first, second = (np.asarray(orbax.load(saved / f"large {i}")["kernel"]) for i in range(2))
  np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_every_method_on_two_processes(saved, tmp_path):
  check_two(saved, tmp_path, CASES)


def unrolled(tree):
  """With the layers apart."""
  flat = {}
  for name, leaf in trees.flatten(tree).items():
    if name.startswith("layers/"):
      flat |= {name.replace("layers/", f"layers/{i}/", 1): x for i, x in enumerate(leaf)}
    else:
      flat[name] = leaf
  return trees.unflatten(flat)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
  """Where the networks lie with their layers apart."""
  directory = tmp_path_factory.mktemp("apart")
  for name, tree in mesh_cases.networks().items():
    orbax.save(directory / name, unrolled(tree))
  return directory


@pytest.mark.parametrize(
  ("name", "group", "num_portions"),
  [
    ("linear", None, 9),
    ("slerp", "layer", 5),
    ("slerp", "leaf", 9),
    ("ties", "global", 1),
  ],
)
def test_leaves_of_one_vector_come_together(name, group, num_portions, apart, mesh, tmp_path):
  with_init = METHODS[name].init != "unused"
  members, keywords = mesh_cases.arguments(name, with_init, lambda x: apart / x)
  if group is not None:
    keywords["group"] = group
  seen = []
  merge_checkpoints(
    name,
    members,
    tmp_path / "out",
    mesh=mesh,
    group_bytes=1,
    progress=lambda *x: seen.append(x),
    **keywords,
  )
  members, keywords = mesh_cases.arguments(name, with_init, mesh_cases.networks().get)
  if group is not None:
    keywords["group"] = group
  assert_equal(
    name, orbax.load(tmp_path / "out"), unrolled(methods.merge(name, members, **keywords))
  )
  assert len(seen) == num_portions
  assert seen[-1] == (SIZE, SIZE)
  assert orbax.load_extra(tmp_path / "out")["method"] == name


def test_layers_alike_share_a_program(apart, mesh, tmp_path):
  in_memory._run.clear_cache()
  members, keywords = mesh_cases.arguments("ties", True, lambda x: apart / x)
  merge_checkpoints("ties", members, tmp_path / "out", mesh=mesh, group_bytes=1, **keywords)
  # Embedding, kernel and scale: not one for each of four layers.
  assert in_memory._run._cache_size() == 3


def test_coefficients_by_part(saved, mesh, tmp_path):
  tree = SavedLeaves(saved / "init").tree
  halves = parts.by_depth(tree, 2)
  ratios = [
    parts.coefficients(halves, {"part 1": a, "part 2": b}) for a, b in ((0.25, 0.5), (0.75, 0.5))
  ]
  members = [f"member {i}" for i in range(2)]
  merge_checkpoints(
    "linear",
    [saved / x for x in members],
    tmp_path / "out",
    mesh=mesh,
    coefficients=ratios,
    group_bytes=1,
  )
  networks = mesh_cases.networks()
  expected = methods.merge("linear", [networks[x] for x in members], coefficients=ratios)
  assert_equal("linear", orbax.load(tmp_path / "out"), expected)


def in_bfloat16(directory):
  for name, tree in mesh_cases.networks().items():
    orbax.save(directory / name, trees.cast(tree, jnp.bfloat16))


def test_what_survives_bfloat16_is_measured(mesh, tmp_path):
  in_bfloat16(tmp_path)
  members, keywords = mesh_cases.arguments("task_arithmetic", True, lambda x: tmp_path / x)
  report = merge_checkpoints("task_arithmetic", members, tmp_path / "out", mesh=mesh, **keywords)
  init, *deltas = (
    {n: np.float64(x) for n, x in trees.flatten(orbax.load(path)).items() if n in SHAPES}
    for path in (keywords["init"], *members)
  )
  stored = trees.flatten(orbax.load(tmp_path / "out"))
  for name, survival in report.survival.items():
    terms = zip(keywords["coefficients"], deltas, strict=True)
    update = sum(c * (x[name] - init[name]) for c, x in terms)
    found = np.float64(stored[name])
    assert survival.entries == update.size
    np.testing.assert_allclose(survival.update, (update**2).sum(), rtol=1e-5)
    error = ((found - init[name] - update) ** 2).sum()
    np.testing.assert_allclose(survival.error, error, rtol=1e-3)
    assert survival.kept == np.count_nonzero(found != init[name])
    assert survival.kept <= survival.changed <= update.size


def test_stochastic_rounding_is_that_of_the_stream(mesh, tmp_path):
  in_bfloat16(tmp_path)
  members = [tmp_path / f"member {i}" for i in range(3)]
  keywords = {"mesh": mesh, "coefficients": [0.2, 0.5, 0.3]}
  merge_checkpoints("linear", members, tmp_path / "wide", out_dtype=np.float32, **keywords)
  merge_checkpoints("linear", members, tmp_path / "out", seed=3, rounding="stochastic", **keywords)
  wide, found = (trees.flatten(unrolled(orbax.load(tmp_path / x))) for x in ("wide", "out"))
  for name, merged in wide.items():
    if name == "counter":
      continue
    rows = np.arange(merged.shape[0] if merged.ndim > 1 else 1)
    key = rules.key_words(3, name, "rounding")
    noise = counters.bits16_run(key, rows, 0, merged.size // len(rows)).reshape(merged.shape)
    expected = engine.round_stochastically(np.asarray(merged), noise)
    assert np.asarray(found[name]).tobytes() == expected.tobytes(), name


def changed(saved, tmp_path, **leaves):
  """A checkpoint like member 1, but for some leaves; None is left out."""
  flat = trees.flatten(mesh_cases.networks()["member 1"])
  flat |= {n.replace("__", "/"): x for n, x in leaves.items()}
  orbax.save(tmp_path / "odd", trees.unflatten({n: x for n, x in flat.items() if x is not None}))
  return [saved / "member 0", tmp_path / "odd"]


REFUSED = {
  "missing": ({"counter": None}, {}, MismatchedTrees, "'counter' is missing from .*odd"),
  "shape": (
    {"embed__embedding": np.ones((8, 8), np.float32)},
    {},
    MismatchedTrees,
    r"'embed/embedding' has shape \(8, 8\) in .*odd but \(16, 8\) in .*member 0",
  ),
  "dtype": (
    {"embed__embedding": np.ones((16, 8), ml_dtypes.bfloat16)},
    {},
    MismatchedTrees,
    "'embed/embedding' is bfloat16 in .*odd but float32",
  ),
  "counter": (
    {"counter": np.array([3, 4], np.int32)},
    {},
    MismatchedTrees,
    "'counter' differs between .*member 0 and .*odd",
  ),
  "parameter": ({}, {"normalise": True}, UnknownName, "Did you mean 'normalize'"),
  "coefficients": ({}, {"coefficients": [1.0]}, ConfigError, "each of 2 members, found 1"),
  "seed": ({}, {"seed": 1}, ConfigError, "does not take a seed"),
  "rounding": ({}, {"rounding": "up"}, ConfigError, "expected one of nearest, stochastic"),
  "no seed": ({}, {"rounding": "stochastic"}, ConfigError, "needs a seed"),
  "layout": (
    {},
    {"sharding": lambda name, shape: PartitionSpec(None, "fsdp", "data")},
    ConfigError,
    "'embed/embedding' of shape",
  ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_anything_is_merged(what, saved, mesh, tmp_path, monkeypatch):
  leaves, keywords, error, message = REFUSED[what]
  members = changed(saved, tmp_path, **leaves)
  monkeypatch.setattr(methods, "merge", when_concrete(methods.merge))
  with pytest.raises(error, match=message):
    merge_checkpoints("linear", members, tmp_path / "out", mesh=mesh, **keywords)
  assert [x.name for x in tmp_path.iterdir()] == ["odd"]


def when_concrete(merge):
  """A merge that may only be tried on shapes."""

  def tried(name, members, **keywords):
    assert all(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(members))
    return merge(name, members, **keywords)

  return tried


def test_an_output_that_exists_is_refused(saved, mesh, tmp_path):
  members = [saved / "member 0", saved / "member 1"]
  with pytest.raises(ConfigError, match="exists already"):
    merge_checkpoints("linear", members, tmp_path, mesh=mesh)
  with pytest.raises(MissingFile, match=r"no Orbax checkpoint at .*absent"):
    merge_checkpoints("linear", [*members, tmp_path / "absent"], tmp_path / "out", mesh=mesh)


def test_what_is_not_finite_is_named_and_nothing_is_left(saved, mesh, tmp_path):
  bad = np.ones((16, 8), np.float32)
  bad[3, 5] = np.nan
  members = changed(saved, tmp_path, embed__embedding=bad)
  with pytest.raises(NonFinite, match=r"'embed/embedding' of .*odd holds NaN or infinity"):
    merge_checkpoints("linear", members, tmp_path / "out", mesh=mesh, group_bytes=1)
  assert [x.name for x in tmp_path.iterdir()] == ["odd"]
  merge_checkpoints("linear", members, tmp_path / "out", mesh=mesh, allow_non_finite=True)
  assert np.isnan(orbax.load(tmp_path / "out")["embed"]["embedding"]).sum() == 1
  members = [saved / "member 0", saved / "member 1"]
  with pytest.raises(NonFinite, match=r"the merge of .* does not fit float16"):
    merge_checkpoints(
      "linear",
      members,
      tmp_path / "half",
      mesh=mesh,
      coefficients=[1e6, 1e6],
      normalize=False,
      out_dtype=np.float16,
    )
