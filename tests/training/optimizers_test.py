import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.core import trees
from wam.core.errors import ConfigError, UnknownName
from wam.training import optimizers


def params():
  draw = np.random.default_rng(0)

  def array(*shape):
    return jnp.asarray(draw.normal(size=shape), jnp.float32)

  return {
    "embed": {"embedding": array(6, 4)},
    "layers": {  # two stacked layers
      "attention": {"q": {"kernel": array(2, 4, 4), "bias": array(2, 4)}},
      "mlp_norm": {"scale": array(2, 4)},
    },
    "final_norm": {"scale": array(4)},
    "lm_head": {"kernel": array(4, 6)},
  }


def one_step(tx, gradient_scale=1.0):
  p = params()
  grads = jax.tree.map(lambda x: gradient_scale * jnp.cos(x), p)
  state = tx.init(p)
  updates, _ = tx.update(grads, state, p)
  return p, grads, updates


def test_adamw_equals_numpy_over_three_steps():
  tx = optimizers.make(
    learning_rate=0.1, total_steps=10, weight_decay=0.2, clip_norm=None, b1=0.8, b2=0.9
  )
  p = {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray([3.0])}
  state = tx.init(p)
  value = {name: np.asarray(x, np.float64) for name, x in p.items()}
  m = {name: np.zeros_like(x) for name, x in value.items()}
  v = {name: np.zeros_like(x) for name, x in value.items()}
  for t in range(1, 4):
    grads = jax.tree.map(lambda x: 2 * x, p)
    updates, state = tx.update(grads, state, p)
    p = optax.apply_updates(p, updates)
    for name, decay in (("kernel", 0.2), ("bias", 0.0)):
      g = 2 * value[name]
      m[name] = 0.8 * m[name] + 0.2 * g
      v[name] = 0.9 * v[name] + 0.1 * g**2
      step = (m[name] / (1 - 0.8**t)) / (np.sqrt(v[name] / (1 - 0.9**t)) + 1e-8)
      value[name] = value[name] - 0.1 * (step + decay * value[name])
  for name in p:
    np.testing.assert_allclose(p[name], value[name], rtol=1e-5)


def test_only_matrices_decay_stacked_or_not():
  with_decay = one_step(optimizers.make(learning_rate=1.0, total_steps=1, weight_decay=0.5))
  without = one_step(optimizers.make(learning_rate=1.0, total_steps=1))
  p = trees.flatten(with_decay[0])
  for name, update in trees.flatten(with_decay[2]).items():
    decayed = update - trees.flatten(without[2])[name]
    expected = -0.5 * p[name] if name.endswith(("kernel", "embedding")) else jnp.zeros_like(p[name])
    np.testing.assert_allclose(decayed, expected, atol=1e-6, err_msg=name)


def test_clipping_is_by_the_global_norm():
  tx = optimizers.make(name="sgd", learning_rate=1.0, total_steps=1, clip_norm=0.5)
  _, grads, updates = one_step(tx)
  norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
  for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(update, -0.5 / norm * grad, rtol=1e-5)


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_every_optimizer_descends(name):
  p = params()
  target = jax.tree.map(lambda x: x + 0.3, p)

  def loss(p):
    return sum(
      jnp.sum((x - y) ** 2)
      for x, y in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True)
    )

  tx = optimizers.make(name=name, learning_rate=0.01, total_steps=40, clip_norm=None)
  state = tx.init(p)
  first = float(loss(p))

  @jax.jit
  def step(p, state):
    updates, state = tx.update(jax.grad(loss)(p), state, p)
    return optax.apply_updates(p, updates), state

  for _ in range(40):
    p, state = step(p, state)
  assert float(loss(p)) < 0.6 * first


def test_muon_orthogonalises_every_layer_of_a_stack():
  tx = optimizers.make(name="muon", learning_rate=1.0, total_steps=1, clip_norm=None)
  _, _, updates = one_step(tx)
  for matrix in np.asarray(updates["layers"]["attention"]["q"]["kernel"]):
    singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(4))
    # Five Newton-Schulz steps bring singular values near 1, not to it (Jordan et al. 2024).
    assert (singular > 0.6).all() and (singular < 1.3).all()


def test_frozen_leaves_stay_cost_no_state_and_do_not_count_in_the_norm():
  keywords = {"learning_rate": 1.0, "total_steps": 1, "clip_norm": 0.5}
  tx = optimizers.make(name="adam", trainable=r"lm_head/.*", **keywords)
  p, grads, updates = one_step(tx)
  for name, update in trees.flatten(updates).items():
    assert (float(jnp.abs(update).max()) > 0) == name.startswith("lm_head"), name
  arrays = [x for x in jax.tree.leaves(tx.init(p)) if x.ndim]
  assert [x.shape for x in arrays] == [(4, 6), (4, 6)]
  sgd = optimizers.make(name="sgd", trainable=r"lm_head/.*", **keywords)
  assert float(optax.tree.norm(one_step(sgd)[2])) == pytest.approx(0.5, rel=1e-5)
  del grads


@pytest.mark.parametrize(
  ("keywords", "points"),
  [
    ({}, {0: 1.0, 99: 1.0}),
    ({"warmup_steps": 10}, {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 99: 1.0}),
    ({"schedule": "linear", "warmup_percent": 10, "final_fraction": 0.1}, {9: 1.0, 55: 0.55, 100: 0.1}),
    ({"schedule": "cosine"}, {0: 1.0, 50: 0.5, 100: 0.0}),
    ({"schedule": "cosine", "final_fraction": 0.2}, {25: 0.2 + 0.8 * (1 + np.cos(np.pi / 4)) / 2, 100: 0.2}),
    ({"warmup_examples": 64, "examples_per_step": 32}, {0: 0.5, 1: 1.0}),
  ],
)  # fmt: skip
def test_schedules(keywords, points):
  schedule = optimizers.make_schedule(learning_rate=2.0, total_steps=100, **keywords)
  for step, fraction in points.items():
    assert float(schedule(step)) == pytest.approx(2.0 * fraction, abs=1e-6), step


def test_wrong_names_and_numbers_are_refused():
  with pytest.raises(UnknownName, match="Did you mean 'adamw'"):
    optimizers.make(name="adamww", learning_rate=1.0, total_steps=1)
  with pytest.raises(UnknownName, match="schedule 'cosin'"):
    optimizers.make(schedule="cosin", learning_rate=1.0, total_steps=1)
  with pytest.raises(ConfigError, match="warm-up of 3 steps does not fit into 2"):
    optimizers.make(learning_rate=1.0, total_steps=2, warmup_steps=3)
  with pytest.raises(ConfigError, match="adam has no weight decay"):
    optimizers.make(name="adam", learning_rate=1.0, total_steps=2, weight_decay=0.1)
  with pytest.raises(TypeError, match="learning_rte"):
    optimizers.make(learning_rate=1.0, total_steps=2, learning_rte=0.1)
