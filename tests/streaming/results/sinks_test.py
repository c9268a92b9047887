"""Merges are written in place, appear at once, and go on after a kill; nobody's files are mixed or lost."""

import errno
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from wam.checkpoints import orbax
from wam.checkpoints.headers import DTYPES, build_header, read_header
from wam.checkpoints.records import CannotWrite
from wam.core.errors import ConfigError
from wam.streaming.inputs.sources import open_source
from wam.streaming.plan import Output
from wam.streaming.results import partial
from wam.streaming.results.sinks import OrbaxSink, SafetensorsSink

RNG = np.random.default_rng(0)
ARRAYS = {
  "embed": RNG.standard_normal((50, 6)).astype(ml_dtypes.bfloat16),
  "layers/0/odd": np.asarray([1, -2, 3], np.int8),
  "layers/0/up": RNG.standard_normal((6, 9)).astype(ml_dtypes.bfloat16),
  "layers/1/up": RNG.standard_normal((6, 9)).astype(np.float32),
  "scale": np.asarray(4.0, np.float16),
}
OUTPUTS = [Output(n, a.shape, a.dtype, "linear", ()) for n, a in ARRAYS.items()]
SINKS = [SafetensorsSink, OrbaxSink]
EXTRA = {"config.json": b'{"model_type": "llama"}'}


def make(directory, kind=SafetensorsSink, outputs=OUTPUTS, fingerprint="one", **options):
  return kind(directory, outputs, fingerprint=fingerprint, **options)


def write(sink, names=ARRAYS, arrays=ARRAYS, step=7):
  for name in names:
    flat = arrays[name].reshape(-1)
    for start in reversed(range(0, flat.size, step)):
      sink.write(name, start, flat[start : start + step])
    sink.complete(name)


def assert_holds(directory, arrays=ARRAYS):
  source = open_source(directory)
  assert set(source.tensors) == set(arrays)
  for name, array in arrays.items():
    reader = source.tensors[name]
    assert (reader.shape, reader.dtype) == (array.shape, array.dtype)
    assert reader.read(0, array.size).tobytes() == array.tobytes()
  source.close()


def nothing_beside(directory):
  return [p.name for p in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize("kind", SINKS)
def test_what_was_written_can_be_read(tmp_path, kind):
  out = tmp_path / "out"
  with make(out, kind) as sink:
    assert not out.exists()
    write(sink)
    sink.finish(EXTRA)
  assert_holds(out)
  assert open_source(out).config == {"model_type": "llama"}
  assert nothing_beside(out)


def test_the_safetensors_library_reads_it(tmp_path):
  with make(tmp_path / "out") as sink:
    write(sink)
    sink.finish()
  path = tmp_path / "out" / "model.safetensors"
  assert [p.name for p in (tmp_path / "out").iterdir()] == [path.name]
  for name, array in safetensors.numpy.load_file(path).items():
    assert array.tobytes() == ARRAYS[name].tobytes()
    assert array.shape == ARRAYS[name].shape
  with safetensors.safe_open(path, "numpy") as file:
    assert file.metadata() == {"format": "pt"}


def test_shards_and_their_index(tmp_path):
  with make(tmp_path / "out", shard_bytes=300) as sink:
    write(sink)
    sink.finish(EXTRA)
  assert_holds(tmp_path / "out")
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(a.nbytes for a in ARRAYS.values())
  assert index["weight_map"]["embed"] == "model-00001-of-00003.safetensors"
  found = {}
  for shard in sorted(set(index["weight_map"].values())):
    tensors = safetensors.numpy.load_file(tmp_path / "out" / shard)
    assert {n for n, s in index["weight_map"].items() if s == shard} == set(tensors)
    found |= tensors
  assert set(found) == set(ARRAYS)


def test_orbax_loads_it_as_a_tree(tmp_path):
  with make(tmp_path / "out", OrbaxSink) as sink:
    write(sink)
    sink.finish(EXTRA)
  tree = orbax.load(tmp_path / "out")
  assert np.asarray(tree["layers"]["1"]["up"]).tobytes() == ARRAYS["layers/1/up"].tobytes()
  assert np.asarray(tree["embed"]).tobytes() == ARRAYS["embed"].tobytes()


@given(
  st.lists(
    st.tuples(
      st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=3).map(tuple)
    ),
    max_size=8,
  )
)
@settings(max_examples=200, deadline=None)
def test_headers_are_whole_and_numbers_aligned(tmp_path_factory, tensors):
  named = {f"t{i}": tensor for i, tensor in enumerate(tensors)}
  header, starts = build_header(named)
  assert len(header) % 8 == 0
  size = sum(int(np.prod(shape, dtype=int)) * dtype.itemsize for dtype, shape in tensors)
  path = tmp_path_factory.mktemp("headers") / "x.safetensors"
  path.write_bytes(header + bytes(size))
  found = read_header(path).tensors
  assert {n: (t.dtype, t.shape) for n, t in found.items()} == named
  assert {n: t.start for n, t in found.items()} == starts
  assert all(t.start % t.dtype.itemsize == 0 for t in found.values())
  with safetensors.safe_open(path, "numpy") as file:
    assert set(file.keys()) == set(named)


