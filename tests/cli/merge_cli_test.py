"""`wam merge` and `wam diff` as they are typed: what they print, what they write, and one clear line for bad input."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wam.cli import main as cli

LAYERS, WIDTH, VOCABULARY = 3, 16, 40


def make_model(directory, seed, *, around=None, dtype=ml_dtypes.bfloat16, **changes):
  """A directory with the tensors of a small network and a config."""
  random = np.random.default_rng(seed)
  shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
  for i in range(LAYERS):
    shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (WIDTH, WIDTH)
    shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (2 * WIDTH, WIDTH)
  shapes["lm_head.weight"] = (VOCABULARY, WIDTH)
  origin = load_file(around / "model.safetensors") if around else {}
  tensors = {}
  for name, shape in shapes.items():
    step = random.normal(size=shape).astype(np.float32)
    tensors[name] = (origin[name].astype(np.float32) + 0.1 * step if around else step).astype(dtype)
  directory.mkdir()
  save_file(tensors | changes, directory / "model.safetensors", metadata={"format": "pt"})
  config = {"model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": WIDTH}
  (directory / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY}))
  return directory


@pytest.fixture
def models(tmp_path):
  base = make_model(tmp_path / "base", 0)
  return (
    base,
    make_model(tmp_path / "a", 1, around=base),
    make_model(tmp_path / "b", 2, around=base),
  )


@pytest.fixture
def failing(capsys):
  """Runs a command line that must fail with status 2; returns its one line."""

  def run(*arguments):
    assert cli.main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]

  return run


def run(*arguments):
  assert cli.main([str(a) for a in arguments]) == 0


def test_a_recipe_is_planned_merged_and_verified(models, tmp_path, capsys):
  base, a, b = models
  recipe = tmp_path / "recipe.yaml"
  recipe.write_text(
    f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n"
    f"  - {{model: {a}, parameters: {{weight: 0.5}}}}\n  - {{model: {b}, parameters: {{weight: 0.25}}}}\n"
  )
  out = tmp_path / "out"
  run("merge", recipe, out, "--dry-run")
  printed = capsys.readouterr().out
  assert not out.exists()
  assert "task_arithmetic of 3 checkpoints" in printed
  assert "weight 0.25" in printed
  assert "time" in printed
  run("merge", recipe, out)
  printed = capsys.readouterr().out
  assert "rounding to the stored dtype lost" in printed
  tensors = [load_file(x / "model.safetensors") for x in models]
  for name, value in load_file(out / "model.safetensors").items():
    x, y, z = (np.float32(t[name]) for t in tensors)
    expected = (x + (np.float32(0.5) * (y - x) + np.float32(0.25) * (z - x))).astype(value.dtype)
    assert (value == expected).all(), name
  manifest = json.loads((out / "merge_manifest.json").read_text())
  assert manifest["recipe"]["merge_method"] == "task_arithmetic"
  assert len(manifest["outputs"]["model.safetensors"]["sha256"]) == 64
  run("merge", "--verify", out)
  assert "2 of 2 files verified" in capsys.readouterr().out
  with (out / "model.safetensors").open("r+b") as file:
    file.seek(-1, os.SEEK_END)
    file.write(b"\x7f")
  assert cli.main(["merge", "--verify", str(out)]) == 2
  assert "changed since the merge: model.safetensors" in capsys.readouterr().out


def test_the_command_line_says_what_a_recipe_says(models, tmp_path, capsys):
  base, a, b = models
  recipe = tmp_path / "recipe.yaml"
  recipe.write_text(
    f"merge_method: ties\nbase_model: {base}\nmodels:\n"
    f"  - {{model: {a}, parameters: {{weight: 0.5, density: [0.2, 0.8]}}}}\n"
    f"  - {{model: {b}, parameters: {{weight: 0.3, density: [0.2, 0.8]}}}}\nout_dtype: float32\n"
  )
  run("merge", recipe, tmp_path / "one", "--quiet")
  assert capsys.readouterr().out == ""
  arguments = ["--set", "density=[0.2, 0.8]", "--weights", 0.5, 0.3, "--out-dtype", "float32"]
  run("merge", "--method", "ties", "--base", base, a, b, *arguments, "--out", tmp_path / "two")
  one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("one", "two"))
  assert all(one[n].tobytes() == two[n].tobytes() for n in one)
  assert all(x.dtype == np.float32 for x in one.values())


def test_methods_are_listed(capsys):
  run("merge", "--methods")
  printed = capsys.readouterr().out
  assert "dare_ties" in printed
  assert "arXiv 2306.01708" in printed


def test_neither_jax_nor_transformers_is_loaded(models, tmp_path):
  base, a, b = models
  code = (
    "import sys; from wam.cli.main import main; status = main(sys.argv[1:]);"
    "heavy = {'jax', 'jaxlib', 'flax', 'transformers', 'scipy', 'matplotlib', 'orbax', 'rich'} & set(sys.modules);"
    "assert not heavy, heavy; sys.exit(status)"
  )
  command = [sys.executable, "-c", code, "merge", "--method", "slerp", "--base", base, a, b]
  subprocess.run([*command, "--out", tmp_path / "out"], check=True, capture_output=True)
  assert (tmp_path / "out" / "model.safetensors").exists()


SLOW = """
import signal, sys, time
# A process that was started in the background ignores Ctrl-C from the start.
signal.signal(signal.SIGINT, signal.default_int_handler)
from wam.streaming import engine
from wam.cli.main import main
copy = engine._Run._write
def slowly(self, *rest):
  copy(self, *rest)
  time.sleep(0.05)
