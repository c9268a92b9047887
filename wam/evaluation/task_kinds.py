"""The kinds of tasks, as data: choices, answers, held-out text, last words. How they are scored stands in tasks.py."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.items import SpansItem


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
  """Which choice continues the prompt, by log-likelihood.

  Attributes:
    name: of the task.
    items: prompts and choices. A choice is the text behind the prompt, its separating blank included.
    metric: what the sum over the choice's tokens is divided by before choices are compared. "accuracy": nothing.
      "accuracy_per_character", "accuracy_per_byte": the length of the choice without its separating blank, in
      characters or in bytes of UTF-8 (acc_norm and acc_bytes of lm-evaluation-harness 0.4). "accuracy_per_token": its
      tokens.
  """

  name: str
  items: Sequence[ChoiceItem]
  metric: Literal[
    "accuracy", "accuracy_per_character", "accuracy_per_byte", "accuracy_per_token"
  ] = "accuracy"


@dataclasses.dataclass(frozen=True)
class AnswerTask:
  """Greedy answers against references.

  Attributes:
    name: of the task.
    items: prompts and references; `SpansItem` for DROP's metrics only.
    metric: f1 or exact_match (SQuAD 2.0), squad_f1 (v1.1), drop_f1 or drop_exact_match, or bleu.
    max_new_tokens: where an answer without EOS is cut.
    stop: an answer ends before this text, or before the first of several; blanks at its ends go.
    bleu_tokenizer: sacrebleu's; "none" splits at blanks.
    span_separator: DROP: an answer is split into spans there; empty: it is one span.
  """

  name: str
  items: Sequence[AnswerItem | SpansItem]
  metric: str = "f1"
  max_new_tokens: int = 32
  stop: str | Sequence[str] = ""
  bleu_tokenizer: str = "13a"
  span_separator: str = ""

  @property
  def stops(self) -> tuple[str, ...]:
    """The texts that end an answer."""
    given = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
    return tuple(stop for stop in given if stop)


@dataclasses.dataclass(frozen=True)
class TextTask:
  """Nats per token of documents, or perplexity per token, word or byte.

  The first window of a document holds its first `window` tokens, each next one scores `stride` more (0: window - 1) and
  fills up with the tokens before them as context. Every token is scored once but the first of the document, which
  is BOS if the tokenizer adds one; BOS is not repeated in later windows.

  Attributes:
    name: of the task.
    documents: texts.
    window: tokens; 0: one more than the model's context, since a window's last token is predicted and not read.
    stride: 1 to window - 1.
    metric: nats_per_token, token_perplexity, word_perplexity, byte_perplexity or bits_per_byte.
    score_first: the first token of a document is scored too, behind BOS (EOS where the tokenizer has no BOS), as
      lm-evaluation-harness does. Words and bytes are counted whole, so their perplexities want this.
    counted: the texts whose words and bytes are counted, where the documents were rewritten; empty: the documents.
  """

  name: str
  documents: Sequence[str]
  window: int = 256
  stride: int = 0
  metric: Literal[
    "nats_per_token", "token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"
  ] = "nats_per_token"
  score_first: bool = False
  counted: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class LastWordTask:
  """Whether each token of the completion is the most probable after those before it (LAMBADA, Paperno et al. 2016).

  Attributes:
    name: of the task.
    examples: passages and last words.
    metric: "accuracy", or "perplexity" of the word, whatever number of tokens it is made of.
  """

  name: str
  examples: Sequence[Example]
  metric: Literal["accuracy", "perplexity"] = "accuracy"


Task = ChoiceTask | AnswerTask | TextTask | LastWordTask