def test_what_a_header_cannot_hold():
  with pytest.raises(ConfigError, match="'a': a safetensors file cannot hold complex64"):
    build_header({"a": (np.dtype(np.complex64), (1,))})
  with pytest.raises(ConfigError, match="cannot be called '__metadata__'"):
    build_header({"__metadata__": (np.dtype(np.float32), (1,))})


@pytest.mark.parametrize("kind", SINKS)
def test_many_threads_write_at_once(tmp_path, kind):
  names = [f"t{i}" for i in range(8)]
  arrays = {name: RNG.standard_normal(1000).astype(np.float32) for name in names}
  outputs = [Output(n, a.shape, a.dtype, "linear", ()) for n, a in arrays.items()]
  with make(tmp_path / "out", kind, outputs) as sink:
    threads = [threading.Thread(target=write, args=(sink, [n], arrays, 13)) for n in names]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    sink.finish()
  assert_holds(tmp_path / "out", arrays)


@pytest.mark.parametrize("kind", SINKS)
def test_an_interrupted_merge_goes_on(tmp_path, kind):
  with make(tmp_path / "out", kind) as sink:
    assert (sink.done(), sink.resumed, sink.discarded) == (frozenset(), 0, None)
    write(sink, ["embed", "scale"])
    sink.write("layers/1/up", 0, np.ones(3, np.float32))
  assert not (tmp_path / "out").exists()
  with make(tmp_path / "out", kind) as sink:
    assert sink.done() == {"embed", "scale"}
    assert (sink.resumed, sink.discarded) == (2, None)
    with pytest.raises(ValueError, match="3 outputs are not complete"):
      sink.finish()
    write(sink, ARRAYS.keys() - sink.done())
    sink.finish(EXTRA)
  assert_holds(tmp_path / "out")
  assert nothing_beside(tmp_path / "out")


KILLED = """
  import sys, time
  import numpy as np
  from wam.streaming.results import sinks
  from wam.streaming.plan import Output
  outputs = [Output(f"t{i}", (999,), np.dtype(np.float32), "linear", ()) for i in range(4)]
  sink = getattr(sinks, sys.argv[2])(sys.argv[1], outputs, fingerprint="one")
  for i in range(3):
    sink.write(f"t{i}", 0, np.full(999, i, np.float32))
    if i < 2:
      sink.complete(f"t{i}")
  print("written", flush=True)
  time.sleep(60)
"""


@pytest.mark.parametrize("kind", SINKS)
def test_a_killed_merge_goes_on(tmp_path, kind):
  arrays = {f"t{i}": np.full(999, i, np.float32) for i in range(4)}
  outputs = [Output(n, a.shape, a.dtype, "linear", ()) for n, a in arrays.items()]
  root = pathlib.Path(__file__).resolve().parents[3]
  command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "out"), kind.__name__]
  with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as child:
    assert child.stdout.readline() == "written\n"
    with pytest.raises(ConfigError, match="another process is merging into it"):
      make(tmp_path / "out", kind, outputs)
    child.send_signal(signal.SIGKILL)
    child.wait()
  with make(tmp_path / "out", kind, outputs) as sink:
    assert sink.done() == {"t0", "t1"}
    write(sink, ["t2", "t3"], arrays)
    sink.finish()
  assert_holds(tmp_path / "out", arrays)


