"""Safetensors: the library reads what we write, damaged files are refused by name, nothing is half-written."""

import errno
import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from wam.checkpoints import safetensors as ours
from wam.core.errors import BadCheckpoint, ConfigError, MissingFile, WamError

ARRAYS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.arange(4).astype(ml_dtypes.bfloat16),
  "c": np.asarray(3.0, np.float16),
  "empty": np.zeros((0, 4), np.float32),
}
SIZES = {name: array.nbytes for name, array in ARRAYS.items()}


def write_raw(path, header, data=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
  return path


def entry(shape, begin, end, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def assert_same(found, expected):
  assert found.dtype == expected.dtype
  assert found.shape == expected.shape
  np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))


def test_we_read_what_the_library_writes(tmp_path):
  safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "pt"})
  header = ours.read_header(tmp_path / "x.safetensors")
  assert header.metadata == {"format": "pt"}
  assert set(header.tensors) == set(ARRAYS)
  for name, array in ARRAYS.items():
    assert_same(ours.open_tensor(header.tensors[name]), array)


@pytest.mark.parametrize("shard_bytes", [1, 30, 10**6])
def test_the_library_reads_what_we_write(tmp_path, shard_bytes):
  with ours.new_directory(tmp_path / "out") as directory:
    ours.write_tensors(directory, SIZES, ARRAYS.__getitem__, shard_bytes=shard_bytes)
  files = sorted((tmp_path / "out").glob("*.safetensors"))
  found = {}
  for file in files:
    found |= safetensors.numpy.load_file(file)
  assert set(found) == set(ARRAYS)
  for name, array in ARRAYS.items():
    assert_same(found[name], array)
    assert_same(ours.open_tensor(ours.read_directory(tmp_path / "out")[name]), array)
  if len(files) > 1:
    index = json.loads((tmp_path / "out" / ours.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(SIZES.values())
    assert set(index["weight_map"]) == set(ARRAYS)
  else:
    assert [file.name for file in files] == ["model.safetensors"]


def test_a_mapped_tensor_cannot_be_written_to(tmp_path):
  safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors")
  tensor = ours.open_tensor(ours.read_header(tmp_path / "x.safetensors").tensors["a"])
  with pytest.raises(ValueError, match="read-only"):
    tensor[0, 0] = 1.0


def test_files_have_the_modes_that_the_umask_allows(tmp_path):
  before = os.umask(0o022)
  try:
    with ours.new_directory(tmp_path / "out") as directory:
      ours.write_tensors(directory, SIZES, ARRAYS.__getitem__)
  finally:
    os.umask(before)
  assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
  assert (tmp_path / "out" / ours.SINGLE).stat().st_mode & 0o777 == 0o644


HEADERS = {
  "not JSON": (b"{oops", "not valid JSON"),
  "not UTF-8": (b"\xff\xfe{}", "not valid JSON"),
  "deep nesting": (b"[" * 100_000, "not valid JSON"),
  "not an object": ([1, 2], "expected an object"),
  "duplicate key": (
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "'a' occurs twice",
  ),
  "not an entry": ({"a": 3}, "'a'.*expected dtype"),
  "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, "'a'.*expected dtype"),
  "unknown dtype": ({"a": entry([1], 0, 4, "F12")}, "'a'.*unknown dtype 'F12'"),
  "dtype of a wrong type": ({"a": entry([1], 0, 4, ["F32"])}, "'a'.*unknown dtype"),
  "negative size": ({"a": entry([-1], 0, 4)}, "'a'.*not a list of sizes"),
  "boolean size": ({"a": entry([True], 0, 4)}, "'a'.*not a list of sizes"),
  "absurd shape": ({"a": entry([2**62, 2**62], 0, 8)}, "'a'.*no array can have"),
  "absurd and empty": ({"a": entry([2**62, 2**62, 0], 0, 0)}, "'a'.*no array can have"),
  "too many axes": ({"a": entry([1] * 65, 0, 4)}, "'a'.*no array can have"),
  "control character": ({"a\x1b[2J": entry([2], 0, 8)}, r"'a\\x1b\[2J' holds a control"),
  "half a character": ({"a\ud800": entry([2], 0, 8)}, r"'a\\ud800' holds a control"),
  "half a character in metadata": ({"__metadata__": {"a": "\ud800"}}, "strings to strings"),
  "not a number": (b'{"a": NaN}', "NaN is not a number"),
  "a number of many digits": (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
  "shape against offsets": ({"a": entry([3], 0, 8)}, "'a'.*takes 12 bytes"),
  "backwards": ({"a": entry([1], 4, 0)}, "'a'.*outside"),
  "beyond the file": ({"a": entry([3], 0, 12)}, "'a'.*outside the 8 bytes"),
  "overlap": ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, "'b' overlaps tensor 'a'"),
  "gap": ({"b": entry([1], 4, 8)}, "'b' leaves a gap after the header"),
  "unclaimed bytes": ({"a": entry([1], 0, 4)}, "4 bytes after tensor 'a'"),
  "metadata": ({"__metadata__": {"a": 1}, "a": entry([2], 0, 8)}, "strings to strings"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_is_refused_with_file_and_tensor(tmp_path, name):
  header, message = HEADERS[name]
  path = write_raw(tmp_path / "x.safetensors", header, bytes(8))
  with pytest.raises(BadCheckpoint, match=message) as caught:
    ours.read_header(path)
  assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [0, 5, 2**40, 2**64 - 1])
def test_a_header_length_is_not_believed(tmp_path, length):
  path = write_raw(tmp_path / "x.safetensors", {"a": entry([2], 0, 8)}, bytes(8), length)
  with pytest.raises(BadCheckpoint):
    ours.read_header(path)


def test_every_truncation_is_noticed(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(ARRAYS, path)
  whole = path.read_bytes()
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    with pytest.raises(BadCheckpoint):
      ours.read_header(path)


scalars = st.one_of(
  st.integers(-2, 20), st.sampled_from(["F32", "BF16", "x", None, True, 2**63, 1.5])
)
entries = st.fixed_dictionaries(
  {
    "dtype": st.sampled_from(["F32", "BF16", "U8", "F99"]),
    "shape": st.lists(st.integers(0, 4), max_size=2),
    "data_offsets": st.lists(st.integers(0, 20), min_size=1, max_size=3),
  }
)
anything = st.recursive(
  scalars, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=6
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), entries | anything, max_size=4), st.integers(0, 24))
def test_a_header_is_accepted_exactly_when_the_library_accepts_it(tmp_path_factory, header, size):
  path = write_raw(tmp_path_factory.mktemp("header") / "x.safetensors", header, bytes(size))
  try:
    tensors = ours.read_header(path).tensors
  except BadCheckpoint:
    with pytest.raises(safetensors.SafetensorError):
      safetensors.numpy.load_file(path)
    return
  assert sum(tensor.num_bytes for tensor in tensors.values()) == size
  for tensor in tensors.values():
    assert ours.open_tensor(tensor).shape == tensor.shape


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_no_bytes_crash_the_reader(tmp_path_factory, data):
  path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
  path.write_bytes(data)
  try:
    ours.read_header(path)
  except BadCheckpoint as error:
    assert str(path) in str(error)


@pytest.fixture
def sharded(tmp_path):
  with ours.new_directory(tmp_path / "model") as directory:
    ours.write_tensors(directory, SIZES, ARRAYS.__getitem__, shard_bytes=1)
  return tmp_path / "model"


def change_index(directory, change):
  index = json.loads((directory / ours.INDEX).read_text())
  change(index["weight_map"])
  (directory / ours.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("target", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "x", 3])
def test_an_index_cannot_point_elsewhere(sharded, target):
  change_index(sharded, lambda weight_map: weight_map.update(a=target))
  with pytest.raises(BadCheckpoint, match="tensor 'a' is said to lie in"):
    ours.read_directory(sharded)


def test_a_missing_shard_is_named(sharded):
  first = sorted(sharded.glob("model-*.safetensors"))[0]
  first.unlink()
  with pytest.raises(MissingFile, match=first.name):
    ours.read_directory(sharded)


def test_a_shard_that_the_index_does_not_name_is_refused(sharded):
  change_index(sharded, lambda weight_map: weight_map.pop("a"))
  with pytest.raises(BadCheckpoint, match="does not name model-00001"):
    ours.read_directory(sharded)


def test_index_and_shard_must_list_the_same_tensors(sharded):
  change_index(sharded, lambda weight_map: weight_map.update(ghost=weight_map["a"]))
  with pytest.raises(BadCheckpoint, match="lacks 'ghost'"):
    ours.read_directory(sharded)
  change_index(sharded, lambda weight_map: weight_map.pop("ghost"))
  change_index(sharded, lambda weight_map: weight_map.update(b=weight_map["a"]))
  with pytest.raises(BadCheckpoint):
    ours.read_directory(sharded)


def test_stale_shards_beside_a_new_single_file_are_refused_with_all_files_named(sharded):
  # An output directory used twice: the shards and the index are of the first model, the single file of the second.
  shards = sorted(file.name for file in sharded.glob("model-*.safetensors"))
  safetensors.numpy.save_file(ARRAYS, sharded / "model.safetensors")
  with pytest.raises(BadCheckpoint, match=r"does not name model\.safetensors") as caught:
    ours.read_directory(sharded)
  assert len(shards) == 4
  assert all(name in str(caught.value) for name in [ours.INDEX, ours.SINGLE, *shards])

  (sharded / shards[0]).unlink()
  with pytest.raises(BadCheckpoint, match=r"does not name model\.safetensors"):
    ours.read_directory(sharded)

  (sharded / ours.INDEX).unlink()
  with pytest.raises(BadCheckpoint, match="which of them is the model") as caught:
    ours.read_directory(sharded)
  assert all(name in str(caught.value) for name in [ours.SINGLE, *shards[1:]])

  for shard in shards[1:]:
    (sharded / shard).unlink()
  assert set(ours.read_directory(sharded)) == set(ARRAYS)


def test_shards_of_another_number_beside_an_index_are_refused(sharded):
  stale = "model-00001-of-00009.safetensors"
  safetensors.numpy.save_file(ARRAYS, sharded / stale)
  with pytest.raises(BadCheckpoint, match=f"does not name {stale}"):
    ours.read_directory(sharded)


def test_shards_without_an_index_are_named(sharded):
  (sharded / ours.INDEX).unlink()
  with pytest.raises(MissingFile, match="found neither, only model-00001-of-00004"):
    ours.read_directory(sharded)


@pytest.mark.parametrize("name", [ours.INDEX, ours.SINGLE])
def test_a_link_that_leads_nowhere_is_not_overlooked(sharded, name):
  # What a partly emptied cache of the hub looks like.
  for file in [sharded / ours.INDEX, *sharded.glob("model-*.safetensors")]:
    file.unlink()
  (sharded / name).symlink_to(sharded / "gone")
  with pytest.raises(MissingFile, match=name):
    ours.read_directory(sharded)


def test_pickles_are_refused_with_the_way_out(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"x")
  with pytest.raises(BadCheckpoint, match=r"pytorch_model\.bin.*pickles.*save_pretrained"):
    ours.read_directory(tmp_path)


def test_missing_directories_and_files_are_named(tmp_path):
  with pytest.raises(MissingFile, match="no such directory"):
    ours.read_directory(tmp_path / "nowhere")
  with pytest.raises(MissingFile, match=r"expected model\.safetensors"):
    ours.read_directory(tmp_path)


def test_a_directory_in_use_is_not_touched(tmp_path):
  (tmp_path / "keep.txt").write_text("mine")
  with pytest.raises(ConfigError, match="not empty"), ours.new_directory(tmp_path):
    pass
  assert (tmp_path / "keep.txt").read_text() == "mine"


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(safetensors.numpy, "save_file", full)
  with (
    pytest.raises(WamError, match="the disk is full"),
    ours.new_directory(tmp_path / "out") as directory,
  ):
    ours.write_tensors(directory, SIZES, ARRAYS.__getitem__)
  assert not list(tmp_path.iterdir())


def test_an_error_inside_leaves_nothing_and_passes_through(tmp_path):
  with pytest.raises(ZeroDivisionError), ours.new_directory(tmp_path / "out") as directory:
    (directory / "half").write_text("x")
    raise ZeroDivisionError
  assert not list(tmp_path.iterdir())


def test_an_empty_directory_may_be_filled(tmp_path):
  (tmp_path / "out").mkdir()
  with ours.new_directory(tmp_path / "out") as directory:
    (directory / "x").write_text("1")
  assert (tmp_path / "out" / "x").read_text() == "1"


def test_shards_must_have_room():
  with pytest.raises(ConfigError, match="shard_bytes"):
    ours.plan_shards({"a": 1}, 0)
