"""The members of a population: what may differ between them, as values that a compiled program takes as arguments.

Learning rates and weight decays live in the optimizer's state and other settings (dropout) in `frozen`, so that one
program serves all members and the same numbers come out when a member is trained alone. Leaves out the training itself
(population.py, member_runs.py) and what lies in a member's batches: their order, swapped labels (data/corruption.py).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam.core import sections
from wam.core.errors import ConfigError
from wam.core.types import PyTree
from wam.training import optimizers
from wam.training.state import LossFn

# The name in `frozen` under which a loss finds the member's own settings, float32 scalars by name.
SETTINGS = "settings"
# What a section of `optimizers.make` may have different in every member.
TRACED = ("learning_rate", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Member:
  """One of M runs of a population.

  Attributes:
    optimizer: keywords of `optimizers.make`, without `total_steps`.
    seed: of its random stream "<stage>/loss", from 0 to 2**31 - 1; its batches have their own.
    settings: numbers that the loss reads, as {"dropout": 0.1}; the same names in all members.
  """

  optimizer: Mapping[str, Any]
  seed: int = 0
  settings: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Population:
  """A supervised stage that M members go through: together, one after the other, or as separate jobs.

  Attributes:
    stage: names it: in the records, its directory and the members' random streams.
    members: M of them.
    loss_fn: as that of `loop.fit`; finds a member's settings in frozen["settings"].
    num_steps: updates of every member.
    accumulate_steps: microbatches per update.
    log_every: steps between records.
    count_tokens: tokens of a batch; called with the batches of all members as [B, M, ...] when they train together.
    keep_steps: numbers of updates after which all members' parameters are kept for good, [M, ...]; see `kept.load`.

  Raises:
    ConfigError: if there is no member, a seed or a number is out of range, or the settings have different names.
  """

  stage: str
  members: Sequence[Member]
  loss_fn: LossFn
  num_steps: int
  accumulate_steps: int = 1
  log_every: int = 50
  count_tokens: Callable[[PyTree], int] | None = None
  keep_steps: Collection[int] = ()

  def __post_init__(self) -> None:
    if not self.members:
      raise ConfigError(f"{self.stage}: a population needs at least one member, found none (M = 0)")
    names = sorted(self.members[0].settings)
    for m, member in enumerate(self.members):
      where = f"{self.stage}, member {m}"
      if not 0 <= member.seed < 2**31:
        raise ConfigError(f"{where}: the seed {member.seed} is not in [0, 2**31)")
      sections.check(
        optimizers.make,
        member.optimizer,
        f"{where}: optimizer",
        given=["total_steps"],
        also=[optimizers.make_schedule],
      )
      if sorted(member.settings) != names:
        raise ConfigError(
          f"{where}: has the settings {sorted(member.settings)} and member 0 {names}; give every member a value for"
          " each"
        )
      numbers = dict(member.settings) | {n: member.optimizer.get(n, 0.0) for n in TRACED}
      for name, value in numbers.items():
        if not np.isfinite(value) or value < 0:
          raise ConfigError(f"{where}: {name} is {value}, expected a finite number, at least 0")
    # Whatever else an optimizer refuses, now and not in the first step.
    for m in range(self.size):
      self.optimizer(m)

  @property
  def size(self) -> int:
    """M."""
    return len(self.members)

  def check_traceable(self) -> None:
    """Whether all members fit into one program.

    Raises:
      ConfigError: names the keywords of the optimizer in which members differ and that are no traced values.
    """
    own = [{k: v for k, v in m.optimizer.items() if k not in TRACED} for m in self.members]
    problems = [
      f"{key} is {own[0].get(key, 'absent')!r} in member 0 and {section.get(key, 'absent')!r} in member {m}"
      for m, section in enumerate(own)
      for key in sorted(own[0].keys() | section.keys())
      if own[0].get(key) != section.get(key) or (key in own[0]) != (key in section)
    ]
    if problems:
      raise ConfigError(
        f"{self.stage}: members of one program may differ in {', '.join(TRACED)}, seed, settings, batches and start,"
        f" but {'; '.join(problems)}. Make them equal, or train the members one after the other (mode 'sequential')"
      )

  def optimizer(
    self, m: int, values: Mapping[str, Any] | None = None
  ) -> optax.GradientTransformation:
    """The optimizer of member m; with the learning rate and weight decay of `values`, possibly traced, if given."""
    section = dict(self.members[m].optimizer)
    decays = any(member.optimizer.get("weight_decay", 0.0) for member in self.members)
    section |= values or {}
    return adjustable(total_steps=self.num_steps, decays=decays, **section)

  def own(self) -> "Own":
    """The members' values, stacked: NumPy arrays with leading axis [M]."""
    every = [member.optimizer for member in self.members]
    column = lambda values: np.asarray(list(values), np.float32)  # noqa: E731
    return Own(
      seed=np.asarray([member.seed for member in self.members], np.uint32),
      optimizer={name: column(s.get(name, 0.0) for s in every) for name in TRACED},
      settings={
        name: column(member.settings[name] for member in self.members)
        for name in sorted(self.members[0].settings)
      },
    )

  def settings(self, m: int) -> dict[str, np.ndarray]:
    """The settings of member m as float32 scalars, for the `frozen` of a run of its own; {} if there are none."""
    return {n: np.asarray(v, np.float32) for n, v in sorted(self.members[m].settings.items())}


