"""How tasks are cut and batched: without a trace in the numbers, and what is too long by rule and counted."""

import jax
import numpy as np
import pytest

from tests.evaluation.tasks_test import ANSWERS, MODEL, TOKENIZER, WORDS, ids, logprobs
from wam.core.errors import BadData, ConfigError
from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.items import SpansItem
from wam.data.tokenizers import word_tokenizer
from wam.evaluation import answers, tasks


@pytest.fixture(scope="module")
def params():
  return MODEL.init(jax.random.key(1))


def words(rng, low, high):
  return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def make_tasks():
  """Items of many lengths, in an order that is not that of their lengths."""
  rng = np.random.default_rng(0)
  prompts = [words(rng, 1, 12) for _ in range(8)]
  return [
    tasks.ChoiceTask(
      "choices",
      [
        ChoiceItem(p, tuple(words(rng, 1, 6) for _ in range(rng.integers(2, 5))), 1)
        for p in prompts
      ],
    ),
    tasks.AnswerTask(
      "answers", [AnswerItem(p, (words(rng, 1, 4),)) for p in prompts], max_new_tokens=3
    ),
    tasks.TextTask(
      "text", [words(rng, 2, 20) for _ in range(4)], window=8, stride=3, score_first=True
    ),
    tasks.LastWordTask("last", [Example(p, " " + words(rng, 1, 4)) for p in prompts]),
  ]


@pytest.mark.parametrize("task", make_tasks(), ids=lambda task: task.name)
def test_batches_leave_no_trace(params, task):
  few, all_ = (
    tasks.prepare(task, TOKENIZER, batch_size=size).scores(MODEL, params) for size in (3, 64)
  )
  for one, many in zip(few, all_, strict=True):
    assert one.metric == many.metric
    np.testing.assert_allclose(one.statistics, many.statistics, rtol=2e-5, atol=1e-6)


def test_padding_is_not_scored_whatever_its_id(params):
  """The same words under a tokenizer whose padding is EOS."""
  other = word_tokenizer(WORDS)
  other.pad_token = other.eos_token
  text = tasks.TextTask("t", ["ask Mia", "Mia likes red kite ? Tom likes"], score_first=True)
  last = tasks.LastWordTask("l", [Example("ask Mia", " likes"), Example("red", " kite soup")])
  for task in (text, last):
    scores = [tasks.prepare(task, t).scores(MODEL, params) for t in (TOKENIZER, other)]
    for a, b in zip(*scores, strict=True):
      np.testing.assert_allclose(a.statistics, b.statistics, rtol=1e-6)


def test_units_of_perplexity(params):
  documents = ["ask Mia likes red kite ?", "boat boat"]
  task = tasks.TextTask("t", documents, window=32, score_first=True, counted=["é b", "c"])
  # Without a BOS of its own in front of texts, and with: one either way.
  for add_bos in (None, False):
    scores = tasks.prepare(task, TOKENIZER, add_bos=add_bos).scores(MODEL, params)
    nats = [-logprobs(params, ids(text))[0].sum() for text in documents]
    units = {"nats_per_token": [6, 2], "token_perplexity": [6, 2], "word_perplexity": [2, 1]}
    units |= {"byte_perplexity": [4, 1], "bits_per_byte": [4, 1]}
    assert {s.metric for s in scores} == set(units)
    for score in scores:
      np.testing.assert_allclose(score.statistics[:, 0], nats, rtol=1e-5)
      np.testing.assert_array_equal(score.statistics[:, 1], units[score.metric])
    assert scores[2].value == pytest.approx(np.exp(sum(nats) / 3), rel=1e-4)


def test_last_words_have_a_perplexity(params):
  examples = [Example("ask Mia likes", " red kite"), Example("Tom", " boat")]
  _, score = tasks.prepare(tasks.LastWordTask("l", examples), TOKENIZER).scores(MODEL, params)
  nats = []
  for example in examples:
    prompt = ids(example.prompt)
    whole = prompt + ids(example.completion, bos=False)
    nats.append(-logprobs(params, whole)[0][len(prompt) - 1 :].sum())
  assert score.metric == "perplexity"
  assert score.value == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
  np.testing.assert_allclose(score.per_item, np.exp(nats), rtol=1e-4)


