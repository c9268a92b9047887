"""Reading a run directory: what is refused, by name and line, and what is forgiven."""

import json

import pytest

from wam.core.errors import BadData, MissingFile
from wam.report.records import finite, read_run


def test_reads_records_config_and_command(records, write_run):
  run = read_run(write_run(records))
  assert run.records == records
  assert run.name == "demo"
  assert run.config["rsf"]["iterations"] == 12
  assert run.command.startswith("wam run")
  assert run.notices == []


def test_a_missing_directory_or_file_is_named(tmp_path):
  with pytest.raises(MissingFile, match="nowhere"):
    read_run(tmp_path / "nowhere")
  with pytest.raises(MissingFile, match=r"records\.jsonl"):
    read_run(tmp_path)


def test_no_records_yet(write_run):
  with pytest.raises(BadData, match="no records"):
    read_run(write_run([]))


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{'kind': 1}", "not JSON"),
    ("\x00\x00\x00", "not JSON"),
    ("[1, 2]", "expected a JSON object"),
    ('{"stage": "sft"}', "kind"),
    ('{"kind": "metric", "stage": "sft"}', "'step'"),
    ('{"kind": "point", "family": "init"}', "'label'"),
    ('{"kind": "point", "family": "init", "label": "a", "scores": [1]}', "'scores'"),
    ('{"kind": "front", "family": "a", "x": "b", "y": "c", "hypervolume": true}', "a number"),
  ],
)
def test_a_bad_line_is_named_by_its_number(records, write_run, line, message):
  workdir = write_run(records)
  path = workdir / "records.jsonl"
  lines = path.read_text().splitlines()
  lines[6] = line
  path.write_text("\n".join(lines) + "\n")
  with pytest.raises(BadData, match=r"records\.jsonl:7: ") as caught:
    read_run(workdir)
  assert message in str(caught.value)


def test_a_line_that_is_being_written_is_ignored_with_a_notice(records, write_run):
  workdir = write_run(records)
  with (workdir / "records.jsonl").open("a") as file:
    file.write('{"kind": "metric", "sta')
  run = read_run(workdir)
  assert run.records == records
  assert "incomplete" in run.notices[0]


def test_a_missing_config_is_noticed_and_a_broken_one_refused(records, write_run):
  workdir = write_run(records, None)
  assert "config.json is missing" in read_run(workdir).notices[0]
  (workdir / "config.json").write_text("{")
  with pytest.raises(BadData, match=r"config\.json"):
    read_run(workdir)


def test_finite_takes_numbers_only():
  assert finite(json.loads("2")) == 2.0
  assert [finite(v) for v in (True, "1", None, json.loads("NaN"), float("inf"))] == [None] * 5
