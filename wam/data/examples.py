"""What a row of data is before it is tokenised: plain strings in named tuples. Holds no reading and no checking."""

from typing import NamedTuple


class Example(NamedTuple):
  """One piece of supervised text: the loss is on the completion, given the prompt (which may be empty)."""

  prompt: str
  completion: str


class Pair(NamedTuple):
  """Two completions of one prompt; a judge preferred `chosen`."""

  prompt: str
  chosen: str
  rejected: str


class ChoiceItem(NamedTuple):
  """A multiple-choice question: which of `choices` continues `prompt`; `answer` is its index, from 0.

  A choice is the literal text that follows the prompt: a separating space, where one is wanted, is in it.
  """

  prompt: str
  choices: tuple[str, ...]
  answer: int


class AnswerItem(NamedTuple):
  """A question with free text as its answer: any of `references` is right."""

  prompt: str
  references: tuple[str, ...]
