"""Malformed safetensors files and indices by the thousand: refused with an error for the user, or read within bounds.

Never another exception, never a hang, never a file written.
"""

import collections
import json
import os
import random
import struct

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import malformed
from tests.checkpoints.harmless import BOUND, harmless
from wam.checkpoints import headers
from wam.checkpoints import safetensors as ours
from wam.core.errors import BadCheckpoint, MissingFile, WamError

BATCHES, CASES = 8, 2000  # of files: 16,000
DIRECTORY_BATCHES, DIRECTORY_CASES = 4, 500


def check_tensors(tensors, *, whole_files):
  """That every tensor is what it says and lies within its file, and that nothing overlaps."""
  by_file = collections.defaultdict(list)
  for name, tensor in tensors.items():
    assert tensor.name == name
    name.encode()
    expected = tensor.dtype.itemsize * malformed.product(tensor.shape)
    assert tensor.num_bytes == expected
    by_file[tensor.path].append((tensor.start, tensor.start + tensor.num_bytes))
    array = ours.open_tensor(tensor)
    assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
  for path, places in by_file.items():
    with open(path, "rb") as file:
      (length,) = struct.unpack("<Q", file.read(8))
    position = 8 + length
    for start, stop in sorted(places):
      assert start == position
      position = stop
    if whole_files:
      assert position == path.stat().st_size


def outcome(path):
  """What became of a file: "" if it was read, the message if it was refused."""
  with harmless():
    try:
      header = ours.read_header(path)
    except WamError as error:
      assert str(path) in str(error)
      assert len(str(error)) < 2000 + len(str(path))
      return str(error)
  check_tensors(header.tensors, whole_files=bool(header.tensors))
  return ""


def kind(message):
  """The part of a message that is the same for all files."""
  return message.partition(": ")[2][:24]


def library_accepts(path):
  try:
    with safetensors.safe_open(path, "np"):
      return True
  except Exception:
    return False


def test_the_watch_notices_what_is_written_and_what_hangs(tmp_path):
  for write_something in [
    lambda: (tmp_path / "x").write_text(""),
    lambda: os.close(os.open(tmp_path / "x", os.O_RDWR)),
    lambda: (tmp_path / "x").rename(tmp_path / "y"),
    lambda: (tmp_path / "y").unlink(),
  ]:
    with pytest.raises(AssertionError), harmless():
      write_something()
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(AssertionError, match="still busy"), harmless(0.05):
    (tmp_path / "pipe").read_bytes()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_malformed_files_are_refused_or_read_within_bounds(tmp_path, batch):
  path = tmp_path / "x.safetensors"
  reasons, accepted = collections.Counter(), 0
  for case in range(CASES):
    seed = f"{batch}/{case}"
    done, content = malformed.file_bytes(random.Random(seed))
    path.write_bytes(content)
    try:
      message = outcome(path)
      if not message:
        accepted += 1
        assert library_accepts(path)
    except BaseException as error:
      error.add_note(f"case {seed}: {done}\n{content[:500]!r}")
      raise
    reasons[kind(message)] += 1
  # The cases are worth their time only if they reach deep into the checks.
  assert 0.05 < accepted / CASES < 0.5
  assert len(reasons) > 30
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("batch", range(DIRECTORY_BATCHES))
def test_malformed_directories_are_refused_or_read_within_bounds(tmp_path, batch):
  (tmp_path / "outside.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
  accepted, reasons = 0, collections.Counter()
  for case in range(DIRECTORY_CASES):
    seed = f"directory {batch}/{case}"
    directory = tmp_path / str(case)
    directory.mkdir()
    done = malformed.make_directory(random.Random(seed), directory)
    try:
      message = directory_outcome(directory)
    except BaseException as error:
      error.add_note(f"case {seed}: {done}")
      raise
    accepted += not message
    reasons[kind(message)] += 1
  assert 0.05 < accepted / DIRECTORY_CASES < 0.6
  assert len(reasons) > 20


def directory_outcome(directory):
  with harmless():
    try:
      tensors = ours.read_directory(directory)
    except WamError as error:
      assert str(directory) in str(error)
      return str(error)
  assert all(tensor.path.parent == directory for tensor in tensors.values())
  check_tensors(tensors, whole_files=True)
  return ""


numbers = st.integers(-2, 9) | st.sampled_from(malformed.NUMBERS)
scalars = numbers | st.none() | st.booleans() | st.floats() | st.text(max_size=3)
anything = st.recursive(
  scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=2), x, max_size=3)
)
nearly = st.fixed_dictionaries(
  {
    "dtype": st.sampled_from([*malformed.DTYPES, "F12"]) | scalars,
    "shape": st.lists(numbers, max_size=3) | anything,
    "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | anything,
  }
)


