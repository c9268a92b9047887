import json

import pytest

from wam.core.errors import BadData, ConfigError
from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.items import load_answer_items, load_choice_items, load_last_word


def write(tmp_path, *rows):
  path = tmp_path / "x.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  return str(path)


def test_choices(tmp_path):
  path = write(tmp_path, {"query": "Q", "choices": ["a", "b"], "gold": 1})
  assert load_choice_items({"path": path}) == [ChoiceItem("Q", (" a", " b"), 1)]
  spec = {"path": path, "template": "{query}\nAnswer:", "choice_prefix": "\n"}
  assert load_choice_items(spec) == [ChoiceItem("Q\nAnswer:", ("\na", "\nb"), 1)]


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"query": "Q", "choices": ["a", "b"], "gold": 2}, "'gold' is 2, which is not an index into 2"),
    ({"query": "Q", "choices": ["a"], "gold": 0}, "at least two"),
    ({"query": "Q", "choices": "ab", "gold": 0}, "'choices' should be a list of strings"),
    ({"query": "Q", "choices": ["a", "b"], "gold": "A"}, "whole number, found str"),
    ({"query": "Q", "choices": ["a", "b"], "gold": True}, "whole number, found bool"),
    ({"choices": ["a", "b"], "gold": 1}, "no field 'query'"),
  ],
)
def test_bad_choices(tmp_path, row, message):
  path = write(tmp_path, {"query": "Q", "choices": ["a", "b"], "gold": 1}, row)
  with pytest.raises(BadData, match=rf"x\.jsonl, line 2: .*{message}"):
    load_choice_items({"path": path})


def test_answers(tmp_path):
  path = write(tmp_path, {"context": "Q", "answer": "a", "aliases": ["b", "a"], "only": "z"})
  assert load_answer_items({"path": path}) == [AnswerItem("Q", ("a", "b"))]
  spec = {"path": path, "fields": {"answer": "only", "aliases": "others"}}
  with pytest.raises(BadData, match="no field 'others'"):
    load_answer_items(spec)
  with pytest.raises(ConfigError, match="Did you mean 'aliases'"):
    load_answer_items({"path": path, "fields": {"alias": "x"}})


def test_last_word(tmp_path):
  path = write(tmp_path, {"context": "I care about ", "continuation": "signs", "text": "A b\nc d"})
  assert load_last_word({"path": path}) == [Example("I care about", " signs")]
  assert load_last_word({"path": path, "fields": {"text": "text"}}) == [Example("A b\nc", " d")]
  path = write(tmp_path, {"context": "", "continuation": "signs", "text": "word"})
  for spec in ({}, {"fields": {"text": "text"}}):
    with pytest.raises(BadData, match=r"line 1: .*one of them is empty"):
      load_last_word({"path": path} | spec)


def test_lambada(data_dir):
  if not (data_dir / "eval-gauntlet").is_dir():
    pytest.skip("eval-gauntlet is absent")
  spec = {"path": "eval-gauntlet/lambada_openai.jsonl.gz", "data_dir": str(data_dir)}
  items = load_last_word(spec)
  assert len(items) == 5153  # the size that the LAMBADA paper gives for its test part
  assert items[0].prompt.endswith("I don't care about") and items[0].completion == " signs"


@pytest.mark.parametrize(
  ("name", "count", "loader"),
  [
    ("arc_easy", 2376, load_choice_items),
    ("boolq", 3270, load_choice_items),
    ("piqa", 1838, load_choice_items),
    ("triviaqa_sm_sub", 3000, load_answer_items),
    ("gsm8k", 1319, load_answer_items),
  ],
)
def test_gauntlet_files(data_dir, name, count, loader):
  if not (data_dir / "eval-gauntlet").is_dir():
    pytest.skip("eval-gauntlet is absent")
  items = loader({"path": f"eval-gauntlet/{name}.jsonl.gz", "data_dir": str(data_dir)})
  assert len(items) == count and all(item.prompt for item in items)
