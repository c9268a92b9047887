"""Hashes are hashlib's, of the whole content; what is remembered is never of other bytes than those on the disk."""

import hashlib
import json
import os
import threading
import time

import pytest

from wam.core.errors import BadCheckpoint, ConfigError, MissingFile
from wam.streaming.results import hashes
from wam.streaming.results.hashes import hash_files

SIZES = {"empty": 0, "small": 3, "piece": 1 << 20, "larger": (1 << 20) + 1, "large": 5_000_000}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """No test reads or writes the cache of whoever runs it."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "wam" / "sha256.json"


@pytest.fixture
def files(tmp_path):
  paths = []
  for number, (name, size) in enumerate(SIZES.items()):
    path = tmp_path / name
    path.write_bytes(bytes([number]) * size)
    age(path)
    paths.append(path)
  return paths


@pytest.fixture
def opened(monkeypatch):
  """The names of the files that were read, as they are."""
  names = []
  real = hashes.open_regular

  def open_regular(name, what):
    names.append(os.path.basename(name))
    return real(name, what)

  monkeypatch.setattr(hashes, "open_regular", open_regular)
  return names


def age(path, seconds=60):
  os.utime(path, (time.time() - seconds,) * 2)


def digest(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("cache", [True, False])
def test_hashes_are_those_of_the_whole_content_in_the_order_given(files, threads, cache):
  found = hash_files([str(path) for path in files], threads=threads, cache=cache)
  assert list(found) == files
  assert found == {path: digest(path) for path in files}


def test_the_largest_file_comes_first(files, opened):
  hash_files(files, threads=1)
  assert opened == ["large", "larger", "piece", "small", "empty"]


def test_a_file_by_two_names_is_read_once(files, opened, tmp_path):
  link = tmp_path / "link"
  link.symlink_to(files[1])
  assert hash_files([files[1], link, files[1]]) == {files[1]: digest(files[1])} | {
    link: digest(files[1])
  }
  assert opened == ["small"]


def test_progress_ends_with_all_bytes(files):
  calls = []
  hash_files(files, progress=lambda done, total: calls.append((done, total)))
  total = sum(SIZES.values())
  assert calls[-1] == (total, total)
  assert calls == sorted(calls)
  hash_files(files, progress=lambda done, total: calls.append((done, total)))
  assert calls[-1] == (0, 0)


def test_an_interrupted_call_leaves_no_thread_that_reads_on(files):
  class StopError(Exception):
    pass

  def progress(done, total):
    raise StopError

  before = threading.active_count()
  with pytest.raises(StopError):
    hash_files(files, progress=progress)
  for _ in range(100):
    if threading.active_count() == before:
      return
    time.sleep(0.01)
  pytest.fail("threads are still reading")


def test_missing_files_pipes_and_directories_are_refused(files, tmp_path):
  with pytest.raises(MissingFile, match="nowhere"):
    hash_files([*files, tmp_path / "nowhere"])
  with pytest.raises(MissingFile):
    hash_files(["a\0b"])
  with pytest.raises(BadCheckpoint, match="is a directory, a pipe or a device"):
    hash_files([tmp_path])
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(BadCheckpoint, match="is a directory, a pipe or a device"):
    hash_files([tmp_path / "pipe"])
  with pytest.raises(ConfigError, match="threads"):
    hash_files(files, threads=0)
  assert hash_files([]) == {}


@pytest.mark.parametrize("change", [b"", b"x" * 10, b"x" * 5_000_001])
def test_a_file_that_changes_while_it_is_read_is_refused(files, monkeypatch, change):
  real = hashes.open_regular

  def open_regular(name, what):
    file = real(name, what)
    with open(name, "r+b") as writer:
      writer.write(change)
      writer.truncate(len(change))
    return file

  monkeypatch.setattr(hashes, "open_regular", open_regular)
  with pytest.raises(BadCheckpoint, match="large: changed while it was read"):
    hash_files([files[-1]])


def test_what_is_remembered_is_not_read_again(files, opened):
  first = hash_files(files)
  assert len(opened) == len(files)
  assert hash_files(files) == first
  assert len(opened) == len(files)
  assert hash_files(files, cache=False) == first
  assert len(opened) == 2 * len(files)


def test_without_cache_nothing_is_written(files, home):
  hash_files(files, cache=False)
  assert not home.parent.exists()


def test_a_changed_file_is_read_again(files, opened):
  path = files[-1]
  hash_files(files)
  with path.open("r+b") as file:
    file.write(b"!")
  age(path, 30)
  opened.clear()
  assert hash_files(files)[path] == digest(path)
  assert opened == ["large"]


def test_a_change_is_noticed_even_with_the_old_time_and_size(files):
  path = files[-1]
  before = path.stat()
  hash_files(files)
  with path.open("r+b") as file:
    file.write(b"!")
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  after = path.stat()
  assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
  assert hash_files(files)[path] == digest(path)


def test_another_file_under_the_old_name_is_read(files, opened):
  path = files[-1]
  hash_files(files)
  other = path.with_name("other")
  other.write_bytes(b"?" * SIZES["large"])
  age(other)
  other.replace(path)
  assert hash_files(files)[path] == digest(path)


@pytest.mark.parametrize("seconds", [0, 1, -1000])
def test_files_that_were_just_written_are_not_remembered(tmp_path, opened, seconds):
  path = tmp_path / "fresh"
  path.write_bytes(b"fresh")
  age(path, seconds)
  hash_files([path])
  hash_files([path])
  assert opened == ["fresh", "fresh"]


def nested(depth):
  return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\xff\xfe",
    b"[]",
    b'{"kind": "other", "files": {}}',
    b'{"kind": "wam sha256 1"}',
    b'{"kind": "wam sha256 1", "files": [1]}',
    b'{"kind": "wam sha256 1", "files": ' + nested(100_000) + b"}",
  ],
)
def test_a_damaged_cache_is_replaced(files, home, opened, content):
  home.parent.mkdir(parents=True)
  home.write_bytes(content)
  first = hash_files(files)
  assert first == {path: digest(path) for path in files}
  assert hash_files(files) == first
  assert len(opened) == len(files)


@pytest.mark.parametrize(
  "change",
  [
    lambda entry: 7,
    lambda entry: [],
    lambda entry: [entry[0], "0" * 63],
    lambda entry: [entry[0], 5],
    lambda entry: [entry[0][:-1], entry[1]],
    lambda entry: [[*entry[0], 1], entry[1]],
    lambda entry: [[float(x) for x in entry[0]], entry[1]],
    lambda entry: [None, entry[1]],
  ],
)
def test_a_malformed_entry_is_ignored(files, home, opened, change):
  path = files[-1]
  hash_files(files)
  data = json.loads(home.read_text())
  data["files"][str(path)] = change(data["files"][str(path)])
  home.write_text(json.dumps(data))
  opened.clear()
  assert hash_files(files)[path] == digest(path)
  assert opened == ["large"]


def test_a_cache_that_cannot_be_written_is_done_without(files, tmp_path, monkeypatch, opened):
  (tmp_path / "file").write_text("")
  for place in [tmp_path / "file", "/proc/wam", ""]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert hash_files(files) == {path: digest(path) for path in files}
  assert len(opened) == 3 * len(files)


def test_a_relative_cache_home_is_ignored(files, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", "relative")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  hash_files(files)
  assert not (tmp_path / "relative").exists()
  assert (tmp_path / "home" / ".cache" / "wam" / "sha256.json").is_file()


def test_the_oldest_are_forgotten(files, home, monkeypatch):
  monkeypatch.setattr(hashes, "_MAX_REMEMBERED", 3)
  hash_files(files[:2], threads=1)
  hash_files(files[2:4], threads=1)
  assert list(json.loads(home.read_text())["files"]) == [
    str(files[0]),
    str(files[3]),
    str(files[2]),
  ]
  assert [file.name for file in home.parent.iterdir()] == [home.name]


def test_a_name_that_is_not_unicode_does_not_spoil_the_cache(files, tmp_path, opened):
  path = tmp_path / os.fsdecode(b"caf\xe9")
  path.write_bytes(b"x")
  age(path)
  hash_files([*files, path])
  opened.clear()
  hash_files([*files, path])
  assert opened == [path.name]
