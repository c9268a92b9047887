"""Scores of free answers as the official scripts of SQuAD v1.1 and DROP compute them. Strings in, numbers out.

Both compare normalised words. They differ in what a number, a hyphen and an empty answer are, and DROP's answers may
consist of several spans. Leaves out the choice of tasks (suites.py) and intervals.
"""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np
import scipy.optimize

# A reference or an answer of DROP: one span, or several that are all wanted.
Spans = str | Sequence[str]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
  """Lower case, no ASCII punctuation, no English articles, single blanks: SQuAD's rule (Rajpurkar et al. 2016).

  >>> normalise_answer("The  Eiffel-Tower, a tower.")
  'eiffeltower tower'
  """
  return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
  """1 when the normalised answer is one of the normalised references, else 0."""
  return float(normalise_answer(answer) in {normalise_answer(r) for r in references})


def token_f1(answer: str, references: Sequence[str], *, empty_agree: bool = True) -> float:
  """The best harmonic mean, over the references, of precision and recall of the bag of normalised words.

  Args:
    answer: any text.
    references: at least one.
    empty_agree: whether two texts without words agree (1), as in SQuAD 2.0, or not (0), as in SQuAD v1.1. An empty
      and another one never do.

  >>> token_f1("the red kite", ["a blue kite", "kite"])
  0.6666666666666666
  """
  words = normalise_answer(answer).split()
  return max(_f1(words, normalise_answer(r).split(), empty_agree) for r in references)


def squad_f1(answer: str, references: Sequence[str]) -> float:
  """`token_f1` with the rule of SQuAD v1.1 for empty answers."""
  return token_f1(answer, references, empty_agree=False)


def _f1(answer: list[str], reference: list[str], empty_agree: bool) -> float:
  if not answer or not reference:
    return float(empty_agree and answer == reference)
  common = sum((collections.Counter(answer) & collections.Counter(reference)).values())
  # 2PR / (P + R) with P = common / answer and R = common / reference.
  return 2 * common / (len(answer) + len(reference))


def normalise_span(text: str) -> str:
  """DROP's rule (Dua et al. 2019): cut at blanks and hyphens; each piece as SQuAD's, but numbers become floats.

  >>> normalise_span("The 1,000-yard Run"), normalise_span("2.50 points")
  ('1000.0 yard run', '2.5 points')
  """
  pieces = []
  for piece in re.split(r" |-", text.lower()):
    # Punctuation goes from words only: a point or a sign belongs to a number.
    bare = piece if _is_number(piece) else piece.translate(_PUNCTUATION)
    bare = str(float(bare)) if _is_number(bare) else bare
    pieces += _ARTICLES.sub(" ", bare).split()
  return " ".join(pieces)


def drop_scores(answer: Spans, references: Sequence[Spans]) -> tuple[float, float]:
  """DROP's exact match and F1: the best of each over the references.

  Exact match wants the same set and number of normalised spans. For F1 every span is a set of words; spans of answer
  and reference are matched one to one so that the sum of their F1 is largest, and the sum is divided by the larger
  number of spans. A reference span with numbers is only matched by one that has a number in common with it. F1 is
  rounded to two digits, as in the official script.

  Args:
    answer: one span, or several.
    references: alternatives, each one span or several; those whose first span is blank do not count.

  Returns:
    (exact match, F1), each 0 to 1; zeros where no reference counts.

  >>> drop_scores("Smith and 12 yards", ["12 yards", ["Smith", "Jones"]])
  (0.0, 0.67)
  >>> drop_scores(["Jones", "the Smith"], [["Smith", "Jones"]])
  (1.0, 1.0)
  """
  best_match, best_f1 = 0.0, 0.0
  ours = _normalised(answer)
  for reference in references:
    spans = [reference] if isinstance(reference, str) else list(reference)
    if spans and spans[0].strip():
      theirs = _normalised(spans)
      match = set(ours) == set(theirs) and len(ours) == len(theirs)
      best_match = max(best_match, float(match))
      best_f1 = max(best_f1, _aligned_f1(ours, theirs))
  return best_match, best_f1


def _normalised(spans: Spans) -> list[str]:
  return [normalise_span(s) for s in ([spans] if isinstance(spans, str) else spans)]


def _aligned_f1(answer: list[str], reference: list[str]) -> float:
  if not answer:
    return 0.0
  bags = [[set(span.split()) for span in spans] for spans in (reference, answer)]
  scores = np.array([[_bag_f1(a, r) for a in bags[1]] for r in bags[0]])
  rows, columns = scipy.optimize.linear_sum_assignment(-scores)
  # NumPy's rounding, as there: Python's differs where a product ends in 5.
  return float(np.round(scores[rows, columns].sum() / max(scores.shape), 2))


def _bag_f1(answer: set[str], reference: set[str]) -> float:
  numbers = {word for word in reference if _is_number(word)}
  if numbers and not numbers & answer:
    return 0.0
  common = len(answer & reference)
  # An empty set has nothing wrong in it: the official script gives it precision (or recall) 1.
  precision = common / len(answer) if answer else 1.0
  recall = common / len(reference) if reference else 1.0
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True
