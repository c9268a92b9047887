"""Rewards on text that are rules: length, readability, the share of given words. Scorers for `scorers.from_text`.

Each factory takes the rule's settings and returns (prompts, completions) -> float32 [n]. A word is a run of letters,
with apostrophes inside; texts of other scripts than the Latin need rules of their own. Leaves out reward models.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from wam.core.errors import ConfigError
from wam.rewards.scorers import Scorer

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+")
_VOWELS = re.compile(r"[aeiouy]+")


def words(text: str) -> list[str]:
  """The words of a text, in lower case.

  >>> words("Don't sit, 3 cats!")
  ["don't", 'sit', 'cats']
  """
  return _WORD.findall(text.lower())


def length(*, target: float, tolerance: float = 0.0) -> Scorer:
  """-max(0, |words - target| - tolerance) / target: 0 where the length is right, -1 for no words at all.

  Args:
    target: words that a completion should have, above 0.
    tolerance: words that it may have more or fewer.

  Raises:
    ConfigError: if a number is out of range.
  """
  if not 0 < target < float("inf"):
    raise ConfigError(f"length: target must be above 0, found {target}")
  if not 0 <= tolerance < target:
    raise ConfigError(f"length: tolerance must be from 0 to below the target, found {tolerance}")
  return _of_completions(
    lambda text: -max(0.0, abs(len(words(text)) - target) - tolerance) / target
  )


def readability() -> Scorer:
  """Flesch's reading ease (1948), from 0: 206.835 - 1.015·(words/sentences) - 84.6·(syllables/words).

  100 is very easy and 30 difficult; short sentences of short words have up to 121.22. Sentences are counted by their
  ends (runs of . ! ?), one at least; syllables by `syllables`. Below 0, and for texts without words, it is 0.
  """

  def ease(text: str) -> float:
    found = words(text)
    if not found:
      return 0.0
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    spoken = sum(map(syllables, found))
    return max(0.0, 206.835 - 1.015 * len(found) / sentences - 84.6 * spoken / len(found))

  return _of_completions(ease)


def syllables(word: str) -> int:
  """The syllables of an English word by rule: groups of vowels, without a silent final e (but for -le); one at least.

  >>> [syllables(word) for word in ("cat", "table", "make", "readability", "the", "hmm")]
  [1, 2, 1, 5, 1, 1]
  """
  word = word.lower()
  count = len(_VOWELS.findall(word))
  if word.endswith("e") and not word.endswith(("le", "ee", "ye")) and count > 1:
    count -= 1
  return max(1, count)


def word_share(*, words: Sequence[str]) -> Scorer:
  """The share of a completion's words that are in a list, whatever their case; 0 for texts without words.

  Args:
    words: the list.

  Raises:
    ConfigError: if the list is empty, or an entry is not one word.
  """
  wanted = {word.lower() for word in words}
  odd = sorted(word for word in wanted if not _WORD.fullmatch(word))
  if not wanted or odd:
    raise ConfigError(f"word_share: expected words of letters, found {odd or 'none'}")

  def share(text: str) -> float:
    found = _WORD.findall(text.lower())
    return sum(word in wanted for word in found) / len(found) if found else 0.0

  return _of_completions(share)


# By name: what makes the rule from its settings.
RULES: dict[str, Callable[..., Scorer]] = {
  "length": length,
  "readability": readability,
  "word_share": word_share,
}


def _of_completions(rule: Callable[[str], float]) -> Scorer:
  def score(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    del prompts
    return np.array([rule(text) for text in completions], np.float32)

  return score
