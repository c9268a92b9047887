"""A small invented world whose truth is known: three skills, a chat task, and a gold reward.

The world stands in for the three suites of the alignment-tax paper (Lin et al. 2024, section 3) at a size that a laptop
trains in minutes:

* facts: "Who lives where" is stated in the corpus and asked as a question of four choices. Half of the facts are also
  asked in training; validation and test ask disjoint sets of facts that were stated but never asked.
* passages: "Mia eats soup ; wears red ; lives harbour ? wears eats" is answered from the passage: "red soup".
* translation: between two invented languages with different word order, both ways.
* chat: somebody asks about two topics; the gold reward r* in [0, 1] pays for naming the topics, for warmth and for
  form.

Everything is a function of the seed and the sizes, and texts are words joined by single blanks. Which split a sentence
belongs to is a hash of its content, so that splits are disjoint however many items are drawn. The vocabulary depends on
the sizes only.
Leaves out: morphology, ambiguity, noise in the facts.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError, unknown_name
from wam.data import corruption
from wam.data.examples import AnswerItem, ChoiceItem, Example, Pair
from wam.data.words import (
  COLOURS,
  FILLER,
  FOODS,
  MARKERS,
  NAMES,
  OBJECTS,
  PLACES,
  RUDE,
  WARM,
  syllable_words,
)

SPLITS = ("train", "validation", "test")

RELATIONS = ("lives", "likes", "eats", "wears")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """The world of one seed. See the module docstring for its parts.

  Attributes:
    seed: draws the facts, the dictionary and every sample.
    num_names: people, who appear in facts, passages and chat; at most 50.
    num_values: values a relation can take, at least 4; at most 12. Also the size of each list of topics.
    num_nouns, num_verbs, num_adjectives: sizes of the dictionary of the two languages.
    num_pairs: things said in a passage, 2 to 4.
  """

  seed: int = 0
  num_names: int = 32
  num_values: int = 8
  num_nouns: int = 10
  num_verbs: int = 6
  num_adjectives: int = 6
  num_pairs: int = 3

  def __post_init__(self) -> None:
    limits = {
      "num_names": (1, len(NAMES)),
      "num_values": (4, len(OBJECTS)),
      "num_nouns": (2, 60),
      "num_verbs": (1, 60),
      "num_adjectives": (1, 60),
      "num_pairs": (2, len(RELATIONS)),
    }
    for name, (low, high) in limits.items():
      if not low <= getattr(self, name) <= high:
        raise ConfigError(
          f"world.{name} is {getattr(self, name)}; expected a whole number from {low} to {high}"
        )

  @property
  def names(self) -> list[str]:
    """The people."""
    return NAMES[: self.num_names]

  @functools.cached_property
  def values(self) -> dict[str, list[str]]:
    """The values that each relation can take."""
    lists = dict(zip(RELATIONS, (PLACES, OBJECTS, FOODS, COLOURS), strict=True))
    return {relation: words[: self.num_values] for relation, words in lists.items()}

  @property
  def topics(self) -> list[str]:
    """What chat is about: places, objects and foods."""
    return [word for relation in RELATIONS[:3] for word in self.values[relation]]

  def lexicon(self, language: str) -> dict[str, list[str]]:
    """Nouns, verbs and adjectives of language "a" or "b", index-aligned between the two."""
    counts = {"noun": self.num_nouns, "verb": self.num_verbs, "adjective": self.num_adjectives}
    words = iter(syllable_words(language, sum(counts.values())))
    aligned = {kind: [next(words) for _ in range(n)] for kind, n in counts.items()}
    if language == "b":
      # Which word means what is part of the truth: a permutation drawn from the seed.
      aligned = {
        kind: [
          ws[i] for i in rng.generator(self.seed, f"world/dictionary/{kind}").permutation(len(ws))
        ]
        for kind, ws in aligned.items()
      }
    return aligned

  @property
  def vocabulary(self) -> list[str]:
    """All words, in an order that depends on the sizes only (special tokens are the tokenizer's)."""
    size = self.num_nouns + self.num_verbs + self.num_adjectives
    lists: list[Sequence[str]] = [
      MARKERS,
      RELATIONS,
      self.names,
      *self.values.values(),
      WARM,
      RUDE,
      FILLER,
    ]
    lists += [syllable_words("a", size), syllable_words("b", size)]
    return [word for words in lists for word in words]

  @functools.cached_property
  def facts(self) -> dict[tuple[str, str], str]:
    """The truth: (name, relation) -> value."""
    draw = rng.generator(self.seed, "world/facts")
    return {
      (name, relation): str(draw.choice(self.values[relation]))
      for name in self.names
      for relation in RELATIONS
    }

  @functools.cached_property
  def asked(self) -> dict[str, list[tuple[str, str]]]:
    """The facts that each split asks as questions: half for train, a quarter each for validation and test."""
    keys = list(self.facts)
    order = rng.generator(self.seed, "world/asked").permutation(len(keys))
    half, quarter = len(keys) // 2, len(keys) // 4
    bounds = {
      "train": (0, half),
      "validation": (half, half + quarter),
      "test": (half + quarter, len(keys)),
    }
    return {split: [keys[i] for i in order[low:high]] for split, (low, high) in bounds.items()}

  def fact_statement(self, name: str, relation: str) -> str:
    """The fact as the corpus states it."""
    return f"fact {name} {relation} {self.facts[name, relation]} ."

  def fact_questions(self, split: str, count: int) -> list[Example]:
    """Questions about the facts of `split`, drawn with replacement: "ask Mia lives" -> "harbour"."""
    keys = self.asked[_check_split(split)]
    picks = rng.generator(self.seed, f"world/fact_questions/{split}").integers(
      len(keys), size=count
    )
    return [
      Example(f"ask {name} {relation}", self.facts[name, relation])
      for name, relation in (keys[i] for i in picks)
    ]

  def choice_items(self, split: str) -> list[ChoiceItem]:
    """Every fact that `split` asks, once, with four choices in random order."""
    draw = rng.generator(self.seed, f"world/choices/{split}")
    items = []
    for name, relation in self.asked[_check_split(split)]:
      truth = self.facts[name, relation]
      wrong = [value for value in self.values[relation] if value != truth]
      choices = [truth, *draw.choice(wrong, size=3, replace=False).tolist()]
      order = draw.permutation(4)
      items.append(
        ChoiceItem(
          f"ask {name} {relation}", tuple(choices[i] for i in order), int(np.argmin(order))
        )
      )
    return items

  def passages(self, split: str, count: int) -> list[Example]:
    """Passages that say `num_pairs` things of somebody, which contradict the facts as often as not.

    Two of them are asked for, and the answer is the two values: "read Mia eats soup ; wears red ; lives harbour ? wears
    eats" -> "red soup".
    """

    def draw_one(draw: np.random.Generator) -> Example:
      relations = draw.choice(RELATIONS, size=self.num_pairs, replace=False)
      said = {str(r): str(draw.choice(self.values[str(r)])) for r in relations}
      asked = draw.permutation(relations)[:2]
      text = " ; ".join(f"{relation} {value}" for relation, value in said.items())
      question = f"read {draw.choice(self.names)} {text} ? {' '.join(asked)}"
      return Example(question, " ".join(said[relation] for relation in asked))

    return self._of_split("passages", split, count, draw_one)

  def passage_items(self, split: str, count: int) -> list[AnswerItem]:
    """`passages` as items for evaluation."""
    return [AnswerItem(e.prompt, (e.completion,)) for e in self.passages(split, count)]

  def translations(self, split: str, count: int) -> list[Example]:
    """Sentences to translate, half of them each way.

    Language a says subject adjective verb object adjective'; language b puts the verb last and adjectives first. The
    two directions of one sentence belong to one split.
    """
    a, b = self.lexicon("a"), self.lexicon("b")

    def draw_one(draw: np.random.Generator) -> Example:
      subject, object_ = draw.integers(self.num_nouns, size=2)
      verb = draw.integers(self.num_verbs)
      first, second = draw.integers(self.num_adjectives, size=2)
      with_second = draw.random() < 0.5
      text_a = [a["noun"][subject], a["adjective"][first], a["verb"][verb], a["noun"][object_]]
      text_b = [b["adjective"][first], b["noun"][subject]]
      if with_second:
        text_a.append(a["adjective"][second])
        text_b.append(b["adjective"][second])
      text_b += [b["noun"][object_], b["verb"][verb]]
      pair = " ".join(text_a), " ".join(text_b)
      if draw.random() < 0.5:
        return Example(f"toward_b {pair[0]} :", pair[1])
      return Example(f"toward_a {pair[1]} :", pair[0])

    def sentence(example: Example) -> str:
      marker, *words = example.prompt.split()
      return example.completion if marker == "toward_a" else " ".join(words[:-1])

    return self._of_split("translations", split, count, draw_one, content=sentence)

  def translation_items(self, split: str, count: int) -> list[AnswerItem]:
    """`translations` as items for evaluation."""
    return [AnswerItem(e.prompt, (e.completion,)) for e in self.translations(split, count)]

  def prompts(self, split: str, count: int) -> list[str]:
    """Distinct chat prompts: "chat Mia wants kite and soup :"."""

    def draw_one(draw: np.random.Generator) -> Example:
      first, second = draw.choice(self.topics, size=2, replace=False)
      return Example(f"chat {draw.choice(self.names)} wants {first} and {second} :", "")

    return [e.prompt for e in self._of_split("prompts", split, count, draw_one, distinct=True)]

  def reply(self, prompt: str, draw: np.random.Generator) -> str:
    """One reply as people of this world give it: by and large indifferent, 4 to 13 words."""
    topics = topics_of(prompt)
    words: list[str] = []
    for _ in range(int(draw.integers(4, 14))):
      kind = draw.random()
      if kind < 0.15:
        words.append(str(draw.choice(topics)))
      elif kind < 0.30:
        words.append(str(draw.choice(self.topics)))
      elif kind < 0.44:
        words.append(str(draw.choice(WARM)))
      elif kind < 0.56:
        words.append(str(draw.choice(RUDE)))
      else:
        words.append(str(draw.choice(FILLER)))
    return " ".join(words)

  def chats(self, split: str, count: int) -> list[Example]:
    """Prompts with one reply each."""
    draw = rng.generator(self.seed, f"world/chats/{split}")
    return [Example(prompt, self.reply(prompt, draw)) for prompt in self.prompts(split, count)]

  def reward(self, prompt: str, completion: str) -> float:
    """The gold reward r*(prompt, completion) in [0, 1].

    r* = 0.3·(share of the two topics named) + 0.5·clip((warm - rude)/3, 0, 1) + 0.2·form, where warm and rude count
    distinct words, and form is the share of distinct words, times 1 up to twelve words and 12/length beyond. An empty
    completion gets 0.
    """
    words = completion.split()
    if not words:
      return 0.0
    distinct = set(words)
    relevance = len(distinct & set(topics_of(prompt))) / 2
    warmth = min(1.0, max(0.0, (len(distinct & set(WARM)) - len(distinct & set(RUDE))) / 3))
    form = len(distinct) / len(words) * min(1.0, 12 / len(words))
    return 0.3 * relevance + 0.5 * warmth + 0.2 * form

  def pairs(
    self, split: str, count: int, *, sharpness: float = 8.0, label_noise: float = 0.0
  ) -> list[Pair]:
    """Preference pairs drawn from Bradley-Terry on r*.

    Of two replies to a prompt the first is preferred with probability σ(sharpness·(r*₁ - r*₂)); then exactly
    ⌊label_noise·count⌋ pairs, drawn at random, are swapped.

    Raises:
      ConfigError: if `label_noise` is not in [0, 1].
    """
    if not 0 <= label_noise <= 1:
      raise ConfigError(f"label_noise is {label_noise}; expected a share from 0 to 1")
    draw = rng.generator(self.seed, f"world/pairs/{split}")
    pairs = []
    for prompt in self.prompts(split, count):
      first, second = self.reply(prompt, draw), self.reply(prompt, draw)
      advantage = self.reward(prompt, first) - self.reward(prompt, second)
      if draw.random() >= 1 / (1 + np.exp(-sharpness * advantage)):
        first, second = second, first
      pairs.append(Pair(prompt, first, second))
    stream = f"world/label_noise/{split}"
    return corruption.swap_labels(pairs, label_noise, seed=self.seed, stream=stream).pairs

  def demonstrations(self, split: str, count: int) -> list[Example]:
    """What supervised fine-tuning imitates: the four tasks in equal parts, shuffled."""
    each = -(-count // 4)
    tasks = (self.fact_questions, self.passages, self.translations, self.chats)
    examples = [example for task in tasks for example in task(split, each)]
    order = rng.generator(self.seed, f"world/demonstrations/{split}").permutation(len(examples))
    return [examples[i] for i in order[:count]]

  def corpus(self, count: int) -> list[Example]:
    """What pre-training reads: a fifth statements of facts (with empty prompts), the rest demonstrations."""
    fifth = count // 5
    statements = [Example("", self.fact_statement(*fact)) for fact in self.facts]
    draw = rng.generator(self.seed, "world/corpus")
    texts = [
      *(statements[i] for i in draw.integers(len(statements), size=fifth)),
      *self.demonstrations("train", count - fifth),
    ]
    return [texts[i] for i in draw.permutation(len(texts))]

  def _of_split(
    self,
    kind: str,
    split: str,
    count: int,
    draw_one: Callable[[np.random.Generator], Example],
    *,
    content: Callable[[Example], str] = lambda example: example.prompt,
    distinct: bool = False,
  ) -> list[Example]:
    """Draws until `count` examples fall into `split` by the hash of their content; eval splits hold no duplicates."""
    _check_split(split)
    draw = rng.generator(self.seed, f"world/{kind}/{split}")
    examples: list[Example] = []
    seen: set[str] = set()
    tries = 0
    while len(examples) < count:
      tries += 1
      if tries > 200 * count + 1000:
        raise ConfigError(
          f"this world holds too few {kind} for {count} in the {split} split; found {len(examples)}: ask for"
          " fewer or make the world larger"
        )
      example = draw_one(draw)
      text = content(example)
      if _split_of(text) != split or ((distinct or split != "train") and text in seen):
        continue
      seen.add(text)
      examples.append(example)
    return examples


def gold_reward(world: World) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
  """r* as a scorer: (prompts, completions) -> float32 [n]."""

  def score(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    return np.array(
      [world.reward(p, c) for p, c in zip(prompts, completions, strict=True)], np.float32
    )

  return score


def topics_of(prompt: str) -> list[str]:
  """The two topics of a chat prompt "chat NAME wants X and Y :".

  Raises:
    BadData: for any other prompt: a reward of the wrong words would go unnoticed.
  """
  match prompt.split():
    case ["chat", _, "wants", first, "and", second, ":"]:
      return [first, second]
  raise BadData(
    f"the gold reward reads prompts such as 'chat Mia wants kite and soup :', found {prompt!r}; does"
    " sampling.prompt_length cut them, or are special tokens decoded with them?"
  )


def _check_split(split: str) -> str:
  if split not in SPLITS:
    raise unknown_name("split", split, SPLITS)
  return split


def _split_of(text: str) -> str:
  """The split of a content: 80 % train, 10 % validation, 10 % test, by a hash that every process shares."""
  bucket = hashlib.sha256(text.encode()).digest()[0] % 10
  return "test" if bucket == 9 else "validation" if bucket == 8 else "train"
