"""Suites on made-up rows of the real schemas: what is written, what is right, and what is refused."""

import json

import pytest

from wam.core.errors import BadData, ConfigError, MissingFile, UnknownName
from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.items import SpansItem
from wam.evaluation import suites


def write(folder, name, *rows):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(map(json.dumps, rows)))
  return str(path)


def items(name, path, **spec):
  task = suites.load(name, {"path": path, **spec}).task
  return list(getattr(task, "items", None) or task.examples)


ARC = {
  "id": "x",
  "question": "What flies?",
  "choices": {"text": ["a kite", "a soup"], "label": ["1", "2"]},
  "answerKey": "1",
}
ARC_ITEM = ChoiceItem("Question: What flies?\nAnswer:", (" a kite", " a soup"), 0)


@pytest.mark.parametrize(
  "row",
  [
    ARC,
    # TFDS: class numbers for letters. As a list of objects, too.
    ARC | {"choices": {"text": ["a kite", "a soup"], "label": [0, 1]}, "answerKey": 0},
    ARC | {"choices": [{"text": "a kite", "label": "1"}, {"text": "a soup", "label": "2"}]},
    {"query": "Question: What flies?", "choices": ["a kite", "a soup"], "gold": 0},
  ],
)
def test_arc(row, tmp_path):
  assert items("arc_easy", write(tmp_path, "x.jsonl", row)) == [ARC_ITEM]
  assert items("arc_challenge", write(tmp_path, "x.jsonl", row)) == [ARC_ITEM]


@pytest.mark.parametrize(
  "row",
  [
    {"goal": "fly a kite", "sol1": "run", "sol2": "sit", "label": 1},
    {"query": "Question: fly a kite\n", "choices": ["run", "sit"], "gold": 1},
  ],
)
def test_piqa(row, tmp_path):
  expected = ChoiceItem("Question: fly a kite\nAnswer:", (" run", " sit"), 1)
  assert items("piqa", write(tmp_path, "x.jsonl", row)) == [expected]


@pytest.mark.parametrize(
  "row",
  [
    {"passage": "Kites fly.", "question": "do kites fly", "label": 1, "idx": 0},
    {"passage": "Kites fly.", "question": "do kites fly", "answer": True, "title": "Kite"},
    {
      "query": "Passage: Kites fly.\nQuestion: do kites fly?",
      "choices": ["no", "yes"],
      "gold": 1,
    },
  ],
)
def test_boolq(row, tmp_path):
  expected = ChoiceItem("Kites fly.\nQuestion: do kites fly?\nAnswer:", (" no", " yes"), 1)
  assert items("boolq", write(tmp_path, "x.jsonl", row)) == [expected]


def test_race_asks_the_last_question_of_each_article(tmp_path):
  options = ["a kite", "soup", "red", "Mia"]
  questions = ["It is  _  .", "Who ran?", "What flew?"]
  answers = ["C", "D", "A"]
  expected = ChoiceItem(
    "Article: Mia ran.\n\nIt is red\nQuestion: Who ran?\nAnswer: Mia\nWhat flew?",
    (" a kite", " soup", " red", " Mia"),
    0,
  )
  other = {"article": "Tom sat.", "question": "Who?", "options": options, "answer": "B"}
  problems = [
    {"question": q, "options": options, "answer": a}
    for q, a in zip(questions, answers, strict=True)
  ]
  # EleutherAI's, TFDS' and Hugging Face's forms.
  forms = [
    [{"article": "Mia ran.", "problems": repr(problems)}],
    [
      {
        "article": "Mia ran.",
        "questions": questions,
        "options": [options] * 3,
        "answers": answers,
        "example_id": "h1",
      }
    ],
    [{"article": "Mia ran.", "example_id": "h1", **p} for p in problems],
  ]
  for rows in forms:
    path = write(tmp_path, "x.jsonl", *rows, other | {"example_id": "h2"})
    found = items("race", path)
    assert found[0] == expected
    assert found[1].prompt == "Article: Tom sat.\n\nWho?"
    # A slice is of articles, whatever the rows are.
    assert items("race", path, split="[1:]") == found[1:]


SQUAD_PROMPT = "Background: Mia has a kite.\n\nQuestion: Who?\n\nAnswer:"
SQUAD = {"id": "1", "title": "Kite", "context": "Mia has a kite.", "question": "Who?"}


