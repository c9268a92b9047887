"""What a user may name as a checkpoint: readers give the stored numbers, damage and mistakes are refused by name."""

import concurrent.futures
import json
import os
import pathlib
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from wam.checkpoints import safetensors as ours
from wam.core.errors import BadCheckpoint, MissingFile
from wam.streaming.inputs.sources import open_source

RNG = np.random.default_rng(0)
ARRAYS = {
  "embed.weight": RNG.standard_normal((7, 4)).astype(ml_dtypes.bfloat16),
  "norm.weight": RNG.standard_normal(5).astype(np.float32),
  "scale": np.asarray(2.5, np.float16),
  "empty": np.zeros((0, 4), np.float32),
  "count": np.arange(6, dtype=np.int64).reshape(1, 2, 3),
}
CONFIG = {"model_type": "llama", "vocab_size": 7}


def model(path, arrays=ARRAYS, *, shard_bytes=10**9, config=CONFIG):
  """A Hugging Face directory with a config and a tokenizer file."""
  path.mkdir(parents=True)
  sizes = {name: array.nbytes for name, array in arrays.items()}
  ours.write_tensors(path, sizes, arrays.__getitem__, shard_bytes=shard_bytes)
  if config is not None:
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "README.md").write_text("not looked at")
  return path


def same(source, arrays):
  assert set(source.tensors) == set(arrays)
  for name, array in arrays.items():
    reader = source.tensors[name]
    assert (reader.name, reader.shape, reader.dtype) == (name, array.shape, array.dtype)
    for start, stop in [(0, array.size), (array.size // 3, array.size // 2), (0, 0)]:
      found = reader.read(start, stop)
      assert found.dtype == array.dtype
      assert found.flags.writeable
      assert found.tobytes() == array.reshape(-1)[start:stop].tobytes()


def test_a_directory_with_one_file(tmp_path):
  path = model(tmp_path / "a")
  source = open_source(path)
  same(source, ARRAYS)
  assert source.label == str(path)
  assert source.config == CONFIG
  assert source.directory == path
  names = ["model.safetensors", "config.json", "tokenizer.json"]
  assert [file.name for file in source.files] == names
  source.close()


def test_a_directory_with_shards(tmp_path):
  source = open_source(model(tmp_path / "a", shard_bytes=30), label="first")
  same(source, ARRAYS)
  assert source.label == "first"
  assert {r.origin for r in source.tensors.values()} == {"first"}
  names = [file.name for file in source.files]
  shards = sorted(file.name for file in (tmp_path / "a").glob("*.safetensors"))
  assert len(shards) > 2
  assert names[: len(shards)] == shards
  assert names[len(shards) :] == [ours.INDEX, "config.json", "tokenizer.json"]
  source.close()


def test_a_single_file(tmp_path):
  path = tmp_path / "weights.safetensors"
  safetensors.numpy.save_file(ARRAYS, path)
  source = open_source(str(path))
  same(source, ARRAYS)
  assert (source.config, source.directory, list(source.files)) == (None, None, [path])
  source.close()


def test_tensors_keep_the_order_of_the_file(tmp_path):
  arrays = {name: np.ones(3, np.float32) for name in ["z", "a", "m.10", "m.9"]}
  text = {
    name: {"dtype": "F32", "shape": [3], "data_offsets": [12 * i, 12 * i + 12]}
    for i, name in enumerate(arrays)
  }
  content = json.dumps(text).encode()
  data = b"".join(array.tobytes() for array in arrays.values())
  (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + data)
  assert list(open_source(tmp_path / "x.safetensors").tensors) == list(arrays)


def test_threads_share_one_descriptor_that_children_do_not_inherit(tmp_path):
  values = RNG.standard_normal(1 << 16).astype(np.float32)
  path = model(tmp_path / "a", {"w": values})
  source = open_source(path)
  reader = source.tensors["w"]
  pieces = [(i, i + 1000) for i in range(0, 60_000, 1000)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda p: reader.read(*p), pieces))
  np.testing.assert_array_equal(np.concatenate(found), values[:60_000])
  links = [link for link in pathlib.Path("/proc/self/fd").iterdir() if link.is_symlink()]
  opened = [int(link.name) for link in links if os.path.realpath(link).startswith(str(path))]
  assert len(opened) == 1
  assert not os.get_inheritable(opened[0])
  source.close()
  with pytest.raises(ValueError, match="closed"):
    reader.read(0, 1)


def test_a_file_that_became_shorter_is_named_with_its_tensor(tmp_path):
  path = model(tmp_path / "a", {"first": np.ones(100, np.float32), "last": np.ones(100, np.int8)})
  source = open_source(path)
  os.truncate(path / "model.safetensors", (path / "model.safetensors").stat().st_size - 150)
  first, last = source.tensors["first"], source.tensors["last"]
  assert first.read(0, 50).sum() == 50
  with pytest.raises(BadCheckpoint, match=r"model\.safetensors: ends 50 bytes before.*'first'"):
    first.read(50, 100)
  with pytest.raises(BadCheckpoint, match="'last'"):
    last.read(0, 1)
  source.close()


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  source = open_source(model(tmp_path / "a"))

  def broken(*_):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(os, "preadv", broken)
  with pytest.raises(BadCheckpoint, match=r"'norm\.weight' cannot be read: Input/output error"):
    source.tensors["norm.weight"].read(0, 5)


def test_short_reads_are_put_together(tmp_path, monkeypatch):
  source = open_source(model(tmp_path / "a"))
  whole = os.preadv
  monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole(fd, [buffers[0][:3]], at))
  same(source, ARRAYS)


