import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wam.checkpoints import orbax
from wam.core.errors import BadCheckpoint, MismatchedTrees, MissingFile


def tree():
  return {
    "layers": {"kernel": jnp.arange(24, dtype=jnp.float32).reshape(3, 8)},
    "scale": jnp.asarray([0.1, 0.2], jnp.bfloat16),
    "count": jnp.int32(5),
  }


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))


def test_a_tree_comes_back_bit_for_bit(tmp_path):
  orbax.save(tmp_path / "a", tree(), {"next": 3})
  assert orbax.exists(tmp_path / "a")
  same(orbax.load(tmp_path / "a"), tree())
  same(orbax.load(tmp_path / "a", tree()), tree())
  assert orbax.load_extra(tmp_path / "a") == {"next": 3}


def test_saving_again_replaces(tmp_path):
  orbax.save(tmp_path / "a", {"x": jnp.zeros(2)})
  orbax.save(tmp_path / "a", tree())
  same(orbax.load(tmp_path / "a"), tree())


def test_loading_onto_another_sharding(tmp_path):
  orbax.save(tmp_path / "a", tree())
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
  where = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
  like = tree()
  like["layers"]["kernel"] = jax.ShapeDtypeStruct((3, 8), jnp.float32, sharding=where)
  found = orbax.load(tmp_path / "a", like)
  assert found["layers"]["kernel"].sharding == where
  same(found, tree())


def test_what_does_not_fit_is_named(tmp_path):
  orbax.save(tmp_path / "a", tree())
  like = tree() | {"extra": jnp.zeros(3), "scale": jnp.zeros(4, jnp.bfloat16)}
  with pytest.raises(MismatchedTrees, match=r"'extra' is missing.*'scale' has shape \(2,\)"):
    orbax.load(tmp_path / "a", like)
  with pytest.raises(MissingFile, match="no Orbax checkpoint"):
    orbax.load(tmp_path / "b")
  assert not orbax.exists(tmp_path)


def test_numbered_checkpoints_keep_the_newest(tmp_path):
  numbered = orbax.Checkpoints(tmp_path, keep=2)
  assert numbered.latest is None
  for step in (1, 5, 7):
    numbered.save(step, {"x": jnp.float32(step)}, {"state": [step, None]})
  assert list(numbered.steps) == [5, 7]
  numbered.close()
  again = orbax.Checkpoints(tmp_path, keep=2)
  assert again.latest == 7
  assert float(again.load(5, {"x": jnp.float32(0)})["x"]) == 5
  assert again.extra(7) == {"state": [7, None]}
  again.save(7, {"x": jnp.float32(70)})
  assert float(again.load(7, {"x": jnp.float32(0)})["x"]) == 70
  with pytest.raises(MissingFile, match="no checkpoint of step 1"):
    again.load(1, {"x": jnp.float32(0)})
  again.close()


def test_half_written_checkpoints_do_not_count(tmp_path):
  numbered = orbax.Checkpoints(tmp_path)
  numbered.save(3, tree())
  numbered.close()
  # What a kill during the next save leaves: files, but not yet under their name.
  half = tmp_path / "5.orbax-checkpoint-tmp"
  shutil.copytree(tmp_path / "3", half)
  (half / "commit_success.txt").unlink()
  again = orbax.Checkpoints(tmp_path)
  assert list(again.steps) == [3]
  again.save(5, tree())
  assert list(again.steps) == [3, 5]
  again.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "5"]


def test_an_unreadable_checkpoint_is_named(tmp_path):
  orbax.save(tmp_path / "a", tree())
  for path in (tmp_path / "a").rglob("_METADATA"):
    path.write_text("{")
  with pytest.raises(BadCheckpoint, match="cannot be read"):
    orbax.load(tmp_path / "a")
