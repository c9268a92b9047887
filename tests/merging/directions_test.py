"""Rules on Gram matrices, in blocks of NumPy: closed forms, and corner cases where mergekit stops or is wrong."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging import by_blocks, twins
from wam.core.errors import ConfigError
from wam.merging import gram, methods
from wam.merging.methods import METHODS
from wam.merging.rules import Group

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def merge(name, vectors, base=None, **parameters):
  """The merge of tensors, given one by one; vectors are rows of one entry each."""
  tree = lambda x: {"w": np.asarray(x, np.float32)}  # noqa: E731
  init = None if base is None else tree(base)
  return by_blocks.merge(name, [tree(v) for v in vectors], init=init, **parameters)["w"]


def unit(i, length=1.0, size=6):
  vector = np.zeros(size, np.float32)
  vector[i] = length
  return vector


ZERO = np.zeros(6, np.float32)


def normal(seed, *shape, size=1.0):
  return (size * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


# --- spheres ---


def test_orthogonal_vectors_have_coefficients_known_by_hand():
  vectors = [unit(i) for i in range(3)]
  np.testing.assert_allclose(
    merge("slerp", vectors, ZERO)[:3], [np.sqrt(3 / 8), np.sqrt(3 / 8), 0.5], rtol=1e-6
  )
  for name in ("karcher", "multislerp"):
    np.testing.assert_allclose(merge(name, vectors, ZERO)[:3], 3**-0.5, rtol=1e-6)
  # Lengths 1, 2 and 3: the direction of the mean of unit vectors, the mean length.
  longer = [unit(i, i + 1.0) for i in range(3)]
  for name in ("karcher", "multislerp"):
    np.testing.assert_allclose(merge(name, longer, ZERO)[:3], 2 * 3**-0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "karcher", "multislerp"])
@pytest.mark.parametrize("base", [None, ZERO], ids=["weights", "deltas"])
def test_zeros_and_opposites_are_averaged_linearly(name, base):
  pairs = [(unit(0), ZERO), (ZERO, unit(0)), (ZERO, ZERO), (unit(0), unit(0, -2.0))]
  for a, b in pairs:
    np.testing.assert_array_equal(merge(name, [a, b], base), 0.5 * a + 0.5 * b)
    if name != "multislerp":
      # There opposite unit vectors cancel only where they count the same; see below.
      found = merge(name, [a, b], base, coefficients=[0.25, 0.75])
      np.testing.assert_array_equal(found, 0.25 * a + 0.75 * b)
  if name == "multislerp":
    found = merge(name, [unit(0), unit(0, -2.0)], base, coefficients=[0.25, 0.75])
    np.testing.assert_allclose(found, unit(0, -(0.25 * 1 + 0.75 * 2)), rtol=1e-6)


def test_multislerp_of_a_frozen_tensor_is_the_base():
  """mergekit stops the whole merge: "The weighted sum of the input tensors is zero"."""
  base = normal(0, 40)
  np.testing.assert_array_equal(merge("multislerp", [base] * 3, base), base)
  opposite = [base + unit(0, 1.0, 40), base + unit(0, -0.5, 40), base + unit(0, -0.5, 40)]
  assert np.isfinite(merge("multislerp", opposite, base)).all()
  balanced = [unit(0), unit(1), -(unit(0) + unit(1)) / np.float32(np.sqrt(2))]
  weights = [1, 1, np.sqrt(2)]
  found = merge("multislerp", balanced, ZERO, coefficients=weights)
  mean = sum(w * v for w, v in zip(weights, balanced, strict=True)) / sum(weights)
  np.testing.assert_allclose(found, mean, atol=1e-6)


def test_multislerp_with_coefficients_that_are_not_divided_by_their_sum():
  vectors = [normal(i, 50) for i in range(3)]
  found = merge("multislerp", vectors, coefficients=[1, 1, 1], normalize=False)
  once = merge("multislerp", vectors, coefficients=[1, 1, 1])
  np.testing.assert_allclose(found, 3 * once, rtol=1e-6, atol=1e-6)
  one = merge("multislerp", vectors[:1], coefficients=[0.3], normalize=False)
  np.testing.assert_array_equal(one, vectors[0])


def test_slerp_of_sibling_weights_is_lerp_bit_for_bit():
  """Cosine 0.9997 between the weights at a delta of 2.5 %: beyond mergekit's threshold."""
  base = normal(0, 900)
  a, b = base + normal(1, 900, size=0.02), base + normal(2, 900, size=0.02)
  cosine = np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
  assert 0.9995 < cosine < 0.9999
  c = np.float32([0.7, 0.3])
  found = merge("slerp", [a, b], coefficients=c)
  c = c / np.float64(c).sum()
  np.testing.assert_array_equal(found, np.float32(1 - c[1]) * a + np.float32(c[1]) * b)
  # The deltas stand at a right angle, where lerp loses a quarter of the length at this t.
  sphere = merge("slerp", [a, b], base, coefficients=c) - base
  assert np.linalg.norm(sphere) > 1.2 * np.linalg.norm(found - base)
  closer = merge("slerp", [a, b], coefficients=c, dot_threshold=0.99999)
  twin = twins.slerp(0.99999)([np.float64(a), np.float64(b)], c)
  np.testing.assert_allclose(closer, twin, rtol=2e-6, atol=1e-6)
  assert np.any(closer != found)