def refused(text, error, message):
  with pytest.raises(error, match=message):
    open_source(text)


def test_what_does_not_exist(tmp_path):
  refused(tmp_path / "nothing", MissingFile, "no such file or directory; expected a Hugging Face")
  refused("meta-llama/Llama-3.2-1B", MissingFile, "hf download meta-llama/Llama-3.2-1B")
  refused("./nothing/there", MissingFile, "nothing/there: no such file")
  (tmp_path / "empty").mkdir()
  refused(tmp_path / "empty", MissingFile, "expected model.safetensors or")


def test_pickles(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
  refused(tmp_path / "pytorch_model.bin", BadCheckpoint, "pickle can run any code.*save_pretrained")
  refused(tmp_path, BadCheckpoint, "pickles can run any code.*save_pretrained")


def test_directories_that_are_something_else(tmp_path):
  (tmp_path / "adapter").mkdir()
  (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
  refused(tmp_path / "adapter", BadCheckpoint, r"is an adapter.*BASE\+.*adapter")
  (tmp_path / "loose").mkdir()
  safetensors.numpy.save_file(ARRAYS, tmp_path / "loose" / "unet.safetensors")
  refused(tmp_path / "loose", MissingFile, "found neither, but unet.safetensors; name a file")
  both = model(tmp_path / "both")
  (both / "manifest.ocdbt").touch()
  refused(both, BadCheckpoint, "holds an Orbax checkpoint and safetensors")


def test_quantised_weights(tmp_path):
  config = CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
  refused(model(tmp_path / "a", config=config), BadCheckpoint, r"quantised \('gptq'\)")


def test_damage_is_found_before_anything_is_read(tmp_path):
  path = model(tmp_path / "a")
  os.truncate(path / "model.safetensors", 100)
  refused(path, BadCheckpoint, "truncated")
  (path / "config.json").write_text("[]")
  refused(model(tmp_path / "b", config=[]), BadCheckpoint, "config is a list, expected an object")


def test_a_directory_that_may_not_be_listed(tmp_path, monkeypatch):
  path = model(tmp_path / "a")

  def forbidden(_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(os, "listdir", forbidden)
  refused(path, BadCheckpoint, "Permission denied")


def test_a_path_with_a_plus_sign_is_a_path(tmp_path):
  same(open_source(model(tmp_path / "a+b")), ARRAYS)
  refused(f"{tmp_path}/a+b+c", MissingFile, r"nor is there an adapter at c")
  refused(f"{tmp_path}/x+", MissingFile, "no such file")


def test_neither_jax_nor_transformers_is_loaded(tmp_path):
  code = (
    "import sys; from wam.streaming.inputs.sources import open_source; import wam.streaming.results.sinks;"
    f"open_source({str(model(tmp_path / 'a'))!r}).tensors['scale'].read(0, 1);"
    "print([m for m in ('jax', 'orbax', 'tensorstore', 'transformers', 'scipy') if m in sys.modules])"
  )
  root = pathlib.Path(__file__).resolve().parents[3]
  run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
  assert run.stdout == "[]\n", run.stderr
