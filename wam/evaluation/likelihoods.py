"""Likelihoods of text: prepared `TextTask` (windows over documents) and `LastWordTask`."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params
from wam.data import encoding
from wam.data.tokenizers import eos_id
from wam.evaluation import forward, scores
from wam.evaluation.encoder import Batches, Column, Encoder
from wam.evaluation.scores import TaskScore
from wam.evaluation.task_kinds import LastWordTask, TextTask
from wam.models.decoder import LanguageModel


class PreparedText(NamedTuple):
  """A `TextTask` that is tokenised and on the device.

  Attributes:
    task: its data.
    batches: windows, and which of their tokens are scored.
    document: of each window.
    units: by metric, what each document's nats are divided by: float64 [n].
  """

  task: TextTask
  batches: Batches
  document: np.ndarray
  units: dict[str, np.ndarray]

  def nats(self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32) -> np.ndarray:
    """-log p of each document's scored tokens: float64 [n]."""
    parts = [
      # The flags are padded with an id, as all columns are: what is real says their own mask.
      forward.text_nats(
        model, params, tokens, mask, scored.astype(bool) & real, dtype=jnp.dtype(dtype)
      )
      for tokens, mask, scored, real in self.batches.arrays
    ]
    nats = self.batches.gather(parts).astype(np.float64)
    return np.bincount(self.document, nats, minlength=len(self.task.documents))

  def scores(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> list[TaskScore]:
    """Nats and perplexities, over all documents together: long ones weigh more."""
    nats = self.nats(model, params, dtype=dtype)
    return [
      scores.from_statistics(self.task.name, metric, np.stack([nats, units], axis=1))
      for metric, units in self.units.items()
    ]

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    """The task's own metric."""
    return scores.first(self.scores(model, params, dtype=dtype), self.task.metric)


def prepare_text(task: TextTask, encoder: Encoder) -> PreparedText:
  """Tokenises documents and cuts them into windows.

  Raises:
    ConfigError: window and stride do not fit.
    BadData: there are no documents, or one has nothing to score.
    UnknownName: of the metric.
  """
  window, stride = _window(task, encoder)
  if not task.documents:
    raise BadData(f"task '{task.name}' has no documents")
  windows, scored, document = [], [], []
  for number, ids in enumerate(_document_ids(task, encoder)):
    if len(ids) < 2:
      raise BadData(f"task '{task.name}', document {number}: fewer than 2 tokens, nothing to score")
    for start, first, end in window_bounds(len(ids), window, stride):
      windows.append(ids[start:end])
      scored.append([int(first <= t) for t in range(start, end)])
      document.append(number)
  tokens = np.bincount(document, [sum(flags) for flags in scored])
  counted = task.counted or task.documents
  if len(counted) != len(task.documents):
    raise BadData(f"task '{task.name}': {len(counted)} counted texts, {len(task.documents)} scored")
  bytes_ = np.array([len(text.encode()) for text in counted], np.float64)
  units = {
    "nats_per_token": tokens,
    "token_perplexity": tokens,
    # Words as lm-evaluation-harness counts them: pieces between white space, empty ones at the ends included.
    "word_perplexity": np.array([len(re.split(r"\s+", text)) for text in counted], np.float64),
    "byte_perplexity": bytes_,
    "bits_per_byte": bytes_,
  }
  if task.metric not in units:
    raise unknown_name("metric of text", task.metric, units)
  batches = encoder.batches(Column(windows), Column(scored))
  return PreparedText(task, batches, np.array(document), units)


def _window(task: TextTask, encoder: Encoder) -> tuple[int, int]:
  window = task.window
  if window == 0:
    if encoder.context is None:
      raise ConfigError(
        f"text task '{task.name}': window 0 is the model's context; say how long that is"
      )
    window = encoder.context + 1
  stride = task.stride or window - 1
  if window < 2 or not 1 <= stride < window:
    raise ConfigError(
      f"text task '{task.name}': expected window >= 2 and 1 <= stride < window (or 0), found window"
      f" {task.window}, stride {task.stride}"
    )
  return window, stride


def _document_ids(task: TextTask, encoder: Encoder) -> list[list[int]]:
  tokenizer = encoder.tokenizer
  if not task.score_first:
    return encoding.encode_texts(tokenizer, task.documents, add_bos=encoder.add_bos)
  if tokenizer.bos_token_id is not None:
    return encoding.encode_texts(tokenizer, task.documents, add_bos=True)
  before = [eos_id(tokenizer)]
  return [before + ids for ids in encoding.encode_texts(tokenizer, task.documents, add_bos=False)]


def window_bounds(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
  """(start, first scored token, end) of each window; every token but the first is scored once.

  A token is predicted by those before it, so windows overlap by one token at least.

  >>> window_bounds(10, 4, 3)
  [(0, 1, 4), (3, 4, 7), (6, 7, 10)]
  >>> window_bounds(7, 4, 2)
  [(0, 1, 4), (2, 4, 6), (3, 6, 7)]
  """
  found = [(0, 1, min(window, length))]
  while (first := found[-1][2]) < length:
    end = min(first + stride, length)
    found.append((max(end - window, 0), first, end))
  return found


class PreparedLastWords(NamedTuple):
  """A `LastWordTask` that is tokenised and on the device."""

  task: LastWordTask
  batches: Batches
  counts: dict[str, int]

  def scores(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> list[TaskScore]:
    """Accuracy, and the perplexity of the words."""
    parts = [
      forward.target_nats(model, params, batch[:2], batch[2:], dtype=jnp.dtype(dtype))
      for batch in self.batches.arrays
    ]
    nats = self.batches.gather([part[0] for part in parts]).astype(np.float64)
    right = self.batches.gather([part[1] for part in parts])
    rows = np.stack([nats, np.ones_like(nats)], axis=1)
    found: Sequence[TaskScore] = (
      scores.from_items(self.task.name, "accuracy", right),
      scores.from_statistics(self.task.name, "perplexity", rows),
    )
    return [score._replace(counts=self.counts) for score in found]

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    """The task's own metric."""
    return scores.first(self.scores(model, params, dtype=dtype), self.task.metric)


def prepare_last_words(task: LastWordTask, encoder: Encoder) -> PreparedLastWords:
  """Tokenises and pads; a passage leaves room for its last word.

  Raises:
    BadData: there are no examples, or a word has no tokens.
    UnknownName: of the metric.
  """
  if task.metric not in ("accuracy", "perplexity"):
    raise unknown_name("metric of last words", task.metric, ["accuracy", "perplexity"])
  words = encoder.completions(task.name, [e.completion for e in task.examples])
  # The last token of a word is predicted and not read.
  room = [len(word) - 1 for word in words]
  prompts, cut = encoder.prompts(task.name, [e.prompt for e in task.examples], room)
  inputs = [prompt + word[:-1] for prompt, word in zip(prompts, words, strict=True)]
  columns = Column(inputs, left=True), Column(words, left=True, multiple=1)
  return PreparedLastWords(task, encoder.batches(*columns), {"truncated_prompts": cut})
