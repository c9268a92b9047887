"""The members of a population as runs of their own: one after the other, or as separate jobs that meet again.

Member m trains by the single-run loop in `members/<stage>/<m>` of the workdir, a run with the member's seed, its own
records and its own checkpoints; `gather` then leaves the workdir as if all had trained in one program (population.py),
and is the only place where they meet. Leaves out starting jobs, and waiting for them.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from wam.checkpoints import orbax, records
from wam.checkpoints.orbax_leaves import SavedLeaves
from wam.core import trees
from wam.core.errors import ConfigError, MissingFile, NonFinite
from wam.core.types import Params
from wam.training import iterations, kept, loop, member_axis, sharding
from wam.training.members import SETTINGS, Population
from wam.training.population import MemberBatches, log_members, mean_fields
from wam.training.state import Frozen
from wam.training.workdir import Run


def fit_member(
  population: Population,
  m: int,
  start: Params,
  batches: loop.Batches,
  *,
  run: Run,
  frozen: Frozen | None = None,
) -> Params:
  """Trains member m alone, or what is left of it, and returns its parameters; what a job of a cluster calls.

  Jobs may share a workdir: each writes below `members/<stage>/<m>` only. Resumes as `loop.fit` does.

  Args:
    population: the stage and all its members.
    m: which.
    start, batches: the member's own.
    run: the open workdir.
    frozen: as in `loop.fit`.

  Raises:
    ConfigError: if there is no member m; NonFinite (names the member), Interrupted, CannotWrite: as `loop.fit`.
  """
  if not 0 <= m < population.size:
    raise ConfigError(f"{population.stage}: there is no member {m} of {population.size}")
  settings = population.settings(m)
  held = {**(frozen or {}), **({SETTINGS: settings} if settings else {})}
  with _own_run(population, m, run) as own, _naming(m):
    return loop.fit(
      start,
      batches,
      run=own,
      stage=population.stage,
      loss_fn=population.loss_fn,
      tx=population.optimizer(m),
      num_steps=population.num_steps,
      accumulate_steps=population.accumulate_steps,
      log_every=population.log_every,
      count_tokens=population.count_tokens,
      keep_steps=population.keep_steps,
      # Arguments of the program, as in one of all members: constants would be folded, and round otherwise.
      frozen=held,
    )


def fit(
  population: Population,
  starts: Params | Sequence[Params],
  batches: Sequence[loop.Batches],
  *,
  run: Run,
  frozen: Frozen | None = None,
  allow_unrelated: bool = False,
) -> Params:
  """Trains the members one after the other; returns their parameters with a leading axis [M].

  Takes and returns what `population.fit` does. Members may differ in anything that an optimizer is made from.

  Raises:
    What `fit_member` raises; ConfigError, MismatchedTrees for starts that do not fit, as `population.fit`.
  """
  every = member_axis.check_starts(population, starts, allow_unrelated=allow_unrelated)
  joined = MemberBatches(population, batches)
  with jax.set_mesh(run.mesh):
    finished = member_axis.load_stacked(population, every[0], run=run)
  if finished is not None:
    joined.set_state(orbax.load_extra(run.stage_directory(population.stage) / "result"))
    return finished
  for m in range(population.size):
    fit_member(population, m, every[m], batches[m], run=run, frozen=frozen)
  # Where they start has been checked; how far they went since is no question of their init.
  return gather(population, every[0], run=run, allow_unrelated=True)


def gather(
  population: Population,
  like: Params,
  *,
  run: Run,
  init: Params | None = None,
  allow_unrelated: bool = False,
) -> Params:
  """Makes the stage's result from the members' own runs, once all of them are done; returns it, [M, ...].

  Their records follow as those of `population.fit` do, by step and member.

  Args:
    population: the stage and its members.
    like: a tree of the shapes and dtypes of one member.
    run: the open workdir; its mesh may have an axis `member`.
    init: what the members are compared with, since jobs may have started from anything; default the first of them.
    allow_unrelated: accept members that share no init, or that have gone so far from it that it cannot be told.

  Raises:
    MissingFile: names the members that are not done.
    ConfigError: if the members share no init, with the figures; MismatchedTrees: if one has other leaves than `like`.
  """
  stage = population.stage
  directories = [member_directory(population, m, run) for m in range(population.size)]
  results = [directory / "checkpoints" / stage / "result" for directory in directories]
  missing = [str(m) for m, path in enumerate(results) if not orbax.exists(path)]
  if missing:
    raise MissingFile(
      f"{stage}: no result of member {', '.join(missing)} of {population.size} below {directories[0].parent}; run these"
      " members first"
    )
  where = iterations.parameter_shardings(like, run)
  with jax.set_mesh(run.mesh):
    members = [orbax.load(path, sharding.abstract(like, where)) for path in results]
    reference = members[0] if init is None else init
    member_axis.check_related(population, members, reference, allow=allow_unrelated)
    lying = member_axis.shardings(like, like, population.size, run)
    stack = jax.jit(lambda *every: trees.stack(every), out_shardings=lying)
    stacked = stack(*members)
    for step in population.keep_steps:
      paths = [kept.path(result.parent, step) for result in results]
      every = [orbax.load(path, sharding.abstract(like, where)) for path in paths]
      kept.save(run.stage_directory(stage), step, stack(*every))
  _gather_records(population, directories, run)
  positions = {"members": [orbax.load_extra(path) for path in results]}
  loop.save_result(run.stage_directory(stage), stacked, run=run, extra=positions)
  return stacked


def member_directory(population: Population, m: int, run: Run) -> pathlib.Path:
  """The workdir of member m's own run."""
  return run.directory / "members" / population.stage / str(m)


