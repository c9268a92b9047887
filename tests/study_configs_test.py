"""The shipped configs of WARM, WARP, Rewarded Soups and CLP: what they ask for can be done, and at toy size it is."""

import pytest

from tests.configs_test import CONFIGS, OWN
from tests.conftest import REPOSITORY
from tests.toys import OVERRIDES
from wam.checkpoints import records
from wam.cli import main as cli

PATHS = [path for path in CONFIGS if path not in OWN]


def name_of(path):
  return str(path.relative_to(REPOSITORY / "configs"))


@pytest.fixture(autouse=True)
def data(request, monkeypatch):
  if "stories" in request.node.callspec.id:
    monkeypatch.setenv("WAM_DATA", str(request.getfixturevalue("data_dir")))


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_as_shipped_it_passes_all_checks(path, passes_all_checks):
  """Keys, values, data and model directory; smaller data, where they are invented."""
  fewer = [o for o in OVERRIDES[name_of(path)] if ".problem.num_" in o]
  assert passes_all_checks("--config", str(path), *fewer)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_at_toy_size_it_runs_to_its_report(path, tmp_path):
  workdir = tmp_path / "run"
  arguments = ["--config", str(path), *OVERRIDES[name_of(path)], "--workdir", str(workdir)]
  assert cli.main(["run", *arguments, "--quiet"]) == 0
  found = records.read(workdir)
  assert any(r["kind"] == "measurement" for r in found)
  assert (workdir / "report" / "index.html").stat().st_size > 10**5
  assert any((workdir / "models").iterdir())
  # Started again there is nothing left to do.
  before = [records.without_times(r) for r in found]
  assert cli.main(["run", *arguments, "--quiet"]) == 0
  assert len(records.read(workdir)) == len(before)
