"""Scores of answers and choices, as pure functions of strings and arrays. No model and no JAX.

Every metric is a function of sums over items (`statistics`, a row an item), so that one bootstrap serves them all: ask
`value` of the rows that were drawn. Leaves out embedding-based and model-judged scores.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np
from sacrebleu.metrics import BLEU

from wam.core.errors import BadData, check_rank, unknown_name

# Matched n-grams of 1 to 4, n-grams of 1 to 4, tokens of the hypothesis, tokens of the reference.
_BLEU_SUMS = 10
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
  """Lower case, no punctuation, no English articles, single blanks: SQuAD's rule (Rajpurkar et al. 2016).

  >>> normalise_answer("The  Eiffel-Tower, a tower.")
  'eiffeltower tower'
  """
  return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
  """1 when the normalised answer is one of the normalised references, else 0."""
  return float(normalise_answer(answer) in {normalise_answer(r) for r in references})


def token_f1(answer: str, references: Sequence[str]) -> float:
  """The best harmonic mean, over the references, of precision and recall of the bag of normalised words.

  Two empty texts agree (1), an empty and another one do not (0), as in SQuAD 2.0.

  >>> token_f1("the red kite", ["a blue kite", "kite"])
  0.6666666666666666
  """
  return max(_f1(normalise_answer(answer).split(), normalise_answer(r).split()) for r in references)


def _f1(answer: list[str], reference: list[str]) -> float:
  if not answer or not reference:
    return float(answer == reference)
  common = sum((collections.Counter(answer) & collections.Counter(reference)).values())
  # 2PR / (P + R) with P = common / answer and R = common / reference.
  return 2 * common / (len(answer) + len(reference))


def bleu_statistics(
  answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> np.ndarray:
  """What sacrebleu counts in each sentence; sums of rows give a corpus score by `bleu`.

  Args:
    answers: n hypotheses.
    references: for each, one reference or more.
    tokenize: sacrebleu's tokenizer; "none" splits at blanks only.

  Returns:
    float64 [n, 10]: matched n-grams of 1 to 4, n-grams of 1 to 4, tokens of the hypothesis, of the nearest reference.
  """
  scorer = BLEU(tokenize=tokenize, effective_order=True)
  scores = [scorer.sentence_score(a, list(r)) for a, r in zip(answers, references, strict=True)]
  rows = [[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores]
  return np.asarray(rows, np.float64).reshape(-1, _BLEU_SUMS)


def bleu(sums: np.ndarray) -> float:
  """sacrebleu's corpus BLEU, 0 to 100, from rows of `bleu_statistics` added up: [10]."""
  counts, totals = [int(x) for x in sums[:4]], [int(x) for x in sums[4:8]]
  if totals[0] == 0:
    return 0.0
  score = BLEU.compute_bleu(counts, totals, int(sums[8]), int(sums[9]), smooth_method="exp")
  return float(score.score)


def choice_credit(scores: np.ndarray, answers: np.ndarray) -> np.ndarray:
  """1 where the right choice alone scores best, 1/k where it is among k that tie for it, else 0.

  A tie earns what a random pick would on average: a model that says nothing (equal scores) is at chance.

  Args:
    scores: [n, C], -inf where an item has fewer choices.
    answers: int [n].

  Returns:
    float64 [n].
  """
  check_rank("scores", scores, 2)
  top = scores.max(axis=1, keepdims=True)
  # Sums of different lengths that should be equal differ by rounding.
  best = scores >= top - 1e-6 * np.maximum(np.abs(top), 1.0)
  return best[np.arange(len(scores)), answers] / np.maximum(best.sum(axis=1), 1)


def _mean(sums: np.ndarray) -> float:
  return float(sums[0] / sums[1])


# How a metric's value follows from sums over items; all but BLEU are [numerator, denominator].
_VALUES: dict[str, Callable[[np.ndarray], float]] = {
  "accuracy": _mean,
  "normalised_accuracy": _mean,
  "f1": _mean,
  "exact_match": _mean,
  "bleu": bleu,
  "nats_per_token": _mean,
}
METRICS: tuple[str, ...] = tuple(_VALUES)
# For these, less is better.
LOSSES: frozenset[str] = frozenset({"nats_per_token"})


def value(metric: str, statistics: np.ndarray) -> float:
  """A metric over items.

  Args:
    metric: one of METRICS. Accuracies, F1 and exact match lie in 0 to 1, BLEU in 0 to 100, nats are nats.
    statistics: [n, k], one row an item; repeat rows for a bootstrap.

  Raises:
    UnknownName: there is no such metric.
    BadData: there is no item.
  """
  if metric not in _VALUES:
    raise unknown_name("metric", metric, METRICS)
  check_rank("statistics", statistics, 2)
  if len(statistics) == 0:
    raise BadData(f"{metric}: a mean over no item; the task is empty")
  return _VALUES[metric](statistics.sum(axis=0))


def retained(scores: np.ndarray, before: np.ndarray, losses: Sequence[bool]) -> np.ndarray:
  """What is left of several skills: the mean share of what there was before, whatever the scales of the metrics.

  A skill's share is score / before, and before / score for losses; 1 means that nothing was lost. A skill that was at 0
  before (a score nobody can lose) is left out.

  Args:
    scores: [..., S].
    before: [..., S], broadcasts against it.
    losses: [S], of which less is better.

  Returns:
    [...] float64; NaN where no skill was above 0 before.
  """
  loss = np.asarray(losses, bool)
  scores, before = np.broadcast_arrays(np.asarray(scores, np.float64), np.asarray(before))
  top, bottom = np.where(loss, before, scores), np.where(loss, scores, before)
  known = bottom > 0
  shares = np.divide(top, bottom, out=np.zeros(top.shape), where=known)
  count = known.sum(axis=-1)
  return np.where(count > 0, shares.sum(axis=-1) / np.maximum(count, 1), np.nan)
