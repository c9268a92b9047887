import numpy as np
import pytest
import sacrebleu

from wam.core.errors import BadData, UnknownName
from wam.evaluation import metrics, official_scores


@pytest.mark.parametrize(
  ("answer", "references", "f1", "exact"),
  [
    # By hand, after SQuAD's normalisation.
    ("The kite!", ["kite"], 1.0, 1.0),
    ("red kite", ["a kite"], 2 / 3, 0.0),
    ("kite kite", ["kite"], 2 / 3, 0.0),
    ("kite red", ["red kite"], 1.0, 0.0),
    ("soup", ["kite", "hot soup"], 2 / 3, 0.0),
    ("", ["kite"], 0.0, 0.0),
    ("the", ["a"], 1.0, 1.0),
    ("boat", ["kite"], 0.0, 0.0),
  ],
)
def test_f1_and_exact_match_by_hand(answer, references, f1, exact):
  assert official_scores.token_f1(answer, references) == pytest.approx(f1)
  assert official_scores.exact_match(answer, references) == exact


HYPOTHESES = ["the cat sat on the mat", "a dog, barked at noon!", "tiny", "", "one two three four"]
REFERENCES = [
  ["the cat sat on a mat"],
  ["a dog barked at noon", "the dog barked at noon!"],
  ["tiny"],
  ["not empty"],
  ["one two three five four"],
]


@pytest.mark.parametrize("tokenize", ["13a", "none"])
def test_bleu_from_sums_is_sacrebleus_corpus_score(tokenize):
  statistics = metrics.bleu_statistics(HYPOTHESES, REFERENCES, tokenize=tokenize)
  streams = [[r[0] for r in REFERENCES], [r[1] if len(r) > 1 else None for r in REFERENCES]]
  for rows in ([0, 1, 2, 3, 4], [1, 1, 4], [0, 4, 2, 2]):
    expected = sacrebleu.corpus_bleu(
      [HYPOTHESES[i] for i in rows],
      [[stream[i] for i in rows] for stream in streams],
      tokenize=tokenize,
      force=True,
    ).score
    assert metrics.value("bleu", statistics[rows]) == pytest.approx(expected, abs=1e-9)


def test_bleu_of_empty_answers_is_zero():
  assert metrics.value("bleu", metrics.bleu_statistics(["", ""], [["a"], ["b"]])) == 0.0


def test_choice_credit_shares_ties():
  scores = np.array([[0.0, -1.0], [-1.0, 0.0], [2.0, 2.0], [1.0, -np.inf], [np.nan, np.nan]])
  credit = metrics.choice_credit(scores, np.array([0, 0, 1, 0, 0]))
  np.testing.assert_array_equal(credit, [1.0, 0.0, 0.5, 1.0, 0.0])


def test_means_and_refusals():
  assert metrics.value("nats_per_token", np.array([[6.0, 2.0], [1.0, 5.0]])) == 1.0
  with pytest.raises(UnknownName, match="accuracy"):
    metrics.value("acuracy", np.ones((1, 2)))
  with pytest.raises(BadData, match="no item"):
    metrics.value("f1", np.zeros((0, 2)))
