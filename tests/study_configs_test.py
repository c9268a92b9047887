"""The shipped configs of WARM, WARP, Rewarded Soups and CLP: what they ask for can be done, and at toy size it is."""

import importlib

import pytest

from tests.configs_test import CONFIGS, OWN
from tests.conftest import REPOSITORY
from tests.toys import OVERRIDES
from wam.checkpoints import records
from wam.cli import configs
from wam.cli import main as cli

PATHS = [path for path in CONFIGS if path not in OWN]


def name_of(path):
  return str(path.relative_to(REPOSITORY / "configs"))


@pytest.fixture(autouse=True)
def data(request, monkeypatch):
  if "stories" in request.node.callspec.id:
    monkeypatch.setenv("WAM_DATA", str(request.getfixturevalue("data_dir")))


class _CheckedError(Exception):
  """Raised where a run would begin to train."""


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_as_shipped_it_passes_all_checks(path, tmp_path, monkeypatch):
  """Keys, values, data and model directory; smaller data, where they are invented."""
  fewer = [o for o in OVERRIDES[name_of(path)] if ".problem.num_" in o]
  arguments = ["--config", str(path), *fewer]
  config, _ = configs.parse(arguments, verb="run")
  recipe = importlib.import_module(f"wam.recipes.{config['recipe']}")

  def begin(*args, **keywords):
    raise _CheckedError

  monkeypatch.setattr(recipe, "open_workdir", begin)
  with pytest.raises(_CheckedError):
    cli.main(["run", *arguments, "--workdir", str(tmp_path / "run"), "--quiet"])


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