def test_prompts_make_room_for_what_follows(params):
  """Context 6: BOS, the right end of the prompt, and all of the longest choice but its last token."""
  long = ChoiceItem("ask ask Mia likes red", ("kite soup boat", "kite"), 0)
  short = ChoiceItem("likes", ("kite", "soup"), 0)
  ready = tasks.prepare(tasks.ChoiceTask("c", [long, short]), TOKENIZER, context=6)
  found = ready.logprobs(MODEL, params)
  prompt = [TOKENIZER.bos_token_id, *ids("Mia likes red", bos=False)]
  expected = [
    logprobs(params, prompt + ids(c, bos=False))[0][len(prompt) - 1 :].sum() for c in long.choices
  ]
  np.testing.assert_allclose(found[0], expected, atol=1e-5)
  assert all(s.counts == {"truncated_prompts": 1} for s in ready.scores(MODEL, params))
  # As lm-evaluation-harness cuts: BOS goes with the rest of the left end.
  bare = tasks.prepare(tasks.ChoiceTask("c", [long]), TOKENIZER, context=6, keep_bos=False)
  assert np.asarray(bare.batches.arrays[0][0])[0, -4:].tolist() == ids("ask Mia likes red", False)

  task = tasks.AnswerTask("a", [AnswerItem("ask ask Mia likes red", ("x",))], max_new_tokens=3)
  ready = tasks.prepare(task, TOKENIZER, context=6)
  tokens, mask = (np.asarray(x)[0] for x in ready.batches.arrays[0])
  assert tokens[mask].tolist() == [TOKENIZER.bos_token_id, *ids("likes red", bos=False)]
  assert ready.counts == {"truncated_prompts": 1}

  task = tasks.LastWordTask("l", [Example("ask ask Mia likes red", " kite soup boat")])
  ready = tasks.prepare(task, TOKENIZER, context=6)
  tokens, mask = (np.asarray(x)[0] for x in ready.batches.arrays[0][:2])
  assert tokens[mask].tolist() == prompt + ids("kite soup", bos=False)


@pytest.mark.parametrize(
  ("task", "error", "match"),
  [
    (
      tasks.ChoiceTask("c", [ChoiceItem("ask", ("kite soup boat", "x"), 0)]),
      BadData,
      "item 0: what follows the prompt takes 2 of the 3 tokens",
    ),
    (tasks.AnswerTask("a", [AnswerItem("ask", ("x",))], max_new_tokens=8), BadData, "8 of the 3"),
    (tasks.AnswerTask("a", [AnswerItem("ask", ("x",))], max_new_tokens=0), ConfigError, "at least"),
  ],
)
def test_what_cannot_fit_is_refused(task, error, match):
  with pytest.raises(error, match=match):
    tasks.prepare(task, TOKENIZER, context=3)


def test_a_window_of_the_whole_context(params):
  task = tasks.TextTask("t", ["ask Mia likes red kite ? Tom likes"], window=0)
  found = tasks.prepare(task, TOKENIZER, context=4).evaluate(MODEL, params)
  same = tasks.TextTask("t", task.documents, window=5)
  assert found.value == tasks.prepare(same, TOKENIZER).evaluate(MODEL, params).value
  with pytest.raises(ConfigError, match="window 0 is the model's context"):
    tasks.prepare(task, TOKENIZER)


def test_stops_end_the_generation_and_change_no_answer(params):
  items = ANSWERS
  plain = tasks.AnswerTask("a", items, max_new_tokens=6)
  whole = tasks.prepare(plain, TOKENIZER).answers(MODEL, params)
  stops = sorted({answer.split()[-1] for answer in whole if answer})
  assert stops
  ready = tasks.prepare(tasks.AnswerTask("a", items, max_new_tokens=6, stop=stops), TOKENIZER)
  assert ready.ends[0] == TOKENIZER.eos_token_id
  assert sorted(ready.ends[1:]) == sorted(ids(" ".join(stops), bos=False))
  expected = []
  for answer in whole:
    for stop in stops:
      answer = answer.split(stop)[0]
    expected.append(answer.strip())
  assert ready.answers(MODEL, params) == expected
  assert answers.stop_tokens(TOKENIZER, ()) == ()


def test_drops_answers_may_be_several_spans():
  task = tasks.AnswerTask(
    "d",
    [SpansItem("p", (("Mia", "Tom"),)), SpansItem("p", (("3",),))],
    "drop_f1",
    span_separator=",",
  )
  f1, exact = answers.score_answers(task, ["Tom, Mia", ""], {})
  assert f1.per_item.tolist() == [1.0, 0.0] and exact.per_item.tolist() == [1.0, 0.0]
  squad = tasks.AnswerTask("s", task.items, "squad_f1")
  with pytest.raises(BadData, match="for DROP's metrics, not squad_f1"):
    tasks.prepare(squad, TOKENIZER)
