"""Win rates against brute force, and by a judge on a toy world whose answer is known."""

import jax
import numpy as np
import pytest
import scipy.stats

from tests.evaluation.tasks_test import MODEL, TOKENIZER
from wam.core.errors import BadData, NonFinite
from wam.data.tokenizers import word_tokenizer
from wam.evaluation import win_rate
from wam.models.heads import ScalarModel
from wam.rewards import scorers

PROMPTS = ["ask Mia likes", "Tom", "ask ? red", "kite soup boat ask Mia"]
SAMPLING = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def params():
  return MODEL.init(jax.random.key(1))


def count_of(token):
  """The judge likes one token."""

  def scorer(prompt_tokens, prompt_mask, completions, completion_mask):
    return ((completions == token) & completion_mask).sum(axis=1).astype(np.float32)

  return scorer


def test_every_sample_is_compared_with_every_other():
  rng = np.random.default_rng(0)
  ours, theirs = rng.integers(0, 4, (30, 3)) / 2, rng.integers(0, 4, (30, 2)) / 2
  found = win_rate.win_rate(ours, theirs)
  per_prompt = [
    np.mean([(a > b) + 0.5 * (a == b) for a in ours[p] for b in theirs[p]]) for p in range(30)
  ]
  np.testing.assert_allclose(found.per_prompt, per_prompt)
  assert found.rate.value == pytest.approx(np.mean(per_prompt))
  assert found.wins + found.losses + found.ties == pytest.approx(1)
  assert found.rate.value == pytest.approx(found.wins + found.ties / 2)
  half = 1.96 * scipy.stats.sem(per_prompt)
  assert found.rate.low == pytest.approx(found.rate.value - half, abs=0.02)
  assert found.rate.high == pytest.approx(found.rate.value + half, abs=0.02)
  back = win_rate.win_rate(theirs, ours)
  assert back.rate.value == pytest.approx(1 - found.rate.value)
  assert found.reward_difference.value == pytest.approx(ours.mean() - theirs.mean())


def test_rounding_is_no_victory():
  rewards = np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32)
  found = win_rate.win_rate(rewards * (1 + np.float32(1e-7)), rewards)
  assert found.rate[:3] == (0.5, 0.5, 0.5) and found.ties == 1
  constant = win_rate.win_rate(np.ones((9, 2)), np.ones((9, 3)))
  assert constant.rate[:3] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
  ("ours", "theirs", "match"),
  [
    (np.ones((3, 1)), np.ones((2, 1)), "the same prompts"),
    (np.ones((1, 1)), np.ones((1, 1)), "two or more"),
    (np.ones((3, 0)), np.ones((3, 1)), "found"),
    (np.full((3, 1), np.nan), np.ones((3, 1)), "NaN"),
  ],
)
def test_what_cannot_be_compared_is_refused(ours, theirs, match):
  with pytest.raises(BadData, match=match):
    win_rate.win_rate(ours, theirs)


def test_a_judge_sees_what_was_drawn(params):
  token = TOKENIZER.convert_tokens_to_ids("kite")

  def judged(stream, **settings):
    return win_rate.judge(
      MODEL,
      params,
      TOKENIZER,
      PROMPTS,
      count_of(token),
      stream=stream,
      sampling=SAMPLING,
      num_samples=3,
      prompt_length=5,
      **settings,
    )

  first = judged("a")
  assert first.rewards.shape == first.lengths.shape == first.finished.shape == (4, 3)
  assert first.truncated_prompts == 1  # of six tokens, BOS included
  assert ((first.lengths == 4) | first.finished).all()
  assert np.array_equal(judged("a").rewards, first.rewards)
  # Other streams are other samples.
  assert not np.array_equal(judged("b").rewards, first.rewards)
  # Two batches, the last one filled up: the shapes and the counts are the same.
  fewer = judged("a", batch_size=3)
  assert fewer.rewards.shape == (4, 3) and fewer.truncated_prompts == 1


def test_nan_from_the_judge_is_an_error(params):
  with pytest.raises(NonFinite, match="judge: 12 of 12"):
    win_rate.judge(
      MODEL,
      params,
      TOKENIZER,
      PROMPTS,
      lambda *arrays: np.full(12, np.nan),
      stream="a",
      sampling=SAMPLING,
      num_samples=3,
      prompt_length=5,
    )


def test_a_judge_of_another_vocabulary_reads_the_text():
  """The same reward model with its embeddings permuted, and a tokenizer to match, gives the same rewards."""
  model = ScalarModel(MODEL.config)
  params = model.init(jax.random.key(2))
  words = [w for w in TOKENIZER.get_vocab() if not w.startswith("<")]
  other = word_tokenizer(sorted(words, reverse=True))
  assert not win_rate.same_vocabulary(TOKENIZER, other)
  assert win_rate.same_vocabulary(
    TOKENIZER, word_tokenizer(sorted(words, key=TOKENIZER.get_vocab().get))
  )
  order = [TOKENIZER.get_vocab()[token] for token in other.convert_ids_to_tokens(range(len(other)))]
  embedding = params["decoder"]["embed"]["embedding"]
  permuted = params | {
    "decoder": params["decoder"] | {"embed": {"embedding": embedding[np.array(order)]}}
  }
  # Left-padded prompts; a completion that ended, one that was cut, an empty one that ended.
  tokens = TOKENIZER(["ask Mia"]).input_ids[0]
  prompts = np.array([[0, *tokens]] * 3)
  prompt_mask = np.array([[False, True, True, True]] * 3)
  eos = TOKENIZER.eos_token_id
  kite, soup = TOKENIZER.convert_tokens_to_ids(["kite", "soup"])
  completions = np.array([[kite, soup, eos], [soup, soup, kite], [eos, 0, 0]])
  mask = np.array([[True] * 3, [True] * 3, [True, False, False]])
  expected = scorers.from_model(model, params, chunk=3)(prompts, prompt_mask, completions, mask)
  judge = win_rate.judge_of_text(model, permuted, other, TOKENIZER, length=8, chunk=3)
  np.testing.assert_allclose(judge(prompts, prompt_mask, completions, mask), expected, rtol=1e-5)
