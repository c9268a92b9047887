"""Problems from files: tasks by kind, benchmarks by name, and what is refused."""

import json

import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.data.examples import ChoiceItem
from wam.evaluation.task_kinds import ChoiceTask
from wam.recipes import problems

PAIRS = [{"prompt": "a kite", "chosen": "flies", "rejected": "sits"}]
ARC = {
  "id": "x",
  "question": "What flies?",
  "choices": {"text": ["a kite", "a soup"], "label": ["1", "2"]},
  "answerKey": "1",
}
ITEM = ChoiceItem("Question: What flies?\nAnswer:", (" a kite", " a soup"), 0)


def section(folder, **tasks):
  for name, rows in {"pairs.jsonl": PAIRS, "arc.jsonl": [ARC] * 4}.items():
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
  pairs = {"path": "pairs.jsonl"}
  return {
    "kind": "files",
    "data_dir": str(folder),
    "pairs": {"train": pairs, "validation": pairs},
    "prompts": dict.fromkeys(problems.SPLITS, pairs),
    "tasks": tasks,
  }


def suite(**changes):
  return {
    "kind": "suite",
    "validation": {"path": "arc.jsonl", "split": "[:1]"},
    "test": {"path": "arc.jsonl", "split": "[1:]"},
  } | changes


def test_a_benchmark_is_a_task(tmp_path):
  made = problems.make(section(tmp_path, arc_easy=suite()))
  assert made.tasks["validation"] == [ChoiceTask("arc_easy", [ITEM])]
  assert [item for task in made.tasks["test"] for item in task.items] == [ITEM] * 3


def test_a_benchmark_under_another_name_with_options_for_both_splits(tmp_path):
  options = {"suite": "arc_challenge", "limit": 1}
  made = problems.make(section(tmp_path, science=suite(options=options)))
  assert [task.name for task in made.tasks["test"]] == ["science"]
  assert [len(task.items) for split in made.tasks.values() for task in split] == [1, 1]


@pytest.mark.parametrize(
  ("task", "error", "message"),
  [
    (suite(kind="suit"), UnknownName, "suite"),
    (suite(), UnknownName, "no_such"),
    (suite(options={"suite": "arc_easy", "few_shots": 1}), ConfigError, "few_shot"),
    (suite(train={}), ConfigError, "expected the splits validation, test"),
  ],
)
def test_what_is_refused(tmp_path, task, error, message):
  with pytest.raises(error, match=message):
    problems.make(section(tmp_path, no_such=task))
