"""The models of a Rewarded Soups study: which runs of RL there are, and which points on the simplex are made of them.

λ is a tuple of numbers, one for each reward, in the order in which a run has them (a `ConfigDict` sorts its keys).
Leaves out training (tuning.py), measuring (soup_points.py) and what follows from it (soup_fronts.py).
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.evaluation import simplex
from wam.merging.averages import weighted_mean
from wam.models import logit_mixture, stacking
from wam.models.heads import ScalarModel
from wam.recipes import tuning
from wam.recipes.policies import Policy
from wam.recipes.reward_models import Rewards
from wam.recipes.tuning import Plan
from wam.rewards import mixtures
from wam.rewards.scorers import RolloutScorer

INIT = "init"
SOUPS, MORL, MOD, PERSONALISED = "rewarded soups", "MORL", "MOD", "personalised soups"

Lambda = tuple[float, ...]


class Trained(NamedTuple):
  """A run of RL from θ_0 on Σ μ_i r_i."""

  plan: Plan
  preference: Lambda  # μ


@dataclasses.dataclass(frozen=True)
class Runs:
  """All runs of RL.

  Attributes:
    single: one a reward, in their order.
    mixed: those of MORL on mixtures that are no single reward.
    adapted: as `single`, with LoRA; empty where there are no personalised soups.
  """

  single: tuple[Trained, ...]
  mixed: tuple[Trained, ...]
  adapted: tuple[Trained, ...]

  @property
  def every(self) -> tuple[Trained, ...]:
    """In the order of training."""
    return self.single + self.mixed + self.adapted


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A point: how it is called, and of which runs it is made.

  Attributes:
    family: which line of the figures it belongs to.
    coefficients: λ; empty for θ_0.
    members: runs whose weights are averaged with λ, or which are decoded together; a single one is the model itself.
    decoded: whether members are decoded together.
  """

  family: str
  coefficients: Lambda
  members: tuple[Plan, ...]
  decoded: bool = False

  @property
  def label(self) -> str:
    """Within its family."""
    return f"λ = {name_of(self.coefficients)}" if self.coefficients else "θ_0"

  @property
  def identity(self) -> str:
    """Equal for two names of one model, in this run or a resumed one."""
    stages = "+".join(plan.stage for plan in self.members) or INIT
    if len(self.members) < 2:
      return stages
    return f"{MOD if self.decoded else SOUPS}: {stages}: {name_of(self.coefficients)}"


def grid(
  names: Sequence[str],
  *,
  intervals: int | None = None,
  also: Sequence[Mapping[str, float]] = (),
  where: str = "soups",
) -> list[Lambda]:
  """Points of the simplex from a section {"intervals", "also"}.

  Args:
    names: of the R rewards.
    intervals: all λ whose entries are multiples of 1/intervals: 11 points for 2 rewards and 10 intervals; None: the
      corners only.
    also: further λ, by reward; those that are left out have 0.
    where: name of the section, for messages.

  Raises:
    UnknownName: for a name that is no reward; ConfigError: if a λ is off the simplex or there are no intervals.
  """
  every = [tuple(row) for row in simplex.grid(len(names), intervals or 1).tolist()]
  more = [tuple(simplex.check(point, names, f"{where}.also").tolist()) for point in also]
  return list(dict.fromkeys([*every, *more]))


def users(
  preferences: Mapping[str, Mapping[str, float]] | None,
  names: Sequence[str],
  *,
  taken: Collection[str],
) -> dict[str, np.ndarray]:
  """μ [R] by the name of a user, from the section "preferences"; a model is written for each.

  Args:
    preferences: by user, a number by name of a reward.
    names: of the rewards.
    taken: names that other models are written under.

  Raises:
    UnknownName: for a name that is no reward; ConfigError: if a μ is off the simplex, or a user's name is taken or
      cannot be part of a directory's.
  """
  found = {}
  for user, mu in (preferences or {}).items():
    where = f"preferences.{user}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", user):
      raise ConfigError(f"{where}: a user's name is letters, digits, '_', '-' and '.'")
    if user in taken:
      raise ConfigError(f"{where}: a model called {user} is written already; rename the user")
    found[user] = simplex.check(mu, names, where)
  return found


