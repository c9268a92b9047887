"""The command line: verbs, what they print, and one clear line with exit status 2 for every bad input."""

import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import REPOSITORY
from tests.toys import STORIES, TINY
from wam.cli import main as cli

TINY_CONFIG = str(REPOSITORY / "configs" / "alignment_tax" / "tiny.py")
STORIES_CONFIG = str(REPOSITORY / "configs" / "alignment_tax" / "stories.py")


@pytest.fixture
def model(data_dir, tmp_path):
  """A writable copy of the real tiny model."""
  directory = tmp_path / "model"
  shutil.copytree(data_dir / "stories260k" / "hf", directory)
  directory.chmod(0o755)
  for file in directory.iterdir():
    file.chmod(0o644)
  return directory


@pytest.fixture
def failing(capsys):
  """Runs a command line that must fail with status 2; returns its one line."""

  def run(*arguments):
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith(f"wam {arguments[0]}: ")
    return lines[0]

  return run


def test_help_is_quick_and_names_the_verbs():
  """Without jax: the help must not wait for it."""
  code = "import sys; from wam.cli.main import main; main([]); assert 'jax' not in sys.modules"
  output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  for verb in cli.VERBS:
    assert f"\n  {verb}" in output.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_each_verb(verb, capsys):
  with pytest.raises(SystemExit) as caught:
    cli.main([verb, "--help"])
  assert caught.value.code == 0
  assert f"wam {verb}" in capsys.readouterr().out


def test_misspelt_words(failing, tmp_path):
  assert "Did you mean 'sample'" in failing("smaple")
  run = ("run", "--workdir", str(tmp_path / "w"), "--config", TINY_CONFIG)
  assert "Did you mean 'num_iterations'" in failing(*run, "--config.rsf.num_iteration=3")
  assert "unknown key 'zork'" in failing(*run, "--config.zork=3")
  assert "num_steps" in failing(*run, "--config.pretrain.num_steps=many")
  assert "no config file" in failing("run", "--workdir", "w", "--config", "none.py")
  assert "give a config" in failing("run", "--workdir", "w")
  assert "unknown problem.kind 'word'. Did you mean 'world'" in failing(
    *run, "--config.problem.kind=word"
  )
  assert "expected ratios from 0 to 1, found [2" in failing(
    *run, *TINY, "--config.averaging.alphas=(2.0,)"
  )
  assert not (tmp_path / "w").exists()


def test_misspelt_keys_inside_a_config_file(failing, tmp_path):
  text = (REPOSITORY / "configs" / "alignment_tax" / "tiny.py").read_text()
  mistakes = {
    '"epochs": 2': ('"epoch": 2', "rsf: unknown key 'epoch'. Did you mean 'epochs'"),
    "config.averaging.alphas": (
      "config.averaging.alpha",
      "averaging: unknown key 'alpha'. Did you mean 'alphas'",
    ),
    '"schedule": "constant"': ('"shedule": "constant"', "Did you mean 'schedule'"),
    '    "batch_size": 32,\n': ("", "rsf: missing key 'batch_size'"),
  }
  for right, (wrong, message) in mistakes.items():
    assert right in text
    path = tmp_path / "config.py"
    path.write_text(text.replace(right, wrong))
    assert message in failing("run", "--config", str(path), "--workdir", str(tmp_path / "w"))
  assert not (tmp_path / "w").exists()


def test_stories_without_data_says_what_to_pass(failing, monkeypatch, tmp_path):
  monkeypatch.delenv("WAM_DATA", raising=False)
  line = failing("run", "--config", STORIES_CONFIG, "--workdir", str(tmp_path / "w"))
  assert "WAM_DATA" in line and "data_dir" in line and "public" in line
  assert not (tmp_path / "w").exists()


def test_sample_from_a_real_model(model, capsys):
  command = ["sample", str(model), "--prompt", "Once upon a time", "--max-new-tokens", "24"]
  assert cli.main([*command, "--num-samples", "2", "--json", "--seed", "1"]) == 0
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(rows) == 2 and rows[0]["completion"] != rows[1]["completion"]
  assert all(row["logprob"] < 0 for row in rows)
  assert cli.main([*command, "--temperature", "0"]) == 0
  assert "there was a little girl named Lily" in capsys.readouterr().out


