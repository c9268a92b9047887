import itertools
import json

import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError, MissingFile
from wam.data import sources
from wam.data.prompts import load_prompts


@pytest.fixture
def folder(tmp_path):
  lines = [json.dumps({"prompt": f"p{i}"}) for i in range(10)]
  (tmp_path / "sub").mkdir()
  (tmp_path / "sub/prompts.jsonl").write_text("\n".join(lines))
  return tmp_path


def test_relative_paths(folder, monkeypatch):
  monkeypatch.delenv("WAM_DATA", raising=False)
  spec = {"path": "sub/prompts.jsonl", "hint": "Make one with a script."}
  with pytest.raises(ConfigError, match=r"pass data_dir.*WAM_DATA\. Make one with a script\."):
    load_prompts(spec)
  assert len(load_prompts(spec | {"data_dir": str(folder)})) == 10
  monkeypatch.setenv("WAM_DATA", str(folder))
  assert len(load_prompts(spec)) == 10
  assert len(load_prompts(spec | {"data_dir": None})) == 10
  monkeypatch.setenv("WAM_DATA", "/nonexistent")
  assert len(load_prompts(spec | {"data_dir": str(folder)})) == 10  # the config comes first
  assert len(load_prompts({"path": str(folder / "sub/prompts.jsonl")})) == 10


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("sub/prompt.jsonl", r"does not exist\. Did you mean 'prompts\.jsonl' in .*sub\? Ask Ann"),
    ("subs/x/prompts.jsonl", "Did you mean 'sub'"),
    ("other", "There is no 'other' in .*, which holds: sub"),
  ],
)
def test_missing_file_names_what_is_near(folder, path, message):
  with pytest.raises(MissingFile, match=message):
    load_prompts({"path": path, "data_dir": str(folder), "hint": "Ask Ann"})


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"path": "x", "spilt": "[:1]"}, "unknown key 'spilt'. Did you mean 'split'"),
    ({"path": "x", "fields": {"promt": "q"}}, "'promt' is not a field here. Did you mean 'prompt'"),
    ({"pth": "x"}, "Did you mean 'path'"),
    ({"hint": "Try there."}, r"'path' is missing.*Try there\."),
    ("x.jsonl", "expected a dict"),
  ],
)
def test_misspelt_specs(spec, message):
  with pytest.raises(ConfigError, match=message):
    load_prompts(spec)


def test_config_dict_as_spec(folder):
  config_dict = pytest.importorskip("ml_collections").config_dict
  spec = config_dict.ConfigDict(
    {"path": "sub/prompts.jsonl", "data_dir": str(folder), "fields": {"prompt": "prompt"}}
  )
  spec.lock()
  assert len(load_prompts(spec)) == 10


@pytest.mark.parametrize("rows", [1, 3, 7, 10, 99, 1000])
@pytest.mark.parametrize("cuts", [(0, 80, 90, 100), (0, 33, 67, 100), (0, 0.5, 99.5, 100)])
def test_percentages_cover_everything_once(rows, cuts):
  slices = [f"{a}%:{b}%" for a, b in itertools.pairwise(cuts)]
  bounds = [sources.slice_bounds(s, rows) for s in slices]
  assert bounds[0][0] == 0 and bounds[-1][1] == rows
  assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
  for (low, high), (a, b) in zip(bounds, itertools.pairwise(cuts), strict=True):
    assert abs(low - rows * a / 100) <= 0.5 and abs(high - rows * b / 100) <= 0.5


@pytest.mark.parametrize("slice_", [":3", "3:", "-3:", ":-3", "2:5", ":", "10:", "-4:-2", "5:2"])
def test_row_numbers_are_as_in_python(slice_):
  low, high = (int(b) if b else None for b in slice_.split(":"))
  start, stop = sources.slice_bounds(slice_, 10)
  assert list(range(10))[start:stop] == list(range(10))[low:high]


@pytest.mark.parametrize(
  ("split", "message"),
  [
    ("[:11]", "11 is out of range; there are 10 rows"),
    ("[:110%]", "110% is out of range"),
    ("[:half]", "'half' is neither"),
    ("[:1.5]", "neither a row number"),
    ("[3]", "not understood"),
    ("[1:2", "not understood"),
    (":80%", "not understood"),
    ("train", "without named splits"),
  ],
)
def test_bad_splits(folder, split, message):
  with pytest.raises(ConfigError, match=message):
    load_prompts({"path": str(folder / "sub/prompts.jsonl"), "split": split})


def test_empty_slice(folder):
  with pytest.raises(BadData, match=r"empty, no rows in \[5:5\] \(of 10 in all\)"):
    load_prompts({"path": str(folder / "sub/prompts.jsonl"), "split": "[5:5]"})


def test_shuffled_slices_are_disjoint_and_deterministic(folder):
  def part(split, seed=1):
    path = str(folder / "sub/prompts.jsonl")
    return load_prompts({"path": path, "split": split, "shuffle_seed": seed})

  parts = [part("[:60%]"), part("[60%:80%]"), part("[80%:]")]
  assert [len(p) for p in parts] == [6, 2, 2]
  together = list(itertools.chain(*parts))
  assert sorted(together) == [f"p{i}" for i in range(10)]
  assert together == part("[:]") != part("[:]", seed=2)
  assert part("[:]") != [f"p{i}" for i in range(10)]
  assert part("[:60%]") == parts[0]


def test_select_reads_only_the_slice():
  class Counting:
    read: list[int] = []  # noqa: RUF012

    def __len__(self):
      return 1000

    def __getitem__(self, index):
      self.read.append(index)
      return index

  source = sources.Source("x", shuffle_seed=0)
  chosen = sources.select(Counting(), source, ":5", "rows")
  assert len(chosen) == 5 == len(Counting.read) and len(np.unique(chosen)) == 5
