"""The last step of a leaf on a mesh: the cast to what is stored, and what is to be known of it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from wam.core import counters
from wam.core.errors import ConfigError, NonFinite
from wam.core.names import Leaf
from wam.merging import pace, rules
from wam.merging.in_memory import places
from wam.streaming.engine import Survival
from wam.streaming.mesh.mesh_inputs import Given, Inputs


def stored_dtypes(inputs: Inputs, out_dtype: Any, rounding: str) -> dict[str, np.dtype]:
  """The dtype of every merged leaf in the result.

  Raises:
    ConfigError: names leaves that the rounding does not suit.
  """
  found = {n: np.dtype(out_dtype or inputs.shapes[n].dtype) for n in inputs.floating()}
  odd = [n for n, d in found.items() if d not in (jnp.bfloat16, np.float32)]
  if rounding == "stochastic" and odd:
    raise ConfigError(
      f"stochastic rounding is for bfloat16 results; {len(odd)} leaves are not: {', '.join(odd[:5])}."
      " Give out_dtype bfloat16"
    )
  return found


class Finish:
  """Casts merged leaves, each to where it belongs, and notes what survived."""

  def __init__(
    self,
    inputs: Inputs,
    where: Mapping[str, NamedSharding],
    dtypes: Mapping[str, np.dtype],
    *,
    seed: int | None,
    allow_non_finite: bool,
  ):
    """Prepares.

    Args:
      inputs: for names.
      where: sharding by name.
      dtypes: as stored, by name.
      seed: of stochastic rounding; None rounds to nearest.
      allow_non_finite: whether inputs and results may hold NaN and infinities.
    """
    self._inputs, self._where, self._dtypes = inputs, where, dtypes
    self._seed, self._allow = seed, allow_non_finite
    self.survival: dict[str, Survival] = {}

  def __call__(self, merged: dict[str, jax.Array], given: Given) -> dict[str, jax.Array]:
    """The leaves as stored; `merged` is emptied.

    Raises:
      NonFinite: names a leaf that holds NaN or infinity.
    """
    stored, notes = {}, {}
    for name in list(merged):
      sources = tuple(tree[name] for tree in given.trees())
      store = _program(self._where[name], self._dtypes[name])
      stored[name], notes[name] = store(merged.pop(name), sources, self._words(name))
      pace.keep(len(stored), stored[name])
    # One wait for all.
    for name, (numbers, finite) in jax.device_get(notes).items():
      if not self._allow:
        self._check(name, finite)
      entries = int(np.prod(self._inputs.shapes[name].shape))
      update, error, changed, kept = map(float, numbers)
      self.survival[name] = Survival(entries, update, error, round(changed), round(kept))
    return stored

  def _words(self, name: str) -> Any:
    """The key words of stochastic rounding: [2], or [L, 2] for a stacked leaf, as for its layers."""
    if self._seed is None:
      return None
    leaf = self._inputs.leaves[name]
    keys = [rules.key_words(self._seed, n, "rounding") for n in _tensors(leaf)]
    return np.array(keys if leaf.num_layers is not None else keys[0], np.uint32)

  def _check(self, name: str, finite: Sequence[bool]) -> None:
    for label, good in zip(self._inputs.labels, finite[1:], strict=True):
      if not good:
        raise NonFinite(
          f"'{name}' of {label} holds NaN or infinity; mend the checkpoint, or allow them"
        )
    if not finite[0]:
      raise NonFinite(
        f"the merge of '{name}' does not fit {self._dtypes[name]} (or its coefficients blow it up): entries become NaN"
        " or infinity. Give another out_dtype, or allow them"
      )


def _tensors(leaf: Leaf) -> list[str]:
  if leaf.num_layers is None:
    return [leaf.name]
  return [leaf.spelled_out(i) for i in range(leaf.num_layers)]


@functools.cache
def _program(sharding: NamedSharding, dtype: np.dtype) -> Callable[..., Any]:
  """Compiled once for every shape: (merged, inputs, key words) -> stored, (four sums, which are finite)."""

  def store(merged: jax.Array, sources: tuple[jax.Array, ...], words: Any) -> Any:
    if words is None or dtype != jnp.bfloat16:
      stored = merged.astype(dtype)
    elif words.ndim == 1:
      stored = _round_stochastically(merged, words)
    else:
      stored = jax.vmap(_round_stochastically)(merged, words)
    kept, origin = stored.astype(merged.dtype), sources[0].astype(merged.dtype)
    changed = merged != origin
    numbers = (
      jnp.sum((merged - origin) ** 2),
      jnp.sum((kept - merged) ** 2),
      _count(changed),
      _count(changed & (kept != origin)),
    )
    finite = [jnp.isfinite(x).all() for x in (stored, *sources)]
    return stored, (jnp.stack(numbers), jnp.stack(finite))

  everywhere = NamedSharding(sharding.mesh, PartitionSpec())
  return jax.jit(store, out_shardings=(sharding, everywhere))


def _count(marks: jax.Array) -> jax.Array:
  """How many are set, by rows: more than 2^32 may be."""
  rows = jnp.sum(marks, tuple(range(1, marks.ndim)), dtype=jnp.uint32)
  return jnp.sum(rows.astype(jnp.float32))


def _round_stochastically(values: jax.Array, words: jax.Array) -> jax.Array:
  """Float32 to bfloat16, as `engine.round_stochastically` with the bits of the counters."""
  noise = counters.bits16((words[0], words[1]), *places(values.shape)).astype(jnp.uint32)
  codes = jax.lax.bitcast_convert_type(values, jnp.uint32)
  rounded = jax.lax.bitcast_convert_type(((codes + noise) >> 16).astype(jnp.uint16), jnp.bfloat16)
  return jnp.where(jnp.isfinite(values), rounded, values.astype(jnp.bfloat16))
