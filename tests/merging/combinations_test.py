"""Merges entry by entry, in blocks of NumPy: closed forms and the orders of operations that users compare with."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging import by_blocks
from wam.core import parts
from wam.core.errors import ConfigError
from wam.merging import methods

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def merge(name, vectors, base=None, importances=None, **parameters):
  tree = lambda x: {"w": np.asarray(x, np.float32)}  # noqa: E731
  return by_blocks.merge(
    name,
    [tree(v) for v in vectors],
    init=None if base is None else tree(base),
    importances=None if importances is None else [tree(f) for f in importances],
    **parameters,
  )["w"]


def normal(seed, *shape, size=1.0):
  return (size * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


# --- linear ---


def test_linear_adds_up_in_order_and_divides_once():
  """As mergekit does, but for its fused multiply-add."""
  a, b, c = (normal(i, 500) for i in range(3))
  w = np.float32([1.0, 2.0, 0.7])
  found = merge("linear", [a, b, c], coefficients=w)
  np.testing.assert_array_equal(found, ((w[0] * a + w[1] * b) + w[2] * c) / (w[0] + w[1] + w[2]))
  # A sum of exactly 1 is not divided by: nothing changes, and a pass is saved.
  half = merge("linear", [a, b], coefficients=[0.5, 0.5])
  np.testing.assert_array_equal(half, np.float32(0.5) * a + np.float32(0.5) * b)


def test_a_sum_of_nothing_is_refused():
  a, b = normal(0, 5), normal(1, 5)
  for w in ([1, -1], [0, 0], [0.1 + 0.2, -0.3]):
    with pytest.raises(ConfigError, match="sum to zero"):
      merge("linear", [a, b], coefficients=w)
  np.testing.assert_array_equal(
    merge("linear", [a, b], coefficients=[1, -1], normalize=False), a - b
  )


def test_task_arithmetic_multiplies_the_sum_once():
  base, a, b = (normal(i, 500) for i in range(3))
  w, scale = np.float32([0.4, -0.3]), 0.7
  found = merge("task_arithmetic", [a, b], base, coefficients=w, scale=scale)
  expected = (w[0] * (a - base) + w[1] * (b - base)) * np.float32(scale) + base
  np.testing.assert_array_equal(found, expected)


# --- along a line ---


def test_expo_goes_on_from_the_member():
  base, member = np.float32([1, 2, 3]), np.float32([2, 2, 1])
  np.testing.assert_allclose(merge("expo", [member], base), [2.3, 2, 0.4], rtol=1e-6)
  # The same line as interpolation beyond its end.
  far = merge("expo", [member], base, alpha=0.5)
  np.testing.assert_allclose(
    far, merge("liti", [member], base, eta=1.5, extrapolate=True), rtol=1e-6
  )
  np.testing.assert_array_equal(merge("expo", [member], base, alpha=0.0), member)


def test_the_alignment_tax_merge_is_liti_with_an_eta_for_every_part():
  """α of the paper multiplies the network after RLHF; the authors' code copies norms and embeddings from before."""
  shapes = {"embed/embedding": (5, 4), "layers/mlp/up/kernel": (4, 4, 2), "norm/scale": (4,)}
  nested = lambda seed: {  # noqa: E731
    "embed": {"embedding": normal(seed, *shapes["embed/embedding"])},
    "layers": {"mlp": {"up": {"kernel": normal(seed, *shapes["layers/mlp/up/kernel"])}}},
    "norm": {"scale": normal(seed, *shapes["norm/scale"])},
  }
  before, after = nested(0), nested(1)
  alphas = np.float32([0.0, 0.2, 0.9, 1.0])
  eta = {
    "embed": {"embedding": 0.0},
    "layers": {"mlp": {"up": {"kernel": alphas}}},
    "norm": {"scale": 0.0},
  }
  assert parts.by_layer(before)
  for name in ("liti", "wise_ft"):
    merged = methods.merge(name, [after], init=before, eta=eta)
    np.testing.assert_array_equal(merged["embed"]["embedding"], before["embed"]["embedding"])
    np.testing.assert_array_equal(merged["norm"]["scale"], before["norm"]["scale"])
    for i, alpha in enumerate(alphas):
      x, y = (t["layers"]["mlp"]["up"]["kernel"][i] for t in (before, after))
      np.testing.assert_allclose(
        merged["layers"]["mlp"]["up"]["kernel"][i], (1 - alpha) * x + alpha * y, atol=1e-6
      )


