import jax
import numpy as np
import pytest

from wam.core.errors import NonFinite
from wam.models.config import DecoderConfig
from wam.models.heads import ScalarModel
from wam.rewards import scorers

CONFIG = DecoderConfig(
  vocab_size=20, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, head_dim=4
)


def rollout(count=5):
  """Left-padded prompts and right-padded completions; pad is 0, EOS is 1 and both occur as real tokens too."""
  draw = np.random.default_rng(0)
  prompts = draw.integers(0, 20, (count, 4)).astype(np.int32)
  completions = draw.integers(2, 20, (count, 3)).astype(np.int32)
  prompt_mask = np.arange(4)[None] >= draw.integers(0, 3, count)[:, None]
  completion_mask = np.arange(3)[None] < draw.integers(1, 4, count)[:, None]
  return prompts, prompt_mask, completions, completion_mask


def test_text_scorer_sees_prompts_and_completions_without_eos_and_padding():
  prompts = np.asarray([[0, 5, 0], [7, 8, 9]], np.int32)
  prompt_mask = np.asarray([[False, True, True], [True, True, True]])
  completions = np.asarray([[4, 1, 0, 0], [0, 6, 3, 2]], np.int32)
  completion_mask = np.asarray([[True, True, False, False], [True, True, True, True]])
  seen = []

  def score(prompts, completions):
    seen.extend(zip(prompts, completions, strict=True))
    return [0.75, -1.6]

  scorer = scorers.from_text(score, lambda ids: " ".join(map(str, ids)), eos_id=1)
  found = scorer(prompts, prompt_mask, completions, completion_mask)
  # A real token that equals the padding id stays: masks decide, not ids.
  assert seen == [("5 0", "4"), ("7 8 9", "0 6 3 2")]
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, np.float32([0.75, -1.6]))


@pytest.fixture(scope="module")
def row_by_row():
  """The rewards of five rows, each alone and without padding."""
  model = ScalarModel(CONFIG)
  params = model.init(jax.random.key(0))
  prompts, prompt_mask, completions, completion_mask = rollout()
  expected = []
  for row in range(5):
    tokens = np.concatenate(
      [prompts[row][prompt_mask[row]], completions[row][completion_mask[row]]]
    )
    expected.append(float(jax.jit(model.apply)(params, tokens[None])[0]))
  return model, params, expected


@pytest.mark.parametrize("chunk", [1, 2, 5, 8])
def test_model_scorer_equals_the_model_row_by_row(chunk, row_by_row):
  model, params, expected = row_by_row
  scorer = scorers.from_model(model, params, chunk=chunk)
  found = scorer(*rollout())
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_chunks_share_one_program():
  model = ScalarModel(CONFIG)
  params = model.init(jax.random.key(0))
  scorer = scorers.from_model(model, params, chunk=3)
  scorer(*rollout(3))
  before = scorers._apply._cache_size()
  scorer(*rollout(8))
  assert scorers._apply._cache_size() == before


def test_rewards_that_are_not_finite_are_refused():
  with pytest.raises(
    NonFinite, match=r"gold: 2 of 3 rewards are not finite, the first is number 1 \(nan\)"
  ):
    scorers.check_rewards([1.0, np.nan, np.inf], 3, name="gold")
  with pytest.raises(ValueError, match=r"expected 2 rewards, found shape \(3,\)"):
    scorers.check_rewards([1.0, 2.0, 3.0], 2)
