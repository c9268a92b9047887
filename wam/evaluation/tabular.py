"""The exact optimum of KL-regularised RLHF where all answers can be listed, to hold approximations against.

max_π E_π[r] - β·KL(π ‖ π_0) has the solution π* ∝ π_0·exp(r/β) and the value β·log Σ_y π_0(y)·exp(r(y)/β). For a
mixture of rewards r = Σ μ_i r_i it is what MORL approaches, and, as Π (π*_i)^{μ_i} normalised, what multi-objective
decoding gives (Shi et al. 2024, arXiv 2406.18853). NumPy in float64.
"""

import numpy as np
from scipy.special import logsumexp

from wam.core.errors import ConfigError


def optimum(reference: np.ndarray, rewards: np.ndarray, *, kl_coef: float) -> np.ndarray:
  """log π*(y): float64 [..., Y].

  Args:
    reference: log π_0(y) [..., Y], normalised or not; -inf where an answer never comes.
    rewards: r(y) [..., Y].
    kl_coef: β, above 0.

  Raises:
    ConfigError: if β is not above 0.
  """
  _check(kl_coef)
  scores = np.asarray(reference, np.float64) + np.asarray(rewards, np.float64) / kl_coef
  return np.asarray(scores - logsumexp(scores, axis=-1, keepdims=True))


def value(
  logprobs: np.ndarray, reference: np.ndarray, rewards: np.ndarray, *, kl_coef: float
) -> np.ndarray:
  """E_π[r] - β·KL(π ‖ π_0) of a policy: float64 [...].

  Args:
    logprobs: log π(y) [..., Y].
    reference, rewards, kl_coef: as in `optimum`.

  Raises:
    ConfigError: if β is not above 0.
  """
  _check(kl_coef)
  policy, initial = _normalised(logprobs), _normalised(reference)
  shares = np.exp(policy)
  with np.errstate(invalid="ignore"):
    # What the policy never says counts for nothing, also where the reference never says it.
    ratio = np.where(shares > 0, policy - initial, 0.0)
  return np.asarray(np.sum(shares * (np.asarray(rewards, np.float64) - kl_coef * ratio), axis=-1))


def _normalised(logprobs: np.ndarray) -> np.ndarray:
  wide = np.asarray(logprobs, np.float64)
  return np.asarray(wide - logsumexp(wide, axis=-1, keepdims=True))


def _check(kl_coef: float) -> None:
  if not 0 < kl_coef < np.inf:
    raise ConfigError(f"kl_coef: expected a number above 0, found {kl_coef}")
