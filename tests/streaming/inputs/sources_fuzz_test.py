"""Malformed checkpoints of every kind, opened as a merge opens them: an error for the user, or reads within bounds."""

import collections
import json
import math
import random
import shutil
import struct

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.checkpoints import malformed
from tests.checkpoints.harmless import harmless
from wam.core.errors import BadCheckpoint, MissingFile, WamError
from wam.streaming.inputs.sources import open_source
from wam.streaming.plan import Output
from wam.streaming.results.sinks import OrbaxSink, SafetensorsSink

CASES = 600


def outcome(text):
  """What became of a checkpoint: "" if it was opened and every tensor read, the message if it was refused."""
  with harmless():
    try:
      source = open_source(text)
    except WamError as error:
      assert str(error).isprintable()
      return str(error)
    try:
      assert all(path.is_file() for path in source.files)
      for name, reader in source.tensors.items():
        assert reader.name == name
        # Orbax leaves out chunks, so that a large array may take no place.
        entries = min(math.prod(reader.shape), 10**6)
        values = reader.read(0, entries)
        assert (values.shape, values.dtype) == ((entries,), reader.dtype)
        assert reader.read(entries, entries).size == 0
    except WamError as error:
      return str(error)
    finally:
      source.close()
  return ""


def kind(message, directory):
  return message.replace(str(directory), "").partition(": ")[2][:24]


def run(cases, make, tmp_path, *, reasons, accepted):
  """Makes and opens so many cases; fails unless they reach as many different ends as is expected."""
  found, read = collections.Counter(), 0
  for case in range(cases):
    directory = tmp_path / f"case-{case}"
    directory.mkdir()
    text, done = make(random.Random(f"{make.__name__}/{case}"), directory)
    try:
      message = outcome(text)
    except BaseException as error:
      error.add_note(f"case {case} of {make.__name__}: {done}")
      raise
    read += not message
    found[kind(message, tmp_path)] += 1
    shutil.rmtree(directory)
  assert accepted[0] < read / cases < accepted[1], read
  assert len(found) >= reasons, found


def test_directories(tmp_path):
  def directory(random, directory):
    done = malformed.make_directory(random, directory)
    if random.random() < 0.2:
      malformed.put_something(random, directory / "config.json")
    return directory, done

  (tmp_path / "outside.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
  run(CASES, directory, tmp_path, reasons=10, accepted=(0.03, 0.5))


def test_single_files(tmp_path):
  def single_file(random, directory):
    done, content = malformed.file_bytes(random)
    (directory / "x.safetensors").write_bytes(content)
    return directory / "x.safetensors", done

  run(CASES, single_file, tmp_path, reasons=20, accepted=(0.05, 0.5))


def write_tensors(path, tensors):
  header, data = {}, b""
  for name, array in tensors.items():
    header[name] = {
      "dtype": "F32",
      "shape": list(array.shape),
      "data_offsets": [len(data), len(data) + array.nbytes],
    }
    data += array.tobytes()
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)


CONFIG_KEYS = (
  "peft_type",
  "r",
  "lora_alpha",
  "rank_pattern",
  "alpha_pattern",
  "bias",
  "init_lora_weights",
  "use_rslora",
  "use_dora",
  "fan_in_fan_out",
  "target_modules",
  "layers_pattern",
)


PATTERNS = ["q", ".*", "(", "[", "q|k", "\\", "", "^m", "(?P<q>q", "x{99999999999}"]


def change_a_value(random, config, tensors):
  config[random.choice(CONFIG_KEYS)] = malformed.value(random)


def set_a_pattern(random, config, tensors):
  key = random.choice(["rank_pattern", "alpha_pattern"])
  config[key] = {random.choice(PATTERNS): malformed.value(random)}


def drop_a_key(random, config, tensors):
  config.pop(random.choice(list(config)))


def add_a_key(random, config, tensors):
  config[random.choice(["x\0", "use_x", "x_config", "lora_bias"])] = malformed.value(random)


def drop_a_tensor(random, config, tensors):
  tensors.pop(random.choice(list(tensors)))
  tensors.setdefault("rest", np.zeros(1, np.float32))


def add_a_tensor(random, config, tensors):
  name = random.choice(list(tensors))
  names = [*malformed.NAMES, "base_model.model.q.weight", f"{name}x"]
  tensors[random.choice(names)] = tensors[name]


def change_a_shape(random, config, tensors):
  shape = random.choice([(), (0,), (3, 0), (2, 3), (1, 1, 1), (7,)])
  tensors[random.choice(list(tensors))] = np.zeros(shape, np.float32)


ADAPTER_CHANGES = [
  change_a_value,
  set_a_pattern,
  drop_a_key,
  add_a_key,
  drop_a_tensor,
  add_a_tensor,
  change_a_shape,
]


