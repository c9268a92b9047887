"""Best-of-n as a curve over n: what a proxy's choice is worth, how often it wins, how far it is from the policy.

A policy draws N completions of each of P prompts once; a proxy reward chooses, a gold reward judges. Best-of-n for
every n <= N is then estimated without bias from the same samples, by averaging over all subsets of n (Nakano et al.
2021, appendix I; Coste et al. 2024, arXiv 2310.02743). This is the cheapest way to see over-optimisation: the gold
score rises with n and, where the proxy is exploited, falls again (`overoptimization.py` fits the curve).

Ties: of the proxy's equals one is taken at random, and the estimate is the mean over those choices too. It then depends
neither on the order of the samples nor on chance, and stays unbiased. (To take the first of equals is unbiased only
where the order of the samples means nothing, and noisier.)

Leaves out sampling, scoring, and the choice of training samples (`wam.rewards.best_of_n`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wam.core.errors import BadData, ConfigError, NonFinite, check_rank, check_same_shape
from wam.evaluation.statistics import check_level, resampling_counts
from wam.rewards import best_of_n


class Curve(NamedTuple):
  """A quantity over n, and the intervals around it.

  Attributes:
    n: int [K].
    kl: log n - (n - 1)/n in nats, [K]: the KL from the policy where no two completions are alike, else a bound.
    values: means over prompts, [K].
    low: lower ends of the pointwise bootstrap intervals, [K].
    high: upper ends, [K].
    level: of confidence.
  """

  n: np.ndarray
  kl: np.ndarray
  values: np.ndarray
  low: np.ndarray
  high: np.ndarray
  level: float


def expected_scores(
  scores: np.ndarray, ns: Sequence[int], *, ranked_by: np.ndarray | None = None
) -> np.ndarray:
  """What the best of n is worth, prompt by prompt: the mean over all subsets of n samples.

  E_n = Σ_{i=n}^{N} C(i-1, n-1)/C(N, n) · s_(i), with samples in ascending order of the proxy and the scores of samples
  that tie replaced by their mean. Binomials are taken in logarithms, so N may be tens of thousands. Differences of two
  selectors on the same prompts go to `statistics.paired_difference`.

  Args:
    scores: what a choice is worth, such as gold rewards, [P, N].
    ns: K whole numbers from 1 (the mean of all) to N (the one best), in any order.
    ranked_by: the proxy that chooses, [P, N]; default the scores themselves.

  Returns:
    [P, K] float64.

  Raises:
    ConfigError: if some n is not a whole number from 1 to N.
    NonFinite: if a score or a proxy reward is NaN or infinite; a sample that must not be chosen needs a low reward.
  """
  worth, proxy = _finite("scores", scores), _finite("ranked_by", ranked_by, default=scores)
  check_same_shape(scores=worth, ranked_by=proxy)
  counts = _checked_counts(ns, worth.shape[1])
  order = np.argsort(proxy, axis=1, kind="stable")
  ascending = np.take_along_axis(proxy, order, axis=1)
  worth = _shared_among_ties(ascending, np.take_along_axis(worth, order, axis=1))
  # In order already, so that sorting once more for every n is cheap.
  columns = [best_of_n.expected_best(worth, int(n), ranked_by=ascending) for n in counts]
  return np.stack(columns, axis=1)


def curve(
  scores: np.ndarray,
  ns: Sequence[int],
  *,
  ranked_by: np.ndarray | None = None,
  level: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> Curve:
  """The mean of `expected_scores` over prompts, with percentile intervals by resampling prompts.

  The same prompts are drawn at every n, each with all its samples; their noise is part of the spread between prompts,
  so the intervals cover it. Samples are not resampled within a prompt: duplicates would count as second bests.

  Args:
    scores, ns, ranked_by: as in `expected_scores`.
    level: of confidence.
    num_resamples: bootstrap samples.
    seed: of the resampling.

  Raises:
    ConfigError, NonFinite: as `expected_scores`; ConfigError also if the level is not between 0 and 1.
    BadData: if there are fewer than 2 prompts.
  """
  check_level(level)
  values = expected_scores(scores, ns, ranked_by=ranked_by)
  if len(values) < 2:
    raise BadData(f"an interval over prompts needs at least 2 of them, found {len(values)}")
  counts = resampling_counts(np.random.default_rng(seed), len(values), num_resamples)
  replicates = counts @ values / len(values)
  low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], axis=0)
  kl = np.asarray([best_of_n.kl_bound(int(n)) for n in ns])
  return Curve(np.asarray(ns, int), kl, values.mean(axis=0), low, high, level)


def win_credit(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
  """How often each sample beats a baseline sample of its prompt: 1 if it is better, 1/2 at a tie, else 0.

  Args:
    scores: gold rewards of the candidates, [P, N].
    baseline: gold rewards of other samples of the same prompts, such as one draw of the SFT policy, [P] or [P, B]; of B
      the mean is taken.

  Returns:
    [P, N] float64; as `scores` of `curve`, with the proxy in `ranked_by`, they give the win rate of best-of-n.

  Raises:
    NonFinite: if a score is NaN or infinite. ValueError: if the prompts differ in number.
  """
  candidates = _finite("scores", scores)
  others = np.asarray(baseline, np.float64)
  others = _finite("baseline", others[:, None] if others.ndim == 1 else others)
  if len(others) != len(candidates):
    raise ValueError(
      f"baseline: expected rows for {len(candidates)} prompts, found shape {np.shape(baseline)}"
    )
  credit = np.zeros_like(candidates)
  for column in others.T:  # one by one: [P, N, B] may be large
    credit += 0.5 * (np.sign(candidates - column[:, None]) + 1.0)
  return credit / others.shape[1]


def distribution(probabilities: np.ndarray, rewards: np.ndarray, n: int) -> np.ndarray:
  """The probability mass function of best-of-n over finitely many completions, ties broken at random.

  π_n(y) = π(y)·p_≤(y)ⁿ⁻¹·Σ_{i=1}^{n} (p_<(y)/p_≤(y))ⁱ⁻¹ = (p_≤(y)ⁿ - p_<(y)ⁿ)·π(y)/π(r(y)), where p_≤ and p_< are the
  policy's probabilities of a reward at most, and below, that of y, and π(r) of exactly that reward (BOND, Sessa et al.
  2024, arXiv 2407.14622, theorem 1). Best-of-m of best-of-n is best-of-mn.

  Args:
    probabilities: the policy's, [V], at least 0, of sum 1.
    rewards: [V], finite.
    n: at least 1, which gives the policy back.

  Returns:
    [V] float64 of sum 1.

  Raises:
    BadData: if the probabilities are none. ConfigError: if n is below 1. NonFinite: if a reward is not finite.
  """
  log_ratios = _log_ratios(probabilities, rewards, n)
  return np.asarray(probabilities, np.float64) * np.exp(log_ratios)


def exact_kl(probabilities: np.ndarray, rewards: np.ndarray, n: int) -> float:
  """KL(best-of-n || policy) in nats, of `distribution`; at most log n - (n - 1)/n and -log of the best reward's share.

  The bound is reached where no completion is likely (Beirami et al. 2024, arXiv 2401.01879); a policy that has few
  answers, or a reward of few values, stays far below it, and a curve over the bound then overstates the distance.

  Args and errors as in `distribution`.
  """
  log_ratios = _log_ratios(probabilities, rewards, n)
  mass = np.asarray(probabilities, np.float64) * np.exp(log_ratios)
  # What best-of-n never takes has the ratio 0 and counts 0.
  return float(mass @ np.where(mass > 0, log_ratios, 0.0))


def _log_ratios(probabilities: np.ndarray, rewards: np.ndarray, n: int) -> np.ndarray:
  """log π_n(y)/π(y) = log (p_≤ⁿ - p_<ⁿ)/π(r), [V]; 0 where π(y) is 0, in whose place nothing stands."""
  policy, values = np.asarray(probabilities, np.float64), np.asarray(rewards, np.float64)
  check_rank("probabilities", policy, 1)
  check_same_shape(probabilities=policy, rewards=values)
  if not (policy >= 0).all() or abs(policy.sum() - 1) > 1e-6:
    raise BadData(
      f"probabilities: expected numbers of at least 0 and of sum 1, found the lowest {policy.min()}"
      f" and the sum {policy.sum()}"
    )
  if not np.isfinite(values).all():
    raise NonFinite(f"rewards: {int((~np.isfinite(values)).sum())} of {len(values)} are not finite")
  if n < 1 or n != int(n):
    raise ConfigError(f"best of {n}: expected a whole number from 1")
  possible = policy > 0
  levels, group = np.unique(values[possible], return_inverse=True)
  mass = np.bincount(group, weights=policy[possible], minlength=len(levels)) / policy.sum()
  at_most = np.cumsum(mass)
  at_most = at_most / at_most[-1]  # 1ⁿ, not nearly
  # pⁿ - qⁿ = pⁿ·(1 - (1 - m/p)ⁿ), which is exact where m = p - q is small; the lowest reward has q = 0.
  with np.errstate(divide="ignore"):
    among = np.log(-np.expm1(n * np.log1p(-np.minimum(mass / at_most, 1.0))))
  found = np.zeros(len(policy))
  found[possible] = (n * np.log(at_most) + among - np.log(mass))[group]
  return found


def _shared_among_ties(ascending: np.ndarray, worth: np.ndarray) -> np.ndarray:
  """`worth` [P, N] with every run of equal `ascending` [P, N] replaced by its mean."""
  starts = np.ones(ascending.shape, bool)
  starts[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
  run = np.cumsum(starts.reshape(-1)) - 1
  means = np.bincount(run, weights=worth.reshape(-1)) / np.bincount(run)
  return np.asarray(means[run].reshape(worth.shape))


def _checked_counts(ns: Sequence[int], num_samples: int) -> np.ndarray:
  """The ns as an array [K]."""
  counts = np.asarray(ns)
  whole = counts.ndim == 1 and len(counts) > 0 and (counts == counts.astype(int)).all()
  if not whole or counts.min() < 1 or counts.max() > num_samples:
    raise ConfigError(
      f"best of n: expected whole numbers from 1 to the {num_samples} samples of a prompt, found"
      f" {counts.tolist()}; draw more samples or leave the largest out"
    )
  return counts


def _finite(name: str, array: np.ndarray | None, default: np.ndarray | None = None) -> np.ndarray:
  """The array, or the default, as float64 [P, N]."""
  values = np.asarray(default if array is None else array, np.float64)
  check_rank(name, values, 2)
  if not np.isfinite(values).all():
    rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    raise NonFinite(
      f"{name}: {int((~np.isfinite(values)).sum())} of {values.size} are NaN or infinite, the first"
      f" at prompt {rows[0]}"
    )
  return values