@settings(max_examples=1000, deadline=1000 * BOUND)
@given(
  st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), nearly | anything, max_size=3),
  st.integers(0, 16),
)
def test_any_json_is_refused_or_read_within_bounds(tmp_path_factory, header, size):
  path = tmp_path_factory.getbasetemp() / "any.safetensors"
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
  if not outcome(path):
    assert library_accepts(path)


@settings(max_examples=500, deadline=1000 * BOUND)
@given(st.binary(max_size=200), st.none() | st.integers(0, 2**64 - 1))
def test_any_bytes_are_refused_or_read_within_bounds(tmp_path_factory, data, length):
  path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
  path.write_bytes(data if length is None else struct.pack("<Q", length) + data)
  outcome(path)


def write(path, text, *, size=None, length=None):
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", len(text) if length is None else length) + text)
    if size is not None:
      file.truncate(size)
  return path


def entry(shape, begin, end, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MANY = 200_000
SLOW = {
  # Their product takes minutes and has a million digits.
  "long shape": lambda: json.dumps({"a": entry([2**63] * MANY, 0, 4)}),
  "many zeros": lambda: json.dumps({"a": entry([0] * MANY, 0, 0)}),
  "keys twice": lambda: "{" + ",".join(f'"{i}":1' for i in [*range(MANY), *range(MANY)]) + "}",
  "many keys": lambda: json.dumps({str(i): i for i in range(MANY)}),
  "long name": lambda: json.dumps({"x" * 20_000_000: 1}),
  "long harmful name": lambda: json.dumps({"x" * 20_000_000 + "\0": 1}),
  "long dtype": lambda: json.dumps({"a": entry([1], 0, 4, "F" * 20_000_000)}),
  "long number": lambda: '{"a":' + "9" * 20_000_000 + "}",
  "long fraction": lambda: '{"a":0.' + "9" * 20_000_000 + "}",
  "large exponent": lambda: '{"a":1e' + "9" * 4000 + "}",
  "open brackets": lambda: "[" * 20_000_000,
  "empty lists": lambda: '{"a":[' + "[]," * 7_000_000 + "[]]}",
  "wide nesting": lambda: '{"a":' + "[[[[[[" * MANY + "]]]]]]" * MANY + "}",
  "metadata": lambda: json.dumps({"__metadata__": {str(i): 1 for i in range(MANY)}}),
  "half a character far in": lambda: json.dumps(
    {"__metadata__": {"a": "x" * 20_000_000 + "\ud800"}}
  ),
  "backslashes": lambda: '{"' + "\\\\" * 10_000_000,
  "escapes": lambda: '{"' + "\\u0061" * 3_000_000 + '":1}',
  "spaces": lambda: "{" + " " * 20_000_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_long_to_understand_is_refused_quickly(tmp_path, name):
  assert outcome(write(tmp_path / "x.safetensors", SLOW[name]().encode()))


@pytest.mark.parametrize("depth", [10, 500, *range(900, 1010, 3)])
@pytest.mark.parametrize(
  "form", ['{"a":%s}', '{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,0]}}']
)
def test_any_depth_is_refused(tmp_path, depth, form):
  # Near the interpreter's limit, what could be parsed cannot be printed.
  for opening, closing in ["[]", ('{"a":', "}")]:
    text = form % (opening * depth + "1" + closing * depth)
    assert outcome(write(tmp_path / "x.safetensors", text.encode()))


@pytest.mark.parametrize(
  "length", [99_999_999, 100_000_000, 100_000_001, 2**40 - 9, 2**40 - 8, 2**40]
)
def test_a_huge_file_of_nothing_is_refused(tmp_path, length):
  path = write(tmp_path / "x.safetensors", b"", size=2**40, length=length)
  message = outcome(path)
  if length > 2**40 - 8:
    assert "the file has" in message
  elif length > 100_000_000:
    assert "at most 100000000 are believed" in message
  else:
    assert "not valid JSON" in message


def test_a_huge_tensor_of_nothing_is_read_without_reading_it(tmp_path):
  size = 2**40
  text = json.dumps({"a": entry([size // 4], 0, size)}).encode()
  path = write(tmp_path / "x.safetensors", text, size=8 + len(text) + size)
  assert outcome(path) == ""
  os.truncate(path, 8 + len(text) + size - 1)
  assert "outside" in outcome(path)


def test_a_huge_index_of_nothing_is_refused(tmp_path):
  index = tmp_path / ours.INDEX
  index.touch()
  os.truncate(index, 2**40)
  assert "at most 100000000 are believed" in directory_outcome(tmp_path)


def test_many_tensors_in_many_shards_take_linear_time(tmp_path):
  shards = [f"model-{i:05d}-of-01000.safetensors" for i in range(1000)]
  for shard in shards:
    write(tmp_path / shard, b"{}")
  weight_map = {str(i): shards[i % 1000] for i in range(MANY)}
  (tmp_path / ours.INDEX).write_text(json.dumps({"weight_map": weight_map}))
  assert "lacks '0'" in directory_outcome(tmp_path)


@pytest.mark.parametrize("name", [ours.SINGLE, ours.INDEX])
@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, name, put):
  put(tmp_path / name)
  with harmless(), pytest.raises(BadCheckpoint, match="is a directory, a pipe or a device"):
    ours.read_directory(tmp_path)
  with harmless(), pytest.raises(BadCheckpoint, match="is a directory, a pipe or a device"):
    ours.read_header(tmp_path / name)


def test_links_are_followed_as_in_the_cache_of_the_hub(tmp_path):
  text = json.dumps({"a": entry([1], 0, 4)}).encode()
  (tmp_path / "blobs").mkdir()
  (tmp_path / "snapshot").mkdir()
  write(tmp_path / "blobs" / "0123", text + bytes(4), length=len(text))
  (tmp_path / "snapshot" / ours.SINGLE).symlink_to("../blobs/0123")
  assert set(ours.read_directory(tmp_path / "snapshot")) == {"a"}


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000, "", "/dev/null/x"])
def test_odd_paths_are_errors_for_the_user(path):
  with pytest.raises((MissingFile, BadCheckpoint)):
    ours.read_header(path)
  with pytest.raises((MissingFile, BadCheckpoint)):
    ours.read_directory(path)


ODD_NAMES = [
  *malformed.NAMES,
  "model.safetensors.index.json",
  "a/" * 100 + "b",
  "x" * 10_000,
  "\u202egnp",
]


@pytest.mark.parametrize("shard_bytes", [4, 10**9])
def test_names_of_tensors_never_become_paths(tmp_path, shard_bytes):
  arrays = {name: np.full(1, number, np.float32) for number, name in enumerate(ODD_NAMES)}
  sizes = dict.fromkeys(arrays, 4)
  with ours.new_directory(tmp_path / "out") as directory:
    ours.write_tensors(directory, sizes, arrays.__getitem__, shard_bytes=shard_bytes)
  found = ours.read_directory(tmp_path / "out")
  assert {name: float(ours.open_tensor(tensor)[0]) for name, tensor in found.items()} == {
    name: float(number) for number, name in enumerate(ODD_NAMES)
  }
  expected = set(ours.plan_shards(sizes, shard_bytes)) | (
    {ours.INDEX} if shard_bytes == 4 else set()
  )
  assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {
    "out", *(f"out/{name}" for name in expected)
  }  # fmt: skip


@pytest.mark.parametrize("name", malformed.HARMFUL_NAMES)
def test_names_that_steer_a_terminal_or_cannot_be_written_are_refused(tmp_path, name):
  text = json.dumps({name: entry([0], 0, 0)}).encode()
  message = outcome(write(tmp_path / "x.safetensors", text))
  assert "control character or half a character" in message
  assert message.isprintable()


def test_messages_do_not_carry_what_steers_a_terminal(tmp_path):
  for header in [
    {"a": {"\x1b[2J": 1}},
    {"a": entry([1], 0, 4, "\x1b[2J\n")},
    {"a": entry(["\x1b[2J"], 0, 4)},
    {"\u202eevil": 3},
  ]:
    message = outcome(write(tmp_path / "x.safetensors", json.dumps(header).encode()))
    assert message.isprintable()


def test_the_shown_dtypes_are_those_of_the_reader():
  assert {name: headers.DTYPES[name].itemsize for name in malformed.DTYPES} == malformed.DTYPES
