"""A language model that reads a few tokens of its own before every text: the embeddings beyond its vocabulary.

It takes the place of a `LanguageModel` wherever one is sampled from, scored with or trained: who calls it sees texts
without the prefix. Leaves out what the embeddings mean (conditioning.py).
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from wam.core.types import Params
from wam.models.decoder import Cache, LanguageModel, Output


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixedCache:
  """A cache with room for the prefix; whoever holds it counts its slots without.

  Attributes:
    inner: of the decoder.
    extra: K, slots of the prefix.
    begun: whether the prefix has been read.
  """

  inner: Cache
  extra: int = dataclasses.field(metadata={"static": True})
  begun: bool = dataclasses.field(metadata={"static": True})

  def repeat(self, times: int) -> "PrefixedCache":
    """As `Cache.repeat`."""
    return dataclasses.replace(self, inner=self.inner.repeat(times))

  def lengthen(self, length: int) -> "PrefixedCache":
    """As `Cache.lengthen`; `length` slots beside those of the prefix."""
    return dataclasses.replace(self, inner=self.inner.lengthen(length + self.extra))


@dataclasses.dataclass(frozen=True)
class PrefixedModel(LanguageModel):
  """A decoder whose embedding has K rows more than its vocabulary: they are read, in order, before every text.

  The prefix follows a BOS token where a row begins with one, and precedes the first real token otherwise; it takes K
  positions of the context. Weights without such rows are read as they are. The rows are never predicted.

  Attributes:
    config: of the decoder.
    inner: the decoder.
    extra: K, how long a prefix a cache is made for.
  """

  inner: LanguageModel
  extra: int

  def init(self, key: jax.Array, *, stacked: bool = True) -> Params:
    """Fresh weights of the decoder; they have no prefix."""
    return self.inner.init(key, stacked=stacked)

  def init_cache(self, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache of `length` slots beside those of the prefix."""
    inner = self.inner.init_cache(batch, length + self.extra, dtype)
    # Not a `Cache`, but all that generation asks of one.
    return cast(Cache, PrefixedCache(inner, self.extra, begun=False))

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] -> float32 logits [..., V]."""
    table = params["embed"]["embedding"][: self.config.vocab_size]
    return self.inner.logits(params | {"embed": {"embedding": table}}, hidden)

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
    """As `LanguageModel.apply`; hidden states and logits are those of `tokens`, without the prefix.

    Raises:
      ValueError: if `positions` are given: those of a prefix are not among them.
    """
    if positions is not None:
      raise ValueError("a prefixed model counts positions itself; leave `positions` out")
    held = cast(PrefixedCache | None, cache)
    size = params["embed"]["embedding"].shape[0] - self.config.vocab_size
    added = size if held is None or not held.begun else 0
    if added:
      tokens, mask = _insert(tokens, mask, added, self.config)
    output = self.inner.apply(
      params,
      tokens,
      mask=mask,
      cache=None if held is None else held.inner,
      dtype=dtype,
      remat=remat,
      logits=False,
    )
    hidden = output.hidden[:, added:]
    after = None
    if held is not None and output.cache is not None:
      after = cast(Cache, PrefixedCache(output.cache, held.extra, begun=True))
    return Output(self.logits(params, hidden) if logits else None, hidden, after)


def _insert(
  tokens: jax.Array, mask: jax.Array | None, size: int, config: Any
) -> tuple[jax.Array, jax.Array | None]:
  """Tokens [B, T] and mask with the ids V to V + K - 1 put in before the text: [B, K + T].

  What follows the prefix moves K slots to the right, and so does what is read off a BOS token before it: after the
  prefix stands what it predicts.
  """
  B, T = tokens.shape
  ids = config.vocab_size + jnp.arange(size, dtype=tokens.dtype)
  first = jnp.zeros((B, 1), jnp.int32)
  if mask is not None:
    first = jnp.argmax(mask, axis=1, keepdims=True).astype(jnp.int32)
  if config.bos_token_id is not None:
    begins = jnp.take_along_axis(tokens, first, axis=1) == config.bos_token_id
    first = first + begins.astype(jnp.int32)
  slots = jnp.arange(size + T, dtype=jnp.int32)[None, :]
  before, inside = slots < first, (slots >= first) & (slots < first + size)
  # Taken from [tokens, prefix]: the prefix lies behind.
  source = jnp.where(before, slots, jnp.where(inside, T + slots - first, slots - size))
  every = jnp.concatenate([tokens, jnp.broadcast_to(ids, (B, size))], axis=1)
  inserted = jnp.take_along_axis(every, source, axis=1)
  if mask is None:
    return inserted, None
  real = jnp.concatenate([jnp.asarray(mask, bool), jnp.ones((B, size), bool)], axis=1)
  return inserted, jnp.take_along_axis(real, source, axis=1)
