"""Best of n: which samples are kept, what the best is worth (an unbiased estimator), how far it is from the policy.

Leaves out sampling and scoring.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from wam.core.errors import ConfigError, check_same_shape, unknown_name

RULES = ("best_per_prompt", "top_fraction")


class Selection(NamedTuple):
  """Which samples are kept.

  Attributes:
    rows: [kept] int, indices into the flattened [P * N] samples, ascending.
    ties: prompts left out because all their rewards are equal.
    unfinished: samples that could not be kept because they do not end.
  """

  rows: np.ndarray
  ties: int
  unfinished: int


def select(
  rewards: np.ndarray,
  finished: np.ndarray,
  *,
  rule: str = "best_per_prompt",
  fraction: float | None = None,
) -> Selection:
  """Chooses the samples to fine-tune on.

  "best_per_prompt" (Dong et al. 2023; the alignment-tax paper) keeps the finished sample of the highest reward of every
  prompt, the first of equals; a prompt whose N > 1 rewards are all equal has nothing to teach and is left out.
  "top_fraction" (LMFlow's script) keeps the highest rewards of all finished samples, whatever their prompts; of equals
  the first.

  Args:
    rewards: [P, N] float.
    finished: [P, N] bool, whether EOS came; other samples are never kept.
    rule: its name.
    fraction: of the P·N samples, rounded up, for "top_fraction"; default 1/N.

  Raises:
    UnknownName: if there is no such rule; ConfigError: if the fraction is not in (0, 1].
  """
  check_same_shape(rewards=rewards, finished=finished)
  P, N = rewards.shape
  unfinished = int(np.sum(~finished))
  candidates = np.where(finished, rewards, -np.inf)
  if rule == "best_per_prompt":
    if fraction is not None:
      raise ConfigError("fraction belongs to the rule 'top_fraction', not to 'best_per_prompt'")
    tied = (rewards == rewards[:, :1]).all(axis=1) & (N > 1)
    best = np.argmax(candidates, axis=1)
    kept = finished.any(axis=1) & ~tied
    rows = (np.arange(P) * N + best)[kept]
    return Selection(rows, int(np.sum(tied)), unfinished)
  if rule == "top_fraction":
    share = 1 / N if fraction is None else fraction
    if not 0 < share <= 1:
      raise ConfigError(f"fraction: expected a number in (0, 1], found {share}")
    order = np.argsort(-candidates.reshape(-1), kind="stable")[: largest_selection(P, N, share)]
    return Selection(np.sort(order[finished.reshape(-1)[order]]), 0, unfinished)
  raise unknown_name("selection rule", rule, RULES)


def largest_selection(num_prompts: int, num_samples: int, fraction: float | None = None) -> int:
  """How many samples are kept at most."""
  share = 1 / num_samples if fraction is None else fraction
  # 1e-9: 128 * 8 * (1/8) must be 128 in floating point too.
  return math.ceil(num_prompts * num_samples * share - 1e-9)


def expected_best(
  rewards: np.ndarray, n: int, *, ranked_by: np.ndarray | None = None
) -> np.ndarray:
  """The expected reward of the best of n samples, estimated without bias from N >= n of them.

  E = Σ_{i=n}^{N} C(i-1, n-1) / C(N, n) · r_(i), with the rewards in ascending order: the mean over all subsets of n of
  their best (Nakano et al. 2021, appendix I; Coste et al. 2024).

  Args:
    rewards: [..., N].
    n: between 1 (the mean) and N (the maximum).
    ranked_by: [..., N]; the best is chosen by these (a proxy) and worth `rewards` (gold). Default: the rewards.

  Returns:
    [...] float64.
  """
  total = rewards.shape[-1]
  if not 1 <= n <= total:
    raise ValueError(f"best of {n}: expected between 1 and the {total} samples")
  order = np.argsort(rewards if ranked_by is None else ranked_by, axis=-1, kind="stable")
  ascending = np.take_along_axis(rewards, order, axis=-1).astype(np.float64)
  i = np.arange(n, total + 1, dtype=np.float64)
  # In logarithms: the binomials overflow from N = 1030 on.
  log_weights = _log_binomial(i - 1, n - 1) - _log_binomial(float(total), n)
  return ascending[..., n - 1 :] @ np.exp(log_weights)


def kl_bound(n: int) -> float:
  """log n - (n - 1)/n, in nats: the KL of best-of-n from the policy is at most this (Beirami et al. 2024).

  >>> kl_bound(1)
  0.0
  """
  return math.log(n) - (n - 1) / n


def _log_binomial(n: np.ndarray | float, k: float) -> np.ndarray:
  return np.asarray(gammaln(np.asarray(n) + 1) - gammaln(k + 1) - gammaln(np.asarray(n) - k + 1))