class Own(NamedTuple):
  """What a member has for itself; leaves [M] for all members, [] for one."""

  seed: Any  # uint32
  optimizer: Mapping[str, Any]  # by the names of TRACED, float32
  settings: Mapping[str, Any]  # float32


class Adjustable(NamedTuple):
  """The state of `adjustable`: the member's numbers, and the state of its optimizer."""

  learning_rate: jax.Array  # [] float32, the peak
  weight_decay: jax.Array  # [] float32
  inner: Any


def adjustable(
  *,
  learning_rate: float | jax.Array,
  total_steps: int,
  weight_decay: float | jax.Array = 0.0,
  decays: bool = True,
  **section: Any,
) -> optax.GradientTransformationExtraArgs:
  """`optimizers.make` with learning rate and weight decay in its state, so that no program has them as constants.

  Args:
    learning_rate, weight_decay: where the state starts; may be traced.
    total_steps: of the whole training.
    decays: whether there is any decay; otherwise `weight_decay` is not looked at, as adam needs it.
    **section: the other keywords of `optimizers.make`.

  Raises:
    What `optimizers.make` raises. Schedules are computed in float32 from a traced peak, where `optimizers.make` folds
    numbers known to Python in float64: learning rates may differ in the last bit from those of a run without this.
  """

  def chain(rate: Any, decay: Any) -> optax.GradientTransformationExtraArgs:
    # As a schedule: optax takes a traced decay, but `make` asks whether there is any.
    keywords: dict[str, Any] = {"weight_decay": lambda count: decay} if decays else {}
    tx = optimizers.make(learning_rate=rate, total_steps=total_steps, **keywords, **section)
    return optax.with_extra_args_support(tx)

  def init(params: PyTree) -> Adjustable:
    rate, decay = (jnp.asarray(x, jnp.float32) for x in (learning_rate, weight_decay))
    return Adjustable(rate, decay, chain(rate, decay).init(params))

  def update(
    updates: PyTree, state: Adjustable, params: PyTree = None, **extra: Any
  ) -> tuple[PyTree, Adjustable]:
    rate, decay, inner = state
    updates, inner = chain(rate, decay).update(updates, inner, params, **extra)
    return updates, Adjustable(rate, decay, inner)

  chain(learning_rate, weight_decay)  # refuses what it refuses before anything is traced
  return optax.GradientTransformationExtraArgs(init, update)
