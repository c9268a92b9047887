import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.training import anchors


def weights(seed, dtype=np.float32):
  draw = np.random.default_rng(seed)
  return {
    "a": jnp.asarray(draw.normal(size=(3, 2)), dtype),
    "b": {"c": jnp.asarray(draw.normal(size=4), dtype)},
  }


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_closed_form(rate):
  """θ_ema(T) = (1 - μ)^T·θ_0 + μ·Σ_t (1 - μ)^(T - t)·θ_t."""
  anchor = anchors.start(weights(0))
  move = jax.jit(anchors.move)
  for t in range(1, 6):
    anchor = move(anchor, weights(t), rate)
  for path in ("a", "b"):

    def leaf(tree, path=path):
      return np.asarray(jax.tree.leaves(tree[path])[0], np.float64)

    expected = (1 - rate) ** 5 * leaf(weights(0))
    expected += rate * sum((1 - rate) ** (5 - t) * leaf(weights(t)) for t in range(1, 6))
    np.testing.assert_allclose(leaf(anchor), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_ends_are_exact(rate):
  moved = jax.jit(lambda a, p: anchors.move(a, p, rate))(weights(0), weights(1))
  expected = weights(int(rate))
  assert all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True)
  )


def test_float32_whatever_the_weights_are():
  """In bfloat16 a rate of 0.01 would leave the average where it is."""
  anchor = anchors.start(weights(0, jnp.bfloat16))
  for _ in range(100):
    anchor = anchors.move(anchor, weights(1, jnp.bfloat16), 0.01)
  assert {x.dtype for x in jax.tree.leaves(anchor)} == {jnp.dtype("float32")}
  first, target = (np.asarray(weights(s, jnp.bfloat16)["a"], np.float32) for s in (0, 1))
  expected = target + 0.99**100 * (first - target)
  np.testing.assert_allclose(anchor["a"], expected, rtol=1e-4, atol=1e-5)


def test_start_is_a_copy():
  params = weights(0)
  anchor = anchors.start(params)
  jax.tree.map(lambda x: x.delete(), params)
  assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(anchor))
