"""What a model can do, measured: choices, answers, held-out text, last words.

A task is data (task_kinds.py); `prepare` tokenises and pads it once, and what it returns evaluates any number of
weights without compiling again. Leaves out rewards of samples (rewards/, recipes/) and where the data come from
(suites.py, data/).
"""

from typing import Any, Protocol

import jax.numpy as jnp

from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.data.tokenizers import Tokenizer
from wam.evaluation import answers, choices, likelihoods
from wam.evaluation.encoder import Encoder
from wam.evaluation.scores import TaskScore
from wam.evaluation.task_kinds import AnswerTask, ChoiceTask, LastWordTask, Task, TextTask
from wam.models.decoder import LanguageModel

__all__ = [
  "AnswerTask",
  "ChoiceTask",
  "LastWordTask",
  "Prepared",
  "Task",
  "TaskScore",
  "TextTask",
  "prepare",
]


class Prepared(Protocol):
  """A task that is tokenised and on the device."""

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    """Scores one set of weights by the task's own metric."""
    ...

  def scores(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> list[TaskScore]:
    """All metrics that the same forward passes give, the task's own among them."""
    ...


def prepare(
  task: Task,
  tokenizer: Tokenizer,
  *,
  batch_size: int = 128,
  max_length: int = 1024,
  context: int | None = None,
  add_bos: bool | None = None,
  keep_bos: bool = True,
) -> Prepared:
  """Tokenises and pads a task, once for all the models it will score.

  Args:
    task: one of the four kinds.
    tokenizer: of the models.
    batch_size: rows at a time, at most; all batches have the same number.
    max_length: tokens of a prompt, at most; see `context` for what happens to longer ones.
    context: tokens that the model reads, at most: a prompt leaves room for its longest choice, its answer or its word.
      A prompt that is too long keeps its right end, and is counted in the score as "truncated_prompts". None: no bound.
    add_bos: whether BOS stands before prompts and documents; None: as the tokenizer does.
    keep_bos: whether a prompt that is cut keeps BOS. lm-evaluation-harness does not.

  Raises:
    BadData: the task has no items, an item no tokens to read or to score, or what follows a prompt does not fit.
    ConfigError: a number is out of range.
    UnknownName: of the task's metric.
  """
  if batch_size < 1 or max_length < 2 or (context is not None and context < 2):
    raise ConfigError(
      f"batch_size must be at least 1, max_length and context 2; found {batch_size}, {max_length} and {context}"
    )
  encoder = Encoder(tokenizer, batch_size, max_length, context, add_bos, keep_bos)
  match task:
    case ChoiceTask():
      return choices.prepare(task, encoder)
    case AnswerTask():
      return answers.prepare(task, encoder)
    case TextTask():
      return likelihoods.prepare_text(task, encoder)
    case LastWordTask():
      return likelihoods.prepare_last_words(task, encoder)
