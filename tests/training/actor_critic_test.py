import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam.training import actor_critic, optimizers


def test_a_fresh_optimizer_goes_on_with_its_schedule():
  """Moments start from 0, with Adam's own count, on which its correction stands; the learning rate does not jump."""
  tx = optimizers.make(
    learning_rate=0.1, total_steps=10, schedule="linear", weight_decay=0.1, clip_norm=1.0
  )
  params = {"layers": {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}}
  state = tx.init(params)
  grads = jax.tree.map(lambda x: 0.5 * x, params)
  for _ in range(4):
    _, state = tx.update(grads, state, params)
  found = actor_critic._same_schedule(tx.init(params), state)
  assert jax.tree.structure(found) == jax.tree.structure(state)
  counts = {
    jax.tree_util.keystr(path): int(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    if np.ndim(leaf) == 0
  }
  assert sorted(counts.values()) == [0, 4]
  assert not any(np.any(x) for x in jax.tree.leaves(found) if np.ndim(x))
  # Adam's first step is the learning rate in size (and its weight decay): 0.1 · (1 - 4/10).
  updates, _ = tx.update(grads, found, params)
  np.testing.assert_allclose(updates["layers"]["scale"], -0.06, rtol=1e-4)
  # Also where it is wrapped, and where a part of the leaves is frozen.
  for wrapped in (
    optax.chain(optax.identity(), tx),
    optimizers.make(learning_rate=0.1, total_steps=10, schedule="linear", trainable=".*kernel"),
  ):
    state = wrapped.init(params)
    for _ in range(3):
      _, state = wrapped.update(grads, state, params)
    found = actor_critic._same_schedule(wrapped.init(params), state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    schedules = [
      x for x in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))
      if isinstance(x, optax.ScaleByScheduleState)
    ]  # fmt: skip
    assert [int(x.count) for x in schedules] == [3]
