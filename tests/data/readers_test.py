"""Sources of rows that are not JSON lines: parquet, Hugging Face directories, TFDS; and damaged files."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from wam.core.errors import BadData, ConfigError, MissingFile, UnknownName
from wam.data import readers
from wam.data.items import load_answer_items
from wam.data.prompts import load_examples, load_prompts

TFDS_SCRIPT = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Fables(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.2.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small")]

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
      "number": np.int64, "prompt": tfds.features.Text(), "completion": tfds.features.Text(),
      "aliases": tfds.features.Sequence(tfds.features.Text())}))

  def _split_generators(self, manager):
    return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {"number": i, "prompt": f"Frage {i} \u00e9", "completion": f"c{i}", "aliases": ["x", f"y{i}"]}

Fables(data_dir=sys.argv[1], config="small", file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="session")
def fables(tmp_path_factory):
  """A TFDS data set written by TFDS itself as array_record, in a process of its own for its bars and threads."""
  directory = tmp_path_factory.mktemp("tfds")
  command = [sys.executable, "-W", "ignore", "-c", TFDS_SCRIPT, str(directory)]
  subprocess.run(command, check=True, capture_output=True, timeout=120)
  return str(directory)


def test_tfds_without_tensorflow(fables):
  spec = {"path": "tfds:fables/small:train", "data_dir": fables}
  examples = load_examples(spec)
  numbers = sorted(int(e.completion[1:]) for e in examples)
  assert numbers == list(range(20))  # TFDS shuffles what it writes, and loses none
  assert all(e.prompt == f"Frage {e.completion[1:]} é" for e in examples)
  assert "tensorflow" not in sys.modules


def test_tfds_slices(fables, monkeypatch):
  monkeypatch.setenv("WAM_DATA", fables)
  whole = load_prompts({"path": "tfds:fables/small:train"})
  assert load_prompts({"path": "tfds:fables/small:train[:25%]"}) == whole[:5]
  assert load_prompts({"path": "tfds:fables/small:train", "split": "[5:-2]"}) == whole[5:18]
  assert load_prompts({"path": "tfds:fables/small", "split": "train[:1]"}) == whole[:1]
  parts = [
    load_prompts({"path": "tfds:fables/small/1.2.0:train", "split": split, "shuffle_seed": 3})
    for split in ("[:70%]", "[70%:]")
  ]
  assert sorted(parts[0] + parts[1]) == sorted(whole) and parts[0] != whole[:14]
  fields = {"prompt": "prompt", "answer": "completion"}
  items = load_answer_items({"path": "tfds:fables/small:test", "fields": fields})
  assert {item.references for item in items} == {(f"c{i}", "x", f"y{i}") for i in range(3)}


@pytest.mark.parametrize(
  ("spec", "error", "message"),
  [
    ({"path": "tfds:fable/small:train"}, MissingFile, "There is no 'fable'|Did you mean 'fables'"),
    ({"path": "tfds:fables:train"}, MissingFile, "no version of a TFDS data set.*small"),
    ({"path": "tfds:fables/small:trian"}, UnknownName, "Did you mean 'train'"),
    ({"path": "tfds:fables/small"}, ConfigError, "has the splits .*: say which"),
    ({"path": "tfds:fables/small:train", "split": "test"}, ConfigError, "names a split already"),
    ({"path": "tfds:fables/small:train[:30]"}, ConfigError, "there are 20 rows"),
  ],
)
def test_tfds_refusals(fables, spec, error, message):
  with pytest.raises(error, match=message):
    load_prompts(spec | {"data_dir": fables})


def test_tfds_in_tfrecord_is_refused(fables, tmp_path):
  info = json.loads(
    (readers.pathlib.Path(fables) / "fables/small/1.2.0/dataset_info.json").read_text()
  )
  info["fileFormat"] = "tfrecord"
  copy = tmp_path / "fables"
  copy.mkdir()
  (copy / "dataset_info.json").write_text(json.dumps(info))
  features = readers.pathlib.Path(fables) / "fables/small/1.2.0/features.json"
  (copy / "features.json").write_text(features.read_text())
  with pytest.raises(BadData, match=r"tfrecord, which needs TensorFlow.*array_record"):
    load_prompts({"path": "tfds:fables:train", "data_dir": str(tmp_path)})


def parquet(path, rows):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_folder_of_parquet(tmp_path):
  rows = [{"prompt": f"p{i}", "completion": str(i)} for i in range(6)]
  (tmp_path / "data").mkdir()
  parquet(tmp_path / "data/train-00000-of-00002.parquet", rows[:4])
  parquet(tmp_path / "data/train-00001-of-00002.parquet", rows[4:])
  parquet(tmp_path / "data/test-00000-of-00001.parquet", rows[:1])
  (tmp_path / "README.md").write_text("# card")
  spec = {"path": str(tmp_path)}
  assert load_prompts(spec | {"split": "train"}) == [row["prompt"] for row in rows]
  assert load_prompts(spec | {"split": "train[50%:]"}) == ["p3", "p4", "p5"]
  assert load_prompts({"path": str(tmp_path / "data/test-00000-of-00001.parquet")}) == ["p0"]
  with pytest.raises(ConfigError, match="has the splits test, train: say which"):
    load_prompts(spec)
  with pytest.raises(UnknownName, match="Did you mean 'train'"):
    load_prompts(spec | {"split": "trains"})
  with pytest.raises(BadData, match=r"train-00000-of-00002\.parquet, row 1: no field 'promt'"):
    load_prompts(spec | {"split": "train", "fields": {"prompt": "promt"}})
  damaged = tmp_path / "cut.parquet"
  damaged.write_bytes((tmp_path / "data/test-00000-of-00001.parquet").read_bytes()[:-9])
  with pytest.raises(BadData, match="cannot be read as parquet"):
    load_prompts({"path": str(damaged)})


def test_saved_hugging_face_dataset(tmp_path):
  datasets = pytest.importorskip("datasets", reason="the optional package datasets is absent")
  made = datasets.Dataset.from_list([{"prompt": f"p{i}", "n": i} for i in range(5)])
  made.save_to_disk(tmp_path / "one")
  datasets.DatasetDict({"train": made, "test": made.select([4])}).save_to_disk(tmp_path / "two")
  assert load_prompts({"path": str(tmp_path / "one"), "split": "[1:3]"}) == ["p1", "p2"]
  assert load_prompts({"path": str(tmp_path / "two"), "split": "test"}) == ["p4"]
  with pytest.raises(ConfigError, match="has no splits; leave out 'train'"):
    load_prompts({"path": str(tmp_path / "one"), "split": "train"})
  with pytest.raises(UnknownName, match="Did you mean 'test'"):
    load_prompts({"path": str(tmp_path / "two"), "split": "tset"})


def test_saved_dataset_without_the_package(tmp_path, monkeypatch):
  (tmp_path / "dataset_info.json").write_text("{}")
  monkeypatch.setitem(sys.modules, "datasets", None)  # importing it now raises ImportError
  with pytest.raises(ConfigError, match="pip install datasets"):
    load_prompts({"path": str(tmp_path)})


def test_json_list_and_compression(tmp_path):
  rows = [{"prompt": "a\u2028b"}, {"prompt": "c"}]
  (tmp_path / "x.json").write_text(json.dumps(rows))
  lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
  with gzip.open(tmp_path / "x.jsonl.gz", "wt", encoding="utf-8") as file:
    file.write("\ufeff" + lines + "\n\n")
  for name in ("x.json", "x.jsonl.gz"):
    assert load_prompts({"path": name, "data_dir": str(tmp_path)}) == ["a\u2028b", "c"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("x.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', r"x\.jsonl, line 3: not JSON"),
    ("x.jsonl", b'{"prompt": "a"}\n[1]\n', r"line 2: expected a JSON object, found list \[1\]"),
    ("x.jsonl", b'{"prompt": "a"}\n{"pompt": "b"}', r"line 2: no field 'prompt' .*mean 'pompt'"),
    ("x.jsonl", b'{"prompt": 3}', r"line 1: field 'prompt' should be a string, found int 3"),
    ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}', r"line 2: not UTF-8 text \(byte 0xe9\)"),
    ("x.jsonl", b"\n\n", r"x\.jsonl: empty, no rows"),
    ("x.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-12], "cannot be unpacked"),
    ("x.jsonl.gz", b'{"prompt": "a"}', "no gzip file"),
    ("x.json", b'{"prompt": "a"}', "expected a JSON list of objects"),
    ("x.json", b'{"prompt": "a"}\n{}', r"belongs in a file called \.jsonl"),
    ("x.txt.gz", gzip.compress(b"one\ntwo\xff", mtime=0), r"x\.txt\.gz, line 2: not UTF-8"),
  ],
)
def test_damaged_files(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(BadData, match=message):
    load_prompts({"path": str(tmp_path / name)})


def test_unknown_kind_of_file_and_empty_folder(tmp_path):
  (tmp_path / "x.xlsx").write_text("")
  with pytest.raises(ConfigError, match=r"\.jsonl.*this is '\.xlsx'"):
    load_prompts({"path": str(tmp_path / "x.xlsx")})
  with pytest.raises(MissingFile, match=r"no data files .*x\.xlsx"):
    load_prompts({"path": str(tmp_path)})


def test_records_know_numbers_from_booleans():
  record = readers.Record({"n": True, "l": ["a", 1]}, "f, line 1")
  with pytest.raises(BadData, match="whole number, found bool true"):
    record.get("n", "whole number")
  with pytest.raises(BadData, match="list of strings, found list"):
    record.get("l", "list")
  assert readers._plain({"a": np.array([b"x"]), "b": np.int64(3)}, "") == {"a": ["x"], "b": 3}
