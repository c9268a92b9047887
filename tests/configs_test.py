"""Configs of the alignment-tax recipe run at toy size, from the command line to the report; the README's commands."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest

from tests import real_scale_files
from tests.conftest import REPOSITORY
from tests.readme import BLOCKS, COMMANDS
from tests.toys import OVERRIDES, REAL_SCALE, TINY
from wam import pretrained
from wam.checkpoints import records
from wam.cli import main as cli

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.py"))
# Those of other recipes: study_configs_test.py.
OWN = [path for path in CONFIGS if path.parent.name == "alignment_tax"]
# Never run as they are here; at toy size a minute or two each.
LARGE = [
  path
  for path in CONFIGS
  if OVERRIDES.get(str(path.relative_to(REPOSITORY / "configs"))) is REAL_SCALE
]


def test_every_shipped_config_has_a_toy_size():
  found = {str(path.relative_to(REPOSITORY / "configs")) for path in CONFIGS}
  assert found == {name.partition(":")[0] for name in OVERRIDES}


def test_docstrings_give_the_command_and_what_to_expect():
  for path in CONFIGS:
    text = path.read_text().split('"""')[1]
    assert re.search(rf"wam run --config configs/{path.parent.name}/{path.name} --workdir", text)
    assert "arXiv" in text, path
    if path in LARGE:  # compiled only: how much memory it takes
      assert "TPU" in text and re.search(r"\d+\.\d of \d+ GiB", text), path
    else:
      measured = re.search(r"\d+ min", text) or "not run whole yet" in text
      assert "CPU" in text and measured, path


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", ["toy", "full"])
def test_large_configs_pass_all_checks(path, size, tmp_path, monkeypatch, passes_all_checks):
  """Keys, data, model directory and plans, up to where training would begin; "full": as shipped but for the rows."""
  real_scale_files.write(tmp_path)
  monkeypatch.setenv("WAM_DATA", str(tmp_path))
  shipped = [o for o in REAL_SCALE if ".prompts." in o or ".pairs." in o]
  assert passes_all_checks("--config", str(path), *(REAL_SCALE if size == "toy" else shipped))


@pytest.fixture(
  scope="module",
  params=[pytest.param(p, marks=[pytest.mark.slow] * (p.stem != "tiny")) for p in OWN],
  ids=lambda path: path.stem,
)
def toy_run(request, tmp_path_factory):
  """(config path, workdir) of a run at toy size."""
  if request.param.stem == "tiny":
    return request.param, request.getfixturevalue("demo_directory") / "runs/demo"
  if request.param.stem == "stories":
    directory = request.getfixturevalue("data_dir")
    request.getfixturevalue("monkeypatch_module").setenv("WAM_DATA", str(directory))
  if request.param in LARGE:
    directory = tmp_path_factory.mktemp("data")
    real_scale_files.write(directory)
    request.getfixturevalue("monkeypatch_module").setenv("WAM_DATA", str(directory))
  workdir = tmp_path_factory.mktemp(request.param.stem) / "run"
  assert _run(request.param, workdir) == 0
  return request.param, workdir


@pytest.fixture(scope="module")
def monkeypatch_module():
  with pytest.MonkeyPatch.context() as patch:
    yield patch


def _run(path, workdir, *more):
  overrides = OVERRIDES[str(path.relative_to(REPOSITORY / "configs"))]
  return cli.main(
    ["run", "--config", str(path), *overrides, "--workdir", str(workdir), "--quiet", *more]
  )


def test_records_and_report(toy_run):
  path, workdir = toy_run
  found = records.read(workdir / "records.jsonl")
  points = [r for r in found if r["kind"] == "point"]
  families = {r["family"] for r in points}
  assert families == {"init", "early stopping", "model averaging", "part-wise"}
  assert {r["split"] for r in points} == {"validation", "test"}
  judge = {"tiny": "reward_gold", "stories": "reward_control"}.get(path.stem, "reward_proxy")
  for point in points:
    values = [point["reward_proxy"], point[judge], point["kl"], *point["scores"].values()]
    assert np.isfinite(values).all() and point["kl"] >= 0
  init = next(p for p in points if p["family"] == "init")
  assert init["kl"] == 0 and init["scores"]["mean"] == 1
  # α = 0 and α = 1 are the ends of the run.
  by_label = {(p["label"], p["split"], p["seed"]): p for p in points}
  last = max(p["label"] for p in points if p["family"] == "early stopping")
  assert by_label["α = 1", "test", 2]["scores"] == by_label[last, "test", 2]["scores"]
  fronts = [r for r in found if r["kind"] == "front"]
  assert {f["family"] for f in fronts} == families - {"init"}
  assert all(f["low"] <= f["high"] and f["x"] == judge for f in fronts)
  heldout = [r for r in found if r["kind"] == "heldout"]
  assert len(heldout) == (2 if path.stem == "stories" else 1)
  assert (workdir / "report" / "index.html").stat().st_size > 10**6
  for name in ("front.png", "curves.png", "points.csv", "fronts.csv"):
    assert (workdir / "report" / name).stat().st_size > 0


def test_exported_models_load_and_differ(toy_run):
  _, workdir = toy_run
  before = pretrained.load(workdir / "models" / "before")
  after = pretrained.load(workdir / "models" / "after")
  assert before.tokenizer is not None
  name = "embed"
  assert not np.array_equal(before.params[name]["embedding"], after.params[name]["embedding"])


def test_run_again_is_a_no_op(toy_run):
  path, workdir = toy_run
  before = _comparable(workdir)
  assert _run(path, workdir) == 0
  assert _comparable(workdir) == before


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(toy_run, tmp_path):
  """Records cut off in the middle of a point, as a kill leaves them: the run ends with the same records."""
  path, workdir = toy_run
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy)
  lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
  points = [i for i, line in enumerate(lines) if json.loads(line)["kind"] == "point"]
  middle = points[len(points) // 2]
  (copy / "records.jsonl").write_text("".join(lines[: middle + 1]) + lines[middle + 1][:20])
  assert _run(path, copy) == 0
  assert _comparable(copy) == _comparable(workdir)


def test_another_config_is_refused(toy_run, capsys):
  path, workdir = toy_run
  assert _run(path, workdir, "--config.seed=7") == 2
  assert "seed is 0 there and 7 here" in capsys.readouterr().err


@pytest.fixture
def demo(demo_directory, monkeypatch):
  """The directory in which `make demo` was run, as the current one, with the README's recipe in it."""
  monkeypatch.chdir(demo_directory)
  (recipe,) = (text for kind, text in BLOCKS if kind == "yaml")
  (demo_directory / "recipe.yaml").write_text(recipe)
  return demo_directory


VERBS = [c for c in COMMANDS if c.startswith("wam ") and not c.startswith("wam run")]


@pytest.mark.parametrize("command", VERBS)
def test_commands_on_a_run(command, demo, capsys):
  _, *arguments = shlex.split(command)
  if not (demo / "runs/demo/models/selected").exists():
    # At toy size RLHF need not cost anything, and then no average is selected.
    arguments = [a.replace("models/selected", "models/after") for a in arguments]
  if "--config" in arguments:
    arguments += [o for o in TINY if ".problem." in o]
  assert cli.main(arguments) == 0
  assert capsys.readouterr().out


def _comparable(workdir):
  """The records without what depends on the clock, in an order that does not."""
  found = [records.without_times(r) for r in records.read(workdir / "records.jsonl")]
  return sorted(json.dumps(r, sort_keys=True) for r in found)