def test_slerp_goes_on_beyond_its_ends():
  """mergekit takes any t."""
  a, b = unit(0), unit(1)
  found = merge("slerp", [a, b], coefficients=[-0.5, 1.5])
  np.testing.assert_allclose(found[:2], [np.sin(-np.pi / 4), np.sin(3 * np.pi / 4)], atol=1e-6)


def test_nuslerp_takes_the_middle_where_weights_cancel():
  a, b = unit(0), unit(1)
  np.testing.assert_allclose(
    merge("nuslerp", [a, b], coefficients=[1, -1])[:2], 0.5**0.5, rtol=1e-6
  )
  np.testing.assert_allclose(
    merge("nuslerp", [a, b], coefficients=[1, 2])[:2],
    [np.sin(np.pi / 6), np.sin(np.pi / 3)],
    rtol=1e-6,
  )


def test_nuslerp_by_rows_and_by_columns():
  a, b = normal(1, 6, 9), normal(2, 6, 9)
  a[2], b[4] = 0, 0
  half = twins.slerp()
  rows = merge("nuslerp", [a, b], flatten=False)
  columns = merge("nuslerp", [a, b], flatten=False, row_wise=True)
  for i in range(6):
    pair = [np.float64(x[i]) for x in (a, b)]
    expected = sum(pair) / 2 if i in (2, 4) else half(pair, np.array([0.5, 0.5]))
    np.testing.assert_allclose(rows[i], expected, rtol=1e-6, atol=1e-7)
  for i in range(9):
    expected = half([np.float64(x[:, i]) for x in (a, b)], np.array([0.5, 0.5]))
    np.testing.assert_allclose(columns[:, i], expected, rtol=1e-6, atol=1e-7)
  flat = merge("nuslerp", [a[0], b[0]])
  for row_wise in (False, True):
    found = merge("nuslerp", [a[0], b[0]], flatten=False, row_wise=row_wise)
    np.testing.assert_allclose(found, flat, rtol=1e-6)


def test_the_karcher_mean_knows_no_order_and_slerp_does():
  vectors = [normal(i, 40, size=i + 1.0) for i in range(4)]
  orders = list(itertools.permutations(range(4)))
  means = np.stack(
    [merge("karcher", [vectors[i] for i in order], np.zeros(40)) for order in orders]
  )
  np.testing.assert_allclose(means, means[:1].repeat(len(orders), 0), rtol=1e-5, atol=1e-6)
  slerps = np.stack([merge("slerp", [vectors[i] for i in order], np.zeros(40)) for order in orders])
  assert np.ptp(slerps, axis=0).max() > 0.05


def test_the_karcher_mean_of_two_is_slerp_where_they_are_as_long():
  a, b = normal(1, 40), normal(2, 40)
  b *= np.linalg.norm(a) / np.linalg.norm(b)
  c = [0.7, 0.3]
  np.testing.assert_allclose(
    merge("karcher", [a, b], np.zeros(40), coefficients=c),
    merge("slerp", [a, b], np.zeros(40), coefficients=c),
    rtol=1e-5,
    atol=1e-6,
  )


def test_the_karcher_mean_of_weights_leaves_zeros_out_and_that_of_deltas_is_linear_with_them():
  a, b = unit(0, 2.0), unit(1, 4.0)
  weights = merge("karcher", [a, b, ZERO])
  np.testing.assert_allclose(
    weights[:2], [2**0.5, 2**0.5], rtol=1e-6
  )  # half way, of length (2 + 4 + 0) / 3
  np.testing.assert_allclose(merge("karcher", [a, b, ZERO], ZERO), (a + b) / 3, rtol=1e-6)


def test_a_tolerance_ends_the_karcher_iteration():
  vectors = [np.float64(normal(i, 30)) for i in range(3)]
  vectors[2] = vectors[0] * 0.9 + 0.1 * vectors[2]
  products = np.array([[a @ b for b in vectors] for a in vectors])
  shares = np.full(3, 1 / 3)
  run = lambda **k: gram.karcher_rows(np, products, shares, **k)[0]  # noqa: E731
  start, end = run(num_steps=0), run(num_steps=60)
  np.testing.assert_array_equal(run(num_steps=60, tolerance=10.0), start)
  near = run(num_steps=60, tolerance=1e-3)
  assert 0 < np.abs(near - end).max() < 1e-2
  assert np.abs(start - end).max() > np.abs(near - end).max()


