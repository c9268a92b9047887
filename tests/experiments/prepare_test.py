"""Published files into rows: every answer once, pairs split at the last shared turn, what cannot be used counted."""

import gzip
import json
import re

import pytest

from experiments.real_scale import prepare
from wam.data import preferences, prompts

CONVERSATIONS = [
  {
    "id": "a",
    "conversations": [
      {"from": "gpt", "value": "left over from before"},
      {"from": "human", "value": " Hi "},
      {"from": "gpt", "value": "Hello."},
      {"from": "user", "value": "And?"},
      {"from": "gpt", "value": ""},
      {"from": "human", "value": "Well?"},
      {"from": "chatgpt", "value": "Yes."},
    ],
  },
  {"id": "b", "conversations": [{"from": "system", "value": "x"}, {"from": "gpt", "value": "y"}]},
  {"id": "c", "conversations": [{"from": "gpt", "value": "y"}]},
]
PREFIX = "\n\nHuman: Hi\n\nAssistant:"


def dialogue(end):
  return PREFIX + end


@pytest.fixture
def published(tmp_path):
  """ShareGPT's file and HH's folders."""
  (tmp_path / "sharegpt.json").write_text(json.dumps(CONVERSATIONS))
  rows = {
    "harmless-base/test.jsonl.gz": [(" a", " b"), (" c", " c")],
    "harmless-base/train.jsonl.gz": [(" d", " e")],
    "helpful-base/train.jsonl": [(" f", " g")],
  }
  for name, ends in rows.items():
    path = tmp_path / "hh" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"chosen": dialogue(a), "rejected": dialogue(b)}) + "\n" for a, b in ends]
    if name.endswith("test.jsonl.gz"):
      lines.append(json.dumps({"chosen": "\n\nHuman: x", "rejected": "\n\nHuman: y"}) + "\n")
    data = "".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return tmp_path


def test_what_is_written_is_what_the_loaders_read(published, capsys):
  out = published / "out"
  arguments = ["--sharegpt", published / "sharegpt.json", "--hh", published / "hh", "--out", out]
  assert prepare.main([str(a) for a in arguments]) == 0
  printed = capsys.readouterr().out
  assert "2 rows; left out: 1 empty answers, 1 conversations with other speakers" in printed
  assert "1 conversations without a human turn" in printed
  assert "1 rows; left out: 1 equal completions, 1 dialogues that share no turn" in printed
  examples = prompts.load_examples({"path": str(out / "sharegpt/train.jsonl")})
  assert examples == [
    (PREFIX, " Hello."),
    (f"{PREFIX} Hello.\n\nHuman: And?\n\nAssistant: \n\nHuman: Well?\n\nAssistant:", " Yes."),
  ]
  pairs = {"path": str(out / "hh-rlhf-pairs")}
  assert preferences.load_pairs(pairs | {"split": "train"}) == [
    (PREFIX, " d", " e"),
    (PREFIX, " f", " g"),
  ]
  assert preferences.load_pairs(pairs | {"split": "test"}) == [(PREFIX, " a", " b")]
  assert prompts.load_prompts(pairs | {"split": "test"}) == [PREFIX]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give --sharegpt, --hh or both"),
    (["--hh", "{published}/nothing"], "no folder in it has a file train.jsonl"),
    (["--sharegpt", "{published}/bad.json"], "entry 1: 'conversations' should be a list"),
    (["--sharegpt", "{published}/none.json"], "nothing to write; left out: .*other speakers"),
  ],
)
def test_bad_input(published, capsys, arguments, message):
  (published / "bad.json").write_text(json.dumps([{"conversations": [{"from": "gpt"}]}]))
  (published / "none.json").write_text(json.dumps(CONVERSATIONS[1:2]))
  given = [a.format(published=published) for a in arguments] + ["--out", str(published / "out")]
  assert prepare.main(given) == 2
  assert re.search(message, capsys.readouterr().err)
  assert not [p for p in (published / "out").rglob("*") if p.is_file()]


def test_where_to_write_must_be_known(monkeypatch, capsys):
  monkeypatch.delenv("WAM_DATA", raising=False)
  assert prepare.main(["--hh", "x"]) == 2
  assert "set WAM_DATA" in capsys.readouterr().err
