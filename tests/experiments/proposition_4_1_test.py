"""Proposition 4.1: scores from matrices, matrix entries, orthant probabilities, exact counts, each from two sides."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats

from experiments.proposition_4_1 import counts, limits, run
from wam.core.errors import ConfigError, UnknownName
from wam.report import ledgers

CASES = [(10, 0.8, 0), (3, 0.5, 0), (2, 0.3, 0), (4, 0.9, 4)]


def models(n, overlap, num_classes, others):
  """w and Φ of two models as definition E.2 has them: μ_i(k) are unit vectors, w(k) = Σ_i Φ_i μ_i(k).

  Model a knows the classes below K; model b the same ones, or with `others` the next K.
  """
  features, K = 2 * n - overlap, num_classes
  all_classes = 2 * K if others else K
  # The first are shared, as in limits.coefficients.
  own = np.arange(features)
  masks = (own < n, (own < overlap) | (own >= n))
  directions = np.eye(features * all_classes).reshape(features, all_classes, -1)
  known = (
    np.arange(all_classes) < K,
    (np.arange(all_classes) >= K) if others else np.full(K, True),
  )
  weights = [
    np.einsum("i,k,ikd->dk", mask, classes, directions)
    for mask, classes in zip(masks, known, strict=True)
  ]
  return weights, [mask.astype(float) for mask in masks], directions


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize(("n", "overlap"), [(3, 0), (3, 1), (4, 2), (3, 3)])
def test_coefficients_are_those_of_the_matrices(n, overlap, others):
  """f(x) = wᵀ(x Φ) of single, averaged predictions and averaged weights, for features that show any classes."""
  K = 3
  (w_a, w_b), (phi_a, phi_b), directions = models(n, overlap, K, others)
  generator = np.random.default_rng(n + 10 * overlap)
  shown = generator.integers(K, size=len(phi_a))
  x = directions[np.arange(len(shown)), shown].T  # [d, N]: column i is μ_i(Q_i(y)), noise-free
  found = {
    "single": w_a.T @ (x @ phi_a),
    "ensemble": (w_a.T @ (x @ phi_a) + w_b.T @ (x @ phi_b)) / 2,
    "average": (w_a + w_b).T @ (x @ (phi_a + phi_b)) / 4,
  }
  # Features in the order shared, a alone, b alone.
  order = [*np.arange(n), *np.arange(n, 2 * n - overlap)]
  for method, scores in found.items():
    name = {("average", True): "average, other labels", ("ensemble", True): "single"}.get(
      (method, others), method
    )
    (shared, both), (own, more) = limits.coefficients(name, n, overlap)
    each = np.array([shared] * both + [own] * more + [0] * (len(order) - both - more))
    expected = np.array([each[shown[order] == k].sum() for k in range(K)])
    ratio = {"single": 1, "ensemble": 2, "average": 4}[method]
    np.testing.assert_allclose(scores[:K] * ratio, expected)


@pytest.mark.parametrize(("K", "p", "outside"), CASES)
def test_covariance_of_a_margin(K, p, outside):
  """From the table of all outcomes of one feature, without algebra."""
  M = K + outside
  probabilities = np.full(M, p / M)
  probabilities[0] += 1 - p
  margins = np.array([[(z == 0) - (z == k) for k in range(1, K)] for z in range(M)], float)
  mean = probabilities @ margins
  np.testing.assert_allclose(mean, 1 - p)
  expected = margins.T @ (probabilities[:, None] * margins) - np.outer(mean, mean)
  variance, covariance = limits.covariance(p, K, outside)
  np.testing.assert_allclose(np.diag(expected), variance)
  np.testing.assert_allclose(expected[~np.eye(K - 1, dtype=bool)], covariance)


@pytest.mark.parametrize(("K", "p", "outside"), CASES)
@pytest.mark.parametrize("x", [-0.4, 0.0, 0.9])
def test_orthant_probability_against_sampling(K, p, outside, x):
  variance, covariance = limits.covariance(p, K, outside)
  matrix = np.full((K - 1, K - 1), covariance) + (variance - covariance) * np.eye(K - 1)
  draws = 200_000
  generator = np.random.default_rng(7)
  normal = x + generator.standard_normal((draws, K - 1)) @ np.linalg.cholesky(matrix).T
  found = float(np.mean((normal > 0).all(axis=1)))
  value = limits.accuracy_limit(x, p, K, outside)
  assert abs(found - value) < 4 * math.sqrt(value * (1 - value) / draws)


@pytest.mark.parametrize(("K", "p", "outside"), [c for c in CASES if c[0] < 5])
def test_orthant_probability_against_scipy(K, p, outside):
  variance, covariance = limits.covariance(p, K, outside)
  matrix = np.full((K - 1, K - 1), covariance) + (variance - covariance) * np.eye(K - 1)
  for x in (-0.4, 0.0, 0.9):
    # P(η > 0) with the mean x is P(η < x) with the mean 0, the normal being symmetric.
    expected = scipy.stats.multivariate_normal.cdf(np.full(K - 1, x), cov=matrix, abseps=1e-9)
    assert limits.accuracy_limit(x, p, K, outside) == pytest.approx(float(expected), abs=2e-6)


def test_orthant_probability_in_closed_form():
  # Two classes: one margin. All features fail: K equal chances.
  variance = limits.covariance(0.6, 2)[0]
  expected = scipy.stats.norm.cdf(0.7 / math.sqrt(variance))
  assert limits.accuracy_limit(0.7, 0.6, 2) == pytest.approx(expected, abs=1e-12)
  for K in (2, 5, 10):
    assert limits.accuracy_limit(0.0, 1.0, K) == pytest.approx(1 / K, abs=1e-12)
  values = [limits.accuracy_limit(x, 0.8, 10) for x in np.linspace(-3, 3, 25)]
  assert all(a < b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("n", [4, 20])
def test_arguments_in_closed_form(n):
  for overlap in range(n + 1):
    p, o = 0.7, overlap
    expected = {
      "single": (1 - p) * math.sqrt(n),
      "ensemble": math.sqrt(2) * (1 - p) * n / math.sqrt(n + o),
      "average": math.sqrt(2) * (1 - p) * (n + o) / math.sqrt(n + 7 * o),
      "average, other labels": (1 - p) * (n + o) / math.sqrt(n + 3 * o),
    }
    for method, value in expected.items():
      assert limits.argument(method, n, o, p) == pytest.approx(value, rel=1e-12)
    # What the README proves: the order of the four, and where two of them meet.
    x = {m: limits.argument(m, n, o, p) for m in limits.METHODS}
    assert x["average, other labels"] <= x["single"] + 1e-12
    assert x["average, other labels"] <= x["average"] + 1e-12
    assert x["average"] <= x["ensemble"] + 1e-12
    assert (x["average"] < x["single"] - 1e-12) == (n / 2 < o < n)
  ends = [limits.argument(m, n, 0, p) for m in ("ensemble", "average")]
  assert ends == pytest.approx([math.sqrt(2 * n) * (1 - p)] * 2)
  equal = [limits.argument(m, n, n, p) for m in limits.METHODS]
  assert equal == pytest.approx([math.sqrt(n) * (1 - p)] * 4)
  assert limits.printed(n, n, p, 5) == pytest.approx(0.0, abs=1e-15)


def enumerated(method, n, overlap, p, num_classes, outside):
  """The accuracy by listing what all features may show."""
  kinds = limits.coefficients(method, n, overlap)
  each = np.array([c for c, count in kinds for _ in range(count)])
  M = num_classes + outside
  q = np.full(M, p / M)
  q[0] += 1 - p
  shown = np.array(list(itertools.product(range(M), repeat=len(each))))
  scores = np.stack([(each * (shown == k)).sum(axis=1) for k in range(num_classes)], axis=1)
  best = scores.max(axis=1, keepdims=True)
  wins = (scores[:, 0] == best[:, 0]) / (scores == best).sum(axis=1)
  return float(np.prod(q[shown], axis=1) @ wins)


@pytest.mark.parametrize("method", limits.METHODS)
@pytest.mark.parametrize(
  ("n", "overlap", "p", "K", "outside"),
  [(1, 0, 0.5, 3, 0), (3, 1, 0.5, 3, 0), (3, 2, 0.9, 4, 0), (4, 0, 0.2, 2, 1), (2, 2, 0.7, 5, 2)],
)
def test_exact_accuracy_against_enumeration(method, n, overlap, p, K, outside):
  found = counts.exact(method, n=n, overlap=overlap, p=p, num_classes=K, outside=outside)
  assert found == pytest.approx(enumerated(method, n, overlap, p, K, outside), abs=1e-12)


def test_exact_accuracy_at_the_ends_and_by_symmetry():
  fixed = {"n": 9, "p": 0.8, "num_classes": 6}
  single = counts.exact("single", overlap=0, **fixed)
  for overlap in (4, 9):
    assert counts.exact("single", overlap=overlap, **fixed) == pytest.approx(single, abs=1e-12)
  for method in limits.METHODS[1:]:
    assert counts.exact(method, overlap=9, **fixed) == pytest.approx(single, abs=1e-12)
  assert counts.exact("average, other labels", overlap=0, **fixed) == pytest.approx(single)
  # Nothing shared: averaged weights score as averaged predictions, both as one model with all features.
  apart = [counts.exact(m, overlap=0, **fixed) for m in ("ensemble", "average")]
  whole = counts.exact("single", overlap=0, **(fixed | {"n": 18}))
  assert apart == pytest.approx([whole, whole], abs=1e-12)
  # Where every feature fails nothing is known.
  for method in limits.METHODS:
    chance = counts.exact(method, n=5, overlap=2, p=1.0, num_classes=4)
    assert chance == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("outside", [0, 3])
def test_simulation_agrees_with_counting(outside):
  settings = {"n": 6, "overlap": 2, "p": 0.7, "num_classes": 3, "outside": outside}
  draws = 60_000
  found = counts.simulate(np.random.default_rng(3), draws, **settings)
  for method in limits.METHODS:
    value = counts.exact(method, **settings)
    assert abs(found[method] - value) < 4 * math.sqrt(value * (1 - value) / draws), method


def test_limit_is_approached():
  """The bias of the limit of the single model's accuracy falls with n where (1 - p)√n stays."""
  biases = []
  for n in (20, 80, 320):
    p = 1 - 0.2 * math.sqrt(20 / n)
    value = counts.exact("single", n=n, overlap=0, p=p, num_classes=10)
    biases.append(limits.limit("single", n, 0, p, 10) - value)
  assert biases[0] > biases[1] > biases[2] > 0
  # As 1/√n: a quarter of the bias at 16 times the features.
  assert biases[2] / biases[0] == pytest.approx(0.25, rel=0.2)