@settings(deadline=None, max_examples=60)
@given(
  seed=st.integers(0, 10**6),
  exponent=st.integers(-18, 12),
  name=st.sampled_from(["slerp", "karcher", "multislerp", "model_stock", "geometric_median"]),
)
def test_directions_do_not_depend_on_the_scale(seed, exponent, name):
  vectors = [normal(seed + i, 20) for i in range(3)]
  init = None if name == "geometric_median" else np.zeros(20)
  once = merge(name, vectors, init)
  factor = np.float32(2.0**exponent)
  scaled = merge(name, [factor * v for v in vectors], init)
  np.testing.assert_allclose(scaled, factor * once, rtol=1e-5, atol=1e-6 * float(factor))


# --- model stock ---


def test_model_stock_at_the_distances_of_rlhf():
  """Deltas of 1e-5 on 2048 entries that share nearly all of their direction: mergekit's clamp makes 0.35 of 0.995."""
  random = np.random.default_rng(0)
  common = random.normal(size=2048)
  deltas = [1e-5 * (common + 0.1 * random.normal(size=2048)) for _ in range(2)]
  cosine = deltas[0] @ deltas[1] / np.linalg.norm(deltas[0]) / np.linalg.norm(deltas[1])
  expected = 2 * cosine / (1 + cosine)
  assert 0.99 < expected < 0.999
  clamped = deltas[0] @ deltas[1] / 1e-6
  assert 2 * clamped / (1 + clamped) < 0.4
  found = merge("model_stock", deltas, np.zeros(2048))
  mean = (deltas[0] + deltas[1]) / 2
  assert found @ mean / (mean @ mean) == pytest.approx(expected, rel=1e-5)


def test_model_stock_without_and_against_a_common_direction():
  np.testing.assert_array_equal(merge("model_stock", [unit(0), unit(1)], ZERO), ZERO)
  np.testing.assert_array_equal(merge("model_stock", [ZERO, ZERO], ZERO), ZERO)
  np.testing.assert_array_equal(merge("model_stock", [unit(0), ZERO], ZERO), ZERO)
  # cos = -1: no finite estimate, the base.
  np.testing.assert_array_equal(merge("model_stock", [unit(0), unit(0, -1.0)], ZERO), ZERO)
  # cos = -1/2 of two: t = -1 / (1/2) = -2.
  b = np.float32([-0.5, np.sqrt(0.75), 0, 0, 0, 0])
  found = merge("model_stock", [unit(0), b], ZERO)
  np.testing.assert_allclose(found, -2 * (unit(0) + b) / 2, rtol=1e-5)
  np.testing.assert_array_equal(merge("model_stock", [unit(0), b], ZERO, clip=True), ZERO)


def test_model_stock_of_equal_members_is_the_member():
  base, member = normal(0, 3, 40), normal(1, 3, 40)
  for filter_wise in (False, True):
    found = merge("model_stock", [member] * 3, base, filter_wise=filter_wise)
    np.testing.assert_array_equal(found, member)


