"""The world: deterministic, disjoint splits, a gold reward that can be checked by hand, Bradley-Terry pairs."""

import math

import numpy as np
import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.data.examples import Pair
from wam.data.world import SPLITS, World, gold_reward


def test_same_seed_same_world_and_another_seed_another():
  first, again, other = World(seed=3), World(seed=3), World(seed=4)
  assert first.corpus(200) == again.corpus(200)
  assert first.pairs("test", 50) == again.pairs("test", 50)
  assert first.facts != other.facts
  assert first.lexicon("b") != other.lexicon("b")
  assert first.vocabulary == other.vocabulary


def test_vocabulary_holds_every_word_once():
  world = World()
  assert len(set(world.vocabulary)) == len(world.vocabulary)
  texts = [f"{e.prompt} {e.completion}" for e in world.corpus(2000)]
  texts += [f"{p.prompt} {p.chosen} {p.rejected}" for p in world.pairs("test", 100)]
  texts += [f"{i.prompt} {' '.join(i.choices)}" for i in world.choice_items("test")]
  assert {word for text in texts for word in text.split()} <= set(world.vocabulary)


@pytest.mark.parametrize("kind", ["passages", "translations", "prompts"])
def test_splits_are_disjoint(kind):
  world = World()

  def contents(split):
    drawn = getattr(world, kind)(split, 300)
    if kind == "prompts":
      return set(drawn)
    # A translation and its way back are one sentence.
    return {frozenset((e.prompt.split(" ", 1)[1].removesuffix(" :"), e.completion)) for e in drawn}

  train, validation, test = (contents(split) for split in SPLITS)
  assert not train & validation and not train & test and not validation & test


def test_asked_facts_are_disjoint_and_all_are_stated():
  world = World()
  asked = [set(world.asked[split]) for split in SPLITS]
  assert sum(map(len, asked)) == len(set().union(*asked)) == len(world.facts)
  stated = {e.completion for e in world.corpus(8000) if not e.prompt}
  assert stated == {world.fact_statement(*fact) for fact in world.facts}


def test_choices_hold_the_truth_once_where_the_answer_points():
  world = World()
  items = world.choice_items("validation")
  for item in items:
    _, name, relation = item.prompt.split()
    assert item.choices[item.answer] == world.facts[name, relation]
    assert len(set(item.choices)) == 4
  positions = np.bincount([item.answer for item in items], minlength=4)
  assert positions.min() > 0


def test_passage_is_answered_by_the_passage():
  world = World()
  contradictions = 0
  for prompt, answer in world.passages("test", 50):
    passage, question = prompt.removeprefix("read ").split(" ? ")
    name, passage = passage.split(" ", 1)
    said = dict(part.split() for part in passage.split(" ; "))
    assert len(said) == world.num_pairs
    assert [said[relation] for relation in question.split()] == answer.split()
    contradictions += any(world.facts[name, relation] != value for relation, value in said.items())
  assert contradictions > 25


def test_translation_follows_the_dictionary_and_the_word_order():
  world = World()
  a, b = world.lexicon("a"), world.lexicon("b")
  to_b = {x: y for kind in a for x, y in zip(a[kind], b[kind], strict=True)}
  for prompt, answer in world.translations("train", 100):
    marker, *source, colon = prompt.split()
    assert colon == ":"
    text_a, text_b = (source, answer.split()) if marker == "toward_b" else (answer.split(), source)
    subject, adjective, verb, noun, *second = (to_b[word] for word in text_a)
    assert text_b == [adjective, subject, *second, noun, verb]


def test_gold_reward_by_hand():
  world = World()
  prompt = "chat Mia wants kite and soup :"
  assert world.reward(prompt, "") == 0
  # one topic, no warmth, all words distinct
  assert math.isclose(world.reward(prompt, "well kite it is"), 0.3 * 0.5 + 0.2)
  # both topics, three warm words
  assert math.isclose(world.reward(prompt, "gladly kite soup please thanks"), 1.0)
  # two warm minus one rude, a repetition: 4 distinct words of 5
  assert math.isclose(
    world.reward(prompt, "happy lovely boring it it"), 0.3 * 0 + 0.5 / 3 + 0.2 * 4 / 5
  )
  # longer than twelve words
  long = "gladly kite soup please thanks well maybe so there it is and with about then"
  assert math.isclose(world.reward(prompt, long), 0.8 + 0.2 * 12 / 15)
  np.testing.assert_array_equal(
    gold_reward(world)([prompt, prompt], ["", "gladly kite soup please thanks"]),
    np.array([0.0, 1.0], np.float32),
  )


def test_rewards_lie_in_the_unit_interval_and_vary():
  world = World()
  rewards = [world.reward(*e) for e in world.chats("train", 2000)]
  assert min(rewards) >= 0 and max(rewards) <= 1
  assert 0.35 < np.mean(rewards) < 0.55
  assert np.std(rewards) > 0.1


def test_pairs_follow_bradley_terry():
  """The share of pairs that agree with r* equals the mean of σ(sharpness·|gap|) up to sampling error."""
  world, count, sharpness = World(), 3000, 6.0
  gaps = np.array(
    [
      world.reward(p.prompt, p.chosen) - world.reward(p.prompt, p.rejected)
      for p in world.pairs("train", count, sharpness=sharpness)
    ]
  )
  decided = gaps != 0
  expected = (1 / (1 + np.exp(-sharpness * np.abs(gaps[decided])))).mean()
  assert abs((gaps[decided] > 0).mean() - expected) < 4 * 0.5 / math.sqrt(count)


def test_label_noise_swaps_exactly_that_share():
  world = World()
  clean = world.pairs("train", 203)
  noisy = world.pairs("train", 203, label_noise=0.25)
  swapped = [Pair(p.prompt, p.rejected, p.chosen) == q for p, q in zip(clean, noisy, strict=True)]
  kept = [p == q for p, q in zip(clean, noisy, strict=True)]
  assert sum(swapped) == 50
  assert sum(kept) == 153


def test_clear_errors():
  with pytest.raises(ConfigError, match=r"world.num_pairs is 1; expected a whole number from 2"):
    World(num_pairs=1)
  with pytest.raises(UnknownName, match="Did you mean 'test'"):
    World().passages("tests", 3)
  with pytest.raises(ConfigError, match="too few translations"):
    World(num_nouns=2, num_verbs=1, num_adjectives=1).translations("test", 100)
  with pytest.raises(ConfigError, match="label_noise is 2"):
    World().pairs("train", 3, label_noise=2)
