"""A language model whose logits are a mixture of those of several: z(x) = Σ_i w_i·z_i(x).

It takes the place of a `LanguageModel` wherever one is sampled from, scored with or trained; so its "hidden states"
are those of all members side by side. Costs as many passes as there are members.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wam.core.types import Params
from wam.models.decoder import Cache, LanguageModel, Output


def join(members: Sequence[Params], coefficients: jax.Array) -> Params:
  """The weights of a mixture.

  Args:
    members: weights of M members.
    coefficients: [M] float, one for each.
  """
  # Called "layers" and numbered, they are what generation takes for a decoder with its layers apart.
  numbered = {str(i): member for i, member in enumerate(members)}
  return {"layers": numbered, "coefficients": jnp.asarray(coefficients, jnp.float32)}


@dataclasses.dataclass(frozen=True)
class LogitMixture(LanguageModel):
  """M members of one shape, read one after the other; weights are those of `join`.

  A coefficient of 1 among zeros gives the logits of its member exactly.

  Attributes:
    config: of a member.
    member: a member.
    count: M, how many members a cache is made for. Weights of fewer members can be read with it as well.
  """

  member: LanguageModel
  count: int

  def init(self, key: jax.Array, *, stacked: bool = True) -> Params:
    """M copies of fresh weights, mixed evenly."""
    fresh = self.member.init(key, stacked=stacked)
    return join([fresh] * self.count, jnp.full(self.count, 1 / self.count))

  def init_cache(self, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache for M members; the layers of a member lie next to each other."""
    alone = self.member.init_cache(batch, length, dtype)
    return alone._replace(keys=alone.keys * self.count, values=alone.values * self.count)

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., M·D] -> float32 logits [..., V]."""
    members = _members(params)
    own = jnp.split(hidden, len(members), axis=-1)
    coefficients = params["coefficients"].astype(jnp.float32)
    total = coefficients[0] * self.member.logits(members[0], own[0])
    for i in range(1, len(members)):
      total = total + coefficients[i] * self.member.logits(members[i], own[i])
    return total

  def apply(
    self,
    params: Params,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: Cache | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    logits: bool = True,
  ) -> Output:
    """As `LanguageModel.apply`; hidden states are [B, T, M·D]."""
    members = _members(params)
    keywords: dict[str, Any] = {"mask": mask, "positions": positions, "dtype": dtype}
    outputs = [
      self.member.apply(
        member, tokens, cache=self._part(cache, i), remat=remat, logits=False, **keywords
      )
      for i, member in enumerate(members)
    ]
    hidden = jnp.concatenate([output.hidden for output in outputs], axis=-1)
    written = [output.cache for output in outputs if output.cache is not None]
    joined = None
    if cache is not None:
      keys, values = (sum((getattr(c, n) for c in written), ()) for n in ("keys", "values"))
      # Where there are fewer members than the cache was made for, the rest of it stays empty.
      used = len(keys)
      rest = (keys + cache.keys[used:], values + cache.values[used:])
      joined = Cache(*rest, written[0].valid, written[0].index)
    return Output(self.logits(params, hidden) if logits else None, hidden, joined)

  def _part(self, cache: Cache | None, member: int) -> Cache | None:
    """The cache of one member."""
    if cache is None:
      return None
    size = len(cache.keys) // self.count
    own = slice(member * size, (member + 1) * size)
    return cache._replace(keys=cache.keys[own], values=cache.values[own])


def _members(params: Params) -> list[Params]:
  layers = params["layers"]
  return [layers[str(i)] for i in range(len(layers))]
