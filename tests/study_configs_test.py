"""The shipped configs of WARM, WARP, Rewarded Soups and CLP: what they ask for can be done, and at toy size it is."""

import pytest

from tests.configs_test import CONFIGS, OWN
from tests.conftest import REPOSITORY
from tests.toys import OVERRIDES
from wam.checkpoints import records
from wam.cli import main as cli

FOLDER = REPOSITORY / "configs"
SHIPPED = [str(path.relative_to(FOLDER)) for path in CONFIGS if path not in OWN]
# And their variants, "FILE:NAME".
EVERY = sorted({*SHIPPED, *(name for name in OVERRIDES if name.partition(":")[0] in SHIPPED)})


@pytest.fixture(autouse=True)
def data(request, monkeypatch):
  if "stories" in request.node.callspec.id:
    monkeypatch.setenv("WAM_DATA", str(request.getfixturevalue("data_dir")))


@pytest.mark.parametrize("name", EVERY)
def test_as_shipped_it_passes_all_checks(name, passes_all_checks):
  """Keys, values, data and model directory; smaller data, where they are invented."""
  fewer = [o for o in OVERRIDES[name] if ".problem.num_" in o]
  assert passes_all_checks("--config", str(FOLDER / name), *fewer)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_at_toy_size_it_runs_to_its_report(name, tmp_path):
  workdir = tmp_path / "run"
  arguments = ["--config", str(FOLDER / name), *OVERRIDES[name], "--workdir", str(workdir)]
  assert cli.main(["run", *arguments, "--quiet"]) == 0
  found = records.read(workdir)
  assert any(r["kind"] == "measurement" for r in found)
  assert (workdir / "report" / "index.html").stat().st_size > 10**5
  assert any((workdir / "models").iterdir())
  # Started again there is nothing left to do.
  before = [records.without_times(r) for r in found]
  assert cli.main(["run", *arguments, "--quiet"]) == 0
  assert len(records.read(workdir)) == len(before)
