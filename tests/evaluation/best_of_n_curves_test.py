"""Against all subsets, all sequences of draws, closed forms, and sampling."""

import itertools
import math

import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError, NonFinite
from wam.evaluation import best_of_n_curves
from wam.rewards import best_of_n


def by_subsets(gold, proxy, n):
  """The mean over all subsets of n of the mean gold score of those that the proxy likes best."""
  worth = []
  for subset in itertools.combinations(range(len(gold)), n):
    top = max(proxy[i] for i in subset)
    worth.append(np.mean([gold[i] for i in subset if proxy[i] == top]))
  return np.mean(worth)


@pytest.mark.parametrize("values", [2, 3, 1000])
def test_expected_scores_are_means_over_all_subsets(values):
  draw = np.random.default_rng(values)
  proxy = draw.integers(values, size=(4, 7)).astype(np.float32)
  gold = draw.normal(size=(4, 7))
  ns = [5, 1, 2, 3, 4, 6, 7]
  expected = [[by_subsets(g, p, n) for n in ns] for g, p in zip(gold, proxy, strict=True)]
  found = best_of_n_curves.expected_scores(gold, ns, ranked_by=proxy)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  own = best_of_n_curves.expected_scores(gold, ns)
  np.testing.assert_allclose(own[0], [by_subsets(gold[0], gold[0], n) for n in ns], rtol=1e-12)


def test_the_order_of_samples_does_not_matter_even_with_ties():
  draw = np.random.default_rng(0)
  proxy, gold = draw.integers(3, size=(1, 9)), draw.normal(size=(1, 9))
  found = best_of_n_curves.expected_scores(gold, [1, 4, 9], ranked_by=proxy)
  order = np.argsort(gold[0])
  again = best_of_n_curves.expected_scores(gold[:, order], [1, 4, 9], ranked_by=proxy[:, order])
  np.testing.assert_allclose(found, again, rtol=1e-12)
  # A proxy that says nothing is a random choice at every n.
  blind = best_of_n_curves.expected_scores(gold, [1, 4, 9], ranked_by=np.zeros((1, 9)))
  np.testing.assert_allclose(blind, np.full((1, 3), gold.mean()), rtol=1e-12)


def test_large_n_has_the_closed_form_of_ranks():
  """The expected highest of n ranks out of 1..N is n·(N + 1)/(n + 1)."""
  N, ns = 12_600, [1, 2, 64, 1024, 5000, 12_500, 12_600]
  ranks = np.random.default_rng(0).permutation(N)[None] + 1.0
  found = best_of_n_curves.expected_scores(ranks, ns)[0]
  np.testing.assert_allclose(found, [n * (N + 1) / (n + 1) for n in ns], rtol=1e-9)
  # Coefficients sum to 1: a constant score is worth itself.
  same = best_of_n_curves.expected_scores(np.ones((1, N)), ns, ranked_by=ranks)
  np.testing.assert_allclose(same, np.ones((1, len(ns))), rtol=1e-9)


def test_the_estimate_is_unbiased_for_a_proxy_with_ties():
  """Over all draws of N = 3 from 4 completions, its mean is the value under the exact distribution."""
  policy = np.asarray([0.1, 0.4, 0.3, 0.2])
  proxy, gold = np.asarray([0.0, 1.0, 1.0, 2.0]), np.asarray([5.0, -1.0, 2.0, 0.5])
  rows = np.asarray(list(itertools.product(range(4), repeat=3)))
  chances = policy[rows].prod(axis=1)
  estimates = best_of_n_curves.expected_scores(gold[rows], [1, 2, 3], ranked_by=proxy[rows])
  exact = [best_of_n_curves.distribution(policy, proxy, n) @ gold for n in (1, 2, 3)]
  np.testing.assert_allclose(chances @ estimates, exact, rtol=1e-12)


