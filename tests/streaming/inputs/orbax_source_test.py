"""Orbax checkpoints of every layout, read in slices: equal to what was saved, whatever the chunks; damage."""

import concurrent.futures
import math
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1

from wam.checkpoints import orbax
from wam.core.errors import BadCheckpoint
from wam.streaming.inputs import chunks, orbax_source
from wam.streaming.inputs.sources import open_source

TREE = {
  "params": {
    "layers": [jnp.arange(24, dtype=jnp.float32).reshape(3, 8), jnp.ones(3, jnp.bfloat16)],
    "model.norm": jnp.linspace(0, 1, 4, dtype=jnp.float16).reshape(2, 2),
    "scale": jnp.float32(3),
  },
  "step": np.arange(5),
  "empty": {},
}
EXPECTED = {
  "params/layers/0": np.arange(24, dtype=np.float32).reshape(3, 8),
  "params/layers/1": np.ones(3, jnp.bfloat16),
  "params/model.norm": np.linspace(0, 1, 4, dtype=np.float16).reshape(2, 2),
  "params/scale": np.float32(3),
  "step": np.arange(5),
}


def save_v0(path, **options):
  with v0.Checkpointer(v0.PyTreeCheckpointHandler(**options)) as checkpointer:
    checkpointer.save(path, TREE)


def save_steps(path):
  with v0.CheckpointManager(path) as manager:
    manager.save(7, args=v0.args.StandardSave(TREE))
    manager.wait_until_finished()


LAYOUTS = {
  "version 1": (orbax.save, "", "state"),
  "OCDBT, Zarr 2": (lambda p, t: save_v0(p, use_ocdbt=True, use_zarr3=False), "", ""),
  "OCDBT, Zarr 3": (lambda p, t: save_v0(p, use_ocdbt=True, use_zarr3=True), "", ""),
  "files, Zarr 2": (lambda p, t: save_v0(p, use_ocdbt=False, use_zarr3=False), "", ""),
  "files, Zarr 3": (lambda p, t: save_v0(p, use_ocdbt=False, use_zarr3=True), "", ""),
  "a step": (lambda p, t: save_steps(p), "7", "default"),
}


def same(source, expected):
  assert set(source.tensors) == set(expected)
  for name, array in expected.items():
    reader = source.tensors[name]
    assert (reader.name, reader.shape, reader.dtype) == (name, np.shape(array), array.dtype)
    flat = np.asarray(array).reshape(-1)
    for start in range(0, flat.size + 1, max(1, flat.size // 7)):
      for stop in {start, min(start + 5, flat.size), flat.size}:
        found = reader.read(start, stop)
        assert found.dtype == array.dtype
        assert found.flags.writeable
        assert found.tobytes() == flat[start:stop].tobytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_reads_as_it_was_saved(tmp_path, name):
  save, step, item = LAYOUTS[name]
  save(tmp_path / "a", TREE)
  source = open_source(tmp_path / "a" / step, label="ours")
  same(source, EXPECTED)
  assert (source.label, source.config, source.directory) == ("ours", None, None)
  assert all(path.is_file() for path in source.files)
  assert tmp_path / "a" / step / item / "_METADATA" in source.files
  source.close()
  if item:
    same(open_source(tmp_path / "a" / step / item), EXPECTED)


def sharded(shape, spec):
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  return values, jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("spec", [("x", "y"), (None, "x"), ("y",), (None, None, "y")])
def test_slices_of_sharded_arrays(tmp_path, monkeypatch, spec, large):
  if large:
    monkeypatch.setattr(orbax_source, "_LARGE_CHUNK_BYTES", 0)
  values, array = sharded((8, 12, 6), spec)
  v1.save(tmp_path / "a", {"w": array})
  source = open_source(tmp_path / "a")
  same(source, {"w": values})
  assert source.chunk_bytes < values.nbytes
  source.close()


def test_large_chunks_are_decoded_once_and_only_where_they_are_needed(tmp_path, monkeypatch):
  monkeypatch.setattr(orbax_source, "_LARGE_CHUNK_BYTES", 0)
  values, array = sharded((16, 64), (("x", "y"),))
  v1.save(tmp_path / "a", {"w": array})
  reader = open_source(tmp_path / "a").tensors["w"]
  decoded = []
  whole = orbax_source.OrbaxReader.read_box

  def counted(self, box):
    decoded.append(box)
    return whole(self, box)

  monkeypatch.setattr(orbax_source.OrbaxReader, "read_box", counted)
  reader.read(0, 10)
  assert decoded == [(slice(0, 2), slice(0, 64))]
  pieces = [(i, i + 16) for i in range(0, values.size, 16)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda p: reader.read(*p), pieces))
  np.testing.assert_array_equal(np.concatenate(found), values.ravel())
  assert len(decoded) == 8


def test_only_the_newest_arrays_stay_unpacked(tmp_path, monkeypatch):
  monkeypatch.setattr(orbax_source, "_LARGE_CHUNK_BYTES", 0)
  monkeypatch.setattr(chunks, "_KEPT_BYTES", 0)
  orbax.save(tmp_path / "a", {f"w{i}": jnp.full(100, float(i)) for i in range(8)})
  source = open_source(tmp_path / "a")
  for _ in range(2):
    for i, reader in enumerate(source.tensors.values()):
      assert reader.read(0, 100).tolist() == [float(i)] * 100
  assert list(source.unpacked._arrays) == ["w4", "w5", "w6", "w7"]
  source.close()
  assert not source.unpacked._arrays


def test_a_full_disk_while_unpacking_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(orbax_source, "_LARGE_CHUNK_BYTES", 0)
  orbax.save(tmp_path / "a", {"w": jnp.ones(100)})
  reader = open_source(tmp_path / "a").tensors["w"]

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(chunks, "preallocate", full)
  with pytest.raises(OSError, match=r"'w' must be unpacked.*400 bytes.*disk is full\. Set TMPDIR"):
    reader.read(0, 1)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_boxes_hold_the_entries_in_order(data):
  shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=4)))
  size = math.prod(shape)
  start = data.draw(st.integers(0, size - 1))
  stop = data.draw(st.integers(start + 1, size))
  array = np.arange(size).reshape(shape)
  found = [array[box].ravel() for box in chunks.boxes(shape, start, stop)]
  assert np.concatenate(found).tolist() == list(range(start, stop))
  assert len(found) <= max(1, 2 * len(shape) - 1)


