"""The engine on arrays in memory: against the merges in memory, whatever the threads, blocks and order."""

import ml_dtypes
import numpy as np
import pytest

from tests.streaming.in_memory_checkpoint import ArrayReader, MemorySink
from wam.core.errors import ConfigError, NonFinite
from wam.merging.methods import METHODS, merge, per_member
from wam.streaming import blocks, engine, workload
from wam.streaming.plan import Output

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {
  "model.embed_tokens.weight": (300, 24),
  "model.layers.0.mlp.up.weight": (40, 130),
  "model.layers.1.mlp.up.weight": (40, 130),
  "model.layers.1.norm.weight": (24,),
  "model.conv.weight": (6, 5, 7),
  "scalar": (),
  "empty": (0, 4),
}


def make(seed, dtype=np.float32, around=None, spread=0.1):
  random = np.random.default_rng(seed)
  tree = {}
  for name, shape in SHAPES.items():
    x = random.normal(size=shape).astype(np.float32)
    base = 0 if around is None else around[name].astype(np.float32)
    tree[name] = np.asarray(x if around is None else base + spread * x).astype(dtype)
  return tree


def outputs_of(
  method, members, *, init=None, coefficients=None, dtype=None, importances=(), **given
):
  row = METHODS[method]
  count = len(members)
  default = row.default_coefficient if row.default_coefficient is not None else 1 / count
  parameters = per_member(method, {**row.defaults, **given}, count)
  group = parameters.pop("group", "leaf")
  if group == "layer":
    pytest.skip("groups by layer are made by recipes")
  return [
    Output(
      name,
      members[0][name].shape,
      np.dtype(dtype or members[0][name].dtype),
      method,
      tuple(ArrayReader(name, m[name]) for m in members),
      None if init is None else ArrayReader(name, init[name]),
      tuple(ArrayReader(name, m[name]) for m in importances),
      tuple(coefficients or [default] * count),
      parameters,
      group="" if group == "leaf" else "all",
    )
    for name in members[0]
  ]


def run(outputs, **options):
  sink = MemorySink(outputs)
  report = engine.execute(outputs, sink, **options)
  assert sorted(sink.completed) == sorted(x.name for x in outputs)
  return sink, report


def given(method, dtype=np.float32):
  row = METHODS[method]
  init = make(0, dtype)
  count = min(3, row.max_members or 3)
  count = max(count, row.min_members)
  members = [make(i + 1, dtype, init) for i in range(count)]
  importances = [make(i + 50) for i in range(count)] if row.importances else []
  importances = [{n: np.abs(x) for n, x in tree.items()} for tree in importances]
  coefficients = [0.5, 0.25, 0.25][:count] if row.coefficients != "none" else None
  if count == 2 and coefficients:
    coefficients = [0.25, 0.75]
  return (init if row.init == "needed" else None), members, importances, coefficients


each_method = pytest.mark.parametrize("method", list(METHODS))


@each_method
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_equals_the_merge_in_memory(method, dtype):
  init, members, importances, coefficients = given(method, dtype)
  row = METHODS[method]
  parameters = {"group": "leaf"} if "group" in row.defaults else {}
  outputs = outputs_of(
    method, members, init=init, coefficients=coefficients, importances=importances, **parameters
  )
  sink, _ = run(outputs, seed=3)
  whole = [{n: x for n, x in m.items() if x.size} for m in members]
  expected = merge(
    method,
    whole,
    init=init and {n: x for n, x in init.items() if x.size},
    coefficients=coefficients,
    importances=[{n: x for n, x in m.items() if x.size} for m in importances] or None,
    seed=3 if row.draws else None,
    **parameters,
  )
  for name, value in expected.items():
    found, wanted = np.float64(sink[name]), np.float64(np.asarray(value))
    if dtype == BF16:
      # The last bit of float32 may decide between two neighbours.
      close = np.abs(found - wanted) <= np.abs(np.spacing(np.asarray(value)).astype(np.float64))
      assert close.all(), name
      assert (found == wanted).mean() > 0.99, name
    else:
      np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


