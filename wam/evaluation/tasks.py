"""What a model can do, measured: choices, answers, held-out text, last words.

A task is data; `prepare` tokenises and pads it once, and what it returns evaluates any number of weights without
compiling again. Leaves out rewards of samples (rewards/, recipes/) and where the data come from (data/).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params
from wam.data import encoding
from wam.data.batching import pad_left, pad_right
from wam.data.examples import AnswerItem, ChoiceItem, Example
from wam.data.tokenizers import Tokenizer, bos_ids, eos_id, padding_id
from wam.evaluation import forward, metrics
from wam.generation.sampling import generate
from wam.models.decoder import LanguageModel

# Rows are padded to a multiple of this, so that tasks of similar length share a compiled program.
_MULTIPLE = 8


class TaskScore(NamedTuple):
  """What one model scored on one task.

  Attributes:
    name: of the task.
    metric: one of metrics.METRICS.
    value: over all items.
    per_item: float64 [n]; for BLEU the sentence's own, for text the document's nats per token.
    statistics: float64 [n, k]: sums over any rows of it give the metric of those items, for bootstraps.
  """

  name: str
  metric: str
  value: float
  per_item: np.ndarray
  statistics: np.ndarray

  def resampled(self, items: np.ndarray) -> float:
    """The metric over the given item numbers, with repetition."""
    return metrics.value(self.metric, self.statistics[items])


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
  """Which choice continues the prompt, by log-likelihood; normalised: per token of the choice."""

  name: str
  items: Sequence[ChoiceItem]
  normalised: bool = False


@dataclasses.dataclass(frozen=True)
class AnswerTask:
  """Greedy answers against references.

  Attributes:
    name: of the task.
    items: prompts and references.
    metric: f1, exact_match or bleu.
    max_new_tokens: where an answer without EOS is cut.
    stop: an answer ends before this text, if given.
    bleu_tokenizer: sacrebleu's; "none" splits at blanks.
  """

  name: str
  items: Sequence[AnswerItem]
  metric: str = "f1"
  max_new_tokens: int = 32
  stop: str = ""
  bleu_tokenizer: str = "13a"


@dataclasses.dataclass(frozen=True)
class TextTask:
  """Nats per token of documents.

  The first window of a document holds its first `window` tokens, each next one scores `stride` more (0: window - 1) and
  fills up with the tokens before them as context. Every token is scored once but the first of the document, which
  is BOS if the tokenizer adds one; BOS is not repeated in later windows.
  """

  name: str
  documents: Sequence[str]
  window: int = 256
  stride: int = 0


@dataclasses.dataclass(frozen=True)
class LastWordTask:
  """Whether each token of the completion is the most probable after those before it (LAMBADA, Paperno et al. 2016)."""

  name: str
  examples: Sequence[Example]


Task = ChoiceTask | AnswerTask | TextTask | LastWordTask
Arrays = tuple[jax.Array, ...]


class Prepared(Protocol):
  """A task that is tokenised and on the device."""

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    """Scores one set of weights."""
    ...


def prepare(
  task: Task,
  tokenizer: Tokenizer,
  *,
  batch_size: int = 128,
  max_length: int = 1024,
  add_bos: bool | None = None,
) -> Prepared:
  """Tokenises and pads a task, once for all the models it will score.

  Args:
    task: one of the four kinds.
    tokenizer: of the models.
    batch_size: rows at a time, at most; all batches have one shape.
    max_length: prompts that are longer keep BOS and their right end.
    add_bos: whether BOS stands before prompts and documents; None: as the tokenizer does.

  Raises:
    BadData: the task has no items, or an item no tokens to read or to score.
    ConfigError: a number is out of range.
  """
  if batch_size < 1 or max_length < 2:
    raise ConfigError(
      f"batch_size must be at least 1 and max_length 2, found {batch_size} and {max_length}"
    )
  encoder = _Encoder(tokenizer, batch_size, max_length, add_bos)
  match task:
    case ChoiceTask():
      return _prepare_choices(task, encoder)
    case AnswerTask():
      return _prepare_answers(task, encoder)
    case TextTask():
      return _prepare_text(task, encoder)
    case LastWordTask():
      return _prepare_last_words(task, encoder)


class _Encoder(NamedTuple):
  """How strings become padded batches."""

  tokenizer: Tokenizer
  batch_size: int
  max_length: int
  add_bos: bool | None

  def prompts(self, name: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids, cut on the left behind BOS."""
    if not texts:
      raise BadData(f"task '{name}' has no items")
    before = len(bos_ids(self.tokenizer, self.add_bos))
    encoded = encoding.encode_texts(self.tokenizer, texts, add_bos=self.add_bos)
    for number, ids in enumerate(encoded):
      if not ids:
        raise BadData(f"task '{name}', item {number}: the prompt has no tokens; set add_bos")
    return [
      ids if len(ids) <= self.max_length else ids[:before] + ids[before - self.max_length :]
      for ids in encoded
    ]

  def completions(self, name: str, texts: Sequence[str]) -> list[list[int]]:
    encoded = encoding.encode_completions(self.tokenizer, texts, add_eos=False)
    for text, ids in zip(texts, encoded, strict=True):
      if not ids:
        raise BadData(f"task '{name}': the completion {text!r} has no tokens")
    return encoded

  def left(self, rows: Sequence[Sequence[int]], multiple: int = _MULTIPLE) -> list[np.ndarray]:
    return list(pad_left(rows, padding_id(self.tokenizer), multiple=multiple))

  def right(self, rows: Sequence[Sequence[int]], multiple: int = _MULTIPLE) -> list[np.ndarray]:
    return list(pad_right(rows, padding_id(self.tokenizer), multiple=multiple))

  def batches(self, *arrays: np.ndarray) -> tuple[Arrays, ...]:
    """Rows in as few batches as possible, of equal size; the last is filled up with its first row."""
    n = len(arrays[0])
    size = -(-n // -(-n // self.batch_size))
    starts = range(0, n, size)
    index = [np.where((i := np.arange(s, s + size)) < n, i, s) for s in starts]
    return tuple(tuple(jnp.asarray(a[i]) for a in arrays) for i in index)


def _score(name: str, metric: str, items: np.ndarray, statistics: np.ndarray) -> TaskScore:
  return TaskScore(name, metric, metrics.value(metric, statistics), items, statistics)


def _mean_score(name: str, metric: str, items: np.ndarray) -> TaskScore:
  """A metric that is the mean of its items."""
  items = np.asarray(items, np.float64)
  return _score(name, metric, items, np.stack([items, np.ones_like(items)], axis=1))


def _gather(parts: Sequence[jax.Array], n: int) -> np.ndarray:
  """One array of n items from the outputs of batches, without the rows that filled up the last."""
  return np.concatenate([np.asarray(part) for part in parts])[:n]


class _PreparedChoices(NamedTuple):
  task: ChoiceTask
  batches: tuple[Arrays, ...]
  lengths: np.ndarray  # tokens of each choice [n, C]; 1 where there is none

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    scores = _gather(
      [
        forward.choice_logprobs(model, params, batch[:2], batch[2:], dtype=jnp.dtype(dtype))
        for batch in self.batches
      ],
      len(self.lengths),
    )
    metric = "normalised_accuracy" if self.task.normalised else "accuracy"
    scores = scores / self.lengths if self.task.normalised else scores
    answers = np.array([item.answer for item in self.task.items])
    return _mean_score(self.task.name, metric, metrics.choice_credit(scores, answers))


def _prepare_choices(task: ChoiceTask, encoder: _Encoder) -> Prepared:
  for number, item in enumerate(task.items):
    if not 0 <= item.answer < len(item.choices):
      raise BadData(
        f"task '{task.name}', item {number}: the answer is number {item.answer} of {len(item.choices)} choices"
      )
  prompts = encoder.left(encoder.prompts(task.name, [item.prompt for item in task.items]))
  most = max(len(item.choices) for item in task.items)
  flat = iter(encoder.completions(task.name, [c for item in task.items for c in item.choices]))
  rows = [next(flat) if c < len(item.choices) else [] for item in task.items for c in range(most)]
  tokens, mask = (x.reshape(len(task.items), most, -1) for x in encoder.right(rows, multiple=1))
  lengths = np.maximum(mask.sum(axis=2), 1)
  return _PreparedChoices(task, encoder.batches(*prompts, tokens, mask), lengths)


class _PreparedAnswers(NamedTuple):
  task: AnswerTask
  batches: tuple[Arrays, ...]
  tokenizer: Tokenizer

  def answers(self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32) -> list[str]:
    """The greedy answers themselves."""
    samples = [
      generate(
        model,
        params,
        tokens,
        mask,
        jax.random.key(0),  # greedy: never used
        max_new_tokens=self.task.max_new_tokens,
        eos_id=eos_id(self.tokenizer),
        pad_id=padding_id(self.tokenizer),
        temperature=0.0,
        dtype=dtype,
      )
      for tokens, mask in self.batches
    ]
    n = len(self.task.items)
    completions = _gather([s.completions for s in samples], n)
    real = _gather([s.completion_mask for s in samples], n)
    kept = [row[mask].tolist() for row, mask in zip(completions, real, strict=True)]
    texts = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
    stop = self.task.stop
    return [(text.split(stop)[0] if stop else text).strip() for text in texts]

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    task = self.task
    answers = self.answers(model, params, dtype=dtype)
    references = [item.references for item in task.items]
    if task.metric == "bleu":
      statistics = metrics.bleu_statistics(answers, references, tokenize=task.bleu_tokenizer)
      return _score(task.name, "bleu", np.array([metrics.bleu(s) for s in statistics]), statistics)
    score = metrics.token_f1 if task.metric == "f1" else metrics.exact_match
    items = [score(a, r) for a, r in zip(answers, references, strict=True)]
    return _mean_score(task.name, task.metric, np.array(items))


def _prepare_answers(task: AnswerTask, encoder: _Encoder) -> Prepared:
  kinds = ("f1", "exact_match", "bleu")
  if task.metric not in kinds:
    raise unknown_name("metric of answers", task.metric, kinds)
  for number, item in enumerate(task.items):
    if not item.references:
      raise BadData(f"task '{task.name}', item {number}: no reference")
  prompts = encoder.left(encoder.prompts(task.name, [item.prompt for item in task.items]))
  return _PreparedAnswers(task, encoder.batches(*prompts), encoder.tokenizer)


class _PreparedText(NamedTuple):
  task: TextTask
  batches: tuple[Arrays, ...]
  document: np.ndarray  # of each window
  tokens: np.ndarray  # scored tokens of each document

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    nats = _gather(
      [forward.text_nats(model, params, *batch, dtype=jnp.dtype(dtype)) for batch in self.batches],
      len(self.document),
    )
    sums = np.bincount(self.document, nats.astype(np.float64), minlength=len(self.tokens))
    statistics = np.stack([sums, self.tokens], axis=1)
    return _score(self.task.name, "nats_per_token", sums / self.tokens, statistics)


def _prepare_text(task: TextTask, encoder: _Encoder) -> Prepared:
  stride = task.stride or task.window - 1
  if task.window < 2 or not 1 <= stride < task.window:
    raise ConfigError(
      f"text task '{task.name}': expected window >= 2 and 1 <= stride < window (or 0), found window"
      f" {task.window}, stride {task.stride}"
    )
  if not task.documents:
    raise BadData(f"task '{task.name}' has no documents")
  windows, scored, document = [], [], []
  for number, ids in enumerate(
    encoding.encode_texts(encoder.tokenizer, task.documents, add_bos=encoder.add_bos)
  ):
    if len(ids) < 2:
      raise BadData(f"task '{task.name}', document {number}: fewer than 2 tokens, nothing to score")
    for start, first, end in _windows(len(ids), task.window, stride):
      windows.append(ids[start:end])
      scored.append([first <= t for t in range(start, end)])
      document.append(number)
  tokens, mask = encoder.right(windows)
  targets = pad_right(scored, 0, length=tokens.shape[1])[0].astype(bool)
  counts = np.bincount(document, targets.sum(axis=1)).astype(np.float64)
  return _PreparedText(task, encoder.batches(tokens, mask, targets), np.array(document), counts)


def _windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
  """(start, first scored token, end) of each window; every token but the first is scored once.

  A token is predicted by those before it, so windows overlap by one token at least.

  >>> _windows(10, 4, 3)
  [(0, 1, 4), (3, 4, 7), (6, 7, 10)]
  >>> _windows(7, 4, 2)
  [(0, 1, 4), (2, 4, 6), (3, 6, 7)]
  """
  found = [(0, 1, min(window, length))]
  while (first := found[-1][2]) < length:
    end = min(first + stride, length)
    found.append((max(end - window, 0), first, end))
  return found


class _PreparedLastWords(NamedTuple):
  task: LastWordTask
  batches: tuple[Arrays, ...]

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    right = _gather(
      [
        forward.greedy_matches(model, params, batch[:2], batch[2:], dtype=jnp.dtype(dtype))
        for batch in self.batches
      ],
      len(self.task.examples),
    )
    return _mean_score(self.task.name, "accuracy", right)


def _prepare_last_words(task: LastWordTask, encoder: _Encoder) -> Prepared:
  prompts = encoder.prompts(task.name, [e.prompt for e in task.examples])
  words = encoder.completions(task.name, [e.completion for e in task.examples])
  inputs = [prompt + word[:-1] for prompt, word in zip(prompts, words, strict=True)]
  rows = *encoder.left(inputs), *encoder.left(words, multiple=1)
  return _PreparedLastWords(task, encoder.batches(*rows))