def test_evaluate_and_connectivity_on_a_real_model(model, data_dir, monkeypatch, tmp_path, capsys):
  monkeypatch.setenv("WAM_DATA", str(data_dir))
  other = tmp_path / "other"
  shutil.copytree(model, other)
  tensors = load_file(other / "model.safetensors")
  draw = np.random.default_rng(0)
  moved = {
    n: (x + 0.3 * x.std() * draw.standard_normal(x.shape)).astype(x.dtype) if x.ndim == 2 else x
    for n, x in tensors.items()
  }
  save_file(moved, other / "model.safetensors", metadata={"format": "pt"})
  options = ["--config", STORIES_CONFIG, *STORIES, "--max-length", "64"]
  out = tmp_path / "scores.json"
  assert cli.main(["evaluate", *options, str(model), str(other), "--out", str(out)]) == 0
  scores = {(r["model"], r["task"]): r for r in json.loads(out.read_text())}
  mine, worse = scores[str(model), "tinystories"], scores[str(other), "tinystories"]
  assert mine["metric"] == "nats_per_token" and mine["low"] <= mine["value"] <= mine["high"]
  assert 1 < mine["value"] < 2 < worse["value"]

  assert (
    cli.main(
      [
        "connectivity",
        *options,
        "--task",
        "tinystories",
        "--points",
        "3",
        "--out",
        str(tmp_path / "c"),
        str(model),
        str(other),
      ]
    )
    == 0
  )
  result = json.loads((tmp_path / "c" / "tinystories.json").read_text())
  # Means over documents here, over tokens there.
  assert result["values"][0] == pytest.approx(mine["value"], abs=0.2)
  assert result["lambdas"] == [0, 0.5, 1] and set(result["barriers"]) == set(
    result["barrier_intervals"]
  )
  assert (tmp_path / "c" / "tinystories.png").stat().st_size > 1000
  assert "tinystories" in capsys.readouterr().out


def test_broken_model_directories(model, failing):
  def sample():
    return failing("sample", str(model), "--prompt", "a")

  config = json.loads((model / "config.json").read_text())

  def with_config(**changes):
    (model / "config.json").write_text(json.dumps(config | changes))

  with_config(num_hidden_layers=6)
  assert "model.layers.5.mlp.down_proj.weight" in sample()
  with_config(vocab_size=100)
  assert "embed_tokens" in sample() and "512" in sample()
  with_config(model_type="mamba")
  assert "mamba" in sample() and "llama" in sample()
  with_config()
  weights = (model / "model.safetensors").read_bytes()
  (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
  assert "model.safetensors" in sample()
  tensors = load_file_bytes(weights)
  tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
  save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
  assert "model.norm.weight" in sample()
  (model / "model.safetensors").unlink()
  assert "safetensors" in sample()
  (model / "pytorch_model.bin").write_bytes(b"")
  assert "pickle" in sample()
  assert "no such directory" in failing("sample", str(model / "none"), "--prompt", "a")


def load_file_bytes(data):
  from safetensors.numpy import load

  return load(data)


def test_a_shard_that_the_index_names_is_missing(model, failing):
  index = {
    "metadata": {"total_size": 1},
    "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"},
  }
  (model / "model.safetensors").unlink()
  (model / "model.safetensors.index.json").write_text(json.dumps(index))
  assert "model-00001-of-00002.safetensors" in failing("sample", str(model), "--prompt", "a")


def test_broken_data(data_dir, monkeypatch, failing, tmp_path):
  monkeypatch.setenv("WAM_DATA", str(data_dir))
  workdir = tmp_path / "w"
  run = ("run", "--config", STORIES_CONFIG, *STORIES, "--workdir", str(workdir))
  path = tmp_path / "pairs.jsonl.gz"
  key = "--config.problem.pairs.train.path"
  with gzip.open(path, "wt") as file:
    file.write('{"text": "good", "label": 1}\n{"text": "bad"}\n')
  line = failing(*run, f"{key}={path}", "--config.problem.pairs.train.split=[:100%]")
  assert "pairs.jsonl.gz" in line and "line 2" in line and "label" in line
  with gzip.open(path, "wt") as file:
    file.write('{"text": "good", "label": 1}\nnot JSON\n')
  line = failing(*run, f"{key}={path}", "--config.problem.pairs.train.split=[:100%]")
  assert "line 2" in line and "JSON" in line
  path.write_bytes(gzip.compress(b""))
  assert "empty" in failing(*run, f"{key}={path}") or "no" in failing(*run, f"{key}={path}")
  assert "sentence_polarity.jsonl.gz" in failing(*run, f"{key}=sentence-polarity/sentence.jsonl.gz")
  assert not workdir.exists()


def test_report_of_nothing(failing, tmp_path):
  assert "none" in failing("report", str(tmp_path / "none"))
