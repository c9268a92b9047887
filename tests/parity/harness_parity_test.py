"""The same model on the same rows through lm-evaluation-harness and through the suites: prompts, numbers, answers.

The harness runs its own task files, in an environment of its own (`make parity` makes it; WAM_HARNESS_PYTHON names
another interpreter). Rows have the schema of the data sets that those files name. Where a suite differs on purpose it
is told to do as the harness does: keep_bos=False, and its number of tokens.
"""

import gzip
import itertools
import json
import math
import os
import pathlib
import subprocess

import numpy as np
import pytest

from wam import pretrained
from wam.evaluation import suites, tasks

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = pathlib.Path(os.environ.get("WAM_HARNESS_PYTHON", ROOT / ".venv-lm-eval/bin/python"))
# Of the model; the harness takes it from the tokenizer.
CONTEXT = 512
# Log-likelihoods of up to 512 tokens in float32, by two libraries.
TOLERANCE = {"rtol": 2e-6, "atol": 2e-3}

pytestmark = [
  pytest.mark.parity,
  pytest.mark.skipif(
    not PYTHON.exists(), reason="needs lm-evaluation-harness's environment: run `make parity`"
  ),
]

SQUAD_PROMPT = "Title: {{title}}\n\nBackground: {{context}}\n\nQuestion: {{question}}\n\nAnswer:"
# By suite: the harness's task file, what is changed in it, and our keys that make the numbers comparable.
TASKS = {
  "arc_easy": {"include": "arc/arc_easy.yaml"},
  "arc_challenge": {"include": "arc/arc_challenge.yaml"},
  "piqa": {"include": "piqa/piqa.yaml"},
  "boolq": {"include": "super_glue/boolq/default.yaml"},
  "race": {"include": "race/race.yaml"},
  "lambada": {"include": "lambada/lambada_openai.yaml"},
  "wikitext": {"include": "wikitext/wikitext.yaml", "rolling": True},
  "drop": {"include": "drop/default.yaml", "tokens": 24, "until": ["."]},
  "squad": {
    "include": "xquad/xquad_en.yaml",
    "settings": {"doc_to_text": SQUAD_PROMPT},
    "tokens": 24,
    "until": ["\n"],
  },
  "wmt14_fr_en": {
    "include": "translation/wmt14_fr-en.yaml",
    # Its references begin with a blank, so that its solved examples have two.
    "settings": {"target_delimiter": ""},
    "tokens": 24,
    "until": ["\n"],
  },
}
SHOTS = {
  "arc_easy_2": ("arc_easy", 2),
  "boolq_1": ("boolq", 1),
  "wmt14_fr_en_3": ("wmt14_fr_en", 3),
}


def gauntlet(data_dir, name, number):
  with gzip.open(data_dir / "eval-gauntlet" / f"{name}.jsonl.gz", "rt") as file:
    return [json.loads(line) for line in itertools.islice(file, number)]


def arc_row(row):
  labels = list("ABCD")[: len(row["choices"])]
  return {
    "id": "x",
    "question": row["query"].removeprefix("Question: "),
    "choices": {"text": row["choices"], "label": labels},
    "answerKey": labels[row["gold"]],
  }


def boolq_row(row):
  passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
  return {"passage": passage, "question": question.rstrip("?"), "label": row["gold"]}


def race_rows(rows):
  """Articles out of BoolQ's passages, with questions out of ARC's: the form is RACE's, the sense is not."""
  found = []
  for passage, one, two in rows:
    gap = {"question": one["query"] + "  _  .", "options": one["choices"], "answer": "B"}
    problems = [
      gap,
      {"question": "What is it?", "options": one["choices"], "answer": "A"},
      {"question": two["query"], "options": two["choices"], "answer": "ABCD"[two["gold"]]},
    ]
    text = boolq_row(passage)["passage"][:150]
    found.append({"article": text, "problems": repr(problems[len(found) % 3 :])})
  return found


