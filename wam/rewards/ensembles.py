"""Ensembles of reward models: M predictions of a reward made one, as the baseline of weight-averaged reward models.

An ensemble costs M forward passes; WARM (Ramé et al. 2024, arXiv 2401.12187) averages the weights instead and costs one
(`wam.merging`, then `scorers.from_model`). Where the members differ in their linear head only, both are the same.

Bradley-Terry fixes a reward up to a constant for each prompt, and nothing fixes its scale but the data's noise, so
members are only comparable once normalised (`reference_scales`): otherwise the worst case is always the member with
the lowest constant, and the mean listens most to the widest. One constant a member is removed, not one a prompt:
coefficient `center_rewards_coefficient` of `reward_model.run` keeps those small.

Leaves out training the members, and averages of their weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wam.core.errors import BadData, ConfigError, NonFinite, check_rank, unknown_name
from wam.rewards.scorers import RolloutScorer, check_rewards

RULES = ("mean", "worst_case", "uncertainty_weighted")
NORMALISATIONS = ("center", "standardize")


class Scales(NamedTuple):
  """What makes members comparable: (reward - shift) / scale.

  Attributes:
    shift: [M] float64.
    scale: [M] float64, above 0.
  """

  shift: np.ndarray
  scale: np.ndarray


def combine(
  rewards: np.ndarray,
  *,
  rule: str = "mean",
  variance_coefficient: float | None = None,
  scales: Scales | None = None,
) -> np.ndarray:
  """One reward from those of M members (Coste et al. 2024, arXiv 2310.02743, section 3).

  "mean": (1/M) Σ r_m. "worst_case": min_m r_m. "uncertainty_weighted": mean - λ·variance, with the variance that
  divides by M, as in the authors' best-of-n code; their PPO code divides by M - 1, which is λ·M/(M - 1) here.

  Args:
    rewards: [M, ...] of any number of members.
    rule: one of RULES.
    variance_coefficient: λ of "uncertainty_weighted", and of it only; at least 0, in units of one over a reward. The
      authors take 0.5 for best-of-n and 0.1 for PPO.
    scales: of the members; None takes their rewards as they are.

  Returns:
    [...] float64. With scales from "standardize" it has no unit any more, and a KL coefficient tuned for a single
    reward model does not carry over.

  Raises:
    UnknownName: if there is no such rule.
    ConfigError: if there are no members, scales of another number of them, or λ is missing, negative or out of place.
    NonFinite: if a reward is NaN or infinite.
  """
  check_rule(rule, variance_coefficient)
  values = np.asarray(rewards, np.float64)
  if not values.ndim or not len(values):
    raise ConfigError(
      f"an ensemble needs at least one member, found rewards of shape {values.shape}"
    )
  if not np.isfinite(values).all():
    bad = [m for m, row in enumerate(values) if not np.isfinite(row).all()]
    raise NonFinite(f"ensemble: rewards of members {bad} are NaN or infinite")
  if scales is not None:
    values = normalise(values, scales)
  if rule == "worst_case":
    return np.asarray(values.min(axis=0))
  mean = values.mean(axis=0)
  if variance_coefficient is None:
    return np.asarray(mean)
  return np.asarray(mean - variance_coefficient * np.var(values, axis=0))


def check_rule(rule: str, variance_coefficient: float | None) -> None:
  """Refuses what `combine` cannot do, before any reward is there.

  Raises:
    UnknownName, ConfigError: as `combine`.
  """
  if rule not in RULES:
    raise unknown_name("ensemble rule", rule, RULES)
  if rule != "uncertainty_weighted":
    if variance_coefficient is not None:
      raise ConfigError(f"variance_coefficient belongs to 'uncertainty_weighted', not to '{rule}'")
  elif variance_coefficient is None or not 0 <= variance_coefficient < np.inf:
    raise ConfigError(
      f"variance_coefficient: expected a number of at least 0 for 'uncertainty_weighted', found"
      f" {variance_coefficient}; Coste et al. take 0.5 for best-of-n and 0.1 for PPO"
    )


def scales_of(rewards: np.ndarray, *, normalisation: str = "standardize") -> Scales:
  """The scales that give every member's rewards mean 0 ("center"), and standard deviation 1 too ("standardize").

  Args:
    rewards: of M members for the same R reference samples, [M, R]; as a rule completions of the reference policy.
    normalisation: one of NORMALISATIONS.

  Raises:
    UnknownName: if there is no such normalisation. BadData: if there are no samples, or a member gives all of them one
    reward, which cannot be standardised. NonFinite: if a reward is NaN or infinite.
  """
  if normalisation not in NORMALISATIONS:
    raise unknown_name("normalisation", normalisation, NORMALISATIONS)
  check_rank("rewards", rewards, 2)
  if not np.size(rewards):
    raise BadData(f"no reference samples to normalise members on, found shape {np.shape(rewards)}")
  rows = [
    check_rewards(row, np.shape(rewards)[1], name=f"member {m}").astype(np.float64)
    for m, row in enumerate(rewards)
  ]
  shift = np.asarray([row.mean() for row in rows])
  if normalisation == "center":
    return Scales(shift, np.ones(len(rows)))
  flat = [m for m, row in enumerate(rows) if np.ptp(row) == 0]
  if flat:
    raise BadData(
      f"members {flat} give all {len(rows[0])} reference samples one reward and cannot be standardised;"
      " leave them out, or use normalisation='center'"
    )
  return Scales(shift, np.asarray([row.std() for row in rows]))


def normalise(rewards: np.ndarray, scales: Scales) -> np.ndarray:
  """(r_m - shift_m) / scale_m: [M, ...] float64.

  Raises:
    ConfigError: if the scales are those of another number of members.
  """
  values = np.asarray(rewards, np.float64)
  if len(scales.shift) != len(values):
    raise ConfigError(f"scales of {len(scales.shift)} members for rewards of {len(values)}")
  shape = (-1,) + (1,) * (values.ndim - 1)
  return (values - scales.shift.reshape(shape)) / scales.scale.reshape(shape)


def score_members(
  members: Sequence[RolloutScorer],
  prompt_tokens: np.ndarray,
  prompt_mask: np.ndarray,
  completions: np.ndarray,
  completion_mask: np.ndarray,
) -> np.ndarray:
  """What every member gives: [M, R] float32; arguments as of `RolloutScorer`.

  All rules can be compared on the result without scoring again.

  Raises:
    ConfigError: if there are no members. NonFinite: if a reward is not finite; names the member.
  """
  _check_members(members)
  batch = (prompt_tokens, prompt_mask, completions, completion_mask)
  count = len(prompt_tokens)
  return np.stack(
    [
      check_rewards(member(*batch), count, name=f"ensemble member {m}")
      for m, member in enumerate(members)
    ]
  )


def reference_scales(
  members: Sequence[RolloutScorer],
  prompt_tokens: np.ndarray,
  prompt_mask: np.ndarray,
  completions: np.ndarray,
  completion_mask: np.ndarray,
  *,
  normalisation: str = "standardize",
) -> Scales:
  """`scales_of` what the members give to reference samples; arguments as of `RolloutScorer`."""
  rewards = score_members(members, prompt_tokens, prompt_mask, completions, completion_mask)
  return scales_of(rewards, normalisation=normalisation)


def ensemble(
  members: Sequence[RolloutScorer],
  *,
  rule: str = "mean",
  variance_coefficient: float | None = None,
  scales: Scales | None = None,
  name: str = "ensemble",
) -> RolloutScorer:
  """Members as one scorer, by `combine`.

  Args:
    members: M scorers, such as `scorers.from_model` of every reward model.
    rule, variance_coefficient, scales: see `combine`.
    name: for the message when a reward is not finite.

  Raises:
    UnknownName, ConfigError: as `combine`, before anything is scored.
  """
  _check_members(members)
  check_rule(rule, variance_coefficient)
  if scales is not None and len(scales.shift) != len(members):
    raise ConfigError(f"scales of {len(scales.shift)} members for an ensemble of {len(members)}")

  def scorer(
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    completions: np.ndarray,
    completion_mask: np.ndarray,
  ) -> np.ndarray:
    rewards = score_members(members, prompt_tokens, prompt_mask, completions, completion_mask)
    combined = combine(rewards, rule=rule, variance_coefficient=variance_coefficient, scales=scales)
    return check_rewards(combined, len(prompt_tokens), name=name)

  return scorer


def _check_members(members: Sequence[RolloutScorer]) -> None:
  if not len(members):
    raise ConfigError("an ensemble needs at least one member, found none")