def test_model_stock_has_a_ratio_for_every_filter():
  members = [normal(i, 4, 30) for i in range(3)]
  members[1][2] = members[0][2] = members[2][2]
  found = merge("model_stock", members, np.zeros((4, 30)), filter_wise=True)
  for i in range(4):
    row = [np.float64(m[i]) for m in members]
    np.testing.assert_allclose(found[i], twins.model_stock(row, None), rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(found[2], members[0][2])


# --- geometric median ---


def test_the_median_of_three_on_a_line_is_the_middle_one():
  start, direction = normal(0, 50), normal(1, 50)
  for places in itertools.permutations([0.0, 0.1, 7.0]):
    members = [start + np.float32(p) * direction for p in places]
    found = merge("geometric_median", members)
    middle = members[places.index(0.1)]
    np.testing.assert_allclose(found, middle, rtol=1e-6, atol=1e-6)
  weighted = [start, start + direction, start + 2 * direction]
  np.testing.assert_allclose(
    merge("geometric_median", weighted, coefficients=[3, 1, 1]), start, rtol=1e-6, atol=1e-6
  )


def test_the_median_is_not_moved_by_how_far_an_outlier_is():
  members = [normal(i, 400, size=0.01) for i in range(4)]
  direction = normal(9, 400)
  near = merge("geometric_median", [*members, direction])
  far = merge("geometric_median", [*members, 1000 * direction])
  spread = np.linalg.norm(members[0] - members[1])
  assert np.linalg.norm(far - near) < 0.02 * spread
  assert np.linalg.norm(far - np.mean(members, 0)) < spread
  assert np.linalg.norm(np.mean([*members, 1000 * direction], 0)) > 100 * spread


def test_fermat_points():
  """Of an equilateral triangle the middle; of one with an angle beyond 120 degrees the corner that has it."""
  corners = [np.float32([np.cos(a), np.sin(a)]) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
  np.testing.assert_allclose(merge("geometric_median", corners), [0, 0], atol=1e-7)
  blunt = np.float32([[-1, 0], [0, 0.3], [1, 0]])
  np.testing.assert_allclose(merge("geometric_median", blunt), blunt[1], atol=1e-7)
  # A right angle at the origin, sides 1: on the diagonal, where the sides are seen at 120 degrees.
  place = (3 - np.sqrt(3)) / 6
  right = np.float32([[1, 0], [0, 1], [0, 0]])
  np.testing.assert_allclose(merge("geometric_median", right), [place, place], rtol=1e-6)


def test_medians_of_two_of_one_and_of_several_alike():
  a, b = normal(0, 30), normal(1, 30)
  np.testing.assert_allclose(merge("geometric_median", [a, b]), (a + b) / 2, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(
    merge("geometric_median", [a, b], coefficients=[2, 1]), a, rtol=1e-6, atol=1e-6
  )
  np.testing.assert_array_equal(merge("geometric_median", [a]), a)
  np.testing.assert_array_equal(merge("geometric_median", [a, b, a]), a)
  np.testing.assert_array_equal(merge("geometric_median", [a, a, a]), a)
  # Two and two: the middle again.
  np.testing.assert_allclose(
    merge("geometric_median", [a, b, b, a]), (a + b) / 2, rtol=1e-6, atol=1e-6
  )


# --- what all have in common ---


WITH_INIT = [n for n, m in METHODS.items() if m.init != "unused" and m.max_members is None]


@pytest.mark.parametrize("name", [*WITH_INIT, "nuslerp"])
def test_entries_that_no_member_moved_stay_bit_for_bit(name):
  """Or a frozen tensor would be full of last bits, and stochastic rounding would move some of them by a whole step."""
  base = normal(0, 8, 40)
  still = np.random.default_rng(1).random(base.shape) < 0.4
  count = METHODS[name].max_members or 3
  members = [np.where(still, base, base + normal(i + 2, 8, 40, size=1e-3)) for i in range(count)]
  draws = {"seed": 3, "density": 0.5} if METHODS[name].draws else {}
  found = merge(name, members, base, **draws)
  np.testing.assert_array_equal(found[still], base[still])
  assert (found[~still] != base[~still]).mean() > 0.2


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "karcher", "multislerp", "model_stock"])
def test_equal_members_in_numpy(name):
  base, member = normal(0, 8, 40), normal(1, 8, 40)
  count = METHODS[name].max_members or 3
  np.testing.assert_array_equal(merge(name, [member] * count, base), member)
  if METHODS[name].init == "optional":
    np.testing.assert_array_equal(merge(name, [member] * count), member)


def test_numbers_as_tensors():
  """Rank 0 has no rows and no columns."""
  tree = lambda x: {"w": np.float32(x)}  # noqa: E731
  for values in ({}, {"flatten": False}, {"flatten": False, "row_wise": True}):
    found = methods.merge("nuslerp", [tree(1), tree(3)], init=tree(0), **values)
    assert float(found["w"]) == 2
  for filter_wise in (False, True):
    found = methods.merge("model_stock", [tree(1), tree(3)], init=tree(0), filter_wise=filter_wise)
    assert float(found["w"]) == 2


def test_a_vector_needs_one_set_of_coefficients():
  group = Group(np, 2, 10, False, None)
  for name in ("slerp", "nuslerp", "multislerp", "karcher", "geometric_median"):
    row = METHODS[name]
    values = {k: v for k, v in row.defaults.items() if k != "group"}
    with pytest.raises(ConfigError, match="one set of coefficients"):
      next(row.rule(group, **values))


def test_a_narrow_output_spares_the_care_for_the_last_bit():
  member = normal(1, 8, 40)
  block = by_blocks.Block(
    np, (member,) * 3, None, (np.float32(0.2), np.float32(0.5), np.float32(0.3))
  )
  for exact in (True, False):
    group = Group(np, 3, member.size, False, block.coefficients, exact)
    rule = METHODS["karcher"].rule(group)
    apply = by_blocks.rules.run(rule, lambda r: by_blocks._answers(r, [block]))
    np.testing.assert_allclose(apply(block), member, rtol=2e-7)
    assert np.array_equal(apply(block), member) == exact