@each_method
def test_threads_order_and_size_of_blocks_do_not_change_a_bit(method, monkeypatch):
  init, members, importances, coefficients = given(method, BF16)
  parameters = {"group": "leaf"} if "group" in METHODS[method].defaults else {}
  outputs = outputs_of(
    method, members, init=init, coefficients=coefficients, importances=importances, **parameters
  )
  first, _ = run(outputs, threads=1)
  again, _ = run(outputs[::-1], threads=4)
  for x in outputs:
    assert first[x.name].tobytes() == again[x.name].tobytes(), x.name
  monkeypatch.setattr(blocks, "ENTRIES", 512)
  monkeypatch.setattr(blocks, "SEGMENT", 2048)
  cut, _ = run(outputs, threads=4)
  several, _ = run(outputs[::-1], threads=2)
  for x in outputs:
    assert cut[x.name].tobytes() == several[x.name].tobytes(), x.name
    if not METHODS[method].sums:
      assert cut[x.name].tobytes() == first[x.name].tobytes(), x.name


def test_all_the_coefficient_on_one_member_copies_it():
  members = [make(1, BF16), make(2, BF16)]
  members[1]["scalar"] = np.asarray(-0.0, BF16)
  sink, report = run(outputs_of("linear", members, coefficients=[0.0, 1.0]))
  for name, value in members[1].items():
    assert sink[name].tobytes() == value.tobytes()
  assert sorted(report.copied) == sorted(n for n in SHAPES if n != "empty")
  # A scale makes it something else.
  outputs = outputs_of(
    "task_arithmetic", members[:1], init=members[1], coefficients=[1.0], scale=0.5
  )
  assert not run(outputs)[1].copied


def test_equal_members_return_themselves_in_float32():
  member = make(1)
  sink, _ = run(outputs_of("linear", [member] * 3, coefficients=[0.2, 0.3, 0.4]))
  for name, value in member.items():
    assert sink[name].tobytes() == value.tobytes()


def test_one_threshold_for_the_whole_model():
  init = make(0)
  members = [make(1, around=init)]
  members[0]["model.embed_tokens.weight"] = init["model.embed_tokens.weight"] + np.float32(1e-4)
  parameters = {"density": 0.5, "normalize": "none"}
  apart, _ = run(
    outputs_of("ties", members, init=init, coefficients=[1.0], group="leaf", **parameters)
  )
  whole, _ = run(
    outputs_of("ties", members, init=init, coefficients=[1.0], group="global", **parameters)
  )
  every = np.concatenate([np.abs(members[0][n] - init[n]).ravel() for n in SHAPES])
  edge = np.sort(every)[::-1][int(0.5 * every.size) - 1]
  for name in SHAPES:
    delta = members[0][name] - init[name]
    expected = init[name] + np.where(np.abs(delta) >= edge, delta, 0)
    np.testing.assert_allclose(whole[name], expected, rtol=1e-6, atol=1e-7)
  assert (whole["model.embed_tokens.weight"] == init["model.embed_tokens.weight"]).all()
  assert (apart["model.embed_tokens.weight"] != init["model.embed_tokens.weight"]).any()


def test_nan_is_named_and_refused_unless_allowed():
  members = [make(1, BF16), make(2, BF16)]
  members[1]["model.layers.1.norm.weight"][3] = np.inf
  with pytest.raises(NonFinite, match=r"model\.layers\.1\.norm\.weight.*of memory"):
    run(outputs_of("linear", members))
  sink, _ = run(outputs_of("linear", members), allow_non_finite=True)
  assert np.isinf(np.float32(sink["model.layers.1.norm.weight"][3]))
  large = [{n: np.full_like(x, 6e4) for n, x in make(1).items()}] * 2
  with pytest.raises(NonFinite, match="does not fit float16"):
    run(outputs_of("linear", large, coefficients=[1.0, 1.0], normalize=False, dtype=np.float16))


