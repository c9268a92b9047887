"""A population trained together: M members in one compiled program, over a leading member axis of everything.

Parameters, optimizer state, batches and keys have an axis [M] that the update is mapped over; a mesh with an axis
`member` splits it over devices, without communication between members. Records of a member have the kind "member" and
its number in "member"; a "metric" record holds the means over the members.

The same members come out of runs of their own (member_runs.py). Bit for bit, where the members of a device are computed
one after the other inside the program (vectorize=False) or a device has only one; under `vmap` products and sums are
those of larger arrays, which XLA adds up in another order: one update differs by a few float32 roundings of the
gradient, which Adam's first steps turn into as many roundings of the learning rate.

Leaves out online algorithms, whose batches depend on the parameters.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wam.checkpoints import orbax
from wam.core import rng, trees
from wam.core.errors import ConfigError, MismatchedTrees, NonFinite, check_same_trees
from wam.core.types import Params, PyTree
from wam.training import loop, member_axis, sharding, step
from wam.training.member_axis import AXIS
from wam.training.members import SETTINGS, TRACED, Own, Population
from wam.training.progress import Progress
from wam.training.state import Frozen, Pair, TrainState, init
from wam.training.workdir import Run

# (state, batch [B, M, ...], members' values, frozen) -> (state, metrics [M]).
Update = Callable[[TrainState, PyTree, Own, Frozen], tuple[TrainState, dict[str, Pair]]]


def fit(
  population: Population,
  starts: Params | Sequence[Params],
  batches: Sequence[loop.Batches],
  *,
  run: Run,
  frozen: Frozen | None = None,
  vectorize: bool | None = None,
  allow_unrelated: bool = False,
) -> Params:
  """Trains all members together, or what is left to do; returns their parameters with a leading axis [M].

  Killed at any moment and called again with the same arguments it returns the same bits. A stage that is done, together
  or by the members' own runs, is loaded. Merges take the result as it is (`wam.merging` knows the leading axis).

  Args:
    population: the stage and its members.
    starts: one tree for all, or M trees (Baklava: checkpoints of one trajectory; Ramé et al. 2024, WARM); not consumed.
    batches: M inputs, whose batches have the same names and shapes.
    run: the open workdir; its mesh may have an axis `member` (`member_axis.make_mesh`). Members have their own seeds.
    frozen: weights that the loss looks at, the same for all members.
    vectorize: whether the members of a device are computed as one larger computation, or one after the other inside
      the program, which takes the memory of one member's activations and gives the bits of a run of its own. Default:
      on accelerators the first, on CPUs the second, whose steps are faster there (benchmarks/population.py).
    allow_unrelated: accept starts that are no points of one trajectory; their average means nothing.

  Raises:
    ConfigError: if there are not M batches and starts; if members differ in what cannot be traced; if the starts share
      no init (with the figures); or if `member` does not divide M.
    MismatchedTrees: names the leaves in which starts or batches do not agree.
    NonFinite: if a loss or a result is NaN or infinite; names stage, member and step.
    Interrupted, CannotWrite: as `loop.fit`.
  """
  population.check_traceable()
  every = member_axis.check_starts(population, starts, allow_unrelated=allow_unrelated)
  joined = MemberBatches(population, batches)
  directory = run.stage_directory(population.stage)
  with jax.set_mesh(run.mesh):
    finished = member_axis.load_stacked(population, every[0], run=run)
    if finished is not None:
      joined.set_state(orbax.load_extra(directory / "result"))
      return finished
    began = time.monotonic()
    trainer = _start(
      population,
      every,
      joined,
      run=run,
      frozen=frozen or {},
      vectorize=vectorized(vectorize, run.mesh),
    )
    first_step = trainer.step
    progress = Progress(population.stage, population.num_steps, start=first_step, enabled=run.show)
    try:
      with progress:
        trainer.steps(
          population.num_steps,
          log_every=population.log_every,
          count_tokens=population.count_tokens,
          progress=progress,
          keep_steps=population.keep_steps,
        )
    finally:
      trainer.checkpoints.close()
    result = trainer.carry.train.params
    member_axis.check_finite(result, stage=population.stage, step=population.num_steps)
    seconds = {"seconds": time.monotonic() - began}
    run.log(seconds, kind="stage", stage=population.stage, step=population.num_steps)
    loop.save_result(directory, result, run=run, extra=joined.get_state())
  return result


def vectorized(choice: bool | None, mesh: Mesh) -> bool:
  """`vectorize` of `fit` where it is given; otherwise whether the mesh's devices are accelerators."""
  return mesh.devices.flat[0].platform != "cpu" if choice is None else choice


