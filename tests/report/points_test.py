"""Points: means and intervals over seeds, series, order, and the mean of skills of unlike units."""

import numpy as np
import pytest
import scipy.stats

from wam.report.points import MEAN, collect, estimate


def point(family, label, scores, *, seed=0, split="test", **fields):
  return {
    "kind": "point", "family": family, "label": label, "scores": scores, "seed": seed, "split": split, **fields
  }  # fmt: skip


def test_estimate_is_the_t_interval_of_scipy():
  values = [0.61, 0.64, 0.66]
  found = estimate(values)
  expected = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
  np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-12)
  assert found.num_seeds == 3
  assert estimate([0.5])[1:] == (None, None, 1)


def test_means_over_seeds_equal_numpy(records):
  points = collect(records)
  chosen = [
    r
    for r in records
    if r["kind"] == "point" and r["label"] == "alpha=0.5" and r["split"] == "test"
  ]
  assert len(chosen) == 3
  found = next(p for p in points.shown if p.label == "alpha=0.5")
  for name in ("reward_gold", "reward_proxy", "kl"):
    np.testing.assert_allclose(
      found.measures[name].mean, np.mean([r[name] for r in chosen]), rtol=1e-12
    )
  skills = np.array([[r["scores"][s.name] for s in points.skills] for r in chosen])
  np.testing.assert_allclose(found.scores["translation"].mean, skills[:, 2].mean(), rtol=1e-12)
  np.testing.assert_allclose(found.scores[MEAN].mean, skills.mean(), rtol=1e-12)


def test_a_run_has_one_line_for_each_family_and_part(records):
  points = collect(records)
  lines = list(dict.fromkeys(p.series for p in points.shown))
  assert lines[:3] == ["init", "early stopping", "model averaging"]
  assert lines[3:] == [f"part-wise: {part}" for part in ("input", "middle", "output")]
  assert points.split == "test"
  assert len(points.shown) == 1 + 12 + 11 + 9
  assert len(points.every) == 2 * len(points.shown)


def test_order_is_by_alpha_and_by_time():
  points = collect(
    [
      point("model averaging", f"alpha={a}", {"s": 1.0}, coefficients={"all": a})
      for a in (1.0, 0.1, 0.5)
    ]
    + [point("early stopping", f"iteration {i}", {"s": 1.0}) for i in (2, 10, 12)]
    + [point("init", "start", {"s": 1.0})]
  )
  labels = [p.label for p in points.shown]
  assert labels == [
    "start",
    "iteration 2",
    "iteration 10",
    "iteration 12",
    "alpha=0.1",
    "alpha=0.5",
    "alpha=1.0",
  ]


def test_a_point_evaluated_again_counts_once():
  points = collect([point("init", "a", {"s": 0.0}), point("init", "a", {"s": 1.0})])
  assert points.every[0].scores["s"] == (1.0, None, None, 1)


def test_values_that_are_no_numbers_are_not_measured():
  points = collect([point("init", "a", {"s": float("nan"), "t": 0.5}, reward_gold=None)])
  assert points.every[0].measures == {}
  assert set(points.every[0].scores) == {"t"}  # nor a mean of half the skills


def test_losses_enter_the_mean_as_shares_of_their_value_before():
  records = [
    {"kind": "task", "name": "stories", "metric": "nats per token", "higher_is_better": False},
    point("init", "start", {"stories": 2.0, "words": 0.5}),
    point("model averaging", "end", {"stories": 4.0, "words": 0.25}),
    point("model averaging", "better", {"stories": 1.6, "words": 0.5}),
  ]
  points = collect(records)
  assert points.relative
  # (2 / 4 + .25 / .5) / 2 and (2 / 1.6 + 1) / 2, by hand
  assert [p.scores[MEAN].mean for p in points.shown] == pytest.approx([1.0, 0.5, 1.125], rel=1e-12)


def test_without_gold_the_proxy_is_on_the_axis():
  assert collect([point("init", "a", {"s": 1.0}, reward_proxy=0.5)]).x == "reward_proxy"
  assert collect([]).every == []
