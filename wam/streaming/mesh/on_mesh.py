"""Orbax checkpoints merged on a mesh: every process reads, merges and writes the shards that its devices hold.

Leaves come in portions of bounded size: devices hold a few leaves of every input and never a model, hosts their own
shards while these are on the way. Leaves that make one vector (a layer, the whole model) come together. The arithmetic
is that of `methods.merge`, which leaves sharded arrays where they lie; sums and counts are all that is sent between
devices. Leaves out Hugging Face directories, and everything for one machine (engine.py).
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import wam
from wam.checkpoints.orbax_leaves import GrowingCheckpoint, check_free, check_room
from wam.core.errors import ConfigError
from wam.merging import methods
from wam.merging.members import accumulator
from wam.streaming.engine import ROUNDINGS, Progress, Report
from wam.streaming.mesh import mesh_inputs, mesh_layouts
from wam.streaming.mesh.mesh_inputs import Arrays, Given, Inputs
from wam.streaming.mesh.mesh_layouts import Layout
from wam.streaming.mesh.mesh_results import Finish, stored_dtypes


def merge_checkpoints(
  method: str,
  members: Sequence[pathlib.Path],
  out: pathlib.Path,
  *,
  mesh: Mesh,
  sharding: Layout | None = None,
  init: pathlib.Path | None = None,
  coefficients: Any = None,
  importances: Sequence[pathlib.Path] | None = None,
  seed: int | None = None,
  out_dtype: Any = None,
  rounding: str = "nearest",
  group_bytes: int = 2**30,
  allow_non_finite: bool = False,
  progress: Progress | None = None,
  **parameters: Any,
) -> Report:
  """Merges Orbax checkpoints into one that appears at `out` when it is whole.

  Called by every process of a distributed run with the same arguments; all see the same files.

  Args:
    method: a key of METHODS.
    members: M checkpoints of one tree of arrays.
    out: a directory that does not exist.
    mesh: the devices that do it, of any axes.
    sharding: (name, shape) -> PartitionSpec of a leaf; default `mesh_layouts.spread`.
    init: the common start, for the methods that use it.
    coefficients: as in `methods.merge`; trees are like `SavedLeaves(member).tree`.
    importances: M checkpoints, for the methods that weigh entry by entry.
    seed: of random masks and of stochastic rounding.
    out_dtype: dtype of the floating-point leaves of the result; default that of the members.
    rounding: "nearest", or "stochastic" for bfloat16 results; see `engine.execute`.
    group_bytes: of the inputs that one device takes up at a time, as far as vectors of several leaves allow.
    allow_non_finite: whether inputs may hold NaN and infinities, and results overflow.
    progress: called with the bytes written and to be written, of all processes together, after every portion.
    **parameters: the method's own; `group` is "leaf", "layer" or "global".

  Returns:
    What was done. Bytes are those of this process' shards; what several of its devices hold counts once.

  Raises:
    MissingFile: if an input does not exist; BadCheckpoint: if it cannot be read.
    MismatchedTrees: names every leaf that does not agree in name, shape or dtype, or in value where it is not floating
      point.
    ConfigError: if the method does not take what is given, a leaf cannot be spread as asked, or `out` exists.
    CannotWrite: if there is no room on the disk.
    NonFinite: names a leaf that holds NaN or infinity, in an input or in the result.
  """
  start = time.perf_counter()
  check_free(out)
  inputs = Inputs(members, init, importances)
  task = _Task(method, parameters, inputs, coefficients, seed, rounding)
  dtypes = stored_dtypes(inputs, out_dtype, rounding)
  where = mesh_layouts.shardings(inputs, mesh, layout=sharding, whole_rows=task.row.whole_rows)
  portions = inputs.portions(task.group, where, group_bytes)
  sizes = {n: inputs.shapes[n].size * d.itemsize for n, d in dtypes.items()}
  check_room(out, sum(sizes.values()))
  same = inputs.load_same(where)
  rounding_seed = seed if rounding == "stochastic" else None
  finish = Finish(inputs, where, dtypes, seed=rounding_seed, allow_non_finite=allow_non_finite)
  report = Report(survival=finish.survival)
  written = 0
  with GrowingCheckpoint(out, inputs.first.paths, extra=task.account()) as target:
    target.write(same)
    for names in portions:
      given = inputs.load(names, where)
      report.bytes_read += sum(
        mesh_inputs.local_bytes(x) for t in given.trees() for x in t.values()
      )
      stored = finish(task.merge(given), given)
      del given
      target.write(stored)
      report.bytes_written += sum(map(mesh_inputs.local_bytes, stored.values()))
      del stored
      written += sum(sizes[n] for n in names)
      if progress is not None:
        progress(written, sum(sizes.values()))
  report.seconds = time.perf_counter() - start
  return report


class _Task:
  """A method and all that it is given but the weights.

  Attributes:
    row: of METHODS.
    group: "leaf", "layer" or "global".
  """

  def __init__(
    self,
    method: str,
    parameters: dict[str, Any],
    inputs: Inputs,
    coefficients: Any,
    seed: int | None,
    rounding: str,
  ):
    """Refuses, from shapes alone, what `methods.merge` refuses."""
    self.row = methods.check_parameters(method, parameters)
    if rounding not in ROUNDINGS:
      raise ConfigError(f"rounding: expected one of {', '.join(ROUNDINGS)}, found {rounding!r}")
    if rounding == "stochastic" and seed is None:
      raise ConfigError("stochastic rounding draws at random: it needs a seed")
    self._method, self._inputs = method, inputs
    self._parameters = {**self.row.defaults, **parameters}
    self._seed, self._rounding = seed, rounding
    self._coefficients = mesh_inputs.by_name(coefficients, inputs.shapes)
    self.group = methods.group_of(self._parameters, has_init=inputs.init is not None)
    weights = inputs.importances
    jax.eval_shape(
      self.merge,
      Given(
        None if inputs.init is None else inputs.init.shapes,
        [x.shapes for x in inputs.members],
        None if weights is None else [x.shapes for x in weights],
      ),
    )

  def merge(self, given: Given) -> Arrays:
    """The merge of some leaves, in the dtype of the sums: it is rounded once, when it is stored."""
    names = list(given.members[0])
    wide = [np.dtype(accumulator(self._inputs.shapes[n].dtype)) for n in names]
    # A seed that only rounding asks for is none of the method's.
    for_rounding = self._rounding == "stochastic" and not self.row.draws
    return methods.merge(
      self._method,
      given.members,
      init=given.init,
      importances=given.importances,
      coefficients=mesh_inputs.cut(self._coefficients, names),
      seed=None if for_rounding else self._seed,
      out_dtype=max(wide, key=lambda d: d.itemsize, default=None),
      **self._parameters,
    )

  def account(self) -> dict[str, Any]:
    """What is kept beside the result: how it was made, as JSON."""
    inputs = self._inputs
    given = {
      "coefficients": self._coefficients,
      "parameters": self._parameters,
      "importances": None if inputs.importances is None else [x.path for x in inputs.importances],
    }
    return {
      "method": self._method,
      "members": [str(x.path) for x in inputs.members],
      "init": None if inputs.init is None else str(inputs.init.path),
      "seed": self._seed,
      "rounding": self._rounding,
      "wam": wam.__version__,
    } | {k: _plain(v) for k, v in given.items()}


def _plain(value: Any) -> Any:
  """As JSON has it; arrays as lists."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, jax.Array | np.ndarray | np.generic):
    return np.asarray(value).tolist()
  return value if value is None or isinstance(value, bool | int | float | str) else str(value)
