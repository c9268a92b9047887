"""Named trees."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wam.core import trees
from wam.core.errors import MismatchedTrees

pytestmark = pytest.mark.usefixtures("strict_dtypes")

TREE = {
  "layers": {
    "0": {"kernel": np.ones((2, 3), np.float32)},
    "1": {"kernel": np.zeros((2, 3), np.float32)},
  },
  "scale": np.ones(4, ml_dtypes.bfloat16),
  "step": np.int32(3),
}


def test_names_follow_the_tree_order():
  assert trees.names(TREE) == ["layers/0/kernel", "layers/1/kernel", "scale", "step"]
  assert trees.names([{"a": 1}, (2, 3)]) == ["0/a", "1/0", "1/1"]


names = st.text("abc.", min_size=1, max_size=3)
nested = st.recursive(st.integers(), lambda x: st.dictionaries(names, x, min_size=1, max_size=3))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(names, nested, min_size=1, max_size=3))
def test_unflatten_undoes_flatten(tree):
  assert trees.unflatten(trees.flatten(tree)) == tree


def test_map_named_passes_names_and_rests():
  doubled = trees.map_named(lambda name, x, y: (name, x + y), {"a": {"b": 1}}, {"a": {"b": 2}})
  assert doubled == {"a": {"b": ("a/b", 3)}}


def test_cast_leaves_integers():
  cast = trees.cast(TREE, jnp.float16)
  assert [x.dtype for x in jax.tree.leaves(cast)] == [np.float16, np.float16, np.float16, np.int32]
  assert TREE["scale"].dtype == ml_dtypes.bfloat16


def test_sizes():
  assert trees.num_params(TREE) == 6 + 6 + 4 + 1
  assert trees.num_bytes(TREE) == 24 + 24 + 8 + 4
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), TREE)
  assert trees.num_bytes(shapes) == trees.num_bytes(TREE)


def test_stack_and_unstack():
  members = [jax.tree.map(lambda x, m=m: x + np.asarray(m, x.dtype), TREE) for m in range(3)]
  stacked = trees.stack(members)
  assert stacked["layers"]["0"]["kernel"].shape == (3, 2, 3)
  for member, back in zip(members, trees.unstack(stacked), strict=True):
    jax.tree.map(np.testing.assert_array_equal, member, back)
  with pytest.raises(MismatchedTrees, match="'scale' is missing"):
    trees.stack([TREE, {k: v for k, v in TREE.items() if k != "scale"}])
  with pytest.raises(ValueError, match="at least one"):
    trees.stack([])


def test_non_finite_names_the_leaves():
  bad = {
    "fine": np.ones(2, np.float32),
    "nan": np.float32([1, np.nan]),
    "deep": {"inf": np.array([np.inf], ml_dtypes.bfloat16)},
    "step": np.int32(1),
  }
  assert trees.non_finite(bad) == ["deep/inf", "nan"]
  bad["nan"] = jnp.asarray(bad["nan"])  # some leaves on the device, others on the host
  assert trees.non_finite(bad) == ["deep/inf", "nan"]
