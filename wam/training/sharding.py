"""Meshes with named axes, and where each leaf lies on them.

Axes: `data` (batches only), `fsdp` (batches and weights), `tensor` (weights, within a layer). Rules are regexes on leaf
names; the compiler puts in the communication (Auto axes). Leaves out pipelines and the `member` axis of populations.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wam.core import trees
from wam.core.errors import ConfigError, UncoveredLeaves, unknown_name
from wam.core.types import PyTree

P = PartitionSpec
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, PartitionSpec]]

# (regex on the whole leaf name, spec of the leaf's LAST axes). Leading axes, those of stacked layers, stay whole, so
# that one rule serves both layouts. Columns of the first and rows of the second product of a block are split over
# `tensor` (Shoeybi et al. 2019, section 3); the other axis of a matrix over `fsdp`.
DECODER_RULES: Rules = (
  (r"(.*/)?embed/embedding", P("tensor", "fsdp")),
  (r"(.*/)?lm_head/kernel", P("fsdp", "tensor")),
  (r"(.*/)?attention/[qkv]/kernel", P("fsdp", "tensor")),
  (r"(.*/)?attention/[qkv]/bias", P("tensor")),
  (r"(.*/)?attention/o/kernel", P("tensor", "fsdp")),
  (r"(.*/)?mlp/(gate|up)/kernel", P("fsdp", "tensor")),
  (r"(.*/)?mlp/(gate|up)/bias", P("tensor")),
  (r"(.*/)?mlp/down/kernel", P("tensor", "fsdp")),
  (r"(.*/)?(attention/o|mlp/down)/bias", P()),
  # Factors of low-rank adapters lie as the axis of the matrix that they share; the rank stays whole.
  (r"(.*/)?(attention/[qkv]|mlp/(gate|up))/lora_a", P("fsdp", None)),
  (r"(.*/)?(attention/[qkv]|mlp/(gate|up))/lora_b", P(None, "tensor")),
  (r"(.*/)?(attention/o|mlp/down)/lora_a", P("tensor", None)),
  (r"(.*/)?(attention/o|mlp/down)/lora_b", P(None, "fsdp")),
  (r"(.*/)?scale", P()),
  (r"(.*/)?head/(kernel|bias)", P()),
)
# For trees that nobody has written rules for: every device holds all.
REPLICATED: Rules = ((".*", P()),)
_ADAPTER = re.compile(r"(?:.*/)?lora_[ab]")


def make_mesh(
  axes: Mapping[str, int] | None = None, *, devices: Sequence[Any] | None = None
) -> Mesh:
  """The mesh of a config section such as {"data": -1, "fsdp": 1, "tensor": 1}.

  Args:
    axes: sizes by name; one of them may be -1, for all devices that are left. Axes that are absent have size 1.
    devices: default all devices of all processes.

  Raises:
    ConfigError: if the sizes do not multiply to the number of devices; UnknownName: for an axis of another name.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict.fromkeys(AXES, 1) | dict({"data": -1} if axes is None else axes)
  for name in sizes:
    if name not in AXES:
      raise unknown_name("mesh axis", name, AXES)
  free = [name for name, size in sizes.items() if size == -1]
  known = math.prod(size for size in sizes.values() if size != -1)
  if len(free) > 1 or known < 1 or (free and len(devices) % known):
    raise ConfigError(
      f"mesh {sizes}: does not divide {len(devices)} devices (at most one axis may be -1)"
    )
  if free:
    sizes[free[0]] = len(devices) // known
  if math.prod(sizes.values()) != len(devices):
    raise ConfigError(
      f"mesh {sizes}: needs {math.prod(sizes.values())} devices, found {len(devices)}"
    )
  shape = tuple(sizes[name] for name in AXES)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def specs(params: PyTree, rules: Rules, mesh: Mesh, *, uneven: str = "error") -> PyTree:
  """The PartitionSpec of every leaf: the first rule whose regex matches the whole name.

  Args:
    params: arrays, or anything with a shape.
    rules: pairs of a regex and the spec of the last axes.
    mesh: gives the sizes of the axes.
    uneven: what to do where a mesh axis does not divide an axis of a leaf: "error", or "replicate", which keeps that
      axis of that leaf whole.

  Raises:
    UncoveredLeaves: naming every leaf that no rule matches.
    ConfigError: naming every leaf that cannot be split as its rule says.
  """
  if uneven not in ("error", "replicate"):
    raise unknown_name("rule for uneven axes", uneven, ("error", "replicate"))
  compiled = [(re.compile(pattern), spec) for pattern, spec in rules]
  flat = {name: np.shape(leaf) for name, leaf in trees.flatten(params).items()}
  chosen = {
    name: next((spec for pattern, spec in compiled if pattern.fullmatch(name)), None)
    for name in flat
  }
  uncovered = [name for name, spec in chosen.items() if spec is None]
  if uncovered:
    raise UncoveredLeaves(
      f"no sharding rule matches {', '.join(uncovered)}; add (regex, PartitionSpec) pairs that do, or end the rules"
      " with ('.*', PartitionSpec()) to replicate the rest"
    )
  problems: list[str] = []

  def spec_of(name: str, _: Any) -> PartitionSpec:
    spec, shape = chosen[name], flat[name]
    assert spec is not None
    if len(spec) > len(shape):
      problems.append(f"'{name}' of shape {shape} has fewer axes than its rule {spec}")
      return P()
    full: list[Any] = [None] * (len(shape) - len(spec)) + list(spec)
    for axis, entry in enumerate(full):
      parts = _size(mesh, entry)
      if shape[axis] % parts:
        if uneven == "error":
          problems.append(f"'{name}': {shape[axis]} cannot be split into {parts} along axis {axis}")
        full[axis] = None
    return P(*full)

  result = trees.map_named(spec_of, params)
  if problems:
    raise ConfigError("; ".join(problems) + "; choose other mesh sizes, or uneven='replicate'")
  return result


