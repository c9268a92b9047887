import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wam.checkpoints import orbax
from wam.checkpoints.orbax_leaves import GrowingCheckpoint, SavedLeaves
from wam.core.errors import ConfigError, MismatchedTrees, MissingFile

P = PartitionSpec


@pytest.fixture
def mesh():
  return jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))


def tree():
  return {
    "layers": [{"kernel": jnp.full((8, 16), i, jnp.bfloat16)} for i in range(3)],
    "embed": jnp.arange(32, dtype=jnp.float32).reshape(16, 2),
    "a/b": {"c": jnp.ones(3)},
    "step": 7,
    "name": "toy",
    "count": np.array([2**40]),
    "nothing": None,
    "empty": {},
  }


def test_metadata_say_what_is_there_without_reading_it(tmp_path, mesh):
  where = NamedSharding(mesh, P("fsdp"))
  orbax.save(tmp_path / "a", tree() | {"embed": jax.device_put(tree()["embed"], where)})
  saved = SavedLeaves(tmp_path / "a")
  assert {n: (x.shape, x.dtype) for n, x in saved.shapes.items()} == {
    "layers/0/kernel": ((8, 16), jnp.bfloat16),
    "layers/1/kernel": ((8, 16), jnp.bfloat16),
    "layers/2/kernel": ((8, 16), jnp.bfloat16),
    "embed": ((16, 2), np.float32),
    "a/b/c": ((3,), np.float32),
  }
  assert saved.chunks["embed"] == (2, 2)
  assert saved.chunks["layers/0/kernel"] == (8, 16)
  assert set(saved.plain) == {"step", "name", "count", "nothing", "empty"}
  with pytest.raises(MissingFile, match="no Orbax checkpoint"):
    SavedLeaves(tmp_path / "b")


def test_some_leaves_come_where_they_are_wanted(tmp_path, mesh):
  orbax.save(tmp_path / "a", tree())
  saved = SavedLeaves(tmp_path / "a")
  where = {
    "layers/1/kernel": NamedSharding(mesh, P(None, "fsdp")),
    "a/b/c": NamedSharding(mesh, P()),
  }
  found = saved.load(where)
  assert {n: x.sharding for n, x in found.items()} == where
  np.testing.assert_array_equal(found["layers/1/kernel"].astype(np.float32), np.ones((8, 16)))
  assert saved.load({}) == {}
  plain = saved.load_plain()
  assert plain.pop("count").tolist() == [2**40]
  assert plain == {"step": 7, "name": "toy", "nothing": None, "empty": {}}


def test_leaves_written_apart_make_the_checkpoint_that_was_read(tmp_path, mesh):
  orbax.save(tmp_path / "a", tree(), extra=1)
  saved = SavedLeaves(tmp_path / "a")
  stale = tmp_path / "out.partial_save"
  stale.mkdir()
  (stale / "left by a killed run").touch()
  with GrowingCheckpoint(tmp_path / "out", saved.paths, extra={"merged": True}) as out:
    assert not stale.exists()
    for name in saved.shapes:
      out.write(saved.load({name: NamedSharding(mesh, P())}))
      assert not orbax.exists(tmp_path / "out")
    out.write(saved.load_plain())
  assert orbax.load_extra(tmp_path / "out") == {"merged": True}
  again = SavedLeaves(tmp_path / "out")
  assert again.shapes == saved.shapes
  assert again.paths == saved.paths
  for name in saved.shapes:
    x, y = (s.load({name: NamedSharding(mesh, P())})[name] for s in (saved, again))
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
  assert again.load_plain() == saved.load_plain()
  with pytest.raises(ConfigError, match="exists already"):
    GrowingCheckpoint(tmp_path / "out", saved.paths)


def test_nothing_is_left_of_a_checkpoint_that_is_not_finished(tmp_path, mesh):
  orbax.save(tmp_path / "a", tree())
  saved = SavedLeaves(tmp_path / "a")
  first = saved.load({"embed": NamedSharding(mesh, P())})
  with (
    pytest.raises(MismatchedTrees, match=r"never written: a/b/c, count, empty, layers/0/kernel"),
    GrowingCheckpoint(tmp_path / "out", saved.paths) as out,
  ):
    out.write(first)
  with (
    pytest.raises(RuntimeError, match="stop"),
    GrowingCheckpoint(tmp_path / "out", saved.paths) as out,
  ):
    out.write(first)
    raise RuntimeError("stop")
  assert [x.name for x in tmp_path.iterdir()] == ["a"]


def test_float64_is_refused_where_jax_would_round_it(tmp_path):
  orbax.save(tmp_path / "a", {"x": np.ones(2)})
  with pytest.raises(ConfigError, match=r"'x' of .* is float64.*JAX_ENABLE_X64"):
    SavedLeaves(tmp_path / "a")
