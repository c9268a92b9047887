import numpy as np
import pytest

from wam.core.errors import ConfigError
from wam.rewards import text_rules


def values(scorer, *texts):
  found = scorer([""] * len(texts), texts)
  assert found.dtype == np.float32
  return found.tolist()


def test_length_is_about_words_and_a_target():
  found = values(text_rules.length(target=4), "a b c d", "a b", "", "a b, c d! e f", "12 34")
  assert found == [0.0, -0.5, -1.0, -0.5, -1.0]
  tolerant = values(text_rules.length(target=4, tolerance=1), "a b c", "a b c d e", "a b")
  assert tolerant == [0.0, 0.0, -0.25]


@pytest.mark.parametrize("settings", [{"target": 0}, {"target": 4, "tolerance": 4}])
def test_lengths_that_cannot_be(settings):
  with pytest.raises(ConfigError, match="length: "):
    text_rules.length(**settings)


def test_readability_of_known_sentences():
  """Flesch's formula with words, sentences and syllables counted by hand."""
  found = values(
    text_rules.readability(),
    "The cat sat on the mat.",
    "The cat sat. The cat ran!!",
    "Readability",
    "Unimaginable incomprehensibility notwithstanding",
    "...",
  )
  expected = [
    206.835 - 1.015 * 6 - 84.6 * 6 / 6,
    206.835 - 1.015 * 3 - 84.6 * 6 / 6,
    0.0,  # 206.8 - 1.0 - 84.6·5, below 0
    0.0,
    0.0,
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_word_share():
  found = values(
    text_rules.word_share(words=["Cat", "dog"]), "cat sat, DOG!", "catalogue", "", "cat"
  )
  np.testing.assert_allclose(found, [2 / 3, 0, 0, 1], rtol=1e-6)
  for words in ([], ["two words"], ["4"]):
    with pytest.raises(ConfigError, match="word_share: expected words"):
      text_rules.word_share(words=words)
