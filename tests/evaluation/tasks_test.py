import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError, UnknownName
from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.tokenizers import word_tokenizer
from wam.evaluation import forward, likelihoods, tasks
from wam.generation import sampling
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel

WORDS = ["ask", "Mia", "Tom", "likes", "red", "kite", "soup", "boat", "?"]
TOKENIZER = word_tokenizer(WORDS)
MODEL = LanguageModel(
  DecoderConfig(
    vocab_size=len(WORDS) + 4,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    initializer_range=0.4,
  )
)


@pytest.fixture(scope="module")
def params():
  return MODEL.init(jax.random.key(1))


FORWARD = jax.jit(lambda params, tokens: MODEL.apply(params, tokens).logits[0])


def logprobs(params, ids):
  """log p of every token but the first, and the most probable next ones: one sequence, without masks, in float64.

  Zeros behind it, which a causal model does not see, keep one compiled shape.
  """
  padded = np.zeros((1, 16), np.int32)
  padded[0, : len(ids)] = ids
  logits = np.asarray(FORWARD(params, padded), np.float64)[: len(ids)]
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  return logits[np.arange(len(ids) - 1), ids[1:]], logits.argmax(-1)


def ids(text, bos=True):
  return TOKENIZER(text, add_special_tokens=bos).input_ids


CHOICES = [
  ChoiceItem("ask Mia likes ?", ("kite", "red soup", "boat"), 1),
  ChoiceItem("ask ?", ("red red kite", "boat"), 0),
  ChoiceItem("ask Tom likes red soup ?", ("soup", "kite", "boat boat"), 2),
  ChoiceItem("Mia", ("?", "Tom"), 1),
  ChoiceItem("ask Tom ?", ("boat", "red"), 1),
]


LENGTHS = {
  "accuracy": lambda choice: 1,
  "accuracy_per_character": len,
  "accuracy_per_byte": lambda choice: len(choice.encode()),
  "accuracy_per_token": lambda choice: len(choice.split()),
}


@pytest.mark.parametrize("metric", LENGTHS)
def test_choices_equal_one_sequence_at_a_time(params, metric):
  task = tasks.prepare(tasks.ChoiceTask("facts", CHOICES, metric), TOKENIZER, batch_size=2)
  score = task.evaluate(MODEL, params)
  expected = []
  for item in CHOICES:
    prompt = ids(item.prompt)
    sums = []
    for choice in item.choices:
      scores = logprobs(params, prompt + ids(choice, bos=False))[0][len(prompt) - 1 :]
      sums.append(scores.sum() / LENGTHS[metric](choice))
    expected.append(float(np.argmax(sums) == item.answer))
  np.testing.assert_array_equal(score.per_item, expected)
  assert score.value == np.mean(expected)
  assert 0 < score.value < 1
  assert score.metric == metric
  assert {s.metric for s in task.scores(MODEL, params)} == set(LENGTHS)
  assert score.resampled(np.array([0, 0, 3])) == np.mean([expected[0], expected[0], expected[3]])


def test_choice_logprobs_to_many_digits(params):
  prompts = (jnp.asarray([[0, 0, 1, 5], [1, 6, 7, 8]]), jnp.asarray([[0, 0, 1, 1], [1] * 4], bool))
  choices = jnp.asarray([[[5, 6, 7], [8, 0, 0]], [[9, 9, 0], [0, 0, 0]]])
  mask = jnp.asarray([[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]]], bool)
  found = forward.choice_logprobs(MODEL, params, prompts, (choices, mask))
  expected = [
    [logprobs(params, [1, 5, 5, 6, 7])[0][1:].sum(), logprobs(params, [1, 5, 8])[0][1:].sum()],
    [logprobs(params, [1, 6, 7, 8, 9, 9])[0][3:].sum(), -np.inf],
  ]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_weights_everywhere_are_at_chance(params):
  flat = jax.tree.map(jnp.zeros_like, params)
  task = tasks.ChoiceTask("facts", CHOICES, "accuracy_per_token")
  score = tasks.prepare(task, TOKENIZER).evaluate(MODEL, flat)
  assert score.value == pytest.approx(np.mean([1 / len(item.choices) for item in CHOICES]))