def test_what_survives_the_output_dtype():
  init = make(0, BF16, spread=1.0)
  step = {n: np.full(x.shape, 2.0**-12, np.float32) for n, x in init.items()}
  member = {n: x.astype(np.float32) + step[n] for n, x in init.items()}
  outputs = outputs_of(
    "task_arithmetic", [member], init=init, coefficients=[1.0], scale=0.999, dtype=BF16
  )
  total = run(outputs)[1].total()
  # An independent count.
  update = error = kept = size = 0.0
  for name in SHAPES:
    exact = init[name].astype(np.float64) + 0.999 * (
      member[name].astype(np.float64) - init[name].astype(np.float64)
    )
    stored = exact.astype(np.float32).astype(BF16)
    update += ((exact - init[name].astype(np.float64)) ** 2).sum()
    error += ((stored.astype(np.float64) - exact) ** 2).sum()
    kept += (stored != init[name]).sum()
    size += exact.size
  assert total.entries == total.changed == size
  assert total.kept == kept
  assert total.lost == pytest.approx(np.sqrt(error / update), rel=1e-4)
  assert total.lost > 0.5  # most of so small an update is gone
  wide = outputs_of(
    "task_arithmetic", [member], init=init, coefficients=[1.0], scale=0.999, dtype=np.float32
  )
  assert run(wide)[1].total().lost < 1e-3


def test_stochastic_rounding_is_unbiased_and_seeded():
  value = np.float32(1 + 2.0**-9)  # a quarter of the way between two bfloat16 numbers
  members = [{n: np.full(s, value, np.float32) for n, s in SHAPES.items()}] * 2
  outputs = outputs_of("linear", members, dtype=BF16)
  sink, _ = run(outputs, rounding="stochastic", seed=1)
  values = np.float32(sink["model.embed_tokens.weight"]).ravel()
  assert set(values.tolist()) == {1.0, 1 + 2.0**-7}
  share = (values > 1).mean()
  assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / values.size)
  again, _ = run(outputs[::-1], rounding="stochastic", seed=1, threads=3)
  other, _ = run(outputs, rounding="stochastic", seed=2)
  name = "model.embed_tokens.weight"
  assert again[name].tobytes() == sink[name].tobytes() != other[name].tobytes()
  layers = [sink[f"model.layers.{i}.mlp.up.weight"].tobytes() for i in (0, 1)]
  assert layers[0] != layers[1]
  with pytest.raises(ConfigError, match="bfloat16"):
    run(outputs_of("linear", [make(1, np.float16)] * 2), rounding="stochastic")


def test_what_is_done_is_not_made_again():
  outputs = outputs_of("linear", [make(1), make(2)])
  sink = MemorySink(outputs, done={"scalar", "model.conv.weight"})
  report = engine.execute(outputs, sink)
  assert not sink.written["model.conv.weight"].any()
  assert sorted(report.resumed) == ["model.conv.weight", "scalar"]
  assert len(sink.completed) == len(outputs) - 2


def test_an_error_of_the_sink_reaches_the_caller():
  outputs = outputs_of("linear", [make(1), make(2)])
  with pytest.raises(OSError, match="no space left"):
    engine.execute(outputs, MemorySink(outputs, fail_after=3))


def test_memory_bounds_the_threads():
  outputs = outputs_of("linear", [make(i) for i in range(8)])
  one = 4 * max(x.num_entries for x in outputs) * (2 * 8 + 8)
  assert workload.affordable_threads(outputs, threads=4, memory=one) == 1
  assert workload.affordable_threads(outputs, threads=4, memory=3 * one) == 3
  with pytest.raises(ConfigError, match=f"give at least {one} bytes"):
    run(outputs, memory=1000, threads=2)
  with pytest.raises(ConfigError, match="rounding"):
    run(outputs, rounding="up")


def test_integer_tensors_are_copied():
  members = [{"ids": np.arange(6), "w": np.ones(3, np.float32)} for _ in range(2)]
  sink, _ = run(outputs_of("linear", members))
  assert sink["ids"].tolist() == list(range(6))
  assert sink["ids"].dtype == np.int64


def test_progress_counts_the_bytes_written():
  outputs = outputs_of("linear", [make(1), make(2)])
  seen = []
  engine.execute(
    outputs, MemorySink(outputs), progress=lambda done, total: seen.append((done, total))
  )
  total = sum(x.num_bytes for x in outputs)
  assert seen[-1] == (total, total)


def test_accumulation_is_wide_where_an_input_is():
  a = [{"w": np.array([1.0, 1 + 1e-12])}, {"w": np.array([1.0, 1.0])}]
  sink, _ = run(outputs_of("linear", a))
  assert sink["w"].dtype == np.float64
  assert sink["w"][1] == 1 + 5e-13
