"""Kinship of members: figures against NumPy, strangers refused, scales of norms not looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError, MismatchedTrees
from wam.merging import shared_init


def network(seed, size=40):
  draw = np.random.default_rng(seed)
  return {
    "layers": {
      "q": {"kernel": draw.normal(0, 0.02, (2, size, size)).astype(np.float32)},
      "norm": {"scale": np.ones((2, size), np.float32)},
    }
  }


def moved(params, seed, size):
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + draw.normal(0, size, x.shape).astype(np.float32), params)


def test_figures_are_those_of_numpy():
  init = network(0)
  members = [moved(init, 1, 0.005), moved(init, 2, 0.01)]
  found = shared_init.kinship(members, init)
  flat = [m["layers"]["q"]["kernel"].astype(np.float64).ravel() for m in (init, *members)]
  deltas = [x - flat[0] for x in flat[1:]]
  norm = np.linalg.norm
  cosine = lambda a, b: a @ b / (norm(a) * norm(b))  # noqa: E731
  np.testing.assert_allclose(found.cosines, [cosine(x, flat[0]) for x in flat[1:]], rtol=1e-5)
  np.testing.assert_allclose(found.norms, [norm(d) / norm(flat[0]) for d in deltas], rtol=1e-5)
  expected = [[cosine(a, b) for b in deltas] for a in deltas]
  np.testing.assert_allclose(found.deltas, expected, atol=1e-5)
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
  np.testing.assert_array_equal(shared_init.kinship(stacked, init).norms, found.norms)


def test_strangers_are_refused_with_the_figures():
  """Equal scales do not hide it; a stranger is √2 away."""
  init, stranger = network(0), network(7)
  with pytest.raises(
    ConfigError,
    match=r"do not share the init: 1 .*member 0: cosine 1\.000, .* 0\.000; member 1: cosine -?0\.0\d+, .* 1\.4",
  ):
    shared_init.check_shared_init([init, stranger], init)
  found = shared_init.check_shared_init([init, stranger], init, allow=True)
  assert found.norms[1] == pytest.approx(np.sqrt(2), rel=0.05)
  np.testing.assert_array_equal(found.deltas[0], 0.0)


def test_a_head_of_large_numbers_does_not_hide_strangers():
  head = {"head": {"kernel": np.full((40, 1), 5.0, np.float32)}}
  with pytest.raises(ConfigError, match="do not share the init: 1 "):
    shared_init.check_shared_init([network(0) | head, network(7) | head], network(0) | head)
  other = {"head": {"kernel": -head["head"]["kernel"]}}
  shared_init.check_shared_init([network(0) | other], network(0) | head)


def test_a_long_training_is_no_stranger():
  """As far from the init as the init is from the origin, in a direction of its own: cosine 1 / √2."""
  init = network(0)
  found = shared_init.check_shared_init([moved(init, 1, 0.02)], init)
  assert found.cosines[0] == pytest.approx(np.sqrt(0.5), rel=0.05)


def test_what_cannot_be_compared():
  init = network(0)
  with pytest.raises(MismatchedTrees, match="member 0"):
    shared_init.kinship([network(0, size=30)], init)
  with pytest.raises(ConfigError, match="no matrix that is not zero"):
    shared_init.kinship([{"scale": np.ones(3)}], {"scale": np.ones(3)})
  with pytest.raises(ConfigError, match="at least one member"):
    shared_init.kinship([], init)


def test_unequal_leaves_are_named():
  init = network(0)
  other = moved(init, 1, 1e-7)
  assert shared_init.unequal_leaves([init, init], ".*") == []
  assert shared_init.unequal_leaves([init, other], r".*/kernel") == ["layers/q/kernel"]
