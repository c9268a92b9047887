"""Ledgers: written and read, updated by claim, and refused where they are malformed."""

import base64
import dataclasses
import json

import pytest

from tests.conftest import REPOSITORY
from wam.cli.main import main
from wam.core.errors import BadData, MissingFile
from wam.report import ledgers
from wam.report.ledgers import Entry

ENTRY = Entry(
  claim="TAX-1",
  paper="the tax rises, figure 12",
  measured="0.3 ± 0.1 | 4 seeds\nof 5",
  verdict="reproduced",
  command="python -m experiments.x",
  hardware="2 cores",
  seeds=(0, 1),
)


def test_what_is_written_is_read(tmp_path):
  other = dataclasses.replace(ENTRY, claim="TAX-2", verdict="inconclusive", seeds=())
  ledgers.write(tmp_path, [ENTRY, other])
  assert ledgers.read(tmp_path) == [ENTRY, other] == ledgers.read(tmp_path / "ledger.json")
  assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
  assert json.loads((tmp_path / "ledger.json").read_text())[0]["seeds"] == [0, 1]


def test_update_replaces_by_claim_and_keeps_the_order(tmp_path):
  other = dataclasses.replace(ENTRY, claim="TAX-2")
  third = dataclasses.replace(ENTRY, claim="TAX-3")
  ledgers.update(tmp_path / "ledger.json", [ENTRY, other])
  changed = dataclasses.replace(ENTRY, verdict="not reproduced")
  assert ledgers.update(tmp_path, [third, changed]) == [changed, other, third]
  assert ledgers.read(tmp_path) == [changed, other, third]


def test_table_is_one_row_an_entry():
  rows = ledgers.table([ENTRY]).splitlines()
  assert len(rows) == 3
  assert rows[2] == (
    "| TAX-1 | the tax rises, figure 12 | 0.3 ± 0.1 \\| 4 seeds of 5 | reproduced |"
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"verdict": "reproducd"}, "Did you mean 'reproduced'"),
    ({"paper": " "}, "'paper' should be a text"),
    ({"hardware": 3}, "'hardware' should be a text"),
    ({"seeds": [0.5]}, "'seeds' should be whole numbers"),
    ({"seeds": [True]}, "'seeds' should be whole numbers"),
    ({"seeds": 3}, "'seeds' should be whole numbers"),
  ],
)
def test_entries_are_checked(changes, message):
  with pytest.raises(BadData, match=message):
    dataclasses.replace(ENTRY, **changes)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "not JSON"),
    ("{}", "expected a JSON list"),
    ("[3]", "entry 1: expected a JSON object"),
    ('[{"claim": "a", "comand": "b"}]', "missing paper, .*unknown 'comand' Did you mean 'command'"),
  ],
)
def test_malformed_files_are_refused(tmp_path, text, message):
  (tmp_path / "ledger.json").write_text(text)
  with pytest.raises(BadData, match=message):
    ledgers.read(tmp_path)


def test_one_claim_has_one_verdict(tmp_path):
  with pytest.raises(BadData, match="several entries for TAX-1"):
    ledgers.write(tmp_path, [ENTRY, ENTRY])
  assert not (tmp_path / "ledger.json").exists()
  (tmp_path / "ledger.json").write_text(json.dumps([dataclasses.asdict(ENTRY)] * 2))
  with pytest.raises(BadData, match="several entries"):
    ledgers.read(tmp_path)
  with pytest.raises(BadData, match="several entries"):
    ledgers.update(tmp_path / "new.json", [ENTRY, ENTRY])


def test_a_missing_ledger_is_named(tmp_path):
  with pytest.raises(MissingFile, match=r"no ledger at .*ledger\.json"):
    ledgers.read(tmp_path)


def test_shipped_ledgers_are_whole():
  """Each can be read, holds a verdict, and stands beside a README."""
  paths = sorted((REPOSITORY / "experiments").glob("*/ledger.json"))
  assert (REPOSITORY / "experiments/proposition_4_1/ledger.json") in paths
  for path in paths:
    assert ledgers.read(path), path
    assert path.with_name("README.md").stat().st_size > 0


def test_the_page_holds_every_claim_and_picture(tmp_path, capsys):
  second = dataclasses.replace(ENTRY, claim="a < b & c", verdict="inconclusive")
  ledgers.write(tmp_path, [ENTRY, second])
  (tmp_path / "results").mkdir()
  (tmp_path / "results/the_front.png").write_bytes(b"a picture")
  assert main(["report", str(tmp_path)]) == 0
  assert "a < b & c" in capsys.readouterr().out
  page = (tmp_path / "report/index.html").read_text()
  assert "a &lt; b &amp; c" in page and ENTRY.measured in page
  assert 'alt="the front"' in page and base64.b64encode(b"a picture").decode() in page
  assert ">inconclusive</span>" in page
  assert f"2 claims: 1 {ENTRY.verdict}, 1 inconclusive." in page