def test_few_features_can_turn_the_inequality_round():
  settings = (3, 1, 0.5, 3, 0)
  same, other = (enumerated(m, *settings) for m in ("average", "average, other labels"))
  assert same - other == pytest.approx(-0.0231481, abs=1e-6)


def test_bad_settings_are_refused():
  with pytest.raises(ConfigError, match="overlap"):
    limits.coefficients("single", 3, 4)
  with pytest.raises(UnknownName, match="ensemble"):
    limits.coefficients("ensembl", 3, 1)
  with pytest.raises(ConfigError, match="probability above 0"):
    limits.accuracy_limit(1.0, 0.0, 3)
  with pytest.raises(ConfigError, match="2 classes"):
    counts.exact("single", n=2, overlap=1, p=0.5, num_classes=1)


def test_experiment_at_toy_size(tmp_path):
  settings = run.Settings(
    n=4,
    num_classes=3,
    p=0.6,
    many=(4, 400),
    scan=((3,), (0.5,), (2, 3)),
    seeds=(0, 1, 2),
    num_draws=4000,
  )
  entries = run.run(settings, tmp_path, command="test")
  assert ledgers.read(tmp_path) == entries
  assert {entry.seeds for entry in entries} == {(0, 1, 2)}
  verdicts = {entry.claim: entry.verdict for entry in entries}
  assert verdicts["TAX-7 formula, prediction ensembling"] == "reproduced"
  assert verdicts["TAX-7 formula, weight averaging"] == "not reproduced"
  assert verdicts["TAX-7 disjoint labels"] == "not reproduced"
  summary = json.loads((tmp_path / "results/summary.json").read_text())
  assert [point["overlap"] for point in summary["curves"]] == list(range(5))
  for point in summary["curves"]:
    for accuracy in point["accuracy"].values():
      mean, low, high = accuracy["simulated"]
      assert low <= mean <= high
      assert mean == pytest.approx(accuracy["exact"], abs=0.02)
  (three,) = (row for row in summary["scan"] if row["n"] == 3)
  assert three["lowest"] == pytest.approx(-0.0231481, abs=1e-6) and three["negative"] >= 1
  assert (tmp_path / "results/curves.png").stat().st_size > 10_000
  assert "| n_o |" in (tmp_path / "results/tables.md").read_text()
