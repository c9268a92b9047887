"""What is saved as text comes back bit for bit, and what is no such file is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.core.errors import BadCheckpoint
from wam.training.small_state import SmallState


def states():
  """The state of an optimizer after a step, and at its start."""
  tx, variables = optax.adam(0.1), jnp.asarray(np.random.default_rng(0).normal(size=3), jnp.float32)
  start = (variables, tx.init(variables))
  return (variables / 3, tx.update(variables / 7, start[1])[1]), start


def test_a_state_comes_back_bit_for_bit(tmp_path):
  path = tmp_path / "stage" / "search.json"
  state, start = states()
  fresh = SmallState(path)
  assert fresh.result is None
  assert fresh.restore(start) == (start, [])
  fresh.save(state, [0.1, 1 / 3])
  found, values = SmallState(path).restore(start)
  assert values == [0.1, 1 / 3]
  jax.tree.map(np.testing.assert_array_equal, found, state)
  assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(state)]
  SmallState(path).finish({"ratios": {"a": 0.25}})
  assert SmallState(path).result == {"ratios": {"a": 0.25}}


def test_what_is_not_such_a_state_is_refused(tmp_path):
  path = tmp_path / "search.json"
  SmallState(path).save(states()[0], [])
  with pytest.raises(BadCheckpoint, match="another search was saved there"):
    SmallState(path).restore(jnp.zeros(4))
  path.write_text("{")
  with pytest.raises(BadCheckpoint, match="not the state of a search"):
    SmallState(path)
