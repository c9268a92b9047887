"""Averages against float64 NumPy twins, exact end points, integer leaves, and the running forms."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from wam.core import parts, trees
from wam.core.errors import ConfigError, MismatchedTrees
from wam.merging import averages

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def tree(seed, dtype=np.float32, scale=1.0):
  random = np.random.default_rng(seed)
  return {
    "embed": {"embedding": (scale * random.normal(size=(11, 4))).astype(dtype)},
    "layers": {"mlp": {"up": {"kernel": (scale * random.normal(size=(3, 4, 5))).astype(dtype)}}},
    "final_norm": {"scale": (scale * random.normal(size=4)).astype(dtype)},
  }


def twin_mean(members, coefficients):
  """Σ c θ / Σ c in float64, rounded once."""
  total = np.float64(sum(np.float64(c) for c in coefficients))
  return jax.tree.map(
    lambda *xs: (
      sum(np.float64(c) * np.float64(x) for c, x in zip(coefficients, xs, strict=True)) / total
    ).astype(xs[0].dtype),
    *members,
  )


def assert_bits(a, b):
  """Equal dtypes and equal bits, so that -0 and 0, and different NaNs, differ."""
  for (name, x), y in zip(trees.flatten(a).items(), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert x.dtype == y.dtype, name
    assert x.tobytes() == y.tobytes(), name


def assert_near(a, b, rtol=3e-7, atol=1e-7):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_lerp_is_the_float64_lerp(dtype):
  a, b = tree(0, dtype), tree(1, dtype)
  t = np.float32(0.3)
  expected = jax.tree.map(
    lambda x, y: ((1 - np.float64(t)) * np.float64(x) + np.float64(t) * np.float64(y)).astype(
      x.dtype
    ),
    a,
    b,
  )
  merged = averages.lerp(a, b, t)
  if dtype == np.float32:
    assert_near(merged, expected)
  else:
    assert_bits(merged, expected)


@pytest.mark.parametrize("jitted", [False, True])
def test_lerp_end_points_bit_for_bit_whatever_the_other_holds(jitted):
  a, b = tree(0), tree(1)
  a["final_norm"]["scale"][:] = [-0.0, 1e-42, np.inf, np.nan]
  b["final_norm"]["scale"][:] = [np.inf, -np.inf, -0.0, 1e-42]
  merge = jax.jit(averages.lerp) if jitted else averages.lerp
  assert_bits(merge(a, b, 0.0), a)
  assert_bits(merge(a, b, 1.0), b)


def test_lerp_by_part():
  a, b = tree(0), tree(1)
  partition = parts.by_depth(a, 3)
  t = parts.coefficients(partition, {"input": 0.0, "middle": 0.5, "output": 1.0})
  merged = averages.lerp(a, b, t)
  kernels = [x["layers"]["mlp"]["up"]["kernel"] for x in (a, merged, b)]
  assert_bits(kernels[1][0], kernels[0][0])
  np.testing.assert_allclose(kernels[1][1], (kernels[0][1] + kernels[2][1]) / 2, rtol=1e-6)
  assert_bits(kernels[1][2], kernels[2][2])
  assert_bits(merged["embed"], a["embed"])
  assert_bits(merged["final_norm"], b["final_norm"])


def test_extrapolation_must_be_stated():
  a, b = tree(0), tree(1)
  with pytest.raises(ConfigError, match="extrapolate=True"):
    averages.lerp(a, b, 1.5)
  expected = jax.tree.map(lambda x, y: x + 1.5 * (np.float64(y) - x), a, b)
  assert_near(averages.lerp(a, b, 1.5, extrapolate=True), expected, atol=1e-6)
  with pytest.raises(ConfigError, match="extrapolate=True"):
    averages.weighted_mean([a, b], [-0.5, 1.5])
  assert_near(averages.weighted_mean([a, b], [-0.5, 1.5], extrapolate=True), expected, atol=1e-6)
  with pytest.raises(ConfigError, match="must lie in"):
    averages.lerp(a, b, float("nan"))


def test_liti_and_wise_ft_are_one_function():
  assert averages.wise_ft is averages.liti
  a, b = tree(0), tree(1)
  assert_bits(averages.liti(a, b, 0.3), averages.lerp(a, b, 0.3))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("stacked", [False, True])
def test_weighted_mean_is_the_float64_mean(dtype, stacked):
  members = [tree(seed, dtype) for seed in range(4)]
  coefficients = np.float32([0.5, 2.0, 0.0, 1.25])
  given = trees.stack(members) if stacked else members
  merged = averages.weighted_mean(given, coefficients)
  expected = twin_mean(members, coefficients)
  if dtype == np.float32:
    assert_near(merged, expected)
  else:
    assert_bits(merged, expected)


def test_weighted_mean_by_part_and_member():
  members = [tree(seed) for seed in range(2)]
  partition = parts.by_depth(members[0], 3)
  first = parts.coefficients(partition, {"input": 1.0, "middle": 1.0, "output": 0.0})
  second = parts.coefficients(partition, {"input": 0.0, "middle": 3.0, "output": 2.0})
  merged = averages.weighted_mean(members, [first, second])
  same = averages.weighted_mean(members, trees.stack([first, second]))
  assert_bits(merged, same)
  x, y = (m["layers"]["mlp"]["up"]["kernel"] for m in members)
  np.testing.assert_allclose(
    merged["layers"]["mlp"]["up"]["kernel"][1], 0.25 * x[1] + 0.75 * y[1], rtol=2e-6
  )
  assert_bits(merged["layers"]["mlp"]["up"]["kernel"][2], y[2])
  assert_bits(merged["embed"], members[0]["embed"])


def test_sums_and_counts_of_coefficients_are_checked():
  members = [tree(seed) for seed in range(2)]
  with pytest.raises(ConfigError, match="sum to zero"):
    averages.weighted_mean(members, [1.0, -1.0], extrapolate=True)
  with pytest.raises(ConfigError, match="each of 2 members, found 3"):
    averages.weighted_mean(members, [1.0, 1.0, 1.0])
  with pytest.raises(ConfigError, match="at least one member"):
    averages.weighted_mean([])
  with pytest.raises(ConfigError, match="finite"):
    averages.weighted_mean(members, [1.0, float("inf")])
  total = averages.weighted_mean(members, [1.0, 1.0], normalize=False)
  assert_near(total, jax.tree.map(np.add, *members))


def test_integer_leaves_pass_or_raise():
  a, b = tree(0) | {"step": np.int32(2**30 + 1)}, tree(1) | {"step": np.int32(2**30 + 1)}
  assert int(averages.lerp(a, b, 0.5)["step"]) == 2**30 + 1
  assert int(averages.weighted_mean(trees.stack([a, b]))["step"]) == 2**30 + 1
  with pytest.raises(MismatchedTrees, match=r"'step' .int32. cannot be averaged"):
    averages.uniform_mean([a, b | {"step": np.int32(3)}])


def test_mismatches_are_named():
  a, b = tree(0), tree(1)
  b["final_norm"]["scale"] = b["final_norm"]["scale"].astype(ml_dtypes.bfloat16)
  with pytest.raises(MismatchedTrees, match="'final_norm/scale' is bfloat16 in b but float32 in a"):
    averages.lerp(a, b, 0.5)
  c = tree(1)
  c["final_norm"] = {"bias": np.zeros(3, np.float32)}
  with pytest.raises(MismatchedTrees, match=r"final_norm/bias.*final_norm/scale"):
    averages.weighted_mean([a, c])
  with pytest.raises(MismatchedTrees, match="leading member axis"):
    averages.weighted_mean(a)


def test_out_dtype():
  members = [tree(seed, ml_dtypes.bfloat16) for seed in range(3)]
  merged = averages.uniform_mean(members, out_dtype=jnp.float32)
  wide = [jax.tree.map(lambda x: x.astype(np.float64), m) for m in members]
  assert_near(merged, jax.tree.map(lambda *xs: sum(xs) / 3, *wide))
  assert averages.lerp(members[0], members[1], 0.5)["final_norm"]["scale"].dtype == jnp.bfloat16


def test_running_mean_is_the_mean_of_the_iterates():
  iterates = [tree(seed) for seed in range(5)]
  average = averages.running_mean()
  state = average.init(iterates[0])
  update = jax.jit(average.update)
  for params in iterates:
    state = update(params, state)
  assert int(state.num_updates) == 5
  expected = jax.tree.map(lambda *xs: np.mean(np.float64(xs), 0), *iterates)
  assert_near(average.value(state), expected, rtol=1e-6, atol=1e-6)


def test_running_mean_of_a_constant_is_the_constant():
  constant = tree(3)
  average = averages.running_mean()
  state = average.init(constant)
  for _ in range(7):
    state = average.update(constant, state)
  assert_bits(average.value(state), constant)


@pytest.mark.parametrize("debias", [False, True])
def test_ema_closed_form(debias):
  iterates = [tree(seed) for seed in range(6)]
  decay = 0.75
  average = averages.ema(decay=decay, debias=debias)
  state = average.init(iterates[0])
  for params in iterates[1:]:
    state = average.update(params, state)
  powers = [(1 - decay) * decay ** (5 - t) for t in range(1, 6)]
  expected = jax.tree.map(
    lambda x0, *xs: (
      (
        (0 if debias else decay**5 * np.float64(x0))
        + sum(p * np.float64(x) for p, x in zip(powers, xs, strict=True))
      )
      / (1 - decay**5 if debias else 1)
    ),
    *iterates,
  )
  assert_near(average.value(state), expected, rtol=1e-6, atol=1e-6)


def test_ema_limits():
  first, last = tree(0), tree(1)
  for decay, expected in ((1.0, first), (0.0, last)):
    average = averages.ema(decay=decay)
    assert_bits(average.value(average.update(last, average.init(first))), expected)
  for bad in (1.5, -0.1):
    with pytest.raises(ConfigError, match="decay"):
      averages.ema(decay=bad)
  with pytest.raises(ConfigError, match="decay"):
    averages.ema(decay=1.0, debias=True)
  empty = averages.ema(decay=0.9, debias=True)
  assert not np.any(empty.value(empty.init(first))["final_norm"]["scale"])


def test_ema_of_bfloat16_moves():
  """In bfloat16, 1 + 0.01·0.1 rounds to 1 and the average would never move (mu = 0.01)."""
  start = {"w": np.ones(3, ml_dtypes.bfloat16)}
  goal = {"w": np.full(3, 1.125, ml_dtypes.bfloat16)}
  average = averages.ema(decay=0.99)

  def step(state, _):
    return average.update(goal, state), None

  state, _ = jax.lax.scan(step, average.init(start), None, length=500)
  expected = 1.125 - 0.125 * 0.99**500
  np.testing.assert_allclose(average.value(state)["w"], expected, rtol=1e-5)
  assert average.value(state, jnp.bfloat16)["w"].dtype == jnp.bfloat16


def test_averages_along_a_run_keep_the_last_counter():
  average = averages.running_mean()
  state = average.init({"w": np.zeros(2, np.float32), "step": np.int32(0)})
  state = average.update({"w": np.ones(2, np.float32), "step": np.int32(7)}, state)
  assert int(average.value(state)["step"]) == 7
  with pytest.raises(MismatchedTrees, match="the average"):
    average.update({"w": np.ones(3, np.float32), "step": np.int32(7)}, state)


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_slopes_are_those_of_the_formula_also_at_the_end_points(t):
  """Learned ratios start at the end points; choosing the end point must not hide the slope there."""
  a, b = tree(0), tree(1)
  total = lambda merged: sum(jnp.sum(x) for x in jax.tree.leaves(merged))  # noqa: E731
  sums = [sum(np.float64(x).sum() for x in jax.tree.leaves(m)) for m in (a, b)]
  np.testing.assert_allclose(
    jax.grad(lambda s: total(averages.lerp(a, b, s)))(t), sums[1] - sums[0], rtol=1e-5
  )
  slope = jax.grad(lambda c: total(averages.weighted_mean([a, b], c, normalize=False)))(
    jnp.asarray([1 - t, t], jnp.float32)
  )
  np.testing.assert_allclose(slope, sums, rtol=1e-5)
  by_weight = jax.grad(lambda x: total(averages.lerp(x, b, t)))(jax.tree.map(jnp.asarray, a))
  np.testing.assert_allclose(by_weight["embed"]["embedding"], 1 - t, rtol=1e-6)


def test_lerp_under_vmap_over_ratios():
  a, b = tree(0), tree(1)
  grid = jnp.linspace(0, 1, 5, dtype=jnp.float32)
  swept = jax.vmap(lambda t: averages.lerp(a, b, t))(grid)
  for i, t in enumerate(grid):
    assert_near(jax.tree.map(lambda x, i=i: x[i], swept), averages.lerp(a, b, t))