def make_update(
  population: Population, *, mesh: Mesh | None = None, vectorize: bool = True
) -> Update:
  """A pure function (state, batch, own, frozen) -> (state, metrics) over all members, to be compiled.

  Args:
    population: the stage and its members.
    mesh: where it runs; its axis `member`, if it has one, splits the members, each device computing its own alone.
    vectorize: as in `fit`.

  Returns:
    The update. Every leaf of the state and every metric has a leading axis [M]; leaves of the batch are [B, M, ...],
    rows first as everywhere, so that the mesh's batch axes split them.
  """
  # Learning rates come with the state: any member's optimizer updates all.
  single = step.make_update(
    population.loss_fn, population.optimizer(0), accumulate_steps=population.accumulate_steps
  )
  stream = f"{population.stage}/loss"

  def one(state: TrainState, batch: PyTree, own: Own, frozen: Frozen) -> Any:
    key = rng.key(own.seed, stream, state.step)
    held = {**frozen, SETTINGS: own.settings} if own.settings else frozen
    return single(state, batch, key, held)

  def several(state: TrainState, batch: PyTree, own: Own, frozen: Frozen) -> Any:
    arguments = (state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch), own)

    def of_member(arguments: tuple[TrainState, PyTree, Own]) -> Any:
      return one(*arguments, frozen)

    if own.seed.shape[0] == 1:
      alone = _closed(of_member, jax.tree.map(lambda x: x[0], arguments))
      return jax.tree.map(lambda x: jnp.expand_dims(x, 0), alone)
    if vectorize:
      return jax.vmap(of_member)(arguments)
    return jax.lax.map(lambda xs: _closed(of_member, xs), arguments)

  if mesh is None or mesh.shape.get(AXIS, 1) == 1:
    return several
  P = PartitionSpec
  return jax.shard_map(
    several,
    mesh=mesh,
    in_specs=(P(AXIS), P(None, AXIS), P(AXIS), P()),
    out_specs=P(AXIS),
    # The other axes stay the compiler's.
    axis_names={AXIS},
    check_vma=False,
  )


def _closed(of_member: Callable[[Any], Any], arguments: tuple[TrainState, PyTree, Own]) -> Any:
  """of_member(arguments) as a computation of its own, which XLA fuses as it fuses the program of a single run.

  Fused with the writing of its results into slices, Adam's moments are computed twice, and products and sums contracted
  in another way: a last bit of some parameters differs after a few steps. XLA fuses nothing into a branch, and cannot
  know that this one is always taken; optimization barriers do not hold it back on a CPU.
  """
  state = arguments[0]
  shapes = jax.eval_shape(of_member, arguments)
  none = lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
  return jax.lax.cond(state.step >= 0, of_member, none, arguments)


class MemberBatches:
  """The batches of M members side by side: leaves [B, M, ...]."""

  def __init__(self, population: Population, batches: Sequence[loop.Batches]):
    """Raises ConfigError unless there is one input for each member."""
    if len(batches) != population.size or len({id(b) for b in batches}) != len(batches):
      raise ConfigError(
        f"{population.stage}: expected batches of their own for each of {population.size} members, found"
        f" {len({id(b) for b in batches})}; members with the same data and order need two inputs of the same seed"
      )
    self._stage, self._batches = population.stage, list(batches)

  def __next__(self) -> PyTree:
    every = [next(batches) for batches in self._batches]
    try:
      check_same_trees(*every)
    except MismatchedTrees as error:
      raise MismatchedTrees(
        f"{self._stage}: batches of one program have one shape; pad all members' rows to one length. {error}"
      ) from error
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *every)

  def get_state(self) -> Any:
    """The positions of all."""
    return {"members": [batches.get_state() for batches in self._batches]}

  def set_state(self, state: Any) -> None:
    """Goes to these positions; raises ConfigError if they are those of another number of members."""
    saved = state["members"]
    if len(saved) != len(self._batches):
      raise ConfigError(
        f"{self._stage}: the checkpoint is that of {len(saved)} members, now there are {len(self._batches)}; resume"
        " with the configuration of the run, or start in a new directory"
      )
    for batches, position in zip(self._batches, saved, strict=True):
      batches.set_state(position)


def log_members(run: Run, stage: str, step: int, rows: Sequence[Mapping[str, float]]) -> None:
  """One "member" record for each of the rows."""
  for m, fields in enumerate(rows):
    run.records.append(kind="member", stage=stage, step=step, member=m, **fields)


