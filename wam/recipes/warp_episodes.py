"""Episodes of WARP (Ramé et al. 2024, arXiv 2406.16768, algorithm 1): members, their merge, where the next one starts.

A plan is algorithm 1 with one setting. Plans of a workdir share what they have in common: a member of the first episode
with equal settings is trained once. Every merge is saved, with the cosines of the task vectors. Leaves out which plans
there are (warp_plans.py), and what is measured afterwards.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam.algorithms import reinforce
from wam.checkpoints import orbax
from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.merging import averages, spherical
from wam.merging.shared_init import check_shared_init
from wam.recipes import stages
from wam.recipes.policies import Policy
from wam.recipes.task_vector_angles import angles
from wam.rewards.scorers import RolloutScorer
from wam.training import iterations, loop
from wam.training.workdir import Run

MERGES = ("slerp", "karcher", "lerp")
MAIN = "WARP"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The section "warp".

  Attributes:
    num_episodes: I.
    num_members: M; they differ in the order of their prompts and in what they sample, by the names of their streams.
    merge: of the members' task vectors: "slerp", one after the other as in the paper; "karcher", the spherical mean
      that no order enters; "lerp", the linear mean.
    group: what makes one vector on the sphere: "layer" as in the paper, "leaf" or "global"; see `spherical.partition`.
    eta: η of the interpolation from the init of the episode to the merge, where the next episode starts.
    etas: η of the output set: interpolations from θ_SFT to the merge of each episode, which are measured.
    episode_iterations: T of every episode; None: `num_iterations` of the section "reinforce" for all.
    members: nothing, or a section for every member, see `member`.
    average_of: iterations of a member's own run whose uniform mean takes its place in the merge; nothing: the last one.
  """

  num_episodes: int = 1
  num_members: int = 2
  merge: str = "slerp"
  group: str = "layer"
  eta: float = 0.3
  etas: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
  episode_iterations: Sequence[int] | None = None
  members: Sequence[Mapping[str, Any]] = ()
  average_of: Sequence[int] = ()

  def __post_init__(self) -> None:
    """Refuses what cannot work.

    Raises:
      ConfigError: names the field; UnknownName: suggests the nearest name.
    """
    for field, choices in {"merge": MERGES, "group": tuple(spherical.GROUPS)}.items():
      if getattr(self, field) not in choices:
        raise unknown_name(f"warp.{field}", getattr(self, field), choices)
    for field in ("num_episodes", "num_members"):
      if getattr(self, field) < 1:
        raise ConfigError(f"warp.{field}: expected 1 at least, found {getattr(self, field)}")
    outside = [eta for eta in (self.eta, *self.etas) if not 0 <= eta <= 1]
    if outside:
      raise ConfigError(f"warp.eta, warp.etas: expected ratios from 0 to 1, found {outside}")
    counts = {"episode_iterations": self.num_episodes, "members": self.num_members}
    for field, expected in counts.items():
      found = getattr(self, field)
      if found and len(found) != expected:
        raise ConfigError(f"warp.{field}: expected {expected} entries or none, found {len(found)}")
    if any(count < 1 for count in self.episode_iterations or ()):
      raise ConfigError(f"warp.episode_iterations: 1 at least, found {self.episode_iterations}")
    for number, section in enumerate(self.members):
      sections.check(member, section, f"warp.members[{number}]")


def member(*, length_penalty: float = 0.0, settings: Mapping[str, Any] | None = None) -> Any:
  """What one member has for itself.

  Args:
    length_penalty: what a token of a completion costs, in units of the proxy reward (WARP, figure 18: 0.0005).
    settings: keywords that differ from the section "reinforce".
  """
  return length_penalty, dict(settings or {})


