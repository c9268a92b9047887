import json

import numpy as np
import pytest

from wam.checkpoints import records
from wam.core.errors import BadData, MissingFile


def write(tmp_path, *steps, stage="a"):
  log = records.Records(tmp_path)
  for step in steps:
    log.append(kind="metric", stage=stage, step=step, loss=step / 10)
  log.close()


def steps(tmp_path, stage="a"):
  return [r["step"] for r in records.read(tmp_path) if r["stage"] == stage]


def test_appended_records_are_read_back(tmp_path):
  log = records.Records(tmp_path)
  log.append(
    kind="point",
    stage="x",
    step=np.int32(3),
    scores={"facts": np.float32(0.5)},
    values=np.arange(2),
  )
  expected = {"kind": "point", "stage": "x", "step": 3, "scores": {"facts": 0.5}, "values": [0, 1]}
  # Before closing: every line is flushed.
  assert records.read(tmp_path) == [expected]
  log.close()
  log.close()


def test_torn_last_line_is_left_out_and_truncated(tmp_path):
  write(tmp_path, 1, 2)
  path = tmp_path / records.FILE_NAME
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"kind": "metric", "st')
  assert steps(tmp_path) == [1, 2]
  records.Records(tmp_path).close()
  assert path.read_bytes() == whole
  path.write_bytes(b'{"kin')
  records.Records(tmp_path).close()
  assert path.read_bytes() == b""


def test_dropping_is_by_stage_and_step(tmp_path):
  write(tmp_path, 1, 2, 3)
  write(tmp_path, 2, 3, stage="b")
  log = records.Records(tmp_path)
  assert log.drop_after("a", 1) == 2
  assert log.drop_after("a", 1) == 0
  log.append(kind="metric", stage="a", step=2, loss=9.0)
  log.close()
  assert steps(tmp_path) == [1, 2]
  assert steps(tmp_path, "b") == [2, 3]
  assert [p.name for p in tmp_path.iterdir()] == [records.FILE_NAME]


def test_inactive_records_touch_nothing(tmp_path):
  log = records.Records(tmp_path / "absent", active=False)
  log.append(kind="metric", stage="a", step=1)
  log.sync()
  assert log.drop_after("a", 0) == 0
  log.close()
  assert not (tmp_path / "absent").exists()


def test_bad_lines_are_named(tmp_path):
  path = tmp_path / records.FILE_NAME
  path.write_text('{"a": 1}\nnonsense\n')
  with pytest.raises(BadData, match=r"records.jsonl:2: not JSON"):
    records.read(tmp_path)
  path.write_text("[1]\n")
  with pytest.raises(BadData, match=r"records.jsonl:1: expected a JSON object, found list"):
    records.read(path)
  with pytest.raises(MissingFile, match="expected the workdir of a run"):
    records.read(tmp_path / "absent")


def test_times_are_told_by_their_names():
  record = {
    "time": 1,
    "seconds": 2,
    "save_seconds": 3,
    "tokens_per_second": 4,
    "loss": 5,
    "timeless": 6,
  }
  assert records.without_times(record) == {"loss": 5, "timeless": 6}


def test_atomic_writing_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  records.write_atomically(path, "old")

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(records.os, "fsync", full)
  with pytest.raises(records.CannotWrite, match=r"could not write config.json .* No space left"):
    records.write_atomically(path, json.dumps({"new": 1}))
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]
