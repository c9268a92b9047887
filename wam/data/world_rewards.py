"""Rewards of the invented world by name: the components of its gold reward, and others that conflict with them.

Every one is a number in [0, 1] of prompt and completion alone, and 0 of an empty completion, so that silence never
wins. Which of them cannot all be had at once, and what their sum is bounded by, says `CONFLICTS`: material for
multi-objective alignment (Ramé et al. 2023, arXiv 2306.04488). Leaves out the gold reward's own definition (world.py)
and reward models.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from wam.core.errors import unknown_name
from wam.data import world
from wam.data.words import FILLER, FOODS, OBJECTS, PLACES, RUDE, WARM

# Words that a reply has room for before `warm_words` and its kin take its length into account.
ROOM = 8
# Words beyond which form falls, and at which brevity has almost gone.
LONG = 12

Component = Callable[[str, Sequence[str]], float]


def topics(prompt: str, words: Sequence[str]) -> float:
  """The share of the prompt's two topics that are named."""
  return len(set(words) & set(world.topics_of(prompt))) / 2


def warmth(prompt: str, words: Sequence[str]) -> float:
  """clip((warm - rude)/3, 0, 1), which count distinct words."""
  del prompt
  return min(1.0, max(0.0, _excess(words) / 3))


def rudeness(prompt: str, words: Sequence[str]) -> float:
  """clip((rude - warm)/3, 0, 1): what warmth is not."""
  del prompt
  return min(1.0, max(0.0, -_excess(words) / 3))


def form(prompt: str, words: Sequence[str]) -> float:
  """The share of distinct words, times 1 up to twelve words and 12/length beyond."""
  del prompt
  return len(set(words)) / len(words) * min(1.0, LONG / len(words))


def brevity(prompt: str, words: Sequence[str]) -> float:
  """1 for a single word, less a twelfth for each one more, at least 0."""
  del prompt
  return max(0.0, 1 - (len(words) - 1) / LONG)


def detail(prompt: str, words: Sequence[str]) -> float:
  """A twelfth for each distinct word, at most 1."""
  del prompt
  return min(1.0, len(set(words)) / LONG)


def warm_words(prompt: str, words: Sequence[str]) -> float:
  """Distinct warm words as a share of the words, of eight at least."""
  del prompt
  return _share(words, WARM)


def topic_words(prompt: str, words: Sequence[str]) -> float:
  """Distinct places, objects and foods as a share of the words, of eight at least."""
  del prompt
  return _share(words, [*PLACES, *OBJECTS, *FOODS])


def plain_words(prompt: str, words: Sequence[str]) -> float:
  """Distinct filler words as a share of the words, of eight at least."""
  del prompt
  return _share(words, FILLER)


def gold(prompt: str, words: Sequence[str]) -> float:
  """The gold reward r* of `World.reward`: 0.3·topics + 0.5·warmth + 0.2·form."""
  parts = (0.3, topics), (0.5, warmth), (0.2, form)
  return sum(weight * part(prompt, words) for weight, part in parts)


COMPONENTS: Mapping[str, Component] = {
  function.__name__: function
  for function in (
    gold,
    topics,
    warmth,
    form,
    rudeness,
    brevity,
    detail,
    warm_words,
    topic_words,
    plain_words,
  )
}

# Rewards that conflict, and what their sum cannot exceed: more of one is less of the others where it is attained.
CONFLICTS: Mapping[tuple[str, ...], float] = {
  ("warmth", "rudeness"): 1.0,
  ("brevity", "detail"): 1 + 1 / LONG,
  ("warm_words", "topic_words"): 1.0,
  ("warm_words", "plain_words"): 1.0,
  ("warm_words", "topic_words", "plain_words"): 1.0,
}


def scorer(name: str) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
  """A component as a scorer of text: (chat prompts of the world, completions) -> float32 [n].

  Raises:
    UnknownName: if there is no such component; suggests the nearest.
  """
  if name not in COMPONENTS:
    raise unknown_name("component of the world's rewards", name, COMPONENTS)
  component = COMPONENTS[name]

  def score(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    split = (completion.split() for completion in completions)
    values = [component(p, ws) if ws else 0.0 for p, ws in zip(prompts, split, strict=True)]
    return np.array(values, np.float32)

  return score


def _excess(words: Sequence[str]) -> int:
  distinct = set(words)
  return len(distinct & set(WARM)) - len(distinct & set(RUDE))


def _share(words: Sequence[str], kind: Sequence[str]) -> float:
  return len(set(words) & set(kind)) / max(ROOM, len(words))
