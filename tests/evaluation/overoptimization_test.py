"""Against known curves, a slow search for the peak, refits one by one, and the coverage of the intervals."""

import math

import numpy as np
import pytest
import scipy.optimize

from wam.core.errors import BadData, ConfigError, NonFinite, UnknownName
from wam.evaluation import overoptimization, statistics

D = np.linspace(0.2, 2.4, 12)
CURVES = {
  "best_of_n": lambda d, a, b: d * (a - b * d),
  "rl": lambda d, a, b: d * (a - b * math.log(d)),
}


def on_curve(form, alpha, beta, d=D):
  return np.asarray([CURVES[form](x, alpha, beta) for x in d])


@pytest.mark.parametrize("form", overoptimization.FORMS)
def test_points_on_a_curve_give_it_back(form):
  found = overoptimization.fit(D, 3.0 + on_curve(form, 1.7, 0.9), form=form, start=3.0)
  for interval, expected in ((found.alpha, 1.7), (found.beta, 0.9)):
    np.testing.assert_allclose(interval[:3], np.full(3, expected), rtol=1e-7)
  assert found.r_squared == pytest.approx(1.0)
  assert (found.form, found.furthest, found.num_points) == (form, 2.4, 12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.7, 0.9), (0.4, 0.3), (0.2, 2.0)])
@pytest.mark.parametrize("form", overoptimization.FORMS)
def test_peaks_are_where_a_search_finds_them(form, alpha, beta):
  best = scipy.optimize.minimize_scalar(
    lambda d: -CURVES[form](d, alpha, beta), bounds=(1e-9, 20), options={"xatol": 1e-10}
  )
  place, height = overoptimization.peak(form, alpha, beta)
  assert place == pytest.approx(best.x, abs=1e-5)
  assert height == pytest.approx(-best.fun)
  assert overoptimization.predict(form, alpha, beta, place) == pytest.approx(height)


def test_peaks_of_curves_that_never_turn():
  alphas, betas = np.asarray([1.0, 1.0, -1.0, -1.0, -1.0]), np.asarray([-0.5, 0.0, 0.0, 0.5, -0.5])
  place, height = overoptimization.peak("best_of_n", alphas, betas)
  np.testing.assert_array_equal(place, [np.inf, np.inf, 0, 0, np.inf])
  np.testing.assert_array_equal(height, [np.inf, np.inf, 0, 0, np.inf])
  place, height = overoptimization.peak("rl", alphas, betas)
  # Even with α < 0, d·(α - β·log d) rises from 0 at first.
  np.testing.assert_allclose(place, [np.inf, np.inf, 0, math.exp(-3), np.inf])
  np.testing.assert_allclose(height, [np.inf, np.inf, 0, 0.5 * math.exp(-3), np.inf])
  assert overoptimization.peak("rl", 1.0, 1e-5) == (np.inf, np.inf)
  np.testing.assert_array_equal(
    overoptimization.predict("rl", 1.0, 2.0, np.asarray([0.0, 1.0])), [0.0, 1.0]
  )


@pytest.mark.parametrize("form", overoptimization.FORMS)
def test_noisy_points_against_another_solver(form):
  score = on_curve(form, 1.5, 0.6) + np.random.default_rng(0).normal(0, 0.1, len(D))
  found = overoptimization.fit(D, score, form=form, start=0.0)
  curve = np.vectorize(CURVES[form])
  (alpha, beta), _ = scipy.optimize.curve_fit(curve, D, score, p0=[1.0, 1.0])
  assert (found.alpha.value, found.beta.value) == pytest.approx((alpha, beta), rel=1e-5)
  left = score - curve(D, alpha, beta)
  expected = 1 - (left @ left) / ((score - score.mean()) @ (score - score.mean()))
  assert found.r_squared == pytest.approx(expected)
  assert found.peak_distance.value == overoptimization.peak(form, *found[1:3])[0][0]


def test_intervals_of_points_cover_at_their_level():
  """Points with independent noise: the 80 % interval of α holds the truth in about 80 % of 200 data sets."""
  draw = np.random.default_rng(1)
  d, hits = np.linspace(0.1, 2.4, 40), 0
  truth = on_curve("best_of_n", 1.5, 0.6, d)
  for i in range(200):
    found = overoptimization.fit(
      d,
      truth + draw.normal(0, 0.2, len(d)),
      form="best_of_n",
      start=0.0,
      level=0.8,
      num_resamples=200,
      seed=i,
    )
    hits += found.alpha.low <= 1.5 <= found.alpha.high
  assert 0.70 <= hits / 200 <= 0.88


