"""The member axis of a population: meshes that have it, where stacked trees lie, and what they are made from.

Leaves out what is computed along it (population.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wam.core import trees
from wam.core.errors import ConfigError, NonFinite, check_same_trees
from wam.core.types import Params, PyTree
from wam.merging.shared_init import check_shared_init
from wam.training import loop, sharding
from wam.training.members import Population
from wam.training.workdir import Run

AXIS = "member"


def make_mesh(
  axes: Mapping[str, int] | None = None, *, devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh with a `member` axis beside those of `sharding.make_mesh`.

  Args:
    axes: sizes by name; "member" (default 1) must divide the number of members, and all devices of one of its slots
      are a mesh of the other axes, of which one may be -1.
    devices: default all devices of all processes.

  Raises:
    ConfigError: if the sizes do not multiply to the number of devices; UnknownName: for an axis of another name.
  """
  every = list(jax.devices() if devices is None else devices)
  rest = dict({"data": -1} if axes is None else axes)
  slots = rest.pop(AXIS, 1)
  if slots < 1 or len(every) % slots:
    raise ConfigError(f"mesh axis '{AXIS}' of size {slots} does not divide {len(every)} devices")
  if rest == {}:
    rest = {"data": -1}
  inner = sharding.make_mesh(rest, devices=every[: len(every) // slots])
  shape = (slots, *inner.shape.values())
  names = (AXIS, *sharding.AXES)
  return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=every)


def check_starts(
  population: Population, starts: Params | Sequence[Params], *, allow_unrelated: bool = False
) -> list[Params]:
  """M starts, of which all may be one tree, after the checks of `population.fit`."""
  if not isinstance(starts, list | tuple) or hasattr(starts, "_fields"):
    return [cast(Params, starts)] * population.size
  every: list[Params] = list(starts)
  if len(every) != population.size:
    raise ConfigError(
      f"{population.stage}: expected one start for all or one for each of {population.size} members, found"
      f" {len(every)}"
    )
  check_same_trees(*every)
  if not are_one(every):
    check_related(population, every, every[0], allow=allow_unrelated)
  return every


def are_one(starts: Sequence[Params]) -> bool:
  """Whether all starts are the same tree in memory."""
  return all(start is starts[0] for start in starts)


def check_related(
  population: Population, members: Sequence[Params], init: Params, *, allow: bool
) -> None:
  """`check_shared_init` with the stage's name in its message."""
  try:
    check_shared_init(list(members), init, allow=allow)
  except ConfigError as error:
    raise ConfigError(f"{population.stage}: {error}") from error


def shardings(state: PyTree, like: Params, size: int, run: Run) -> PyTree:
  """Where M stacked states lie: as the run's rules say of one member's, and along `member` where the mesh has it.

  Args:
    state: one member's, such as its parameters or its train state.
    like: one member's parameters.
    size: M.
    run: gives mesh and rules.

  Raises:
    ConfigError: if `member` does not divide M; and what `sharding.shardings` raises.
  """
  slots = run.mesh.shape.get(AXIS, 1)
  if size % slots:
    raise ConfigError(
      f"{size} members cannot be split over a mesh axis '{AXIS}' of size {slots}; give a divisor of {size}"
    )
  alone = sharding.shardings(state, like, run.rules, run.mesh, uneven=run.uneven)
  lead = along(run.mesh)
  return jax.tree.map(lambda s: NamedSharding(run.mesh, PartitionSpec(*lead, *s.spec)), alone)


def load_stacked(population: Population, like: Params, *, run: Run) -> Params | None:
  """All members of a stage that is done, [M, ...], placed as the run's mesh says; None if it is not done.

  Raises:
    MismatchedTrees: if names or shapes are not those of M members like `like`.
  """
  size = population.size
  stacked = jax.eval_shape(lambda x: repeated(x, size), like)
  where = shardings(like, like, size, run)
  return loop.load_result(run.stage_directory(population.stage), stacked, where)


def check_finite(stacked: Params, *, stage: str, step: int) -> None:
  """Raises NonFinite, naming members and leaves, if a parameter is NaN or infinite."""

  def finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))

  flags = trees.flatten(sharding.fetch(jax.jit(lambda tree: jax.tree.map(finite, tree))(stacked)))
  size = len(next(iter(flags.values())))
  bad = {m: [name for name, ok in flags.items() if not ok[m]] for m in range(size)}
  found = [f"member {m}: {', '.join(names)}" for m, names in bad.items() if names]
  if found:
    raise NonFinite(f"{stage}: parameters are not finite after step {step} ({'; '.join(found)})")


def along(mesh: Mesh) -> PartitionSpec:
  """How the member axis lies."""
  return PartitionSpec(AXIS if AXIS in mesh.shape else None)


def repeated(tree: PyTree, size: int) -> PyTree:
  """Every leaf M times, [M, ...]."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), tree)
