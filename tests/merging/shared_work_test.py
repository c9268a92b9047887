"""Work that is done twice is done once, and the numbers stay the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.merging import shared_work


def norm(x):
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def network(weights, x):
  table = np.arange(8, dtype=np.float32)  # a constant of every trace
  for w in weights:
    x = jax.nn.silu(norm(x) @ w) + table[None, :]
  return jax.nn.logsumexp(x).astype(jnp.float32)


def directions(weights, x):
  """The derivative along each matrix, one after the other."""
  found = []
  for k in range(len(weights)):
    along = lambda w, k=k: network([*weights[:k], w, *weights[k + 1 :]], x)  # noqa: E731
    found.append(jax.jvp(along, (weights[k],), (jnp.cos(weights[k]),)))
  return found


def products(function, *arguments):
  """How many matrix products the compiled program has."""
  return jax.jit(function).lower(*arguments).compile().as_text().count(" dot(")


@pytest.fixture
def arguments():
  draw = np.random.default_rng(0)
  weights = [jnp.asarray(draw.normal(size=(8, 8)), jnp.float32) for _ in range(3)]
  return weights, jnp.asarray(draw.normal(size=(4, 8)), jnp.float32)


def test_the_value_is_computed_once(arguments):
  # 3 of the value; along the first matrix 3 tangents, then 2, then 1.
  assert products(shared_work.share(directions), *arguments) == 3 + 3 + 2 + 1
  assert products(directions, *arguments) > 9  # XLA by itself does not see it


def test_the_numbers_are_the_same(arguments):
  found = jax.jit(shared_work.share(directions))(*arguments)
  expected = jax.jit(directions)(*arguments)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_what_differs_is_kept_apart():
  def function(x):
    a = jnp.sin(x) + jnp.float32(1) * x
    b = jnp.sin(x) + np.float32(1.5) * x
    c = jax.lax.reduce_precision(x, 5, 10) + jax.lax.reduce_precision(x, 8, 7)
    draw = jax.random.normal(jax.random.key(0), x.shape)
    other = jax.random.normal(jax.random.key(1), x.shape)
    loops = [jax.lax.fori_loop(0, n, lambda _, y: y * x, x) for n in (2, 3)]
    return {"sums": (a, b, c), "draws": (draw, other), "loops": loops, "same": x}

  x = jnp.linspace(0.1, 2.0, 5)
  found, expected = jax.jit(shared_work.share(function))(x), function(x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
  assert not np.allclose(*found["draws"])


def test_effects_are_not_merged(capfd):
  def function(x):
    jax.debug.print("seen {}", x)
    jax.debug.print("seen {}", x)
    return x

  jax.jit(shared_work.share(function))(jnp.float32(1)).block_until_ready()
  jax.effects_barrier()
  assert capfd.readouterr().out.count("seen") == 2