def test_adapters(tmp_path):
  base = tmp_path / "base"
  base.mkdir()
  write_tensors(
    base / "model.safetensors", {f"{x}.weight": np.ones((4, 3), np.float32) for x in "qk"}
  )

  def adapter(random, directory):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q", "k"]}
    tensors = {}
    for x in "qk":
      tensors[f"base_model.model.{x}.lora_A.weight"] = np.ones((2, 3), np.float32)
      tensors[f"base_model.model.{x}.lora_B.weight"] = np.ones((4, 2), np.float32)
    done = []
    for change in random.choices(ADAPTER_CHANGES, k=random.choice([0, 1, 1, 2])):
      change(random, config, tensors)
      done.append((change.__name__, str(config)))
    write_tensors(directory / "adapter_model.safetensors", tensors)
    text = json.dumps(config).encode()
    if random.random() < 0.2:
      change = random.choice(malformed.TEXT_CHANGES)
      text = change(random, text)
      done.append(change.__name__)
    (directory / "adapter_config.json").write_bytes(text)
    if random.random() < 0.15:
      name = random.choice(["adapter_config.json", "adapter_model.safetensors"])
      malformed.put_something(random, directory / name)
      done.append("something else there")
    return f"{base}+{directory}", done

  (tmp_path / "outside.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
  run(CASES, adapter, tmp_path, reasons=15, accepted=(0.1, 0.6))


@pytest.mark.parametrize(
  "text", ["a\0b", "\ud800", "x" * 5000, "", "+", "a+", "+a", "/dev/null", "/dev/null+x", "/dev/zero",
           "a/b", "~", "/proc/self/mem", "x" * 300 + "+" + "y" * 300]
)  # fmt: skip
def test_odd_names_of_checkpoints_are_errors_for_the_user(text, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with harmless(), pytest.raises((BadCheckpoint, MissingFile)):
    open_source(text)


ODD_NAMES = [*malformed.NAMES, "model.safetensors.index.json", "a/../../b", "sub/../x", ".", "./x"]


@pytest.mark.parametrize("sink", [SafetensorsSink, OrbaxSink])
def test_names_of_tensors_never_become_paths(tmp_path, sink):
  names = ODD_NAMES
  if sink is OrbaxSink:
    # It has no place for names with an empty part, nor for a tensor inside another one, and says so.
    names = [n for n in names if all(n.split("/")) and n not in ("a", ".", "..")]
  outputs = [Output(name, (1,), np.dtype(np.float32), "linear", ()) for name in names]
  (tmp_path / "in").mkdir()
  with sink(tmp_path / "in" / "out", outputs, fingerprint="x") as written:
    for number, name in enumerate(names):
      written.write(name, 0, np.full(1, number, np.float32))
      written.complete(name)
    written.finish()
  assert [path.name for path in tmp_path.iterdir()] == ["in"]
  assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]
  if sink is SafetensorsSink:
    assert [path.name for path in (tmp_path / "in" / "out").iterdir()] == ["model.safetensors"]
  source = open_source(tmp_path / "in" / "out")
  assert {name: reader.read(0, 1)[0] for name, reader in source.tensors.items()} == {
    name: number for number, name in enumerate(names)
  }
  source.close()


def change_json(random, content):
  """Replaces something somewhere in a JSON text."""
  try:
    data = json.loads(content)
  except ValueError:
    return content
  todo, places = [data], []
  while todo:
    node = todo.pop()
    if not isinstance(node, dict | list):
      continue
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
      places.append((node, key))
      todo.append(value)
  if places:
    node, key = random.choice(places)
    names = [*malformed.NAMES, *malformed.HARMFUL_NAMES, "../..", "a/../../b"]
    node[key] = random.choice([malformed.value(random), random.choice(names), 10**7, 2**40])
  return json.dumps(data).encode()


@pytest.mark.parametrize("database", [True, False])
def test_orbax_checkpoints(tmp_path, database):
  tree = {"layers": {"0": {"w": np.ones((3, 4), np.float32)}}, "norm": np.ones(5, np.float32)}
  whole = tmp_path / "whole"
  ocp.PyTreeCheckpointer(use_ocdbt=database).save(whole, tree)
  (tmp_path / "outside.safetensors").write_bytes(b"")

  def orbax(random, directory):
    # A name of its own, as what TensorStore has read of a directory is remembered.
    path, done = directory / "checkpoint", []
    shutil.copytree(whole, path)
    for _ in range(random.choice([1, 1, 2])):
      files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size < 10**6)
      file = random.choice(files)
      texts = [p for p in files if p.name in ("_METADATA", ".zarray")]
      kind = random.choice(["json", "json", "text", "bits", "put"])
      done.append((kind, str(file.relative_to(path))))
      if kind == "json" and texts:
        file = random.choice(texts)
        file.write_bytes(change_json(random, file.read_bytes()))
      elif kind == "text":
        change = random.choice(
          [malformed.cut_the_text, malformed.put_bytes, malformed.repeat_a_key]
        )
        file.write_bytes(change(random, file.read_bytes()))
      elif kind == "bits":
        file.write_bytes(malformed.flip_bits(random, file.read_bytes()))
      else:
        malformed.put_something(random, file)
        if not database and file.is_file() and file.stat().st_size > 10**6:
          file.unlink()  # TensorStore reads the file of a chunk as a whole, and ends where memory does
    return path, done

  run(150, orbax, tmp_path, reasons=8, accepted=(0.1, 0.6))
