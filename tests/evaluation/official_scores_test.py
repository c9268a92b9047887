"""The official rules of SQuAD v1.1 and DROP on cases worked out by hand from them, and against a slow twin."""

import itertools

import numpy as np
import pytest

from wam.evaluation import official_scores as official


@pytest.mark.parametrize(
  ("text", "normalised"),
  [
    ("The  Eiffel-Tower, a tower.", "eiffeltower tower"),
    ("An A. the THE anthem", "anthem"),
    ("1,000 dollars", "1000 dollars"),
    ("it's 3.5%", "its 35"),
    # Only ASCII punctuation goes.
    ("“quoted” – text", "“quoted” – text"),
    ("", ""),
  ],
)
def test_squad_normalisation(text, normalised):
  assert official.normalise_answer(text) == normalised


@pytest.mark.parametrize(
  ("answer", "references", "f1", "exact"),
  [
    ("Denver Broncos", ["Denver Broncos", "The Denver Broncos"], 1.0, 1.0),
    ("the Broncos of Denver", ["Denver Broncos"], 0.8, 0.0),
    ("kite kite", ["kite"], 2 / 3, 0.0),
    ("", ["kite"], 0.0, 0.0),
    # v1.1: without a common word F1 is 0, even where exact match is 1.
    ("the", ["a"], 0.0, 1.0),
  ],
)
def test_squad_scores(answer, references, f1, exact):
  assert official.squad_f1(answer, references) == pytest.approx(f1)
  assert official.exact_match(answer, references) == exact


def test_squad_2_lets_empty_answers_agree():
  assert official.token_f1("the", ["a"]) == 1.0
  assert official.token_f1("", ["kite"]) == 0.0


@pytest.mark.parametrize(
  ("text", "normalised"),
  [
    ("12", "12.0"),
    ("12.50", "12.5"),
    ("-7 degrees", "7.0 degrees"),  # cut at the hyphen before a number is looked for
    ("1,200 yards", "1200.0 yards"),
    ("42-yard field goal", "42.0 yard field goal"),
    ("The Bears' run", "bears run"),
    ("$5", "5.0"),
    ("3.5%", "35.0"),  # not a number with its sign: so the point goes too
    ("a", ""),
  ],
)
def test_drop_normalisation(text, normalised):
  assert official.normalise_span(text) == normalised


@pytest.mark.parametrize(
  ("answer", "references", "exact", "f1"),
  [
    ("12", ["12.0"], 1.0, 1.0),
    ("12 yards", ["12"], 0.0, 0.67),
    # A number that is missing, or another one: no credit for the words beside it.
    ("13 yards", ["12 yards"], 0.0, 0.0),
    ("yards", ["12 yards"], 0.0, 0.0),
    # The other way round there is credit: only the reference's numbers are asked for.
    ("12 yards", ["yards"], 0.0, 0.67),
    # Words are sets.
    ("run run run", ["run"], 0.0, 1.0),
    (["Smith", "Jones"], [["Jones", "Smith"]], 1.0, 1.0),
    ("Smith", [["Jones", "Smith"]], 0.0, 0.5),
    (["Smith", "Jones", "Brown"], [["Jones", "Smith"]], 0.0, 0.67),
    # Same set, other number of spans.
    (["Smith", "Smith"], ["Smith"], 0.0, 0.5),
    # Best of the references; a blank one does not count.
    ("Tom Brady", [[" "], "Brady", ["Tom", "Brady"]], 0.0, 0.67),
    ("", ["Brady"], 0.0, 0.0),
    ("anything", [""], 0.0, 0.0),
    ([], ["Brady"], 0.0, 0.0),
  ],
)
def test_drop_scores(answer, references, exact, f1):
  assert official.drop_scores(answer, references) == (exact, f1)


def _slow_f1(answer, reference):
  """Every one-to-one matching tried."""

  def bag(a, r):
    numbers = {w for w in r if w.replace(".", "", 1).isdigit()}
    if numbers and not numbers & a:
      return 0.0
    common = len(a & r)
    return 2 * common / (len(a) + len(r)) if a and r else 0.0

  bags = [[set(official.normalise_span(s).split()) for s in spans] for spans in (answer, reference)]
  few, many = sorted(bags, key=len)
  swap = few is not bags[0]
  best = 0.0
  for places in itertools.permutations(range(len(many)), len(few)):
    pairs = [(many[p], f) if swap else (f, many[p]) for f, p in zip(few, places, strict=True)]
    best = max(best, sum(bag(a, r) for a, r in pairs))
  return best / len(many)


def test_drop_alignment_is_the_best_of_all():
  rng = np.random.default_rng(0)
  words = ["red", "kite", "soup", "4", "7", "boat"]
  for _ in range(60):
    spans = [
      [" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(rng.integers(1, 5))]
      for _ in range(2)
    ]
    found = official.drop_scores(spans[0], [spans[1]])[1]
    assert found == pytest.approx(_slow_f1(*spans), abs=0.005 + 1e-9)