def test_curve_has_means_over_prompts_and_the_bound():
  draw = np.random.default_rng(3)
  gold = draw.normal(size=(400, 32)) + draw.normal(size=(400, 1))
  proxy = gold + draw.normal(size=gold.shape)
  found = best_of_n_curves.curve(gold, [1, 8, 32], ranked_by=proxy, num_resamples=4000)
  per_prompt = best_of_n_curves.expected_scores(gold, [1, 8, 32], ranked_by=proxy)
  np.testing.assert_array_equal(found.n, [1, 8, 32])
  np.testing.assert_allclose(found.values, per_prompt.mean(axis=0))
  np.testing.assert_allclose(found.kl, [best_of_n.kl_bound(n) for n in (1, 8, 32)])
  # The normal interval of a mean over prompts.
  half = 1.96 * per_prompt.std(axis=0) / np.sqrt(400)
  np.testing.assert_allclose(found.low, found.values - half, atol=0.15 * half.max())
  np.testing.assert_allclose(found.high, found.values + half, atol=0.15 * half.max())
  assert found.level == 0.95
  again = best_of_n_curves.curve(gold, [1, 8, 32], ranked_by=proxy, num_resamples=4000)
  np.testing.assert_array_equal(found.low, again.low)


def test_win_rate_of_the_best_of_n_against_another_sample():
  """Gold as proxy: best of n beats one more draw of the same continuous policy with probability n/(n + 1)."""
  draw = np.random.default_rng(1)
  gold, baseline = draw.normal(size=(20_000, 8)), draw.normal(size=20_000)
  credit = best_of_n_curves.win_credit(gold, baseline)
  found = best_of_n_curves.expected_scores(credit, [1, 2, 8], ranked_by=gold).mean(axis=0)
  np.testing.assert_allclose(found, [1 / 2, 2 / 3, 8 / 9], atol=0.01)


def test_win_credit_counts_ties_half_and_averages_baselines():
  credit = best_of_n_curves.win_credit(np.asarray([[1.0, 2.0, 3.0]]), np.asarray([[2.0, 0.0]]))
  np.testing.assert_array_equal(credit, [[0.5, 0.75, 1.0]])
  single = best_of_n_curves.win_credit(np.asarray([[1.0], [2.0]]), np.asarray([1.0, 5.0]))
  np.testing.assert_array_equal(single, [[0.5], [0.0]])
  with pytest.raises(ValueError, match="2 prompts"):
    best_of_n_curves.win_credit(np.ones((2, 3)), np.ones(3))


def all_sequences(policy, rewards, n):
  """The distribution of the best of n, from every sequence of n draws."""
  found = np.zeros(len(policy))
  for draws in itertools.product(range(len(policy)), repeat=n):
    top = max(rewards[i] for i in draws)
    best = [i for i in draws if rewards[i] == top]
    for i in best:
      found[i] += math.prod(policy[j] for j in draws) / len(best)
  return found


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_distribution_is_that_of_all_sequences_of_draws(n):
  policy = np.asarray([0.15, 0.3, 0.0, 0.05, 0.5])
  rewards = np.asarray([0.3, -1.0, 9.0, 0.3, 0.7])
  expected = all_sequences(policy, rewards, n)
  found = best_of_n_curves.distribution(policy, rewards, n)
  np.testing.assert_allclose(found, expected, atol=1e-15)
  some = expected > 0
  kl = np.sum(expected[some] * np.log(expected[some] / policy[some]))
  assert best_of_n_curves.exact_kl(policy, rewards, n) == pytest.approx(kl, abs=1e-14)
  assert kl <= best_of_n.kl_bound(n) + 1e-15


def test_distribution_is_the_sum_of_theorem_1():
  """BOND's first form: π(y)·p_≤ⁿ⁻¹·Σ_i (p_</p_≤)ⁱ⁻¹."""
  draw = np.random.default_rng(5)
  policy, rewards = draw.dirichlet(np.ones(12)), draw.integers(5, size=12)
  expected = []
  for y in range(12):
    at_most, below = policy[rewards <= rewards[y]].sum(), policy[rewards < rewards[y]].sum()
    expected.append(policy[y] * at_most**15 * sum((below / at_most) ** i for i in range(16)))
  found = best_of_n_curves.distribution(policy, rewards, 16)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  assert found.sum() == pytest.approx(1.0, abs=1e-14)