ANSWERS = [
  AnswerItem("ask Mia likes ?", ("red kite", "soup")),
  AnswerItem("ask Tom ?", ("boat",)),
  AnswerItem("Mia likes red", ("kite ?",)),
]


@pytest.mark.parametrize("metric", ["f1", "exact_match", "bleu"])
def test_answers_are_greedy_and_scored(params, metric):
  task = tasks.AnswerTask("passages", ANSWERS, metric, max_new_tokens=5, bleu_tokenizer="none")
  prepared = tasks.prepare(task, TOKENIZER, batch_size=2)
  answers = []
  for item in ANSWERS:
    tokens = ids(item.prompt)
    n = len(tokens)
    while len(tokens) < n + 5 and (len(tokens) == n or tokens[-1] != TOKENIZER.eos_token_id):
      tokens.append(int(logprobs(params, [*tokens, 0])[1][-2]))
    answers.append(TOKENIZER.decode(tokens[n:], skip_special_tokens=True))
  assert prepared.answers(MODEL, params) == answers
  # With its own answers as references a model is always right.
  own = [AnswerItem(i.prompt, (a or "none",)) for i, a in zip(ANSWERS, answers, strict=True)]
  perfect = tasks.prepare(
    tasks.AnswerTask("own", own, metric, max_new_tokens=5, bleu_tokenizer="none"), TOKENIZER
  ).evaluate(MODEL, params)
  if all(answers):
    assert perfect.value == pytest.approx(100.0 if metric == "bleu" else 1.0)
  score = prepared.evaluate(MODEL, params)
  assert score.per_item.shape == (3,)
  assert score.value < perfect.value
  assert score.resampled(np.arange(3)) == score.value


def test_stop_text_cuts_an_answer(params):
  task = tasks.AnswerTask("a", ANSWERS, max_new_tokens=5)
  plain = tasks.prepare(task, TOKENIZER).answers(MODEL, params)
  word = next(a for a in plain if a).split()[-1]
  stopped = tasks.prepare(
    tasks.AnswerTask("a", ANSWERS, max_new_tokens=5, stop=word), TOKENIZER
  ).answers(MODEL, params)
  assert stopped == [a.split(word)[0].strip() for a in plain]


DOCUMENTS = ["ask Mia likes red kite ? Tom likes soup", "boat boat", "Mia likes boat ? Tom"]


@pytest.mark.parametrize("add_bos", [True, False])
def test_text_in_one_window_is_the_full_forward_pass(params, add_bos):
  task = tasks.TextTask("text", DOCUMENTS, window=32)
  score = tasks.prepare(task, TOKENIZER, add_bos=add_bos).evaluate(MODEL, params)
  nats = [-logprobs(params, ids(text, bos=add_bos))[0] for text in DOCUMENTS]
  np.testing.assert_allclose(score.per_item, [n.mean() for n in nats], atol=1e-5)
  assert score.value == pytest.approx(np.concatenate(nats).mean(), abs=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(4, 0), (4, 2), (5, 1)])
