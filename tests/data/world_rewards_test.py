"""The rewards of the world by name: by hand, against the gold reward, and what conflicts."""

import itertools

import numpy as np
import pytest

from wam.core import rng
from wam.core.errors import BadData, UnknownName
from wam.data import world_rewards
from wam.data.words import FILLER, FOODS, RUDE, WARM
from wam.data.world import World

PROMPT = "chat Mia wants kite and soup :"


def value(name, completion):
  return float(world_rewards.scorer(name)([PROMPT], [completion])[0])


@pytest.mark.parametrize(
  ("name", "completion", "expected"),
  [
    ("topics", "kite well kite", 1 / 2),
    ("topics", "soup kite", 1),
    ("warmth", "gladly thanks thanks silly", 1 / 3),
    ("warmth", "silly boring", 0),
    ("rudeness", "silly boring thanks boring", 1 / 3),
    ("form", "well well so so", 1 / 2),
    ("form", " ".join(["well"] * 24), 1 / 24 * 12 / 24),
    ("brevity", "well", 1),
    ("brevity", "well so well so", 1 - 3 / 12),
    ("brevity", " ".join(["well"] * 14), 0),
    ("detail", "well so well so", 2 / 12),
    ("warm_words", "gladly thanks thanks well", 2 / 8),
    ("warm_words", "gladly thanks" + " well" * 8, 2 / 10),
    ("topic_words", "kite soup honey gladly", 3 / 8),
    ("plain_words", "well so kite", 2 / 8),
  ],
)
def test_by_hand(name, completion, expected):
  assert value(name, completion) == pytest.approx(expected, rel=1e-6)


def test_a_prompt_that_is_none_of_the_worlds_is_refused():
  with pytest.raises(BadData, match=r"prompts such as .* found '<bos> chat Mia"):
    world_rewards.scorer("topics")([f"<bos> {PROMPT}"], ["soup kite"])


def test_gold_is_the_worlds():
  world, draw = World(), rng.generator(0, "replies")
  prompts = world.prompts("train", 200)
  replies = [world.reply(prompt, draw) for prompt in prompts]
  expected = [world.reward(p, r) for p, r in zip(prompts, replies, strict=True)]
  found = world_rewards.scorer("gold")(prompts, replies)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", world_rewards.COMPONENTS)
def test_from_nothing_to_one(name):
  assert value(name, "") == 0.0
  best = " ".join([*WARM[:3], "kite", "soup"])
  others = [" ".join(RUDE), "well", " ".join(FILLER), " ".join(WARM), " ".join(FOODS)]
  assert max(value(name, text) for text in [best, *others]) == pytest.approx(1.0)


@pytest.mark.parametrize("names", world_rewards.CONFLICTS, ids="-".join)
def test_conflicting_rewards_cannot_all_be_had(names):
  """The bound of the sum holds on random replies, and more than one reply attains it or comes close."""
  draw = np.random.default_rng(0)
  every = [*WARM, *RUDE, *FILLER, *FOODS]
  replies = [" ".join(draw.choice(every, draw.integers(1, 15))) for _ in range(500)]
  for first, second in itertools.permutations([WARM, RUDE, FILLER, FOODS], 2):
    replies += [" ".join([*first[:k], *second[: 8 - k]]) for k in range(7)]
    replies += [" ".join(first[:k]) for k in range(1, 7)]
  prompts = [PROMPT] * len(replies)
  table = np.stack([world_rewards.scorer(name)(prompts, replies) for name in names], axis=1)
  total = table.sum(axis=1)
  bound = world_rewards.CONFLICTS[names]
  assert total.max() == pytest.approx(bound) and (total <= bound + 1e-6).all()
  # A trade-off and not one winner: what attains the bound has different shares of each.
  attaining = table[total > bound - 1e-6]
  assert (np.ptp(attaining, axis=0) >= 0.5).all()


def test_misspelt():
  with pytest.raises(UnknownName, match="Did you mean 'warmth'"):
    world_rewards.scorer("warmht")