def refused(path, message):
  with pytest.raises(BadCheckpoint, match=message):
    source = open_source(path)
    for reader in source.tensors.values():
      reader.read(0, 1)


def test_mistakes_are_explained(tmp_path):
  save_steps(tmp_path / "run")
  refused(tmp_path / "run", r"checkpoints of 1 steps; name one of them, the newest is .*run/7")
  v1.save_checkpointables(
    tmp_path / "two", {"params": {"a": jnp.ones(2)}, "optimizer": {"b": jnp.ones(2)}}
  )
  refused(tmp_path / "two", "holds 2 items, optimizer, params; name the one")
  assert list(open_source(tmp_path / "two" / "params").tensors) == ["a"]
  v1.save(tmp_path / "text", {"a": jnp.ones(2), "name": "x"})
  refused(tmp_path / "text", "'name' are texts")
  shutil.copytree(tmp_path / "run" / "7", tmp_path / "7.orbax-checkpoint-tmp")
  refused(tmp_path / "7.orbax-checkpoint-tmp", "never completed")
  (tmp_path / "unfinished").mkdir()
  shutil.move(tmp_path / "7.orbax-checkpoint-tmp", tmp_path / "unfinished")
  refused(tmp_path / "unfinished", "7.orbax-checkpoint-tmp was never completed")
  (tmp_path / "old").mkdir()
  (tmp_path / "old" / "_CHECKPOINT_METADATA").write_text("{}")
  refused(tmp_path / "old", "no item of this Orbax checkpoint has _METADATA")


def largest_file(path):
  return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_damage_is_refused(tmp_path):
  rng = np.random.default_rng(0)
  tree = {"w": rng.standard_normal(10_000), "v": rng.standard_normal(10_000)}
  v1.save(tmp_path / "a", tree)
  for name, harm in {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "gone": lambda path: path.unlink(),
  }.items():
    shutil.copytree(tmp_path / "a", tmp_path / name)
    harm(largest_file(tmp_path / name))
    refused(tmp_path / name, f"{name}.*cannot be (read|opened)")
  state = tmp_path / "a" / "state"
  (state / "_METADATA").write_text('{"tree_metadata": {"a": {"key_metadata": 1}}}')
  refused(tmp_path / "a", "_METADATA: expected keys and a value")
  (state / "_METADATA").write_text('{"use_ocdbt": true, "tree_metadata": {}}')
  (state / "manifest.ocdbt").unlink()
  refused(tmp_path / "a", "has no manifest.ocdbt")


def test_a_missing_chunk_is_damage_and_not_zeros(tmp_path):
  save_v0(tmp_path / "a", use_ocdbt=False, use_zarr3=False)
  (tmp_path / "a" / "params.layers.0" / "0.0").unlink()
  refused(tmp_path / "a", "'params/layers/0' cannot be read")


def test_names_do_not_lead_out_of_the_checkpoint(tmp_path):
  save_v0(tmp_path / "a", use_ocdbt=False, use_zarr3=False)
  metadata = tmp_path / "a" / "_METADATA"
  metadata.write_text(metadata.read_text().replace('"key": "step"', '"key": "../b/step"'))
  refused(tmp_path / "a", r"'\.\./b/step' leads out")


def test_jax_is_not_loaded(tmp_path):
  orbax.save(tmp_path / "a", TREE)
  code = (
    "import sys; from wam.streaming.inputs.sources import open_source;"
    f"open_source({str(tmp_path / 'a')!r}).tensors['step'].read(0, 5);"
    "print([m for m in ('jax', 'orbax') if m in sys.modules])"
  )
  root = pathlib.Path(__file__).resolve().parents[3]
  run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
  assert run.stdout == "[]\n", run.stderr


@pytest.mark.parametrize("database", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_a_checkpoint_that_another_one_has_replaced_is_read_anew(tmp_path, database, zarr3):
  # Sizes below and above what is kept in memory.
  shapes = {"small": (5,), "large": (3, 500_000)}
  path = tmp_path / "checkpoint"
  for value in (1.0, 2.0, 3.0):
    tree = {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}
    shutil.rmtree(path, ignore_errors=True)
    with v0.Checkpointer(v0.PyTreeCheckpointHandler(use_ocdbt=database, use_zarr3=zarr3)) as saver:
      saver.save(path, tree)
    source = open_source(path)
    for name in shapes:
      assert set(source.tensors[name].read(0, 5)) == {value}
    source.close()