def shardings(
  state: PyTree, params: PyTree, rules: Rules, mesh: Mesh, *, uneven: str = "error"
) -> PyTree:
  """The NamedSharding of every leaf of a train state.

  A leaf whose name ends with the name of a parameter and has its shape lies where the parameter lies: the parameters
  themselves and the optimizer's moments. Factors of low-rank adapters, which need not be among the parameters, and
  their moments lie as the rules say of them, whole along an axis that a mesh axis does not divide. All other leaves
  (counts, factored moments) are replicated.
  """
  flat_specs = {
    name: (np.shape(leaf), spec)
    for (name, leaf), spec in zip(
      trees.flatten(params).items(),
      jax.tree.leaves(specs(params, rules, mesh, uneven=uneven), is_leaf=_is_spec),
      strict=True,
    )
  }

  factors = {n: x for n, x in trees.flatten(state).items() if _ADAPTER.fullmatch(n)}
  matrices = {name: x for name, x in factors.items() if len(np.shape(x)) > 1}
  adapter_specs = specs(matrices, (*rules, *REPLICATED), mesh, uneven="replicate")

  def sharding_of(name: str, leaf: Any) -> NamedSharding:
    words = name.split("/")
    for start in range(len(words)):
      shape, spec = flat_specs.get("/".join(words[start:]), (None, P()))
      if shape == np.shape(leaf):
        return NamedSharding(mesh, spec)
    return NamedSharding(mesh, adapter_specs.get(name, P()))

  return trees.map_named(sharding_of, state)


def batch_devices(mesh: Mesh) -> int:
  """How many slices a batch is split into: the size of `data` times that of `fsdp`."""
  return _size(mesh, BATCH_AXES)


def filled_rows(count: int, mesh: Mesh) -> np.ndarray:
  """Row numbers 0 to count - 1, and the first again until the devices divide them: int64 [>= count]."""
  return np.concatenate([np.arange(count), np.zeros(-count % batch_devices(mesh), np.int64)])


def check_batch_size(size: int, mesh: Mesh) -> None:
  """Raises ConfigError unless the mesh's `data` and `fsdp` axes divide the batch."""
  parts = batch_devices(mesh)
  if size % parts:
    raise ConfigError(f"a batch of {size} cannot be split over {parts} devices (data x fsdp)")


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Places a batch: leaves [B, ...] are split over `data` and `fsdp` along the first axis.

  In a distributed run every process passes its own slice of the global batch, in the order of the processes.
  """
  if mesh.size == 1:
    # jit takes NumPy arrays as they are, faster than device_put from Python.
    return batch
  sharding = NamedSharding(mesh, P(BATCH_AXES))

  def place(x: Any) -> jax.Array:
    rows = x.shape[0] * jax.process_count()
    check_batch_size(rows, mesh)
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))

  return jax.tree.map(place, batch)


def put_whole_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """As `put_batch`, for a batch that every process holds as a whole."""
  count, index = jax.process_count(), jax.process_index()

  def own(x: Any) -> Any:
    check_batch_size(x.shape[0], mesh)
    size = x.shape[0] // count
    return x[index * size : (index + 1) * size]

  return put_batch(jax.tree.map(own, batch) if count > 1 else batch, mesh)


def fetch(tree: PyTree) -> PyTree:
  """The whole arrays on every host, as NumPy arrays."""

  def one(x: Any) -> np.ndarray:
    # What lies on this host as a whole is not to be gathered: the copies of all hosts would be joined.
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

  return jax.device_get(tree) if jax.process_count() == 1 else jax.tree.map(one, tree)


def abstract(like: PyTree, where: PyTree) -> PyTree:
  """Shapes and dtypes of `like` with the shardings `where`: what to restore a checkpoint as."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s), like, where
  )


def put(tree: PyTree, where: PyTree, *, copy: bool = True) -> PyTree:
  """The tree with these shardings; a `copy` never shares memory with `tree`, which a donation would take away."""

  def place(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding == sharding and not copy:
      return x
    if jax.process_count() == 1:
      return jax.device_put(x, sharding, may_alias=not copy)
    host = x if isinstance(x, np.ndarray) else fetch(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  return jax.tree.map(place, tree, where)


def _size(mesh: Mesh, entry: Any) -> int:
  names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
  return math.prod(mesh.shape[name] for name in names)


def _is_spec(x: Any) -> bool:
  return isinstance(x, PartitionSpec)