def squad_rows(data_dir, number):
  with gzip.open(data_dir / "xquad-en" / "xquad.en.json.gz") as file:
    articles = json.load(file)["data"]
  rows = []
  for article in articles:
    for paragraph in article["paragraphs"][:1]:
      for question in paragraph["qas"][:1]:
        answers = {key: [a[key] for a in question["answers"]] for key in ("text", "answer_start")}
        row = {"id": question["id"], "title": article["title"] or "None"}
        row |= {"context": paragraph["context"], "question": question["question"]}
        rows.append(row | {"answers": answers})
  for row in rows[::3]:
    # Something that a teller of children's stories does say.
    row["answers"]["text"] = ["The castle: we can see a toy!"]
  return rows[:number]


def drop_rows(squad):
  """DROP's form: numbers, several spans, dates, and answers of other annotators."""
  none = {"day": "", "month": "", "year": ""}
  empty = {"number": "", "date": none, "spans": []}
  kinds = [
    {"number": "3"},
    {"spans": ["a little girl", "her mom"]},
    {"date": {"day": "4", "month": "May", "year": "1999"}},
    {"spans": ["the park"]},
  ]
  rows = []
  for number, row in enumerate(squad):
    others = [empty | {"spans": ["little girl"]}, empty | {"number": "12"}]
    validated = {key: [other[key] for other in others] for key in empty}
    rows.append(
      {
        "section_id": "x",
        "query_id": row["id"],
        "passage": f"Once upon a time, there was a little girl. {row['context'][:200]}",
        "question": "Who was there?",
        "answer": empty | kinds[number % 4],
        "validated_answers": validated,
      }
    )
  return rows


def translation_rows(data_dir, number):
  sides = []
  for name in ("newstest2019-ref.fra.txt.gz", "newstest2019-src.eng.txt.gz"):
    with gzip.open(data_dir / "ntrex-en-fr" / name, "rt") as file:
      sides.append([line.rstrip("\n") for line in itertools.islice(file, number)])
  return [{"translation": {"fr": fr, "en": en}} for fr, en in zip(*sides, strict=True)]


def wikitext_rows(data_dir):
  """Pages longer and shorter than the context."""
  with gzip.open(data_dir / "wikitext-2" / "test.txt.gz", "rt") as file:
    text = file.read()
  return [
    {"page": text[start : start + size]} for start, size in ((0, 4000), (9000, 700), (50000, 9))
  ]


def rows_of(data_dir):
  arc, boolq = gauntlet(data_dir, "arc_easy", 24), gauntlet(data_dir, "boolq", 12)
  piqa = gauntlet(data_dir, "piqa", 16)
  squad = squad_rows(data_dir, 12)
  return {
    "arc_easy": [arc_row(row) for row in arc],
    "arc_challenge": [arc_row(row) for row in gauntlet(data_dir, "arc_challenge", 16)],
    "piqa": [
      {
        "goal": row["query"].removeprefix("Question: ").strip(),
        "sol1": row["choices"][0],
        "sol2": row["choices"][1],
        "label": row["gold"],
      }
      for row in piqa
    ],
    "boolq": [boolq_row(row) for row in boolq],
    "race": race_rows(zip(boolq, arc[:12], arc[12:24], strict=True)),
    "lambada": [
      {"text": f"{row['context']} {row['continuation']}"}
      for row in gauntlet(data_dir, "lambada_openai", 40)
    ],
    "wikitext": wikitext_rows(data_dir),
    "drop": drop_rows(squad),
    "squad": squad,
    "wmt14_fr_en": translation_rows(data_dir, 16),
  }


