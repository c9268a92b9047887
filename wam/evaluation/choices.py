"""Multiple choice by log-likelihood: a prepared `ChoiceTask`."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam.core.errors import BadData, unknown_name
from wam.core.types import Params
from wam.evaluation import forward, metrics, scores
from wam.evaluation.encoder import Batches, Column, Encoder
from wam.evaluation.scores import TaskScore
from wam.evaluation.task_kinds import ChoiceTask
from wam.models.decoder import LanguageModel


class PreparedChoices(NamedTuple):
  """A `ChoiceTask` that is tokenised and on the device.

  Attributes:
    task: its data.
    batches: prompts and choices.
    lengths: by metric what each choice's sum is divided by: float64 [n, C]; 1 where there is no choice.
    counts: see `TaskScore`.
  """

  task: ChoiceTask
  batches: Batches
  lengths: dict[str, np.ndarray]
  counts: dict[str, int]

  def logprobs(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> np.ndarray:
    """log p(choice | prompt), summed over the choice's tokens: float64 [n, C]; -inf where there is no choice."""
    parts = [
      forward.choice_logprobs(model, params, batch[:2], batch[2:], dtype=jnp.dtype(dtype))
      for batch in self.batches.arrays
    ]
    return self.batches.gather(parts).astype(np.float64)

  def scores(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> list[TaskScore]:
    """Every metric that the choices' log-likelihoods give."""
    logprobs = self.logprobs(model, params, dtype=dtype)
    answers = np.array([item.answer for item in self.task.items])
    found = []
    for metric, lengths in self.lengths.items():
      credit = metrics.choice_credit(logprobs / lengths, answers)
      found.append(scores.from_items(self.task.name, metric, credit)._replace(counts=self.counts))
    return found

  def evaluate(
    self, model: LanguageModel, params: Params, *, dtype: Any = jnp.float32
  ) -> TaskScore:
    """The task's own metric."""
    return scores.first(self.scores(model, params, dtype=dtype), self.task.metric)


def prepare(task: ChoiceTask, encoder: Encoder) -> PreparedChoices:
  """Tokenises and pads; an item's prompt leaves room for its longest choice, and is the same for all of them.

  Raises:
    BadData: there are no items, an answer is none of the choices, or a choice has no tokens.
    UnknownName: of the metric.
  """
  for number, item in enumerate(task.items):
    if not 0 <= item.answer < len(item.choices):
      raise BadData(
        f"task '{task.name}', item {number}: the answer is number {item.answer} of {len(item.choices)} choices"
      )
  most = max((len(item.choices) for item in task.items), default=0)
  flat = iter(encoder.completions(task.name, [c for item in task.items for c in item.choices]))
  choices = [
    [next(flat) if c < len(item.choices) else [] for c in range(most)] for item in task.items
  ]
  # The last token of a choice is predicted and not read.
  room = [max(map(len, lists)) - 1 for lists in choices]
  prompts, cut = encoder.prompts(task.name, [item.prompt for item in task.items], room)
  texts = [[_bare(c) for c in item.choices] for item in task.items]
  lengths = {
    "accuracy": [[1] * len(row) for row in texts],
    "accuracy_per_character": [[len(c) for c in row] for row in texts],
    "accuracy_per_byte": [[len(c.encode()) for c in row] for row in texts],
    "accuracy_per_token": [[len(c) for c in row] for row in choices],
  }
  if task.metric not in lengths:
    raise unknown_name("metric of choices", task.metric, lengths)
  # Prompts of log-likelihoods are padded on the left: their last token predicts the first of every choice.
  columns = Column(prompts, left=True), Column(choices, nested=True, multiple=1)
  return PreparedChoices(
    task,
    encoder.batches(*columns),
    {metric: _filled(rows, most) for metric, rows in lengths.items()},
    {"truncated_prompts": cut},
  )


def _bare(choice: str) -> str:
  """The choice without the one blank that separates it from the prompt."""
  return choice[1:] if choice[:1].isspace() else choice


def _filled(rows: list[list[int]], width: int) -> np.ndarray:
  """[n, C], with 1 where a row has fewer entries and in place of 0."""
  return np.array([[max(x, 1) for x in row] + [1] * (width - len(row)) for row in rows], np.float64)