def test_text_windows_see_the_context_they_say(params, window, stride):
  task = tasks.TextTask("text", DOCUMENTS, window=window, stride=stride)
  score = tasks.prepare(task, TOKENIZER, batch_size=3).evaluate(MODEL, params)
  step = stride or window - 1
  for text, found in zip(DOCUMENTS, score.per_item, strict=True):
    tokens, nats = ids(text), []
    for t in range(1, len(tokens)):
      # The window that scores token t ends at the first multiple of the stride beyond it.
      end = window if t < window else window + ((t - window) // step + 1) * step
      end = min(end, len(tokens))
      start = max(end - window, 0)
      nats.append(-logprobs(params, tokens[start : t + 1])[0][-1])
    assert found == pytest.approx(np.mean(nats), abs=1e-5)


def test_windows_score_every_token_once():
  for length in range(2, 30):
    for window in range(2, 8):
      for stride in range(1, window):
        scored = [
          t
          for _, first, end in likelihoods.window_bounds(length, window, stride)
          for t in range(first, end)
        ]
        assert scored == list(range(1, length))


def test_last_word_asks_for_every_token(params):
  rng = np.random.default_rng(0)
  examples = []
  for _ in range(30):
    prompt = rng.choice(WORDS, rng.integers(1, 6)).tolist()
    tokens = ids(" ".join(prompt))
    # A completion of the model's own, spoilt in some.
    n = int(rng.integers(1, 4))
    for _ in range(n):
      tokens.append(int(logprobs(params, [*tokens, 0])[1][-2]))
    words = TOKENIZER.convert_ids_to_tokens(tokens[-n:])
    if rng.random() < 0.5:
      words[int(rng.integers(n))] = "kite"
    if all(word in WORDS for word in words):
      examples.append(Example(" ".join(prompt), " " + " ".join(words)))
  score = tasks.prepare(tasks.LastWordTask("last", examples), TOKENIZER, batch_size=4).evaluate(
    MODEL, params
  )
  expected = []
  for example in examples:
    prompt, word = ids(example.prompt), ids(example.completion, bos=False)
    best = logprobs(params, prompt + word)[1][len(prompt) - 1 : -1]
    expected.append(float((best == word).all()))
  np.testing.assert_array_equal(score.per_item, expected)
  assert 0 < score.value < 1


def test_long_prompts_keep_bos_and_their_right_end(params):
  long = tasks.ChoiceTask("long", [ChoiceItem("ask ask ask Mia likes", ("kite", "soup"), 0)])
  short = tasks.ChoiceTask("short", [ChoiceItem("Mia likes", ("kite", "soup"), 0)])
  cut = tasks.prepare(long, TOKENIZER, max_length=3)
  uncut = tasks.prepare(short, TOKENIZER, max_length=3)
  np.testing.assert_array_equal(cut.batches.arrays[0][0], uncut.batches.arrays[0][0])
  assert cut.evaluate(MODEL, params).counts == {"truncated_prompts": 1}
  assert uncut.evaluate(MODEL, params).counts == {"truncated_prompts": 0}


def test_other_weights_do_not_compile_again(params):
  prepared = [
    tasks.prepare(tasks.ChoiceTask("c", CHOICES), TOKENIZER),
    tasks.prepare(tasks.AnswerTask("a", ANSWERS, max_new_tokens=3), TOKENIZER),
    tasks.prepare(tasks.TextTask("t", DOCUMENTS), TOKENIZER),
  ]
  compiled = [forward.choice_logprobs, sampling._generate, forward.text_nats]
  for task in prepared:
    task.evaluate(MODEL, params)
  before = [f._cache_size() for f in compiled]
  other = jax.tree.map(lambda x: x * 1.1, params)
  for task in prepared:
    task.evaluate(MODEL, other)
  assert [f._cache_size() for f in compiled] == before


@pytest.mark.parametrize(
  ("task", "error", "match"),
  [
    (tasks.ChoiceTask("empty", []), BadData, "'empty' has no items"),
    (tasks.ChoiceTask("c", [ChoiceItem("ask", ("kite",), 1)]), BadData, "item 0"),
    (tasks.ChoiceTask("c", [ChoiceItem("ask", ("kite", ""), 0)]), BadData, "no tokens"),
    (tasks.AnswerTask("a", ANSWERS, "blue"), UnknownName, "Did you mean 'bleu'"),
    (tasks.AnswerTask("a", [AnswerItem("ask", ())]), BadData, "no reference"),
    (tasks.TextTask("t", DOCUMENTS, window=4, stride=4), ConfigError, "stride < window"),
    (tasks.TextTask("t", ["kite", ""]), BadData, "document 1"),
  ],
)
def test_what_cannot_be_scored_is_refused(task, error, match):
  with pytest.raises(error, match=match):
    tasks.prepare(task, TOKENIZER)
