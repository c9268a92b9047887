"""`wam evaluate` on suites by name and by a judge: what it prints and writes, and one clear line for bad input."""

import json
import shutil

import jax
import numpy as np
import pytest

from wam import pretrained
from wam.cli import main as cli
from wam.models.heads import ScalarModel


@pytest.fixture
def stories(data_dir, monkeypatch):
  monkeypatch.setenv("WAM_DATA", str(data_dir))
  return str(data_dir / "stories260k" / "hf")


@pytest.fixture
def failing(capsys):
  """Runs a command line that must fail with status 2; returns its one line."""

  def run(*arguments):
    assert cli.main(["evaluate", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("wam evaluate: "), lines
    return lines[0]

  return run


def test_suites_by_name(stories, data_dir, tmp_path, capsys):
  out = tmp_path / "scores.json"
  suites = f"boolq,squad={data_dir}/xquad-en/xquad.en.json.gz,ntrex_fr_en"
  command = ["evaluate", stories, "--suites", suites, "--limit", "3", "--max-length", "128"]
  command += ["--set", "squad.max_new_tokens=4", "--set", "ntrex_fr_en.max_new_tokens=4"]
  assert cli.main([*command, "--out", str(out)]) == 0
  printed = capsys.readouterr().out
  assert "accuracy_per_character (acc_norm)" in printed and "Wilson" in printed
  assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in printed
  rows = {(row["task"], row["metric"]): row for row in json.loads(out.read_text())}
  assert set(rows) == {
    ("boolq", "accuracy"),
    ("boolq", "accuracy_per_character"),
    ("squad", "squad_f1"),
    ("squad", "exact_match"),
    ("ntrex_fr_en", "bleu"),
  }
  for row in rows.values():
    assert row["items"] == 3 and row["low"] <= row["value"] <= row["high"] and row["level"] == 0.95
  boolq = rows["boolq", "accuracy"]
  assert boolq["interval"] == "wilson" and boolq["truncated_prompts"] == 3
  assert boolq["path"] == "eval-gauntlet/boolq.jsonl.gz" and boolq["context"] == 128
  assert rows["squad", "squad_f1"]["max_new_tokens"] == 4
  lines = tmp_path / "scores.jsonl"
  short = ["evaluate", stories, "--suites", "boolq", "--limit", "1", "--max-length", "128"]
  for _ in range(2):
    assert cli.main([*short, "--out", str(lines)]) == 0
  found = [json.loads(line) for line in lines.read_text().splitlines()]
  assert len(found) == 4 and found[0] == found[2] and found[0]["kind"] == "score"


def test_suites_are_listed(capsys):
  assert cli.main(["evaluate", "--list"]) == 0
  printed = capsys.readouterr().out
  assert "arc_challenge" in printed and "tfds:race/high" in printed


def test_bad_input(stories, failing, tmp_path):
  suites = (stories, "--suites")
  assert "Did you mean 'arc_easy'" in failing(*suites, "arc_esay")
  assert "names 'piqa' twice" in failing(*suites, "piqa,piqa=x.jsonl")
  assert "no data for drop: looked in" in failing(*suites, "drop")
  assert "none.jsonl does not exist" in failing(*suites, "drop=none.jsonl")
  assert "say what to evaluate" in failing(stories)
  assert "limit must be a whole number" in failing(*suites, "piqa", "--limit", "0")
  assert "Did you mean 'limit'" in failing(*suites, "piqa", "--set", "piqa.limits=1")
  assert "expected NAME.KEY=VALUE" in failing(*suites, "piqa", "--set", "limit=1")
  assert "Did you mean 'piqa'" in failing(*suites, "piqa", "--set", "pica.limit=1")
  assert "does not exist" in failing(*suites, "piqa", "--out", str(tmp_path / "none" / "x.json"))
  assert "--level must lie between" in failing(*suites, "piqa", "--level", "95")
  assert "no such directory" in failing(str(tmp_path / "none"), "--suites", "piqa")
  assert "perplexity=PATH" in failing(*suites, "perplexity")
  long = ("--set", "squad.max_new_tokens=600")
  assert "600 of the 512 tokens" in failing(*suites, "squad", "--limit", "1", *long)
  bad = tmp_path / "piqa.jsonl"
  bad.write_text('{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}\n{"goal": "g"}\n')
  assert "piqa.jsonl, line 2: no field 'sol1'" in failing(*suites, f"piqa={bad}")


@pytest.fixture
def judge(stories, tmp_path):
  """A reward model on the trunk of the language model, with a head of random numbers."""
  loaded = pretrained.load(stories)
  model = ScalarModel(loaded.model.config)
  directory = tmp_path / "judge"
  pretrained.save_scalar(directory, model, model.init(jax.random.key(0), loaded.params))
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copyfile(f"{stories}/{name}", directory / name)
  return str(directory)


def test_win_rates(stories, judge, failing, tmp_path, capsys):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("Once upon a time\nThe cat was\nLily\nOne day\n")
  out = tmp_path / "wins.json"
  command = ["--judge", judge, "--prompts", str(prompts), "--max-new-tokens", "6"]
  command += ["--max-length", "22"]
  more = ["--num-samples", "2", "--out", str(out), "--set", "prompts.first_words=2"]
  assert cli.main(["evaluate", stories, stories, *command, *more]) == 0
  assert "win rate" in capsys.readouterr().out
  first, second = json.loads(out.read_text())
  assert "win_rate" not in first and first["prompts"] == 4
  assert 0 <= second["low"] <= second["win_rate"] <= second["high"] <= 1
  assert second["wins"] + second["losses"] + second["ties"] == pytest.approx(1)
  assert np.isfinite([first["reward"], second["reward"]]).all()
  # The samples of the two are independent, though the models are the same.
  assert first["reward"] != second["reward"]
  assert "two models or more" in failing(stories, *command)
  assert "expected a ...ForSequenceClassification" in failing(
    stories, stories, "--judge", stories, "--prompts", str(prompts)
  )
  assert "leaves no room for prompts" in failing(
    stories, stories, *command[:4], "--max-new-tokens", "600"
  )
