"""Task vectors: float32, a type of their own, exact where they can be."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from wam.core import algebra
from wam.core.errors import MismatchedTrees

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def tree(seed, dtype=np.float32):
  random = np.random.default_rng(seed)
  return {
    "a": {"w": random.normal(size=(3, 2)).astype(dtype)},
    "b": random.normal(size=5).astype(dtype),
  }


def flat(t):
  return np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(t)])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_subtract_and_apply(dtype):
  init, params = tree(0, dtype), tree(1, dtype)
  delta = algebra.subtract(params, init)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(delta))
  np.testing.assert_allclose(flat(delta.tree), flat(params) - flat(init), rtol=1e-6, atol=1e-7)
  half = algebra.apply_delta(init, delta, 0.5)
  assert half["b"].dtype == dtype
  expected = ((flat(init) + flat(params)) / 2).astype(dtype).astype(np.float64)
  np.testing.assert_allclose(flat(half), expected, rtol=1e-6 if dtype == np.float32 else 2**-7)


def test_small_steps_of_bfloat16_weights_survive():
  init = {"w": np.ones(3, ml_dtypes.bfloat16)}
  params = {"w": np.full(3, 1 + 2**-7, ml_dtypes.bfloat16)}
  np.testing.assert_array_equal(algebra.subtract(params, init).tree["w"], np.float32([2**-7] * 3))


def test_weights_are_no_deltas():
  with pytest.raises(TypeError, match="expected a Delta, found dict"):
    algebra.apply_delta(tree(0), tree(1))
  with pytest.raises(MismatchedTrees, match="'b' is missing from params"):
    algebra.subtract({"a": tree(0)["a"]}, tree(0))


def test_counters_do_not_move():
  """2³⁰ + 1 is no float32: a counter that went through a delta would come back changed."""
  init = tree(0) | {"step": np.int32(2**30 + 1)}
  params = tree(1) | {"step": np.int32(2**30 + 77)}
  delta = algebra.subtract(params, init)
  assert float(delta.tree["step"]) == 0.0
  assert int(algebra.apply_delta(init, delta)["step"]) == 2**30 + 1


def test_dot_norm_and_scale():
  a, b = algebra.Delta(tree(0)), algebra.Delta(tree(1))
  np.testing.assert_allclose(algebra.dot(a, b), flat(a.tree) @ flat(b.tree), rtol=1e-6)
  np.testing.assert_allclose(algebra.norm(a), np.linalg.norm(flat(a.tree)), rtol=1e-6)
  np.testing.assert_allclose(
    algebra.norm(algebra.scale(a, -3.0)), 3 * np.linalg.norm(flat(a.tree)), rtol=1e-6
  )


def test_under_jit_and_as_a_pytree():
  init, params = tree(0), tree(1)

  @jax.jit
  def half_way(x, y):
    return algebra.apply_delta(x, algebra.scale(algebra.subtract(y, x), 0.5))

  np.testing.assert_allclose(
    flat(half_way(init, params)), (flat(init) + flat(params)) / 2, rtol=1e-6, atol=1e-7
  )