def load_member(population: Population, m: int, *, run: Run) -> Params:
  """Member m of a stage that is done, as NumPy arrays; the others are not held at the same time for longer than a leaf.

  Raises:
    MissingFile: if the stage is not done; ConfigError: if there is no member m.
  """
  if not 0 <= m < population.size:
    raise ConfigError(f"{population.stage}: there is no member {m} of {population.size}")
  saved = SavedLeaves(run.stage_directory(population.stage) / "result")
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  flat = {name: np.asarray(saved.load({name: here})[name][m]) for name in saved.shapes}
  return trees.unflatten(flat)


def save_each(
  stacked: Params,
  directory: pathlib.Path,
  *,
  save: Callable[[pathlib.Path, Params], None] = orbax.save,
) -> list[pathlib.Path]:
  """Saves every member as a checkpoint of its own, `<directory>/<m>`; returns their paths.

  Args:
    stacked: leaves [M, ...].
    directory: where they go.
    save: (path, parameters of one member) -> None; default Orbax, and
      `lambda path, params: pretrained.save_scalar(path, model, params, ...)` writes Hugging Face directories.
  """
  size = len(jax.tree.leaves(stacked)[0])
  paths = [pathlib.Path(directory) / str(m) for m in range(size)]
  for m, path in enumerate(paths):
    save(path, jax.tree.map(lambda x, m=m: x[m], stacked))
  return paths


@contextlib.contextmanager
def _own_run(population: Population, m: int, run: Run) -> Iterator[Run]:
  """The run of member m: what `run` is, in another directory and with the member's seed."""
  own = Run(
    member_directory(population, m, run),
    seed=population.members[m].seed,
    mesh=run.mesh,
    rules=(*run.rules, (f"{SETTINGS}/.*", PartitionSpec())),
    uneven=run.uneven,
    show=run.show,
    tensorboard=False,
    save_every_seconds=run.save_every_seconds,
    save_every_steps=run.save_every_steps,
  )
  # The signals are caught once, by the run that is open.
  own.interrupts = run.interrupts
  try:
    yield own
  finally:
    own.close()


@contextlib.contextmanager
def _naming(m: int) -> Iterator[None]:
  """Errors about numbers say whose they are."""
  try:
    yield
  except NonFinite as error:
    raise NonFinite(f"member {m}: {error}") from error


def _gather_records(population: Population, directories: Sequence[pathlib.Path], run: Run) -> None:
  """Writes the members' records into those of the population."""
  stage = population.stage
  run.records.drop_after(stage, -1)
  if jax.process_index():
    return
  by_step: dict[int, list[dict[str, Any]]] = {}
  seconds = 0.0
  for directory in directories:
    for record in records.read(directory):
      kind, step, fields = record["kind"], record["step"], _fields(record)
      if kind == "metric":
        by_step.setdefault(step, []).append(fields)
      elif kind == "stage":
        seconds += fields["seconds"]
  for step in sorted(by_step):
    log_members(run, stage, step, by_step[step])
    run.log(mean_fields(by_step[step]), stage=stage, step=step)
  run.log({"seconds": seconds}, kind="stage", stage=stage, step=population.num_steps)


def _fields(record: dict[str, Any]) -> dict[str, Any]:
  return {n: v for n, v in record.items() if n not in ("kind", "stage", "step")}