engine._Run._write = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_merge_goes_on_where_it_was(number, models, tmp_path, capsys):
  base, a, b = models
  arguments = [
    "merge",
    "--method",
    "dare_ties",
    "--base",
    base,
    a,
    b,
    "--set",
    "density=0.5",
    "--seed",
    3,
  ]
  arguments = [str(x) for x in arguments]
  out = tmp_path / "out"
  process = subprocess.Popen(
    [sys.executable, "-c", SLOW, *arguments, "--out", str(out)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  journal = tmp_path / ".out.wam-partial" / "journal"
  deadline = time.monotonic() + 60
  while not journal.exists() or len(journal.read_text().splitlines()) < 4:
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(number)
  assert process.wait(timeout=60) == (130 if number == signal.SIGINT else -number)
  assert not out.exists()
  run(*arguments, "--out", out)
  assert "resumed: " in capsys.readouterr().out
  run(*arguments, "--out", tmp_path / "whole")
  files = [x / "model.safetensors" for x in (out, tmp_path / "whole")]
  assert files[0].read_bytes() == files[1].read_bytes()
  assert not journal.parent.exists()


def test_bad_input_is_one_line(models, tmp_path, failing):
  base, a, b = models
  out = tmp_path / "out"
  recipe = tmp_path / "recipe.yaml"
  recipe.write_text(f"merge_method: linear\nmodels: [{{model: {a}, weight: 1}}]\n")
  assert "weight" in failing("merge", recipe, out)
  assert "Did you mean 'slerp'" in failing("merge", "--method", "slrp", a, b, "--out", out)
  assert "RECIPE.yaml and OUT" in failing("merge")
  assert "--base go with --method" in failing("merge", recipe, out, "--base", base)
  assert "needs --out" in failing("merge", "--method", "linear", a, b)
  assert "NAME=VALUE" in failing("merge", "--method", "linear", a, b, "--out", out, "--set", "x")
  assert "twice" in failing(
    "merge", "--method", "liti", "--base", base, a, "--out", out, *["--set", "eta=1"] * 2
  )
  assert "no such" in failing("merge", "--method", "linear", a, tmp_path / "nope", "--out", out)
  assert "rounding" in failing(
    "merge", "--method", "linear", a, b, "--out", out, "--rounding", "up"
  )
  stochastic = ["--rounding", "stochastic", "--out-dtype", "float16"]
  assert "is for bfloat16" in failing(
    "merge", "--method", "linear", a, b, "--out", out, *stochastic
  )
  assert "unknown format 'gguf'" in failing(
    "merge", "--method", "linear", a, b, "--out", out, "--format", "gguf"
  )
  assert "give at least" in failing(
    "merge", "--method", "linear", a, b, "--out", out, "--memory", "1KiB"
  )
  odd = make_model(tmp_path / "odd", 5, extra=np.zeros(3, np.float32))
  message = failing("merge", "--method", "linear", a, odd, "--out", out)
  assert "extra" in message
  assert "odd" in message
  poisoned = make_model(tmp_path / "poisoned", 6, around=base)
  tensors = load_file(poisoned / "model.safetensors")
  tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = np.nan
  save_file(tensors, poisoned / "model.safetensors")
  message = failing("merge", "--method", "linear", a, poisoned, "--out", out)
  assert "model.layers.1.mlp.up_proj.weight" in message
  assert "NaN" in message
  assert not out.exists()
  # Nothing was begun but the merge that met NaN on its way.
  assert len(list(tmp_path.glob(".*"))) <= 1
  out.mkdir()
  (out / "precious").write_text("x")
  assert "not empty" in failing("merge", "--method", "linear", a, b, "--out", out)
  assert [p.name for p in out.iterdir()] == ["precious"]
  assert "no such file" in failing("merge", "--verify", tmp_path)


def test_sizes_are_read_as_people_write_them():
  from wam.cli.merge import _size

  assert [_size(x) for x in ("1GiB", "512MiB", "5GB", "1.5 kB", "7")] == [
    2**30,
    2**29,
    5 * 10**9,
    1500,
    7,
  ]
  with pytest.raises(SystemExit):
    cli.main(["merge", "--memory", "much"])


def test_diff_prints_tables_and_writes_files(models, tmp_path, capsys):
  base, a, b = models
  run(
    "diff",
    base,
    a,
    b,
    "--by",
    "part",
    "--json",
    tmp_path / "x" / "d.json",
    "--figure",
    tmp_path / "y" / "d.png",
  )
  printed = capsys.readouterr().out
  assert "attention" in printed
  assert "opposite" in printed
  content = json.loads((tmp_path / "x" / "d.json").read_text())
  assert content["models"] == ["a", "b"]
  assert abs(content["total"]["cosines"][0][1]) < 0.2
  assert (tmp_path / "y" / "d.png").stat().st_size > 10_000


def test_diff_of_what_does_not_fit_is_one_line(models, tmp_path, failing):
  base, a, _ = models
  odd = make_model(tmp_path / "odd", 5, extra=np.zeros(3, np.float32))
  assert "'extra' is only in odd" in failing("diff", base, a, odd)
  assert "no such" in failing("diff", base, pathlib.Path("nowhere"))


def test_from_orbax_and_back(models, tmp_path):
  base, a, b = models
  run(
    "merge", "--method", "linear", a, b, "--out", tmp_path / "orbax", "--format", "orbax", "--quiet"
  )
  run("merge", "--method", "linear", a, b, "--out", tmp_path / "hf", "--quiet")
  half = ["--set", "eta=0.5", "--quiet", "--out-dtype", "float32"]
  run(
    "merge",
    "--method",
    "liti",
    "--base",
    base,
    tmp_path / "orbax",
    *half,
    "--out",
    tmp_path / "one",
  )
  run(
    "merge", "--method", "liti", "--base", base, tmp_path / "hf", *half, "--out", tmp_path / "two"
  )
  one, two = (load_file(tmp_path / x / "model.safetensors") for x in ("one", "two"))
  assert all(one[n].tobytes() == two[n].tobytes() for n in two)