@pytest.fixture(scope="module")
def model(data_dir):
  return pretrained.load(data_dir / "stories260k" / "hf")


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
  """NAME.jsonl for both, and harness.json of the harness."""
  folder = tmp_path_factory.mktemp("harness")
  rows = rows_of(data_dir)
  asked = {}
  for name, task in TASKS.items():
    settings = dict(task.get("settings", {}))
    if "tokens" in task:
      settings["generation_kwargs"] = {
        "until": task["until"],
        "max_gen_toks": task["tokens"],
        "do_sample": False,
        "temperature": 0.0,
      }
    asked[name] = {**task, "settings": settings}
    write(folder / f"{name}.jsonl", rows[name])
  for name, (suite, number) in SHOTS.items():
    asked[name] = asked[suite] | {"num_fewshot": number, "fewshot": f"{name}_shots.jsonl"}
    write(folder / f"{name}_shots.jsonl", rows[suite][:number])
    # What is asked when the first rows are the solved examples.
    write(folder / f"{name}.jsonl", rows[suite][number:12])
    write(folder / f"{name}_all.jsonl", rows[suite][:12])
  (folder / "tasks.json").write_text(json.dumps(asked))
  script = pathlib.Path(__file__).with_name("run_harness.py")
  model = data_dir / "stories260k" / "hf"
  done = subprocess.run(
    [PYTHON, script, folder, model], capture_output=True, text=True, cwd=folder, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def theirs(folder):
  return json.loads((folder / "harness.json").read_text())


def prepared(folder, model, name):
  suite, number = SHOTS.get(name, (name, 0))
  spec = {"path": str(folder / (f"{name}_all.jsonl" if number else f"{name}.jsonl"))}
  if "tokens" in TASKS[suite]:
    spec["max_new_tokens"] = TASKS[suite]["tokens"]
  if number:
    spec["few_shot"] = number
  task = suites.load(suite, spec).task
  ready = tasks.prepare(
    task, model.tokenizer, batch_size=8, max_length=CONTEXT, context=CONTEXT, keep_bos=False
  )
  return task, ready


CHOICES = ["arc_easy", "arc_challenge", "piqa", "boolq", "race", "arc_easy_2", "boolq_1"]


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name, folder, model, theirs):
  task, ready = prepared(folder, model, name)
  found = theirs[name]
  assert [item.prompt for item in task.items] == found["prompts"]
  ours = ready.logprobs(model.model, model.params)
  expected = np.array([[float(r[0][0]) for r in item] for item in found["responses"]])
  np.testing.assert_allclose(ours, expected, **TOLERANCE)
  scores = {s.metric: s for s in ready.scores(model.model, model.params)}
  for metric, theirs_name in (("accuracy", "acc"), ("accuracy_per_character", "acc_norm")):
    if theirs_name in found["metrics"]:
      items = [item[theirs_name] for item in found["items"]]
      np.testing.assert_array_equal(scores[metric].per_item, items)
      assert scores[metric].value == pytest.approx(found["metrics"][theirs_name])
  if name == "boolq":
    assert scores["accuracy"].counts["truncated_prompts"] > 0


def test_last_words(folder, model, theirs):
  task, ready = prepared(folder, model, "lambada")
  found = theirs["lambada"]
  assert [example.prompt for example in task.examples] == found["prompts"]
  accuracy, perplexity = ready.scores(model.model, model.params)
  nats = [-float(item[0][0][0]) for item in found["responses"]]
  np.testing.assert_allclose(perplexity.statistics[:, 0], nats, **TOLERANCE)
  np.testing.assert_array_equal(accuracy.per_item, [item["acc"] for item in found["items"]])
  assert accuracy.value == found["metrics"]["acc"]
  assert perplexity.value == pytest.approx(found["metrics"]["perplexity"], rel=1e-4)


def test_documents(folder, model, theirs):
  _, ready = prepared(folder, model, "wikitext")
  found = theirs["wikitext"]
  nats = [-float(item[0][0]) for item in found["responses"]]
  np.testing.assert_allclose(ready.nats(model.model, model.params), nats, **TOLERANCE)
  scores = {s.metric: s.value for s in ready.scores(model.model, model.params)}
  for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
    assert math.log(scores[metric]) == pytest.approx(math.log(found["metrics"][metric]), abs=1e-5)


@pytest.mark.parametrize("name", ["squad", "drop", "wmt14_fr_en", "wmt14_fr_en_3"])
def test_answers(name, folder, model, theirs):
  task, ready = prepared(folder, model, name)
  found = theirs[name]
  assert [item.prompt for item in task.items] == found["prompts"]
  answers = ready.answers(model.model, model.params)
  assert answers == [item[0][0].strip() for item in found["responses"]]
  scores = {s.metric: s for s in ready.scores(model.model, model.params)}
  names = {
    "squad": {"squad_f1": "f1", "exact_match": "exact_match"},
    "drop": {"drop_f1": "f1", "drop_exact_match": "em"},
  }.get(name, {"bleu": "bleu"})
  for ours, their in names.items():
    scale = 100 if name == "squad" and found["metrics"][their] > 1 else 1
    assert scores[ours].value == pytest.approx(found["metrics"][their] / scale, abs=1e-9)
  assert any(scores[m].value > 0 for m in names)