def journal(directory):
  return directory.parent / f".{directory.name}.wam-partial" / "journal"


def interrupted(directory):
  with make(directory) as sink:
    write(sink, ["embed", "scale"])
  return journal(directory)


def test_a_torn_last_line_does_not_count(tmp_path):
  path = interrupted(tmp_path / "out")
  path.write_bytes(path.read_bytes() + b'"layers/0')
  with make(tmp_path / "out") as sink:
    assert sink.done() == {"embed", "scale"}
    write(sink, ["layers/0/up"])
  with make(tmp_path / "out") as sink:
    assert sink.done() == {"embed", "scale", "layers/0/up"}


@pytest.mark.parametrize(
  ("harm", "why"),
  [
    (lambda j: j.write_bytes(j.read_bytes() + b"garbage\n"), "journal is damaged"),
    (lambda j: j.write_bytes(j.read_bytes() + b'"no output"\n'), "journal is damaged"),
    (lambda j: j.write_bytes(j.read_bytes() + b"3\n"), "journal is damaged"),
    (lambda j: j.write_bytes(b"[]\n"), "another recipe"),
    (lambda j: (j.parent / "new" / "model.safetensors").unlink(), "missing or damaged"),
    (lambda j: os.truncate(j.parent / "new" / "model.safetensors", 500), "missing or damaged"),
    (lambda j: (j.parent / "new" / "model.safetensors").write_bytes(bytes(999)), "missing or"),
  ],
)
def test_a_damaged_rest_is_thrown_away(tmp_path, harm, why):
  harm(interrupted(tmp_path / "out"))
  with make(tmp_path / "out") as sink:
    assert sink.done() == frozenset()
    assert why in sink.discarded
    write(sink)
    sink.finish()
  assert_holds(tmp_path / "out")


def test_the_rest_of_another_merge_is_thrown_away(tmp_path):
  interrupted(tmp_path / "out")
  with make(tmp_path / "out", fingerprint="two") as sink:
    assert sink.done() == frozenset()
    assert "other inputs" in sink.discarded
    write(sink, ["embed"])
  with make(tmp_path / "out", OrbaxSink, fingerprint="two") as sink:
    assert sink.done() == frozenset()
    assert "other inputs" in sink.discarded


def test_after_a_crash_of_the_machine_only_what_was_flushed_counts(tmp_path, monkeypatch):
  out = tmp_path / "out"
  monkeypatch.setattr(partial, "_boot", lambda: "first")
  with make(out) as sink:
    write(sink, ["embed"])
    monkeypatch.setattr(partial, "FLUSH_SECONDS", 0.0)
    write(sink, ["scale"])
    monkeypatch.setattr(partial, "FLUSH_SECONDS", 60.0)
    write(sink, ["layers/0/up"])
  with make(out) as sink:
    assert sink.resumed == 3
  monkeypatch.setattr(partial, "_boot", lambda: "second")
  with make(out) as sink:
    assert sink.done() == {"embed", "scale"}
    write(sink, ["layers/1/up"])
  with make(out) as sink:
    assert sink.done() == {"embed", "scale", "layers/1/up"}
  monkeypatch.setattr(partial, "_boot", lambda: "third")
  with make(out) as sink:
    assert sink.done() == {"embed", "scale"}


def test_two_merges_do_not_mix(tmp_path):
  with make(tmp_path / "out") as first:
    with pytest.raises(ConfigError, match="another process is merging into it"):
      make(tmp_path / "out")
    with pytest.raises(ConfigError, match="another process is merging into it"):
      make(tmp_path / "out", fingerprint="two")
    write(first)
    first.finish()
  assert_holds(tmp_path / "out")


def test_out_may_be_an_empty_directory_or_a_link_to_one(tmp_path):
  (tmp_path / "there").mkdir()
  (tmp_path / "link").symlink_to("there")
  with make(tmp_path / "link") as sink:
    write(sink)
    sink.finish()
  assert_holds(tmp_path / "there")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]