def name_of(coefficients: Sequence[float]) -> str:
  """
  >>> name_of((0.3, 0.7))
  '0.3 | 0.7'
  """
  return " | ".join(f"{value:.4g}" for value in coefficients)


def runs(
  names: Sequence[str],
  *,
  algorithm: str,
  section: Mapping[str, Any],
  mitigation: Mapping[str, Any],
  mixtures: Sequence[Lambda],
  adapters: Mapping[str, Any] | None,
) -> Runs:
  """What is trained.

  Args:
    names: of the rewards.
    algorithm, section, mitigation: of every run; see `tuning.Plan`.
    mixtures: μ of MORL; a single reward among them is not trained twice.
    adapters: fields of `Lora`, for a run a reward with LoRA; None: none.
  """
  corners = [corner(i, len(names)) for i in range(len(names))]

  def plans(family: str, more: Mapping[str, Any]) -> tuple[Trained, ...]:
    made = [Plan(algorithm, family, name, section, {**mitigation, **more}) for name in names]
    return tuple(map(Trained, made, corners))

  return Runs(
    single=plans("reward", {}),
    mixed=tuple(
      Trained(Plan(algorithm, MORL, name_of(mu), section, mitigation), mu)
      for mu in mixtures
      if max(mu) < 1
    ),
    adapted=() if adapters is None else plans("LoRA", {"lora": adapters}),
  )


def candidates(
  every: Runs, *, soups: Sequence[Lambda], decoded: Sequence[Lambda], mixtures: Sequence[Lambda]
) -> list[Candidate]:
  """All points to measure, in order: θ_0, soups, MORL, MOD, personalised soups."""
  mixed = {trained.preference: trained.plan for trained in every.mixed}
  found = [Candidate(INIT, (), ())]
  found += [_point(SOUPS, every.single, x) for x in soups]
  found += [
    Candidate(MORL, x, (mixed[x],)) if x in mixed else _point(MORL, every.single, x)
    for x in mixtures
  ]
  found += [_point(MOD, every.single, x, decoded=True) for x in decoded]
  if every.adapted:
    found += [_point(PERSONALISED, every.adapted, x) for x in soups]
  return found


def soup(every: Runs, coefficients: Lambda) -> Candidate:
  """The soup with these coefficients."""
  return _point(SOUPS, every.single, coefficients)


def corner(number: int, num_rewards: int) -> Lambda:
  """λ with all on one reward."""
  return tuple(float(i == number) for i in range(num_rewards))


def _point(
  family: str, members: Sequence[Trained], coefficients: Lambda, *, decoded: bool = False
) -> Candidate:
  if 1.0 in coefficients:
    return Candidate(family, coefficients, (members[coefficients.index(1.0)].plan,))
  return Candidate(family, coefficients, tuple(t.plan for t in members), decoded)


class Weights:
  """Makes the weights of candidates; the members of the family at hand are kept in memory."""

  def __init__(self, setting: tuning.Setting):
    """`setting`: of the runs, for θ_0 and where their results are."""
    self._setting = setting
    self._held: dict[str, Params] = {}

  def __call__(self, candidate: Candidate) -> Params:
    """The weights; for candidates that are decoded those of `logit_mixture.join`, their layers apart."""
    if not candidate.members:
      return self._setting.reference
    held, self._held = self._held, {}
    for plan in candidate.members:
      found = held.get(plan.stage)
      self._held[plan.stage] = tuning.load(plan, self._setting) if found is None else found
    members = list(self._held.values())
    if len(members) == 1:
      return members[0]
    if candidate.decoded:
      # Otherwise they would be taken apart in every step of the decoding.
      apart = [stacking.unstack_layers(member) for member in members]
      return logit_mixture.join(apart, jnp.asarray(candidate.coefficients))
    return weighted_mean(members, candidate.coefficients)


def optimised(
  scorers: Mapping[str, RolloutScorer], preference: Lambda, policy: Policy, reference: Params
) -> Rewards:
  """Σ μ_i r_i as the proxy, and all rewards beside it; all on one reward is that reward. Critics start from θ_0."""
  mixture = mixtures.mixture(scorers, dict(zip(scorers, preference, strict=True)))
  critic = ScalarModel(policy.model.config)
  return Rewards({"proxy": mixture, **scorers}, critic, {"decoder": reference})
