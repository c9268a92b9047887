import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.core.errors import ConfigError
from wam.training import step
from wam.training.state import init


def loss_fn(params, batch, key, frozen=()):
  """Squared error, each row with its weight."""
  del key
  error = batch["x"] @ params["w"] - batch["y"]
  weighted = batch["weight"] * error**2
  return jnp.sum(weighted), jnp.sum(batch["weight"]), {"error": (jnp.sum(error), jnp.float32(1))}


def batch():
  draw = np.random.default_rng(0)
  return {
    "x": draw.normal(size=(8, 3)).astype(np.float32),
    "y": draw.normal(size=8).astype(np.float32),
    # The microbatches have very different weights: a mean of means would be wrong.
    "weight": np.asarray([1, 0, 1, 0, 1, 0.5, 1, 0], np.float32),
  }


def expected(b, learning_rate):
  w = np.asarray([1.0, -1.0, 0.5])
  error = b["x"].astype(np.float64) @ w - b["y"]
  gradient = 2 * (b["weight"] * error) @ b["x"] / b["weight"].sum()
  loss = (b["weight"] * error**2).sum() / b["weight"].sum()
  return w - learning_rate * gradient, loss, np.linalg.norm(gradient)


@pytest.mark.parametrize("accumulate_steps", [1, 2, 4, 8])
def test_update_equals_the_closed_form(accumulate_steps):
  tx = optax.sgd(0.1)
  update = jax.jit(step.make_update(loss_fn, tx, accumulate_steps=accumulate_steps))
  state = init({"w": jnp.asarray([1.0, -1.0, 0.5])}, tx)
  state, metrics = update(state, batch(), jax.random.key(0))
  w, loss, norm = expected(batch(), 0.1)
  np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
  found = step.averages(metrics)
  assert found["loss"] == pytest.approx(loss, rel=1e-5)
  assert found["grad_norm"] == pytest.approx(norm, rel=1e-5)
  assert int(state.step) == 1
  assert float(metrics["error"][1]) == accumulate_steps


def test_microbatches_draw_different_noise():
  def noise(params, batch, key, frozen):
    value = jax.random.normal(key)
    return (
      jnp.sum(params["w"]) * value,
      jnp.float32(1),
      {"noise": (value, jnp.float32(1)), "square": (value**2, jnp.float32(1))},
    )

  tx = optax.sgd(0.1)
  update = step.make_update(noise, tx, accumulate_steps=4)
  _, metrics = update(init({"w": jnp.ones(2)}, tx), {"x": np.zeros((4, 1))}, jax.random.key(0))
  found = step.averages(metrics)
  assert found["square"] - found["noise"] ** 2 > 1e-3


def test_a_batch_without_weight_changes_nothing():
  tx = optax.sgd(0.1)
  b = batch() | {"weight": np.zeros(8, np.float32)}
  state = init({"w": jnp.asarray([1.0, -1.0, 0.5])}, tx)
  after, metrics = step.make_update(loss_fn, tx)(state, b, jax.random.key(0))
  np.testing.assert_array_equal(after.params["w"], state.params["w"])
  assert step.averages(metrics)["loss"] == 0.0


def test_uneven_accumulation_is_refused():
  tx = optax.sgd(0.1)
  update = step.make_update(loss_fn, tx, accumulate_steps=3)
  with pytest.raises(ConfigError, match="batch of 8 cannot be split into accumulate_steps=3"):
    update(init({"w": jnp.ones(3)}, tx), batch(), jax.random.key(0))
