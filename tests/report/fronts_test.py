"""The staircase, the selection rule and the comparison with early stopping."""

import numpy as np
import pytest

from wam.report import fronts, story
from wam.report.points import MEAN, collect


def path(family, triples, split="test"):
  """Point records from (label, reward, skill); coefficients where the label is a number."""
  return [
    {"kind": "point", "family": family, "label": str(label), "split": split, "reward_gold": reward,
     "reward_proxy": reward, "scores": {"s": skill},
     "coefficients": {"all": label} if isinstance(label, float) else {}}
    for label, reward, skill in triples
  ]  # fmt: skip


BASELINE = path("init", [("start", 0.0, 1.0)]) + path(
  "early stopping", [("iteration 1", 0.5, 0.5), ("iteration 2", 1.0, 0.0)]
)


def averaging(skill, split="test"):
  return path("model averaging", [(0.0, 0.0, 1.0), (0.5, 0.5, skill), (1.0, 1.0, 0.0)], split)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_staircase_equals_all_pairs_comparison(higher_is_better):
  generator = np.random.default_rng(0)
  cloud = np.round(generator.random((60, 2)), 1)  # with ties
  sign = np.array([1, 1 if higher_is_better else -1])
  better = [
    not any((q * sign >= p * sign).all() and (q * sign > p * sign).any() for q in cloud)
    for p in cloud
  ]
  expected = sorted({tuple(p) for p, keep in zip(cloud, better, strict=True) if keep})
  assert fronts.staircase([tuple(p) for p in cloud], higher_is_better=higher_is_better) == expected


def test_a_better_average_is_said_to_be_the_better_deal():
  records = BASELINE + averaging(0.8)
  points = collect(records)
  selection = fronts.select(points, records)
  assert selection.point.label == "0.5"
  comparison = fronts.compare(selection.point, points)
  assert comparison.difference == pytest.approx(0.3, abs=1e-12)
  text = story.sentences(points, records)[2]
  assert "averaging is the better deal" in text
  assert "keeps 50% of the reward" in text
  assert "wins back 80% of the skill" in text


def test_a_worse_average_is_said_to_be_worse():
  records = BASELINE + averaging(0.3)
  text = story.sentences(collect(records), records)[2]
  assert "averaging did not help" in text


def test_an_average_on_the_path_makes_no_difference():
  records = BASELINE + averaging(0.5)
  text = story.sentences(collect(records), records)[2]
  assert "no clear difference" in text


def test_between_checkpoints_the_baseline_is_linear():
  records = BASELINE + path("model averaging", [(0.0, 0.0, 1.0), (0.3, 0.25, 0.9), (1.0, 1.0, 0.0)])
  points = collect(records)
  assert fronts.compare(fronts.select(points, records).point, points).baseline == pytest.approx(
    0.75
  )


def test_the_rule_sees_the_validation_split_and_the_result_is_of_the_test_split():
  flat = path("model averaging", [(0.2, 0.5, 0.5), (0.5, 0.5, 0.9)], "validation")
  ends = path("init", [("start", 0.0, 1.0)], "validation") + path(
    "model averaging", [(1.0, 1.0, 0.0)], "validation"
  )
  test = BASELINE + path("model averaging", [(0.2, 0.5, 0.99), (0.5, 0.5, 0.8), (1.0, 1.0, 0.0)])
  records = flat + ends + test
  selection = fronts.select(collect(records), records)
  assert (selection.point.label, selection.split, selection.oracle) == ("0.5", "validation", False)
  assert selection.point.scores[MEAN].mean == 0.8


def test_without_a_validation_split_the_selection_is_called_an_oracle():
  records = BASELINE + averaging(0.8)
  assert fronts.select(collect(records), records).oracle


def test_a_recorded_selection_goes_before_the_rule():
  recorded = {
    "kind": "selection",
    "family": "model averaging",
    "label": "0.0",
    "rule": "first",
    "split": "validation",
  }
  records = [*BASELINE, *averaging(0.8), recorded]
  selection = fronts.select(collect(records), records)
  assert (selection.point.label, selection.rule, selection.oracle) == ("0.0", "first", False)


def test_no_tax_no_deal():
  records = path("init", [("start", 0.0, 0.5)]) + path(
    "model averaging", [(0.5, 0.5, 0.6), (1.0, 1.0, 0.7)]
  )
  points = collect(records)
  assert fronts.select(points, records) is None
  first, cost, deal = story.sentences(points, records)
  assert "raised" in first
  assert cost.startswith("It improved s")
  assert "no trade" in deal


def test_a_reward_that_fell_is_not_called_bought():
  records = path("init", [("start", 1.0, 1.0)]) + path(
    "early stopping", [("iteration 1", 0.5, 0.5)]
  )
  points = collect(records)
  assert (
    "(as far as iteration 1) lowered the gold reward from 1.00 to 0.50 (−0.50)"
    in story.sentences(points, records)[0]
  )


def test_over_optimisation_is_reported():
  def record(label, proxy, gold):
    return {
      "kind": "point",
      "family": "early stopping",
      "label": label,
      "reward_proxy": proxy,
      "reward_gold": gold,
    }

  rising = [record("a", 0, 0.1), record("b", 1, 0.5), record("c", 2, 0.7)]
  assert "No clear over-optimisation" in story.overoptimisation(collect(rising))
  falling = [record("a", 0, 0.1), record("b", 1, 0.7), record("c", 2, 0.4)]
  text = story.overoptimisation(collect(falling))
  assert "peaked at b" in text
  assert "0.30 lower" in text
  assert story.overoptimisation(collect(rising[:2])) is None


@pytest.mark.parametrize(
  ("ours", "words"), [(0.5, "averaging has"), (0.1, "early stopping has"), (0.31, "overlap, so")]
)
def test_hypervolume_verdict(ours, words):
  def front(family, value):
    return {"kind": "front", "family": family, "x": "reward_gold", "y": "mean", "hypervolume": value,
            "low": value - 0.02, "high": value + 0.02}  # fmt: skip

  assert words in story.hypervolumes([front("model averaging", ours), front("early stopping", 0.3)])
  assert story.hypervolumes([front("model averaging", ours)]) is None