def mean_fields(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """The means over the members of the fields that all have."""
  shared = [name for name in rows[0] if all(name in row for row in rows)]
  return {name: float(np.mean([row[name] for row in rows])) for name in shared}


@dataclasses.dataclass
class Trainer(loop.Trainer):
  """The loop's trainer with a leading axis [M] in the carry: sums [M, K, 2], first_bad [M]."""

  clean: Any  # an interval without steps, on the host
  where: loop.Carry  # shardings

  def log(self, clock: loop.Clock, progress: Progress) -> None:
    """Writes a record for every member and one of the means."""
    sums = self.check()
    rows = [
      {n: float(t / w) if w else 0.0 for n, (t, w) in zip(self.names, own, strict=True)}
      for own in sums
    ]
    fields = mean_fields(rows)
    speed = clock.tokens_per_second()
    if speed is not None:
      fields["tokens_per_second"] = speed
    log_members(self.run, self.stage, self.step, rows)
    self.run.log(fields, stage=self.stage, step=self.step)
    shown = {n: v for n, v in fields.items() if n in ("loss", "accuracy", "tokens_per_second")}
    progress.update(self.step, shown)
    empty = sharding.put(self.clean, self.where.interval)
    self.carry = self.carry._replace(interval=empty)

  def check(self) -> np.ndarray:
    """Fetches the sums since the last record [M, K, 2]; raises NonFinite if a loss among them was not finite."""
    interval = sharding.fetch(self.carry.interval)
    bad = [(int(at), m) for m, at in enumerate(interval.first_bad) if at >= 0]
    if bad:
      at, m = min(bad)
      others = ", ".join(f"member {other} at step {when}" for when, other in sorted(bad)[1:])
      raise NonFinite(
        f"{self.stage}: the loss of member {m} at step {at} is not finite{' (also ' + others + ')' if others else ''}."
        f" The last saved step is {self.checkpoints.latest or 0}; a lower learning rate of that member, clipping or a"
        " longer warm-up may help, or a look at its data of that step"
      )
    return np.asarray(interval.sums)


def _start(
  population: Population,
  starts: Sequence[Params],
  batches: MemberBatches,
  *,
  run: Run,
  frozen: Frozen,
  vectorize: bool,
) -> Trainer:
  """The trainer at its first step, or at the last one that was saved."""
  stage, size, own = population.stage, population.size, population.own()
  like, shared = starts[0], member_axis.are_one(starts)
  checkpoints = orbax.Checkpoints(run.stage_directory(stage) / "steps")
  latest = checkpoints.latest
  run.records.drop_after(stage, -1 if latest is None else latest)
  position = batches.get_state() if latest is None else checkpoints.extra(latest)
  batches.set_state(position)
  example = next(batches)
  batches.set_state(position)

  def first_state(params: Params, values: Any) -> TrainState:
    return init(params, population.optimizer(0, values))

  one = jax.eval_shape(first_state, like, {n: np.float32(0) for n in TRACED})
  train_where = member_axis.shardings(one, like, size, run)
  along = NamedSharding(run.mesh, member_axis.along(run.mesh))
  own = sharding.put(own, jax.tree.map(lambda _: along, own))
  frozen_where = sharding.shardings(frozen, frozen, run.rules, run.mesh, uneven=run.uneven)
  frozen = sharding.put(frozen, frozen_where, copy=False)

  update = make_update(population, mesh=run.mesh, vectorize=vectorize)
  shapes = jax.eval_shape(lambda x: member_axis.repeated(x, size), one)
  placed = sharding.put_batch(example, run.mesh)
  # A jit inside the step's, so that the loss is traced once.
  update = jax.jit(update)
  abstract = sharding.abstract(shapes, train_where)
  names = tuple(jax.eval_shape(update, abstract, placed, own, frozen)[1])
  zeros: Any = (np.zeros((size, len(names), 2), np.float32), np.full((size,), -1, np.int32))
  clean = loop.Interval(*zeros)
  carry_where = loop.Carry(train_where, jax.tree.map(lambda _: along, clean))
  whole = NamedSharding(run.mesh, PartitionSpec())
  compiled = jax.jit(
    lambda carry, batch, held: _accumulate(update, carry, batch, *held),
    donate_argnums=0,
    out_shardings=(carry_where, whole),
  )
  if latest is None:
    stack = lambda *every: member_axis.repeated(every[0], size) if shared else trees.stack(every)  # noqa: E731
    stacked = jax.jit(stack, out_shardings=train_where.params)(*(starts[:1] if shared else starts))
    train = jax.jit(jax.vmap(first_state), out_shardings=train_where)(stacked, own.optimizer)
    carry = loop.Carry(train, sharding.put(clean, carry_where.interval))
  else:
    wanted = loop.Carry(shapes, jax.eval_shape(lambda: clean))
    carry = checkpoints.load(latest, sharding.abstract(wanted, carry_where))
  held: Any = (own, frozen)
  return Trainer(
    run, stage, batches, carry, names, compiled, checkpoints, latest or 0, held, clean, carry_where
  )


def _accumulate(
  update: Update, carry: loop.Carry, batch: PyTree, own: Own, frozen: Frozen
) -> tuple[loop.Carry, jax.Array]:
  """The update with its metrics added to the members' intervals, and the step's number to wait for."""
  train, interval = carry
  after, metrics = update(train, batch, own, frozen)
  sums = interval.sums + jnp.stack([jnp.stack(pair, axis=1) for pair in metrics.values()], axis=1)
  bad = ~jnp.isfinite(metrics["loss"][0])
  first_bad = jnp.where(bad & (interval.first_bad < 0), after.step, interval.first_bad)
  return loop.Carry(after, loop.Interval(sums, first_bad)), after.step[0]