def test_squad(tmp_path):
  expected = AnswerItem("Title: Kite\n\n" + SQUAD_PROMPT, ("Mia", "Mia B"))
  texts = ["Mia", "Mia B", "Mia"]
  row = SQUAD | {"answers": {"text": texts, "answer_start": [0, 0, 0]}}
  assert items("squad", write(tmp_path, "x.jsonl", row)) == [expected]
  nested = {"question": "Who?", "id": "1", "answers": [{"text": t} for t in texts]}
  article = {"title": "Kite", "paragraphs": [{"context": SQUAD["context"], "qas": [nested] * 3}]}
  path = tmp_path / "dev-v1.1.json"
  path.write_text(json.dumps({"version": "1.1", "data": [article, article | {"title": ""}]}))
  found = items("squad", str(path))
  assert len(found) == 6 and found[0] == expected and found[5].prompt == SQUAD_PROMPT
  assert items("squad", str(path), split="[:2]") == found[:2]
  with pytest.raises(BadData, match=r"line 1: no answer; this is SQuAD v1\.1"):
    items("squad", write(tmp_path, "y.jsonl", SQUAD | {"answers": {"text": []}}))


NO_DATE = {"day": "", "month": "", "year": ""}


def drop_answer(**given):
  return {"number": "", "date": NO_DATE, "spans": []} | given


def test_drop(tmp_path):
  prompt = "Tom ran 3 yards. How many?"
  row = {"passage": "Tom ran 3 yards.", "question": "How many?", "query_id": "q"}
  answers = [
    drop_answer(number="3"),
    drop_answer(spans=["Tom", "Mia"]),
    drop_answer(date={"day": "", "month": "May", "year": "1999"}),
  ]
  expected = SpansItem(prompt, (("3",), ("Tom", "Mia"), ("May 1999",)))
  columns = {key: [a[key] for a in answers[1:]] for key in answers[0]}
  flat = row | {"answer": answers[0], "validated_answers": columns}
  assert items("drop", write(tmp_path, "x.jsonl", flat)) == [expected]
  # The original file.
  pair = {
    "question": "How many?",
    "query_id": "q",
    "answer": answers[0],
    "validated_answers": answers[1:],
  }
  path = tmp_path / "dev.json"
  path.write_text(json.dumps({"nfl_1": {"passage": "Tom ran 3 yards.", "qa_pairs": [pair]}}))
  assert items("drop", str(path)) == [expected]
  # TFDS, and Hugging Face's copy without the grouping.
  texts = row | {"answer": "3", "validated_answers": ["4", "3"]}
  assert items("drop", write(tmp_path, "y.jsonl", texts))[0].references == (("3",), ("4",))
  spans = row | {"answers_spans": {"spans": ["Tom", "Mia"], "types": ["span", "span"]}}
  assert items("drop", write(tmp_path, "z.jsonl", spans))[0].references == (("Tom",), ("Mia",))


def test_translation(tmp_path):
  expected = AnswerItem("French phrase: Un chat.\nEnglish phrase:", ("A cat.",))
  for row in (
    {"translation": {"fr": "Un chat.", "en": "A cat."}},
    {"fr": "Un chat.", "en": "A cat."},
  ):
    assert items("wmt14_fr_en", write(tmp_path, "x.jsonl", row)) == [expected]
  (tmp_path / "fr.txt").write_text("Un chat.\nDeux.\n")
  (tmp_path / "en.txt").write_text("A cat.\nTwo.\n")
  lines = {"reference_path": str(tmp_path / "en.txt")}
  assert items("wmt14_fr_en", str(tmp_path / "fr.txt"), **lines, limit=1) == [expected]
  with pytest.raises(ConfigError, match="reference_path"):
    items("wmt14_fr_en", str(tmp_path / "fr.txt"))
  (tmp_path / "en.txt").write_text("A cat.\n")
  with pytest.raises(BadData, match=r"2 lines and .* 1;"):
    items("wmt14_fr_en", str(tmp_path / "fr.txt"), **lines)
  (tmp_path / "en.txt").write_text("A cat.\n \n")
  with pytest.raises(BadData, match="line 2: blank"):
    items("wmt14_fr_en", str(tmp_path / "fr.txt"), **lines)


@pytest.mark.parametrize(
  "row",
  [
    {"text": "He said\n“come here"},
    {"passage": "He said\n“come here"},
    {"context": "He said\n“come", "continuation": "here"},
  ],
)
def test_lambada(row, tmp_path):
  assert items("lambada", write(tmp_path, "x.jsonl", row)) == [Example("He said\n“come", " here")]


def test_perplexity_and_wikitext(tmp_path):
  (tmp_path / "a.txt").write_text("one two\n\n---\n\n---\nthree\n")
  task = suites.load("perplexity", {"path": str(tmp_path / "a.txt"), "separator": "---"}).task
  assert task.documents == ["one two", "three"] and task.score_first
  page = " = Kite = \n \n A kite , red @-@ blue . \n = = Use = = \n Fly ( high ) . \n"
  (tmp_path / "w.txt").write_text(page + " = Soup = \n Hot . \n")
  task = suites.load("wikitext", {"path": str(tmp_path / "w.txt")}).task
  assert task.counted == [page, " = Soup = \n Hot . \n"]
  assert task.documents[0] == " = Kite =\n\nA kite, red-blue.\n== Use ==\nFly (high).\n"