def test_best_of_m_of_best_of_n_is_best_of_mn():
  draw = np.random.default_rng(2)
  policy, rewards = draw.dirichlet(np.ones(9)), draw.integers(6, size=9)
  first = best_of_n_curves.distribution(policy, rewards, 4)
  twice = best_of_n_curves.distribution(first, rewards, 4)
  np.testing.assert_allclose(twice, best_of_n_curves.distribution(policy, rewards, 16), atol=1e-14)


def test_kl_of_equally_likely_completions():
  """π_n of the i-th of V is (iⁿ - (i-1)ⁿ)/Vⁿ: the bound where V is large, log V where n is."""
  V = 20_000
  flat, rewards = np.full(V, 1 / V), np.random.default_rng(0).permutation(V)
  assert best_of_n_curves.exact_kl(flat, rewards, 8) == pytest.approx(1.204442, abs=1e-3)
  ranks = [i / 50 for i in range(51)]
  mass = [ranks[i + 1] ** 7 - ranks[i] ** 7 for i in range(50)]
  expected = math.fsum(m * math.log(m * 50) for m in mass)
  assert best_of_n_curves.exact_kl(np.full(50, 0.02), np.arange(50), 7) == pytest.approx(expected)
  few = best_of_n_curves.exact_kl(np.full(10, 0.1), np.arange(10), 1000)
  assert few == pytest.approx(math.log(10)) and few < best_of_n.kl_bound(1000) / 2


def test_kl_stays_finite_where_best_of_n_never_goes():
  """A reward in ten thousand draws: the others' mass underflows to 0; ties of all leave the policy as it is."""
  policy, rewards = np.asarray([0.5, 0.5]), np.asarray([0.0, 1.0])
  assert best_of_n_curves.exact_kl(policy, rewards, 10_000) == pytest.approx(math.log(2))
  np.testing.assert_array_equal(best_of_n_curves.distribution(policy, rewards, 10_000), [0, 1])
  assert best_of_n_curves.exact_kl(policy, np.zeros(2), 10_000) == 0.0
  # A completion so rare that (1 - p)ⁿ - 1 loses all its digits: drawn once in n, with n times the chance.
  rare = np.asarray([1 - 1e-17, 1e-17])
  found = best_of_n_curves.distribution(rare, rewards, 64)
  assert found[1] == pytest.approx(64e-17, rel=1e-9)


def test_bad_input_is_refused():
  scores = np.ones((3, 4))
  with pytest.raises(ConfigError, match=r"1 to the 4 samples .* found \[2, 8\]"):
    best_of_n_curves.expected_scores(scores, [2, 8])
  for ns in ([0], [], [1.5]):
    with pytest.raises(ConfigError, match="whole numbers"):
      best_of_n_curves.expected_scores(scores, ns)
  broken = scores.copy()
  broken[1, 2] = np.nan
  with pytest.raises(NonFinite, match=r"ranked_by: 1 of 12 .* at prompt 1"):
    best_of_n_curves.expected_scores(scores, [2], ranked_by=broken)
  with pytest.raises(ValueError, match="shapes differ"):
    best_of_n_curves.expected_scores(scores, [2], ranked_by=scores[:2])
  with pytest.raises(BadData, match="at least 2"):
    best_of_n_curves.curve(scores[:1], [2])
  with pytest.raises(ConfigError, match="95"):
    best_of_n_curves.curve(scores, [2], level=95)
  with pytest.raises(BadData, match=r"sum 0\.9"):
    best_of_n_curves.exact_kl(np.asarray([0.5, 0.4]), np.zeros(2), 2)
  with pytest.raises(ConfigError, match="best of 0"):
    best_of_n_curves.exact_kl(np.asarray([0.5, 0.5]), np.zeros(2), 0)
  with pytest.raises(NonFinite, match="1 of 2"):
    best_of_n_curves.distribution(np.asarray([0.5, 0.5]), np.asarray([0.0, np.inf]), 2)