def test_out_that_holds_something_is_refused_before_anything_is_written(tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "precious").write_text("1")
  with pytest.raises(ConfigError, match=r"exists and is not empty.*--overwrite"):
    make(tmp_path / "out")
  with pytest.raises(ConfigError, match="is not a directory"):
    make(tmp_path / "out" / "precious", overwrite=True)
  with pytest.raises(ConfigError, match="can be made"):
    make("/")
  assert nothing_beside(tmp_path / "out")


@pytest.mark.parametrize("kind", SINKS)
def test_overwriting_replaces_everything_at_the_end(tmp_path, kind):
  out = tmp_path / "out"
  out.mkdir()
  (out / "model-00001-of-00007.safetensors").write_text("stale")
  with make(out, kind, overwrite=True) as sink:
    write(sink)
    assert [p.name for p in out.iterdir()] == ["model-00001-of-00007.safetensors"]
    sink.finish(EXTRA)
  assert_holds(out)
  assert nothing_beside(out)


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "precious").write_text("1")
  with make(out, overwrite=True) as sink:
    write(sink)
    out.rename(sink.partial / "old")
  with make(out, overwrite=True) as sink:
    assert (out / "precious").read_text() == "1"
    assert sink.done() == frozenset(ARRAYS)
    sink.finish()
  assert_holds(out)
  assert nothing_beside(out)


def test_out_that_appears_meanwhile_is_not_replaced(tmp_path):
  with make(tmp_path / "out") as sink:
    write(sink)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("1")
    with pytest.raises(ConfigError, match="not empty"):
      sink.finish()
  assert (tmp_path / "out" / "precious").exists()


@pytest.mark.parametrize("kind", SINKS)
def test_modes_are_those_that_the_umask_allows(tmp_path, kind):
  (tmp_path / "tokenizer.json").write_text("{}")
  (tmp_path / "tokenizer.json").chmod(0o600)
  before = os.umask(0o027)
  try:
    with make(
      tmp_path / "a" / "out", kind, **({} if kind is OrbaxSink else {"shard_bytes": 400})
    ) as sink:
      write(sink)
      sink.finish(EXTRA | {"tokenizer.json": tmp_path / "tokenizer.json"}, flush=True)
  finally:
    os.umask(before)
  out = tmp_path / "a" / "out"
  for path in [out, *out.iterdir()]:
    expected = 0o750 if path.is_dir() else 0o640
    assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_extra_files(tmp_path):
  (tmp_path / "merges.txt").write_text("a b")
  seen = []

  def manifest(directory):
    seen.extend(sorted(str(p.relative_to(directory)) for p in directory.rglob("*.*")))
    return b"hashes"

  with make(tmp_path / "out") as sink:
    write(sink)
    for name in ("../x", "/x", "a/../../x"):
      with pytest.raises(ValueError, match="leads out"):
        sink.finish({name: b""})
    sink.finish(
      {
        "templates/tool.jinja": b"{{ x }}",
        "merges.txt": tmp_path / "merges.txt",
        "manifest.json": manifest,
      }
    )
  assert seen == ["merges.txt", "model.safetensors", "templates/tool.jinja"]
  assert (tmp_path / "out" / "merges.txt").read_text() == "a b"
  assert (tmp_path / "out" / "manifest.json").read_text() == "hashes"


def test_too_little_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
  message = r"needs \d+ bytes \(.* GB\) on this disk, and 1000 \(0.0 GB\) are free"
  with pytest.raises(CannotWrite, match=message):
    make(tmp_path / "out")
  assert list(tmp_path.iterdir()) == []
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1400))
  make(tmp_path / "out").abandon()
  # What is preallocated already is not needed again.
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
  make(tmp_path / "out").abandon()
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1400))
  with pytest.raises(CannotWrite, match="needs"):
    make(tmp_path / "orbax", OrbaxSink)


def failing(number, times=1000, name="pwrite", monkeypatch=None):
  """Makes os.<name> fail with an error after so many calls."""
  whole, left = getattr(os, name), [times]

  def fail(*args):
    left[0] -= 1
    if left[0] < 0:
      raise OSError(number, os.strerror(number))
    return whole(*args)

  monkeypatch.setattr(os, name, fail)