def test_solved_examples_come_first_and_are_not_asked(tmp_path):
  rows = [ARC | {"question": f"What {n}?"} for n in range(4)]
  path = write(tmp_path, "x.jsonl", *rows)
  found = items("arc_easy", path, few_shot=2)
  before = "Question: What 0?\nAnswer: a kite\n\nQuestion: What 1?\nAnswer: a kite\n\n"
  assert [item.prompt for item in found] == [
    f"{before}Question: What {n}?\nAnswer:" for n in (2, 3)
  ]
  assert items("arc_easy", path, few_shot=2, limit=1) == found[:1]
  folder = tmp_path / "arc"
  write(folder, "train.jsonl", ARC | {"question": "Trained?"})
  write(folder, "test.jsonl", *rows)
  found = items("arc_easy", str(folder), few_shot=1, few_shot_split="train")
  assert len(found) == 4 and found[0].prompt.startswith("Question: Trained?\nAnswer: a kite\n\n")
  with pytest.raises(BadData, match="4 solved examples"):
    items("arc_easy", path, few_shot=4)


def test_data_are_found_under_the_data_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("WAM_DATA", str(tmp_path))
  with pytest.raises(MissingFile, match=r"no data for arc_easy: .*ai2_arc/ARC-Easy"):
    suites.load("arc_easy")
  for split in ("train", "validation", "test"):
    write(tmp_path / "ai2_arc" / "ARC-Easy", f"{split}.jsonl", ARC | {"question": split})
  loaded = suites.load("arc_easy")
  assert loaded.task.items[0].prompt == "Question: test\nAnswer:"
  assert loaded.settings["path"] == "ai2_arc/ARC-Easy" and loaded.settings["split"] == "test"
  loaded = suites.load("arc_easy", {"split": "train[:1]"})
  assert loaded.task.items[0].prompt == "Question: train\nAnswer:"
  monkeypatch.delenv("WAM_DATA")
  with pytest.raises(ConfigError, match="WAM_DATA"):
    suites.load("arc_easy")


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    ("arc_easy", ARC | {"answerKey": "C"}, "answerKey 'C' is none of the labels"),
    ("arc_easy", {"question": "Q"}, "no field 'choices'"),
    ("arc_easy", {"query": "Q", "choices": ["a", "b"], "gold": 2}, "'gold' is 2"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": -1}, "take the validation split"),
    ("boolq", {"passage": "p", "question": "q"}, "no field 'label'"),
    (
      "race",
      {"article": "a", "question": "q", "options": ["x"], "answer": "B"},
      "'B' is none of 1 options",
    ),
    ("race", {"article": "a", "problems": "[oops"}, "'problems' is no list"),
    ("drop", {"passage": "p", "question": "q", "answer": ""}, "no answer"),
    ("drop", {"passage": "p", "question": "q", "answer": 3}, "expected number, date and spans"),
    ("wmt14_fr_en", {"translation": {"fr": "a"}}, "no text in 'en'"),
    ("lambada", {"text": "word"}, "one of them is empty"),
  ],
)
def test_rows_that_cannot_be_used_are_named(name, row, message, tmp_path):
  with pytest.raises(BadData, match=rf"x\.jsonl, line 1: .*{message}"):
    items(name, write(tmp_path, "x.jsonl", row))


def test_specs_that_cannot_be_used_are_refused(tmp_path):
  path = write(tmp_path, "x.jsonl", ARC)
  with pytest.raises(UnknownName, match="Did you mean 'arc_easy'"):
    suites.load("arc_esay")
  with pytest.raises(ConfigError, match="Did you mean 'few_shot'"):
    suites.load("arc_easy", {"path": path, "few_shots": 1})
  with pytest.raises(ConfigError, match="few_shot must be a whole number, found 'two'"):
    suites.load("arc_easy", {"path": path, "few_shot": "two"})
  with pytest.raises(ConfigError, match="limit must be a whole number from 1 on, found 0"):
    suites.load("arc_easy", {"path": path, "limit": 0})
  with pytest.raises(ConfigError, match="perplexity=PATH"):
    suites.load("perplexity")
  (tmp_path / "x.json").write_text('{"rows": [1]}')
  with pytest.raises(BadData, match="neither a list of objects nor a question file"):
    suites.load("squad", {"path": str(tmp_path / "x.json")})


def test_every_suite_of_the_shared_data_loads(data_dir):
  counts = {
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "piqa": 1838,
    "boolq": 3270,
    "lambada": 5153,
    "squad": 1190,
    "ntrex_fr_en": 1997,
  }
  for name, count in counts.items():
    task = suites.load(name, {"data_dir": str(data_dir)}).task
    assert len(getattr(task, "items", None) or task.examples) == count, name
