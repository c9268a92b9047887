"""Arcee fusion: a divergence that keeps its digits, and exact quantiles."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.merging import by_blocks, twins
from wam.core.errors import UnknownName
from wam.merging import fusion, methods

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def merge(member, base, **parameters):
  tree = lambda x: {"w": np.asarray(x, np.float32)}  # noqa: E731
  return by_blocks.merge("arcee_fusion", [tree(member)], init=tree(base), **parameters)["w"]


def normal(seed, *shape, size=1.0):
  return (size * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def exact_divergence(rows, others):
  """From SciPy, in float64."""
  p, q = (scipy.special.softmax(np.float64(x), axis=-1) for x in (rows, others))
  return scipy.special.rel_entr(p, q).sum(-1, keepdims=True)


@pytest.mark.parametrize("size", [1.0, 1e-1, 1e-2, 5e-4])
def test_the_divergence_keeps_its_digits_at_the_distances_of_fine_tuning(size):
  base = normal(0, 8, 2048, size=0.02)
  member = base + normal(1, 8, 2048, size=size)
  expected = exact_divergence(member, base)
  # The last bit of eᵈ - 1, against the d²/2 that are left of it.
  rtol = 2e-6 + 2**-23 / size
  np.testing.assert_allclose(fusion.divergence(np, member, base), expected, rtol=rtol)
  found = fusion.divergence(jnp, jnp.asarray(member), jnp.asarray(base))
  np.testing.assert_allclose(found, expected, rtol=rtol)
  if size == 5e-4:
    # As mergekit works it out, in float32: the last bit of p, against d²/2.
    p, q = (scipy.special.softmax(x, axis=-1) + np.float32(1e-8) for x in (member, base))
    naive = np.sum(p * np.log(p / q), -1, keepdims=True)
    assert naive.dtype == np.float32
    assert np.abs(naive / expected - 1).max() > 2e-3


rows = arrays.arrays(
  np.float32,
  st.tuples(st.integers(1, 3), st.integers(1, 6)),
  elements=st.floats(-300, 300, width=32),
)


@settings(deadline=None, max_examples=200)
@given(rows, st.integers(0, 100))
def test_the_divergence_is_finite_and_not_negative(rows, seed):
  others = np.random.default_rng(seed).permuted(rows, axis=-1)
  for a, b in ((rows, others), (others, rows), (rows, rows), (rows, rows + np.float32(1))):
    found = fusion.divergence(np, a, b)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
  np.testing.assert_array_equal(fusion.divergence(np, rows, rows), 0)


@pytest.mark.parametrize("shape", [(1, 70), (5, 40), (33,), (4, 3, 8)])
@pytest.mark.parametrize("quantiles", ["lower", "linear"])
def test_the_quantiles_are_numpys(shape, quantiles):
  base, member = normal(0, *shape), normal(1, *shape)
  found = merge(member, base, quantiles=quantiles)
  twin = twins.arcee_fusion({"w": np.float64(base)}, [{"w": np.float64(member)}], None, quantiles)
  np.testing.assert_allclose(found, twin["w"], rtol=1e-6, atol=1e-6)
  assert (found != base).any()
  assert (found == base).any()


def test_the_threshold_is_three_quantiles_of_the_importance():
  """One row, differences 1 to 9 in order: its importances are these times its divergence."""
  base = np.zeros(9, np.float32)
  member = np.arange(1, 10, dtype=np.float32)
  # Median 5, IQR 7 - 3: the threshold is 11 times the divergence, and nothing reaches it.
  np.testing.assert_array_equal(merge(member, base), base)
  member[8] = 11
  np.testing.assert_array_equal(merge(member, base), [0, 0, 0, 0, 0, 0, 0, 0, 11])


def test_nothing_moved_and_numbers():
  base = normal(0, 4, 6)
  np.testing.assert_array_equal(merge(base, base), base)
  # Softmax of one entry is 1 whatever it is: no divergence, the threshold is 0, the member is taken.
  tree = lambda x: {"w": np.float32(x)}  # noqa: E731
  merged = methods.merge("arcee_fusion", [tree(3)], init=tree(1))
  assert float(merged["w"]) == 3
  np.testing.assert_allclose(merge(normal(1, 5, 1), normal(2, 5, 1)), normal(1, 5, 1), rtol=2e-7)


def test_unknown_quantiles():
  with pytest.raises(UnknownName, match="Did you mean 'linear'"):
    merge([1.0], [0.0], quantiles="linaer")
