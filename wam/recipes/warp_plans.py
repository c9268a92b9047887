"""WARP and what it is compared with, as plans: from the config's sections to what is trained and what is measured.

A comparison is algorithm 1 too: one member in one episode is plain REINFORCE; its budget says at how much compute.
Leaves out training (warp_episodes.py) and measuring (policy_points.py).
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.recipes import warp_episodes as episodes
from wam.recipes.warp_episodes import MAIN, Plan, Setting, Settings

BUDGETS = ("episode", "long", "wide")
INIT, SFT, STARTS = "init", "SFT", "episode starts"


class Candidate(NamedTuple):
  """A policy to measure.

  Attributes:
    family, label: its line in figures, and its name on it.
    x: numbers that place it on the line.
    identity: equal for two names of one policy.
    make: loads or merges its weights.
    selectable: whether a rule may choose it: it is measured on the validation split as well.
    shown: whether samples of it are kept.
    coefficients: empty, as α of parts has no place here.
  """

  family: str
  label: str
  x: Mapping[str, float]
  identity: Hashable
  make: Callable[[Setting], Params]
  selectable: bool = False
  shown: bool = False
  coefficients: Mapping[str, float] = {}


def plans(
  *,
  warp: Mapping[str, Any],
  reinforce: Mapping[str, Any],
  comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]] | None,
) -> list[Plan]:
  """WARP, then what it is compared with.

  Args:
    warp: keywords of `warp_episodes.Settings`.
    reinforce: of every member, keywords of `reinforce.Settings`.
    comparisons: family -> key -> a section for `_compared`; in figures underscores are spaces.

  Raises:
    ConfigError: for a key that does not exist, or two comparisons of one name.
  """
  main = Plan("", MAIN, sections.call(Settings, warp, "warp"), reinforce)
  found = [main]
  for family, compared in (comparisons or {}).items():
    for key, spec in compared.items():
      name = f"comparisons.{family}.{key}"
      sections.check(_compared, spec, name)
      plan = _plan(main, warp, name, **{k: v for k, v in spec.items() if k != "label"})
      line = f"{family}: {spec.get('label', key)}".replace("_", " ")
      found.append(dataclasses.replace(plan, key=f"{family}-{key}", family=line))
  names = [plan.name for plan in found]
  for called in (names, [plan.family for plan in found]):
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
      raise ConfigError(f"comparisons: two of them are both called {', '.join(twice)}; rename one")
  return found


def _compared(
  *,
  label: str = "",
  warp: Mapping[str, Any] | None = None,
  settings: Mapping[str, Any] | None = None,
  budget: str = "episode",
) -> None:
  """A comparison.

  Args:
    label: what it is called in figures; default its key, which cannot hold a dot.
    warp: what differs from the section "warp"; {} for the same episodes. None: one plain run, from θ_SFT.
    settings: what differs from the section "reinforce".
    budget: of a plain run: "episode", as many iterations as a member of the first episode has; "long", as many as all
      members of all episodes have together, I·M·T; "wide": I·T iterations of M times as many prompts, so that it sees
      as many completions, and updates on M times as many at a time.
  """


def _plan(
  main: Plan,
  base: Mapping[str, Any],
  name: str,
  *,
  warp: Mapping[str, Any] | None = None,
  settings: Mapping[str, Any] | None = None,
  budget: str = "episode",
) -> Plan:
  if budget not in BUDGETS:
    raise unknown_name(f"{name}.budget", budget, BUDGETS)
  section = {**main.reinforce, **(settings or {})}
  if warp is not None:
    if budget != "episode":
      raise ConfigError(
        f"{name}: a budget is for plain runs; give warp.num_episodes, warp.num_members"
      )
    own = dict(base)
    # What belongs to the number of episodes or members is not inherited with another one.
    for number, lists in {"num_episodes": "episode_iterations", "num_members": "members"}.items():
      if number in warp:
        own.pop(lists, None)
    return Plan("", "", sections.call(Settings, {**own, **warp}, f"{name}.warp"), section)
  alone = Settings(num_episodes=1, num_members=1, etas=main.settings.etas)
  members = main.settings.num_members
  if budget == "long":
    section["num_iterations"] = main.total_iterations
  elif budget == "wide":
    section["num_iterations"] = main.total_iterations // members
    for key in ("prompts_per_iteration", "batch_size"):
      if section.get(key) is not None:
        section[key] *= members
  elif "num_iterations" not in (settings or {}):
    section["num_iterations"] = main.num_iterations(1)
  return Plan("", "", alone, section)


def candidates(every: Sequence[Plan], *, measure_every: int | None) -> list[Candidate]:
  """The policies to measure, in order.

  θ_SFT; of WARP the trajectory of every member, where every episode starts and the output set of every episode; of the
  comparisons the trajectories of plain runs, and the output sets.

  Args:
    every: the plans.
    measure_every: a trajectory is measured after every so many iterations and after its last; None: the last only.

  Raises:
    ConfigError: if `measure_every` is below 1, or asks for iterations that are not kept.
  """
  if measure_every is not None and measure_every < 1:
    raise ConfigError(f"measure_every: expected 1 at least, or None, found {measure_every}")
  found = [Candidate(INIT, SFT, {}, INIT, lambda setting: setting.reference, True, True)]
  for plan in every:
    main, settings = plan is every[0], plan.settings
    for episode in range(1, settings.num_episodes + 1):
      if main and episode > 1:
        found.append(_start(plan, episode))
      if main or (settings.num_members == settings.num_episodes == 1):
        for number in range(settings.num_members):
          found += _trajectory(every, plan, episode, number, measure_every)
      if main or not settings.num_members == settings.num_episodes == 1:
        found += _outputs(every, plan, episode)
      else:
        found += _outputs(every, plan, episode, name=f"{plan.family}, LITI")
  return found


def _start(plan: Plan, episode: int) -> Candidate:
  return Candidate(
    STARTS,
    f"episode {episode}",
    {"episode": episode},
    (plan.name, "start", episode),
    lambda setting: episodes.start(plan, setting, episode),
  )


def _trajectory(
  every: Sequence[Plan], plan: Plan, episode: int, number: int, measure_every: int | None
) -> list[Candidate]:
  """A member after every few iterations."""
  last = plan.last_iteration(episode, number)
  keep_every = plan.member(episode, number)[1].get("keep_every", 1)
  if measure_every and measure_every % keep_every:
    raise ConfigError(
      f"measure_every: expected a multiple of keep_every={keep_every} of the section reinforce, found {measure_every}"
    )
  stage = episodes.member_stage(plan, every, episode, number)
  family = plan.family
  if plan is every[0]:
    family = f"REINFORCE: episode {episode}, member {number + 1}"

  def at(iteration: int) -> Candidate:
    return Candidate(
      family,
      f"iteration {iteration}",
      {"episode": episode, "member": number + 1, "iteration": iteration},
      (stage, iteration),
      lambda setting: episodes.trained(plan, setting, episode, number, iteration),
    )

  return [
    at(i) for i in range(1, last + 1) if i == last or (measure_every and i % measure_every == 0)
  ]


def _outputs(
  every: Sequence[Plan], plan: Plan, episode: int, name: str | None = None
) -> list[Candidate]:
  """(1 - η)·θ_SFT + η·θ_slerp of an episode."""
  main = plan is every[0]
  several = main or plan.settings.num_episodes > 1
  family = name or (f"{plan.family}, episode {episode}" if several else plan.family)
  selectable = main and episode == plan.settings.num_episodes
  merge = _merge_identity(every, plan, episode)

  def at(eta: float) -> Candidate:
    return Candidate(
      family,
      f"η = {eta:g}",
      {"episode": episode, "eta": eta},
      INIT if eta == 0 else merge if eta == 1 else (merge, eta),
      lambda setting: episodes.output(plan, setting, episode, eta),
      selectable,
      main,
    )

  return [at(eta) for eta in sorted({0.0, 1.0, *plan.settings.etas})]


def _merge_identity(every: Sequence[Plan], plan: Plan, episode: int) -> Hashable:
  """Equal for merges of the same members by the same rule; that of one member is the member."""
  settings = plan.settings
  count = settings.num_members
  stages = tuple(episodes.member_stage(plan, every, episode, m) for m in range(count))
  if count == 1 and not settings.average_of:
    return stages[0], plan.last_iteration(episode, 0)
  return stages, settings.merge, settings.group, tuple(settings.average_of)