def test_a_disk_that_fills_up_keeps_what_is_complete(tmp_path, monkeypatch):
  with make(tmp_path / "out") as sink, monkeypatch.context() as patch:
    write(sink, ["embed"])
    failing(errno.ENOSPC, 3, monkeypatch=patch)
    with pytest.raises(
      CannotWrite, match=r"disk is full; free some space.*kept in .*give the same"
    ):
      write(sink, ["layers/0/up"])
  with make(tmp_path / "out") as sink:
    assert sink.done() == {"embed"}
    write(sink, ARRAYS.keys() - sink.done())
    sink.finish()
  assert_holds(tmp_path / "out")


@pytest.mark.parametrize("name", ["posix_fallocate", "pwrite", "open"])
def test_a_disk_that_is_full_from_the_start(tmp_path, monkeypatch, name):
  with monkeypatch.context() as patch:
    failing(errno.ENOSPC, 0, name, patch)
    with pytest.raises(CannotWrite, match="could not be written: the disk is full"):
      make(tmp_path / "out")
  assert list(tmp_path.rglob("*.safetensors")) == []
  with make(tmp_path / "out") as sink:
    assert (sink.resumed, sink.discarded) == (0, None)


def test_too_many_open_files_give_the_lock_back(tmp_path, monkeypatch):
  make(tmp_path / "out").abandon()
  with monkeypatch.context() as patch:
    failing(errno.EMFILE, 1, "open", patch)
    with pytest.raises(CannotWrite, match="Too many open files"):
      make(tmp_path / "out")
  make(tmp_path / "out").abandon()


def test_a_full_disk_at_the_end_can_be_resumed(tmp_path, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with make(tmp_path / "out", OrbaxSink) as sink:
    write(sink)
    with pytest.raises(CannotWrite, match="disk is full"):
      sink.finish({"x": full})
  assert not (tmp_path / "out").exists()
  with make(tmp_path / "out", OrbaxSink) as sink:
    assert sink.done() == frozenset(ARRAYS)
    sink.finish()
  assert_holds(tmp_path / "out")


def test_file_systems_without_preallocation(tmp_path, monkeypatch):
  failing(errno.EOPNOTSUPP, 0, "posix_fallocate", monkeypatch)
  with make(tmp_path / "out") as sink:
    write(sink)
    sink.finish()
  monkeypatch.delattr(os, "posix_fallocate")
  with make(tmp_path / "out", overwrite=True) as sink:
    write(sink)
    sink.finish()
  assert_holds(tmp_path / "out")


def test_a_directory_that_may_not_be_written_to(tmp_path, monkeypatch):
  failing(errno.EACCES, 0, "mkdir", monkeypatch)
  with pytest.raises(CannotWrite, match="could not be written: Permission denied; mend that"):
    make(tmp_path / "out")


def test_short_writes_are_put_together(tmp_path, monkeypatch):
  whole = os.pwrite
  with make(tmp_path / "out") as sink, monkeypatch.context() as patch:
    patch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:5], at))
    write(sink)
    sink.finish()
  assert_holds(tmp_path / "out")


def test_writing_beside_a_tensor_or_in_another_dtype_is_a_mistake(tmp_path):
  with make(tmp_path / "out") as sink:
    for start, values in [
      (0, np.ones(2, np.float16)),
      (1, np.ones(1, np.float16)),
      (-1, np.ones(1, np.float16)),
      (0, np.ones(1, np.float32)),
    ]:
      with pytest.raises(ValueError, match=r"'scale'.*do not fit 1 of float16"):
        sink.write("scale", start, values)


def test_names_that_orbax_cannot_hold(tmp_path):
  names = ["a", "a/b", "c.d", "c/d", "e//f"]
  outputs = [Output(n, (1,), np.dtype(np.float32), "linear", ()) for n in names]
  outputs.append(Output("g", (0,), np.dtype(np.float32), "linear", ()))
  with pytest.raises(ConfigError) as error:
    make(tmp_path / "out", OrbaxSink, outputs)
  for part in (
    "'a/b' lies inside the tensor 'a'",
    "'c.d' and 'c/d' would be stored under one name",
    "'e//f' has an empty part",
    "'g' has no entries",
  ):
    assert part in str(error.value)
  with pytest.raises(ConfigError, match="occur twice: a"):
    make(tmp_path / "out", OrbaxSink, [*outputs[:1], *outputs[:1]])
  assert list(tmp_path.iterdir()) == []