def test_seeds_are_resampled_whole():
  """A seed's curve is fitted exactly, so the fit of several has the mean of their α, over the same resamples."""
  draw = np.random.default_rng(2)
  alphas = 1.5 + draw.normal(0, 0.3, 10)
  score = np.stack([on_curve("best_of_n", alpha, 0.6) for alpha in alphas])
  found = overoptimization.fit(D, score, form="best_of_n", start=0.0, num_resamples=4000)
  counts = statistics.resampling_counts(np.random.default_rng(0), 10, 4000)
  expected = np.quantile(counts @ alphas / 10, [0.025, 0.975])
  assert found.alpha.value == pytest.approx(alphas.mean())
  np.testing.assert_allclose([found.alpha.low, found.alpha.high], expected, rtol=1e-9)
  np.testing.assert_allclose(found.beta[:3], np.full(3, 0.6), rtol=1e-7)
  repeated = np.tile(D, (10, 1))
  again = overoptimization.fit(
    repeated, 1 + score, form="best_of_n", start=np.ones(10), num_resamples=4000
  )
  assert again.alpha == pytest.approx(found.alpha)


def test_intervals_of_peaks_may_be_endless():
  """A curve that hardly turns: in some resamples it never does."""
  score = on_curve("best_of_n", 1.0, 0.02) + np.random.default_rng(4).normal(0, 0.15, len(D))
  found = overoptimization.fit(D, score, form="best_of_n", start=0.0)
  assert found.beta.low < 0 < found.beta.high
  assert found.peak_distance.high == np.inf and found.peak_gain.high == np.inf
  assert 0 < found.peak_distance.low < np.inf


def test_three_points_are_enough_and_resamples_that_fix_no_curve_are_drawn_anew():
  d = np.asarray([0.0, 0.5, 1.0, 2.0])
  found = overoptimization.fit(d, d * (2 - d), form="best_of_n", start=0.0)
  np.testing.assert_allclose(found.alpha[:3], np.full(3, 2.0), rtol=1e-7)
  np.testing.assert_allclose(found.peak_distance[:3], np.ones(3), rtol=1e-7)


def test_scores_that_do_not_vary_have_no_r_squared():
  found = overoptimization.fit(D, np.full(12, 3.0), form="rl", start=3.0)
  assert math.isnan(found.r_squared)
  assert found.alpha.value == 0 and found.peak_gain.value == 0


def test_distances_are_roots():
  np.testing.assert_array_equal(overoptimization.distances(np.asarray([0.0, 4.0])), [0.0, 2.0])
  with pytest.raises(BadData, match=r"1 of 2 are negative, the lowest -0\.1"):
    overoptimization.distances(np.asarray([-0.1, 4.0]))
  with pytest.raises(NonFinite, match="1 of 1"):
    overoptimization.distances(np.asarray([np.nan]))


def test_bad_input_is_refused():
  def fit(d, score, *, form="rl", start=0.0, **keywords):
    return overoptimization.fit(
      np.asarray(d), np.asarray(score), form=form, start=start, **keywords
    )

  with pytest.raises(BadData, match=r"3 different .* found \[0\.0, 1\.0, 2\.0\]"):
    fit([0.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.1])
  with pytest.raises(NonFinite, match="score: 1 of 3"):
    fit([0.5, 1.0, 2.0], [0.0, np.nan, 1.0])
  with pytest.raises(NonFinite, match="distance: 1 of 3"):
    fit([0.5, 1.0, np.inf], [0.0, 1.0, 1.0])
  with pytest.raises(BadData, match=r"-0\.5"):
    fit([-0.5, 1.0, 2.0], [0.0, 1.0, 1.0])
  with pytest.raises(UnknownName, match="best_of_n"):
    fit(D, D, form="bon")
  with pytest.raises(ValueError, match="shapes differ"):
    fit(D, D[:-1])
  with pytest.raises(BadData, match="found 1"):
    fit(D[None], D[None])
  with pytest.raises(ValueError, match="a start"):
    fit(D, D, start=np.zeros(12))
  with pytest.raises(ConfigError, match="95"):
    fit(D, D, level=95)
