"""Greedy answers against references: a prepared `AnswerTask`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params
from wam.data.tokenizers import Tokenizer, eos_id, padding_id
from wam.evaluation import metrics, official_scores, scores
from wam.evaluation.encoder import Batches, Column, Encoder
from wam.evaluation.scores import TaskScore
from wam.evaluation.task_kinds import AnswerTask
from wam.generation.sampling import generate
from wam.models.decoder import LanguageModel

# At most so many tokens end a generation: each is a comparison in every step.
_MOST_ENDS = 64
# By metric: all that are computed from the same answers.
_FAMILIES: dict[str, tuple[str, ...]] = {
  "f1": ("f1", "exact_match"),
  "exact_match": ("f1", "exact_match"),
  "squad_f1": ("squad_f1", "exact_match"),
  "drop_f1": ("drop_f1", "drop_exact_match"),
  "drop_exact_match": ("drop_f1", "drop_exact_match"),
  "bleu": ("bleu",),
}
_ITEM_SCORES: Mapping[str, Callable[[Any, Sequence[Any]], float]] = {
  "f1": official_scores.token_f1,
  "squad_f1": official_scores.squad_f1,
  "exact_match": official_scores.exact_match,
  "drop_exact_match": lambda answer, references: official_scores.drop_scores(answer, references)[0],
  "drop_f1": lambda answer, references: official_scores.drop_scores(answer, references)[1],
}


class PreparedAnswers(NamedTuple):
  """An `AnswerTask` that is tokenised and on the device.

  Attributes:
    task: its data.
    batches: prompts.
    tokenizer: of the models.
    ends: the tokens that end a generation: EOS, and those that hold one of the task's stops.
    counts: see `TaskScore`.
  """

  task: AnswerTask
  batches: Batches
  tokenizer: Tokenizer
  ends: tuple[int, ...]
  counts: dict[str, int]

  def answers(self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32) -> list[str]:
    """The greedy answers themselves, up to the task's stops, without blanks at their ends."""
    samples = [
      generate(
        model,
        params,
        tokens,
        mask,
        jax.random.key(0),  # greedy: never used
        max_new_tokens=self.task.max_new_tokens,
        eos_id=self.ends,
        pad_id=padding_id(self.tokenizer),
        temperature=0.0,
        dtype=dtype,
      )
      for tokens, mask in self.batches.arrays
    ]
    completions = self.batches.gather([s.completions for s in samples])
    real = self.batches.gather([s.completion_mask for s in samples])
    kept = [row[mask].tolist() for row, mask in zip(completions, real, strict=True)]
    texts = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [_up_to(text, self.task.stops) for text in texts]

  def scores(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> list[TaskScore]:
    """Every metric of the task's family that its answers give."""
    return score_answers(self.task, self.answers(model, params, dtype=dtype), self.counts)

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    """The task's own metric."""
    return scores.first(self.scores(model, params, dtype=dtype), self.task.metric)


def prepare(task: AnswerTask, encoder: Encoder) -> PreparedAnswers:
  """Tokenises and pads; a prompt leaves room for max_new_tokens.

  Raises:
    BadData: there are no items, or one has no reference.
    ConfigError: an answer could have no token.
    UnknownName: of the metric.
  """
  if task.metric not in _FAMILIES:
    raise unknown_name("metric of answers", task.metric, _FAMILIES)
  if task.max_new_tokens < 1:
    raise ConfigError(
      f"task '{task.name}': max_new_tokens must be at least 1, found {task.max_new_tokens}"
    )
  for number, item in enumerate(task.items):
    if not item.references:
      raise BadData(f"task '{task.name}', item {number}: no reference")
    if not task.metric.startswith("drop") and not all(isinstance(r, str) for r in item.references):
      raise BadData(
        f"task '{task.name}', item {number}: references of several spans are for DROP's metrics, not {task.metric}"
      )
  room = [task.max_new_tokens] * len(task.items)
  prompts, cut = encoder.prompts(task.name, [item.prompt for item in task.items], room)
  return PreparedAnswers(
    task,
    encoder.batches(Column(prompts, left=True)),
    encoder.tokenizer,
    (eos_id(encoder.tokenizer), *stop_tokens(encoder.tokenizer, task.stops)),
    {"truncated_prompts": cut},
  )


def score_answers(
  task: AnswerTask, answers: Sequence[str], counts: Mapping[str, int]
) -> list[TaskScore]:
  """The metrics of the task's family, of one answer an item, wherever they come from."""
  references: list[Any] = [item.references for item in task.items]
  if task.metric == "bleu":
    rows = metrics.bleu_statistics(answers, references, tokenize=task.bleu_tokenizer)
    signature = metrics.bleu_signature(answers, references, tokenize=task.bleu_tokenizer)
    # The sentence scores have effective order: else most are 0.
    found = TaskScore(
      task.name,
      "bleu",
      metrics.value("bleu", rows),
      np.array([metrics.bleu(row) for row in rows]),
      rows,
      counts,
      signature,
    )
    return [found]
  given: Sequence[Any] = answers
  if task.metric.startswith("drop") and task.span_separator:
    given = [answer.split(task.span_separator) for answer in answers]
  found_scores = []
  for metric in _FAMILIES[task.metric]:
    items = [_ITEM_SCORES[metric](a, r) for a, r in zip(given, references, strict=True)]
    found_scores.append(scores.from_items(task.name, metric, items)._replace(counts=counts))
  return found_scores


def stop_tokens(tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[int, ...]:
  """Tokens whose text holds one of the stops: where one appears, the answer is complete.

  Where there are many, the shortest ones: the others cost time and change nothing, since the text is cut anyway.
  """
  if not stops:
    return ()
  ids = range(len(tokenizer))
  texts = tokenizer.batch_decode([[i] for i in ids])
  found = [(len(t), i) for i, t in zip(ids, texts, strict=True) if any(s in t for s in stops)]
  return tuple(i for _, i in sorted(found)[:_MOST_ENDS])


def _up_to(text: str, stops: Sequence[str]) -> str:
  for stop in stops:
    text = text.split(stop)[0]
  return text.strip()
