"""Where the leaves of a checkpoint lie on a mesh, if nobody says so."""

import itertools
import math
from collections.abc import Callable, Sequence

from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wam.core.errors import ConfigError
from wam.streaming.mesh.mesh_inputs import Inputs

# (name, shape) -> how a leaf is spread over the mesh.
Layout = Callable[[str, tuple[int, ...]], PartitionSpec]


def shardings(
  inputs: Inputs,
  mesh: Mesh,
  *,
  layout: Layout | None = None,
  whole_rows: bool = False,
) -> dict[str, NamedSharding]:
  """The sharding of every leaf, by name.

  Args:
    inputs: give names and shapes; the first one also the pieces in which leaves are stored.
    mesh: of any axes.
    layout: how a leaf is spread; default `spread`.
    whole_rows: whether rows are better not cut; for the default.

  Raises:
    ConfigError: names every leaf that cannot be spread as the layout says.
  """
  # Axes that the compiler looks after: a merge says nothing about them.
  mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
  found, problems = {}, []
  for name, leaf in inputs.leaves.items():
    shape = inputs.shapes[name].shape
    if layout is not None:
      spec = layout(name, shape)
    else:
      stacked = leaf.num_layers is not None
      # The rows of a tensor are its first axis; one of rank 1 is a row.
      axes = range(int(stacked) + (leaf.rank > 1)) if whole_rows else range(len(shape))
      spec = spread(shape, inputs.first.chunks[name], mesh, axes)
    found[name] = NamedSharding(mesh, spec)
    try:
      found[name].check_compatible_aval(shape)
      found[name].shard_shape(shape)
    except ValueError as error:
      problems.append(f"'{name}' of shape {shape} as {spec}: {str(error).splitlines()[0]}")
  if problems:
    raise ConfigError(f"{len(problems)} leaves cannot be spread so: {'; '.join(problems)}")
  return found


def spread(
  shape: Sequence[int], chunk: Sequence[int], mesh: Mesh, axes: Sequence[int]
) -> PartitionSpec:
  """One axis over as many devices as divide it: one along which the leaf is stored in pieces, else the longest.

  A process reads whole pieces. Where the axis is that of the pieces, it reads none of another's.

  Args:
    shape: of the leaf.
    chunk: of the pieces in which it is stored.
    mesh: gives the sizes of the axes.
    axes: of the leaf, that may be cut.
  """
  order = sorted(axes, key=lambda i: (chunk[i] == shape[i], -shape[i]))
  names = mesh.axis_names
  runs = [names[i:j] for i, j in itertools.combinations(range(len(names) + 1), 2)]
  sizes = {run: math.prod(mesh.shape[n] for n in run) for run in runs}
  for run in sorted(runs, key=lambda r: (-sizes[r], len(r))):
    for axis in order:
      if sizes[run] > 1 and shape[axis] and shape[axis] % sizes[run] == 0:
        return PartitionSpec(*[None] * axis, run if len(run) > 1 else run[0])
  return PartitionSpec()
