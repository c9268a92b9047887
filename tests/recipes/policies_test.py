"""What a policy says as text."""

import numpy as np
import pytest

from wam.core.errors import BadData
from wam.data import encoding
from wam.data.tokenizers import eos_id
from wam.data.world import World, gold_reward
from wam.recipes import policies, problems
from wam.rewards import scorers

WORLD = World(num_names=8, num_values=4)
SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}


@pytest.fixture(scope="module")
def policy():
  size = {"num_names": 8, "num_values": 4}
  numbers = {"num_corpus": 4, "num_demonstrations": 4, "num_pairs": 4, "num_validation_pairs": 4}
  data = problems.world_problem(size=size, num_prompts=4, num_items=2, **numbers)
  return policies.load_or_make(data.tokenizer(), seed=0, section=SHAPE)


def completions(policy, texts):
  rows = [policy.tokenizer.encode(text, add_special_tokens=False) for text in texts]
  width = max(map(len, rows)) + 1
  ids = np.full((len(rows), width), policy.ends["pad_id"], np.int32)
  for row, text in zip(ids, rows, strict=True):
    row[: len(text) + 1] = [*text, policy.ends["eos_id"]]
  mask = np.arange(width) <= np.array([[len(text)] for text in rows])
  return ids, mask


def test_the_gold_reward_of_rollouts_is_that_of_their_texts(policy):
  """Prompts of rollouts begin with BOS; the topics are the fourth and sixth word all the same."""
  prompts = WORLD.prompts("test", 20)
  draw = np.random.default_rng(0)
  texts = [WORLD.reply(prompt, draw) for prompt in prompts[:-1]]
  texts.append(" ".join(prompts[-1].split()[3:6]))  # names both topics
  encoded = encoding.prompt_rows(policy.tokenizer, prompts, length=9).arrays
  assert (encoded["mask"].sum(axis=1) == 8).all()  # BOS and seven words
  scorer = scorers.from_text(
    gold_reward(WORLD), policy.decode, eos_id=eos_id(policy.tokenizer), name="gold"
  )
  found = scorer(encoded["tokens"], encoded["mask"], *completions(policy, texts))
  expected = [WORLD.reward(p, t) for p, t in zip(prompts, texts, strict=True)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert found[-1] == pytest.approx(0.3 + 0.2)


def test_a_prompt_that_is_cut_is_refused(policy):
  prompts = WORLD.prompts("test", 2)
  encoded = encoding.prompt_rows(policy.tokenizer, prompts, length=5).arrays
  scorer = scorers.from_text(gold_reward(WORLD), policy.decode, eos_id=(), name="gold")
  with pytest.raises(BadData, match="prompt_length cut"):
    scorer(encoded["tokens"], encoded["mask"], *completions(policy, ["soup"] * 2))