@dataclasses.dataclass(frozen=True)
class Plan:
  """Algorithm 1 with one setting.

  Attributes:
    key: names its stages: the keys of the comparison; empty for the main plan.
    family: the line of its results in figures.
    settings: of the episodes.
    reinforce: the section "reinforce" of its members.
  """

  key: str
  family: str
  settings: Settings
  reinforce: Mapping[str, Any]

  @property
  def name(self) -> str:
    """What its stages are called, without spaces."""
    return "-".join(["warp", re.sub(r"[^A-Za-z0-9.=-]+", "_", self.key)] if self.key else ["warp"])

  def num_iterations(self, episode: int) -> int:
    """T of an episode, from 1."""
    every = self.settings.episode_iterations
    return int(every[episode - 1] if every else self.reinforce["num_iterations"])

  @property
  def total_iterations(self) -> int:
    """Of all members in all episodes: I·M·T where the episodes are equally long."""
    lengths = [self.num_iterations(i + 1) for i in range(self.settings.num_episodes)]
    return self.settings.num_members * sum(lengths)

  def member(self, episode: int, number: int) -> tuple[float, dict[str, Any]]:
    """The length penalty and the settings of a member."""
    own = self.settings.members[number] if self.settings.members else {}
    penalty, changes = member(**own)
    base = {**self.reinforce, "num_iterations": self.num_iterations(episode)}
    return penalty, base | changes

  def last_iteration(self, episode: int, number: int) -> int:
    """How many iterations a member has."""
    return int(self.member(episode, number)[1]["num_iterations"])

  def check(self, sampling: Mapping[str, Any]) -> None:
    """Checks keys and values of the members' settings.

    Args:
      sampling: keywords of `generate`.

    Raises:
      ConfigError: names the section and the key.
    """
    for episode in range(1, self.settings.num_episodes + 1):
      for number in range(self.settings.num_members):
        section = self.member(episode, number)[1]
        name = f"reinforce of {self.name}"
        sections.check(reinforce.run, section, name, given=_GIVEN, also=[reinforce.Settings])
        stages.check_optimizer(section["optimizer"], f"{name}.optimizer")
        reinforce.Settings(sampling=sampling, **section).make_optimizer()
        last, every = section["num_iterations"], section.get("keep_every", 1)
        kept = {*range(every, last, every), last}
        outside = [i for i in self.settings.average_of if i not in kept]
        if outside:
          raise ConfigError(
            f"warp.average_of of {self.name}: expected iterations from 1 to {last} that keep_every={every} keeps,"
            f" found {outside}"
          )


