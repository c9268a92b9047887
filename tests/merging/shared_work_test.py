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


def layers(count=8, width=256):
  draw = np.random.default_rng(0)
  return [jnp.asarray(draw.normal(size=(width, width)) / 16, jnp.float32) for _ in range(count)]


def late_products(x, ends, *, late):
  """tanh(x @ (0.3·w)) again and again, the weights made beforehand or late."""

  def network(x, weights):
    for w in weights:
      x = jnp.tanh(x @ w.T.astype(x.dtype))
    return x

  made = [
    shared_work.Late(jax.ShapeDtypeStruct(w.shape, w.dtype), lambda one, w=w: one * 0.3 * w)
    if late
    else 0.3 * w
    for w in ends
  ]
  return shared_work.share(network)(x, made)


def test_late_operands_are_not_held_all_at_once():
  x, ends = jnp.ones((4, 256)), layers()
  programs = {
    late: jax.jit(late_products, static_argnames="late").lower(x, ends, late=late).compile()
    for late in (False, True)
  }
  found, expected = (programs[late](x, ends) for late in (True, False))
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
  one_layer = 4 * 256**2
  temporary = {n: p.memory_analysis().temp_size_in_bytes for n, p in programs.items()}
  assert temporary[True] < 2 * one_layer
  assert temporary[False] > 6 * one_layer


def test_late_operands_do_not_see_what_they_wait_for():
  """Rows of NaN stay alone."""
  x = jnp.ones((4, 256)).at[0].set(jnp.nan)
  found = jax.jit(late_products, static_argnames="late")(x, layers(2), late=True)
  expected = late_products(x, layers(2), late=False)
  assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()
  np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-5, atol=1e-6)


def test_late_operands_of_nothing_else_and_of_loops():
  w = jnp.arange(6.0).reshape(2, 3)
  late = lambda: shared_work.Late(jax.ShapeDtypeStruct((2, 3), jnp.float32), lambda one: one * w)  # noqa: E731

  def function(a, b, x):
    looped = jax.lax.scan(lambda c, row: (c + row, c), x, a)[0]
    return a, jnp.sum(a * b), looped, jnp.where(x > 0, b[0], 0.0)

  x = jnp.array([1.0, -1.0, 0.0])
  found = jax.jit(lambda x: shared_work.share(function)(late(), late(), x))(x)
  jax.tree.map(np.testing.assert_allclose, found, function(w, w, x))


def test_effects_are_not_merged(capfd):
  def function(x):
    jax.debug.print("seen {}", x)
    jax.debug.print("seen {}", x)
    return x

  jax.jit(shared_work.share(function))(jnp.float32(1)).block_until_ready()
  jax.effects_barrier()
  assert capfd.readouterr().out.count("seen") == 2
