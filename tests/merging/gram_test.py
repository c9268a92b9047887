"""Sums of products that do not wear out, and coefficients in NumPy's float64 against JAX's float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.merging import gram

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 70_001])
def test_inner_products_do_not_wear_out(size):
  a, b = normal(0, size), normal(1, size)
  found = gram.inner(np, a, b)
  exact = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
  assert np.asarray(found).dtype == np.float64
  scale = math.sqrt(math.fsum((float(x) * float(y)) ** 2 for x, y in zip(a, b, strict=True)))
  assert abs(found - exact) <= 3e-6 * scale
  norm = math.fsum(float(x) ** 2 for x in a)
  assert abs(gram.inner(np, a, a) - norm) <= 1e-6 * norm


def test_inner_products_along_axes():
  a, b = normal(0, 5, 9000), normal(1, 5, 9000)
  exact = np.float64(a) * b
  np.testing.assert_allclose(gram.inner_of_rows(np, a, b), exact.sum(1), atol=1e-3)
  np.testing.assert_allclose(gram.inner_of_columns(np, a, b), exact.sum(0), rtol=1e-5, atol=1e-6)
  number = np.float32(3)
  for function in (gram.inner, gram.inner_of_rows, gram.inner_of_columns):
    for xp in (np, jnp):
      assert float(np.squeeze(function(xp, xp.asarray(number), xp.asarray(number)))) == 9


def test_a_matrix_of_a_triangle():
  vectors = normal(0, 4, 30)
  products = gram.triangle(list(vectors), lambda a, b: gram.inner(np, a, b))
  np.testing.assert_allclose(gram.matrix(np, products), vectors @ vectors.T, rtol=1e-5)


# --- NumPy in float64 against JAX in float32, batches of matrices, corner cases among them ---


def matrices(count):
  """Gram matrices of random vectors, of zeros, and of parallel, opposite and equal vectors."""
  random = np.random.default_rng(count)
  tables = [random.normal(size=(count, 12)) for _ in range(3)]
  tables += [np.zeros((count, 12)), np.ones((count, 12)), random.normal(size=(count, 12))]
  tables[-1][0] = 0
  tables += [np.outer(np.arange(1, count + 1), random.normal(size=12))]
  tables += [random.normal(size=(count, 12))]
  tables[-1][-1] = -2 * tables[-1][0]
  return np.stack([t @ t.T for t in tables])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
  "function",
  [
    lambda xp, g, c: gram.slerp_rows(xp, g, c)[0],
    lambda xp, g, c: gram.slerp_rows(xp, g, c, dot_threshold=0.5)[0],
    lambda xp, g, c: gram.multislerp_rows(xp, g, c),
    lambda xp, g, c: gram.karcher_rows(xp, g, c, num_steps=20)[0],
    lambda xp, g, c: gram.karcher_rows(xp, g, c, num_steps=20, skip_zeros=True)[0],
    lambda xp, g, c: gram.stock_ratio(xp, g),
    lambda xp, g, c: gram.median_rows(xp, g, c, num_steps=64),
  ],
  ids=["slerp", "slerp_threshold", "multislerp", "karcher", "karcher_zeros", "stock", "median"],
)
def test_numpy_and_jax_find_the_same_coefficients(function, count):
  products = matrices(count)
  shares = np.arange(1, count + 1) / np.arange(1, count + 1).sum()
  expected = function(np, products, shares)
  found = jax.jit(lambda g, c: function(jnp, g, c))(jnp.float32(products), jnp.float32(shares))
  assert found.dtype == jnp.float32
  assert expected.dtype == np.float64
  assert np.isfinite(expected).all()
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
  # Well away from the corners to rounding.
  np.testing.assert_allclose(found[:3], expected[:3], rtol=2e-5, atol=2e-5)
