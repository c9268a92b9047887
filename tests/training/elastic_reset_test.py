"""Elastic Reset on a toy, against the same updates written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.core.errors import ConfigError
from wam.training.elastic_reset import elastic_reset

INIT = {"a": jnp.asarray([1.0, -2.0, 0.5]), "b": {"c": jnp.asarray([[3.0, 0.25]])}}


def steps(count, **settings):
  """θ and θ̄ after each of `count` updates with gradients that are a function of the step; SGD with momentum."""
  inner = optax.sgd(0.1, momentum=0.9)
  tx = elastic_reset(inner, **settings)
  state = tx.init(INIT)

  @jax.jit
  def update(params, state, t):
    grads = jax.tree.map(lambda x: jnp.cos(x + t), params)
    updates, state = tx.update(grads, state, params, frozen={"init": INIT})
    return optax.apply_updates(params, updates), state

  params, found = INIT, []
  for t in range(count):
    params, state = update(params, state, float(t))
    found.append(jax.device_get((params, state)))
  return found


def expected(count, every, decay):
  """The same in float64."""
  start = np.asarray([1.0, -2.0, 0.5, 3.0, 0.25])
  theta, ema, momentum, found = start.copy(), start.copy(), np.zeros(5), []
  for t in range(count):
    momentum = 0.9 * momentum + np.cos(theta + t)
    theta = theta - 0.1 * momentum
    ema = decay * ema + (1 - decay) * theta
    before = theta
    if (t + 1) % every == 0:
      theta, ema = ema, start.copy()
    found.append((theta, ema, momentum, before))
  return found


def vector(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("keep_start", [False, True])
def test_resets_are_those_of_numpy(keep_start):
  found = steps(11, every=4, decay=0.7, keep_start=keep_start)
  for t, ((params, state), (theta, ema, momentum, before)) in enumerate(
    zip(found, expected(11, 4, 0.7), strict=True)
  ):
    np.testing.assert_allclose(vector(params), theta, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vector(state.ema), ema, rtol=1e-5, atol=1e-5)
    # The optimizer's state is kept.
    np.testing.assert_allclose(vector(state.inner), momentum, rtol=1e-4, atol=1e-5)
    reset = (t + 1) % 4 == 0
    assert np.array_equal(vector(state.ema), vector(INIT)) == reset
    assert (np.abs(theta - before).max() > 0.05) == reset
  assert int(found[-1][1].num_updates) == 11


def test_without_memory_a_reset_changes_nothing():
  plain = steps(6, every=100, decay=0.5)
  for (params, _), (other, _) in zip(steps(6, every=2, decay=0.0), plain, strict=True):
    np.testing.assert_allclose(vector(params), vector(other), rtol=1e-6)


def test_with_all_memory_a_reset_goes_to_the_init():
  found = steps(4, every=2, decay=1.0)
  for t, (params, state) in enumerate(found):
    np.testing.assert_array_equal(vector(state.ema), vector(INIT))
    if t % 2:
      np.testing.assert_allclose(vector(params), vector(INIT), rtol=1e-6)
    else:
      assert np.abs(vector(params) - vector(INIT)).max() > 0.01


def test_the_average_is_float32_and_shares_no_memory_with_the_parameters():
  params = {"w": jnp.ones(4, jnp.bfloat16)}
  tx = elastic_reset(optax.sgd(0.1), every=3)
  step = jax.jit(
    lambda p, s: tx.update(jax.tree.map(jnp.ones_like, p), s, p, frozen={"init": params}),
    donate_argnums=(0, 1),
  )
  start = jax.jit(lambda p: (jax.tree.map(jnp.copy, p), tx.init(p)))
  updates, state = step(*start(params))
  assert state.ema["w"].dtype == jnp.float32
  assert updates["w"].dtype == jnp.bfloat16
  # 1 - 0.005·0.1 is 1 in bfloat16.
  np.testing.assert_allclose(state.ema["w"], 1 - 0.005 * 0.1, atol=1e-5)


def test_what_makes_no_sense_is_refused():
  with pytest.raises(ConfigError, match="every is 0"):
    elastic_reset(optax.sgd(0.1), every=0)
  with pytest.raises(ConfigError, match=r"decay is 1\.5"):
    elastic_reset(optax.sgd(0.1), every=1, decay=1.5)
