"""Metrics of tasks, as pure functions of strings and arrays. No model and no JAX.

Every metric is a function of sums over items (`statistics`, a row an item), so that one bootstrap serves them all: ask
`value` of the rows that were drawn. Leaves out the scores of single answers (official_scores.py), and embedding-based
and model-judged ones.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from sacrebleu.metrics import BLEU

from wam.core.errors import BadData, check_rank, unknown_name

# Matched n-grams of 1 to 4, n-grams of 1 to 4, tokens of the hypothesis, tokens of the reference.
_BLEU_SUMS = 10


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


def bleu_signature(
  answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a"
) -> str:
  """sacrebleu's signature of the corpus score: what has to be known to compare two values.

  >>> bleu_signature(["a"], [["a"]]).startswith(
  ...   "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
  ... )
  True
  """
  scorer = BLEU(tokenize=tokenize)
  most = max(len(r) for r in references)
  streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
  scorer.corpus_score(list(answers), streams)
  return str(scorer.get_signature())


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


def _exponential(sums: np.ndarray) -> float:
  try:
    return math.exp(sums[0] / sums[1])
  except OverflowError:
    return math.inf


def _bits(sums: np.ndarray) -> float:
  return float(sums[0] / sums[1] / math.log(2))


# How a metric's value follows from sums over items; all but BLEU are of [numerator, denominator].
_VALUES: dict[str, Callable[[np.ndarray], float]] = {
  "accuracy": _mean,
  "accuracy_per_character": _mean,
  "accuracy_per_byte": _mean,
  "accuracy_per_token": _mean,
  "f1": _mean,
  "squad_f1": _mean,
  "drop_f1": _mean,
  "exact_match": _mean,
  "drop_exact_match": _mean,
  "bleu": bleu,
  "nats_per_token": _mean,
  "perplexity": _exponential,
  "token_perplexity": _exponential,
  "word_perplexity": _exponential,
  "byte_perplexity": _exponential,
  "bits_per_byte": _bits,
}
METRICS: tuple[str, ...] = tuple(_VALUES)
# For these, less is better.
LOSSES: frozenset[str] = frozenset(
  {
    "nats_per_token",
    "perplexity",
    "token_perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
  }
)
# Metrics that are shares of items, each of which counts 0, 1 or a part where choices tie.
PROPORTIONS: frozenset[str] = frozenset(
  {
    "accuracy",
    "accuracy_per_character",
    "accuracy_per_byte",
    "accuracy_per_token",
    "exact_match",
    "drop_exact_match",
  }
)
# What lm-evaluation-harness calls them, where it has another name.
HARNESS_NAMES: dict[str, str] = {
  "accuracy": "acc",
  "accuracy_per_character": "acc_norm",
  "accuracy_per_byte": "acc_bytes",
  "drop_f1": "f1",
  "squad_f1": "f1",
  "drop_exact_match": "em",
}


def value(metric: str, statistics: np.ndarray) -> float:
  """A metric over items.

  Args:
    metric: one of METRICS. Accuracies, F1 and exact match lie in 0 to 1, BLEU in 0 to 100, nats are nats, perplexities
      are their exponentials.
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