# What the program passes to `reinforce.run` itself.
_GIVEN = ("run", "stage", "reference", "other_scorers", "on_iteration", "mitigation", "sampling")


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all plans of a workdir share.

  Attributes:
    policy: the language model.
    reference: θ_SFT, where the first episode starts and what every KL is measured to.
    prompts: tokens and mask of the training prompts.
    scorers: "proxy" is optimised.
    run: the open workdir.
    sampling: keywords of `generate`, with the ends.
    plans: all of them, the main one first.
  """

  policy: Policy
  reference: Params
  prompts: tuple[np.ndarray, np.ndarray]
  scorers: Mapping[str, RolloutScorer]
  run: Run
  sampling: Mapping[str, Any]
  plans: Sequence[Plan]


def member_stage(plan: Plan, plans: Sequence[Plan], episode: int, number: int) -> str:
  """The stage of a member; in the first episode that of the first plan that has an equal one."""
  owner = plan
  if episode == 1:
    wanted = plan.member(1, number)
    owner = next(
      p for p in plans if number < p.settings.num_members and p.member(1, number) == wanted
    )
  return f"{owner.name}-episode_{episode}-member_{number}"


def merged_stage(plan: Plan, episode: int) -> str:
  """The stage that holds the merge of an episode."""
  return f"{plan.name}-episode_{episode}-merged"


def train(plan: Plan, setting: Setting) -> None:
  """Carries a plan out, or what is left of it; `merged`, `start` and `trained` load its policies.

  Raises:
    ConfigError: if the members of an episode do not come from its init; and what `reinforce.run` raises.
  """
  for episode in range(1, plan.settings.num_episodes + 1):
    stage = merged_stage(plan, episode)
    if orbax.exists(setting.run.stage_directory(stage) / "result"):
      continue
    init = start(plan, setting, episode)
    found = [_member(plan, setting, episode, m, init) for m in range(plan.settings.num_members)]
    check_shared_init(found, init)
    result, about = merge(init, found, rule=plan.settings.merge, group=plan.settings.group)
    if len(found) > 1:
      about |= {"family": plan.family, "label": f"episode {episode}", "x": {"episode": episode}}
      fields = about | {"values": angles(init, found)}
      stages.once(setting.run, kind="cosines", stage=stage, fields=fields)
    loop.save_result(setting.run.stage_directory(stage), result, run=setting.run)


def merge(
  init: Params, members: Sequence[Params], *, rule: str, group: str
) -> tuple[Params, dict[str, Any]]:
  """The merge of an episode's members; one member is its own merge, bit for bit, as are equal ones.

  Args:
    init: of the episode; task vectors start from it.
    members: M policies.
    rule: one of MERGES.
    group: see `Settings`; "lerp" has no use for it.

  Returns:
    The weights, and for the records: the rule, the mean coefficients [M] over the groups, and the groups that were
    merged linearly, with the reason.
  """
  about: dict[str, Any] = {"merge": rule, "group": group}
  if len(members) == 1:
    return members[0], about
  if rule == "lerp":
    return averages.uniform_mean(list(members)), about
  blend_of = spherical.slerp_blend if rule == "slerp" else spherical.karcher_blend
  blend = blend_of(init, list(members), group=group)
  about["coefficients"] = np.asarray(blend.coefficients).mean(axis=0).tolist()
  about["linear"] = blend.flagged()
  return spherical.apply_blend(init, list(members), blend), about


def trained(
  plan: Plan, setting: Setting, episode: int, number: int, iteration: int | None = None
) -> Params:
  """A member after an iteration (from 1); None: after its last one."""
  stage = member_stage(plan, setting.plans, episode, number)
  last = plan.last_iteration(episode, number)
  return iterations.load_iteration(setting.run, iteration or last, setting.reference, stage=stage)


def merged(plan: Plan, setting: Setting, episode: int) -> Params:
  """θ_slerp of an episode that is done."""
  stage = merged_stage(plan, episode)
  found = iterations.load_result(setting.run, setting.reference, stage=stage)
  assert found is not None
  return found


def start(plan: Plan, setting: Setting, episode: int) -> Params:
  """θ_init of an episode whose predecessors are done: θ_SFT, then (1 - η)·θ_init + η·θ_slerp of the one before."""
  if episode == 1:
    return setting.reference
  before = start(plan, setting, episode - 1)
  return averages.liti(before, merged(plan, setting, episode - 1), plan.settings.eta)


def output(plan: Plan, setting: Setting, episode: int, eta: float) -> Params:
  """(1 - η)·θ_SFT + η·θ_slerp: a policy of the output set of an episode (algorithm 1, line 13)."""
  return averages.liti(setting.reference, merged(plan, setting, episode), eta)


def _member(plan: Plan, setting: Setting, episode: int, number: int, init: Params) -> Params:
  """Trains a member, or loads it."""
  penalty, section = plan.member(episode, number)
  proxy = setting.scorers["proxy"]
  others = {name: score for name, score in setting.scorers.items() if name != "proxy"}
  found = reinforce.run(
    setting.policy.model,
    init,
    setting.prompts,
    functools.partial(_shortened, score=proxy, penalty=penalty) if penalty else proxy,
    run=setting.run,
    stage=member_stage(plan, setting.plans, episode, number),
    # The first episode starts from θ_SFT; later ones measure to it all the same.
    reference=None if episode == 1 else setting.reference,
    other_scorers=others | ({"proxy": proxy} if penalty else {}),
    sampling=setting.sampling,
    **section,
  )
  if not plan.settings.average_of:
    return found
  return averages.uniform_mean(
    [trained(plan, setting, episode, number, i) for i in plan.settings.average_of]
  )


def _shortened(
  prompt_tokens: np.ndarray,
  prompt_mask: np.ndarray,
  completions: np.ndarray,
  completion_mask: np.ndarray,
  *,
  score: RolloutScorer,
  penalty: float,
) -> np.ndarray:
  """The reward less `penalty` for every token of the completion, EOS included."""
  rewards = score(prompt_tokens, prompt_mask, completions, completion_mask)
  return np.asarray(rewards - np.float32(penalty) * completion_mask.sum(axis=1), np.float32)