def test_passthrough_changes_nothing_or_the_scale():
  member = np.float32([-0.0, 1e-42, np.inf, 3])
  found = merge("passthrough", [member])
  assert found.tobytes() == member.tobytes()
  np.testing.assert_array_equal(merge("passthrough", [member], scale=0.5)[1:], member[1:] / 2)


# --- nearswap ---


def test_nearswap_swaps_what_is_near_and_nudges_what_is_far():
  base = np.float32([0, 0, 0, 0, 0, 1])
  member = np.float32([1e-5, -1e-4, 1e-3, -2, 0, 1])
  found = merge("nearswap", [member], base)
  np.testing.assert_array_equal(found[[0, 1, 4, 5]], member[[0, 1, 4, 5]])
  np.testing.assert_allclose(found[[2, 3]], [1e-4, -1e-4], rtol=1e-5)
  np.testing.assert_array_equal(merge("nearswap", [member], base, t=0.0), base)
  np.testing.assert_array_equal(merge("nearswap", [member], base, t=9.0), member)
  # Below 1e-6 a gap counts as that: a share of t / 1e-6 in place of all.
  np.testing.assert_allclose(merge("nearswap", [[1e-7]], [0.0], t=1e-7), [1e-8], rtol=1e-5)


@settings(deadline=None)
@given(
  st.lists(st.tuples(st.floats(-4, 4, width=32), st.floats(-4, 4, width=32)), min_size=1),
  st.floats(0, 5, width=32),
)
def test_nearswap_stays_between_and_moves_no_further_than_t(pairs, t):
  base, member = np.float32(pairs).T
  found = merge("nearswap", [member], base, t=t)
  slack = 1e-6
  assert (found >= np.minimum(base, member) - slack).all()
  assert (found <= np.maximum(base, member) + slack).all()
  assert (np.abs(found - base) <= t + slack).all()


# --- Fisher ---


def test_fisher_weighs_entry_by_entry():
  members, weights = [[1.0, 1, 1, 1], [3.0, 3, 3, 3]], [[1.0, 3, 0, 1e-9], [1.0, 1, 2, 0]]
  found = merge("fisher", members, importances=weights)
  # The floor of 1e-6 leaves a trace of the first in the third entry, and nothing but itself in the last.
  np.testing.assert_allclose(found, [2, 1.5, (1e-6 + 6) / (1e-6 + 2), 2], rtol=1e-6)
  found = merge("fisher", members, importances=weights, floor=0)
  np.testing.assert_allclose(found, [2, 1.5, 3, 1], rtol=1e-6)
  found = merge("fisher", members, importances=weights, coefficients=[3, 1], floor=0)
  np.testing.assert_allclose(found, [1.5, 1.2, 3, 1], rtol=1e-6)


def test_fisher_without_importances_is_the_mean():
  members = [normal(i, 40) for i in range(3)]
  nothing = [np.zeros(40)] * 3
  c = [0.2, 0.5, 0.3]
  mean = merge("linear", members, coefficients=c)
  for floor in (0, 1e-6):
    found = merge("fisher", members, importances=nothing, coefficients=c, floor=floor)
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)
  negative = [np.full(40, -1.0)] * 3
  np.testing.assert_allclose(
    merge("fisher", members, importances=negative, coefficients=c), mean, rtol=1e-5, atol=1e-6
  )


def test_fisher_needs_importances_of_every_member():
  trees = [{"w": jnp.ones(3)}, {"w": jnp.zeros(3)}]
  with pytest.raises(ConfigError, match="expected importances of 2 members, found 1"):
    methods.merge("fisher", trees, importances=trees[:1])
  with pytest.raises(ConfigError, match="sum to zero"):
    methods.merge("fisher", trees, importances=trees, coefficients=[1.0, -1.0])
