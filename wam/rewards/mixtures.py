"""Rewards made of rewards: a linear change of scale, and weighted sums of several (MORL). Leaves out ensembles."""

from collections.abc import Mapping

import numpy as np

from wam.core.errors import ConfigError, unknown_name
from wam.rewards.scorers import RolloutScorer, check_rewards


def scaled(
  scorer: RolloutScorer, *, mean: float, std: float, name: str = "reward"
) -> RolloutScorer:
  """(r - mean)/std of a reward r, in float64 with one rounding at the end.

  Args:
    scorer: r.
    mean, std: in units of r; std above 0.
    name: for messages.

  Raises:
    ConfigError: if a number cannot be.
  """
  if not (np.isfinite(mean) and 0 < std < np.inf):
    raise ConfigError(f"{name}: expected a finite mean and a positive std, found {mean}, {std}")

  def score(
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    completions: np.ndarray,
    completion_mask: np.ndarray,
  ) -> np.ndarray:
    raw = scorer(prompt_tokens, prompt_mask, completions, completion_mask)
    values = (np.asarray(raw, np.float64) - mean) / std
    return check_rewards(values, len(completions), name=name)

  return score


def mixture(
  scorers: Mapping[str, RolloutScorer], coefficients: Mapping[str, float]
) -> RolloutScorer:
  """Σ μ_i r_i: what MORL trains on. All the coefficient on one reward gives that reward bit for bit.

  The coefficients are taken as they are: nothing is divided by their sum.

  Args:
    scorers: rewards r_i by name.
    coefficients: μ_i by name; rewards without one, or with 0, are not computed.

  Raises:
    UnknownName: for a coefficient without reward; ConfigError: if all coefficients are 0, or one is not finite.
  """
  for name, value in coefficients.items():
    if name not in scorers:
      raise unknown_name("reward", name, scorers)
    if not np.isfinite(value):
      raise ConfigError(f"mixture: the coefficient of '{name}' is {value}")
  parts = [(float(value), scorers[name]) for name, value in coefficients.items() if value]
  if not parts:
    raise ConfigError(f"mixture: expected a coefficient that is not 0, found {dict(coefficients)}")
  if len(parts) == 1 and parts[0][0] == 1:
    return parts[0][1]

  def score(
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    completions: np.ndarray,
    completion_mask: np.ndarray,
  ) -> np.ndarray:
    arrays = (prompt_tokens, prompt_mask, completions, completion_mask)
    total = sum(value * np.asarray(part(*arrays), np.float64) for value, part in parts)
    return check_rewards(total, len(completions), name="mixture of rewards")

  return score
