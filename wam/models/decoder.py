"""`LanguageModel`: a decoder as a pure function of its weights.

The boundary between Flax NNX (inside) and nested dicts of arrays (outside). One class runs every family; both layouts
of the layers are accepted. Leaves out sampling, losses and files.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wam.core.errors import check_rank
from wam.core.types import Params
from wam.models import rope, stacking
from wam.models.config import DecoderConfig
from wam.models.layers import Ends, Layer, LayerCache


class Cache(NamedTuple):
  """Keys and values of the slots written so far.

  Attributes:
    keys: one array [B, K, H, S] per layer (a tuple: a cache stacked inside a scan decodes at half the speed).
    values: one array [B, K, S, H] per layer.
    valid: bool [B, S]; which slots hold a real token.
    index: int32 []; the slot that is written next, the same for all rows (prompts are padded on the left).
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  valid: jax.Array
  index: jax.Array  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

  def repeat(self, times: int) -> "Cache":
    """Every row `times` times, the copies next to each other."""
    keys, values, valid = jax.tree.map(
      lambda x: jnp.repeat(x, times, axis=0), (self.keys, self.values, self.valid)
    )
    return Cache(keys, values, valid, self.index)

  def lengthen(self, length: int) -> "Cache":
    """The same with empty slots added up to `length` slots."""
    more = length - self.valid.shape[1]
    return Cache(
      tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, more))) for k in self.keys),
      tuple(jnp.pad(v, ((0, 0), (0, 0), (0, more), (0, 0))) for v in self.values),
      jnp.pad(self.valid, ((0, 0), (0, more))),
      self.index,
    )


class Output(NamedTuple):
  """What a forward pass returns.

  Attributes:
    logits: float32 [B, T, V], or None when not asked for.
    hidden: [B, T, D] after the final norm, in the compute dtype.
    cache: the cache after the writing, or None when none was given.
  """

  logits: jax.Array | None
  hidden: jax.Array
  cache: Cache | None


@functools.lru_cache
def _graphs(config: DecoderConfig) -> tuple[Any, Any]:
  """The NNX graph definitions of the ends and of one layer."""
  modules = nnx.eval_shape(
    lambda: (Ends(config, rngs=nnx.Rngs(params=0)), Layer(config, rngs=nnx.Rngs(params=0)))
  )
  return nnx.split(modules[0])[0], nnx.split(modules[1])[0]


def _fresh(module: type[nnx.Module], config: DecoderConfig, key: jax.Array) -> Params:
  """The weights of a freshly initialised module, as a nested dict."""
  return nnx.to_pure_dict(nnx.state(module(config, rngs=nnx.Rngs(params=key))))


# One compiled program: drawn one by one, the leaves take seconds to start.
@functools.partial(jax.jit, static_argnums=0)
def _initial(config: DecoderConfig, key: jax.Array) -> Params:
  ends = _fresh(Ends, config, jax.random.fold_in(key, 0))
  keys = jax.random.split(jax.random.fold_in(key, 1), config.num_layers)
  return ends | {"layers": jax.vmap(lambda k: _fresh(Layer, config, k))(keys)}


def _visible(
  queries: int, valid: jax.Array | None, slots: int, offset: jax.Array | int, window: int | None
) -> jax.Array:
  """Which slots each query may look at: bool [B or 1, 1, T, S].

  Slot t sees slots s <= t, real ones only, and within a window only s > t - window.
  """
  t = offset + jnp.arange(queries, dtype=jnp.int32)[:, None]
  s = jnp.arange(slots, dtype=jnp.int32)[None, :]
  visible = s <= t
  if window is not None:
    visible &= s > t - window
  visible = visible[None, None, :, :]
  return visible if valid is None else visible & valid[:, None, None, :]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A decoder of a given shape. Frozen and hashable: it may be a static argument of `jax.jit`.

  Attributes:
    config: the shape.
  """

  config: DecoderConfig

  def init(self, key: jax.Array, *, stacked: bool = True) -> Params:
    """Fresh float32 weights: normal(initializer_range) kernels and embeddings, zero biases, unit norms.

    Args:
      key: a typed jax key.
      stacked: whether the layers get a leading axis; the numbers are the same either way.
    """
    params = _initial(self.config, key)
    return params if stacked else stacking.unstack_layers(params)

  def init_cache(self, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache of `length` slots for `batch` rows."""
    K, H = self.config.num_kv_heads, self.config.head_dim
    layers = range(self.config.num_layers)
    return Cache(
      keys=tuple(jnp.zeros((batch, K, H, length), dtype) for _ in layers),
      values=tuple(jnp.zeros((batch, K, length, H), dtype) for _ in layers),
      valid=jnp.zeros((batch, length), bool),
      index=jnp.zeros((), jnp.int32),
    )

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] after the final norm -> float32 logits [..., V]."""
    return self._ends(params).logits(hidden)

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
    """The forward pass.

    Args:
      params: weights, stacked or unrolled, of any floating-point dtype; cast to `dtype` where they are used.
      tokens: int32 [B, T].
      mask: bool [B, T], the real tokens, contiguous in each row; None: all are. Padded tokens are never attended to,
        and their own outputs mean nothing.
      positions: int32 [B, T]; None: the number of real tokens before, so padding on either side works.
      cache: keys and values of earlier tokens; the new ones are written at its index. A cache that is too short for T
        more tokens is the caller's error and cannot be seen here.
      dtype: of the computation; norms, softmax and logits are float32 regardless.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      logits: whether to compute the logits.

    Returns:
      Logits, hidden states and the cache.

    Raises:
      ValueError: if `tokens` is not [B, T], or is longer than the whole cache.
    """
    check_rank("tokens", tokens, 2)
    if cache is not None and tokens.shape[1] > cache.valid.shape[1]:
      raise ValueError(f"tokens {tokens.shape} do not fit a cache of {cache.valid.shape[1]} slots")
    ends = self._ends(params)
    if mask is not None:  # the padding id may lie outside the vocabulary
      tokens = jnp.where(mask, tokens, 0)
    x = ends.embed.embedding[...][tokens].astype(dtype)
    positions = self._positions(tokens, mask, cache) if positions is None else positions
    tables = rope.tables(self.config, positions)
    if cache is None:
      x = self._layers(params, x, tables, mask, remat)
    else:
      x, cache = self._cached_layers(params, x, tables, mask, cache)
    hidden = ends.final_norm(x)
    return Output(ends.logits(hidden) if logits else None, hidden, cache)

  def _ends(self, params: Params) -> Ends:
    return nnx.merge(_graphs(self.config)[0], {n: v for n, v in params.items() if n != "layers"})

  def _layer(self, params: Params) -> Layer:
    return nnx.merge(_graphs(self.config)[1], params)

  def _positions(self, tokens: jax.Array, mask: jax.Array | None, cache: Cache | None) -> jax.Array:
    """How many real tokens each token has before it: [B, T], or [1, T] when that is the same for all rows."""
    if mask is None:
      positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    else:
      positions = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    if cache is not None:
      positions = positions + jnp.sum(cache.valid, axis=1, dtype=jnp.int32)[:, None]
    return jnp.maximum(positions, 0)

  def _layers(
    self,
    params: Params,
    x: jax.Array,
    tables: tuple[jax.Array, jax.Array],
    mask: jax.Array | None,
    remat: bool,
  ) -> jax.Array:
    """All layers without a cache: scanned when stacked, one after the other when not."""
    T = x.shape[1]
    windowed = self.config.windowed()
    full = _visible(T, mask, T, 0, None)
    # A window at least as long as the sequence hides nothing.
    active = any(windowed) and self.config.sliding_window is not None
    narrow = _visible(T, mask, T, 0, self.config.sliding_window) if active else full

    def forward(layer: Params, x: jax.Array, visible: jax.Array) -> jax.Array:
      return self._layer(layer)(x, tables, visible)[0]

    if remat:
      forward = jax.checkpoint(forward)
    if not stacking.is_stacked(params):
      for i, window in enumerate(windowed):
        x = forward(params["layers"][str(i)], x, narrow if window else full)
      return x
    if len(set(windowed)) == 1:
      visible = narrow if windowed[0] else full
      return jax.lax.scan(lambda x, p: (forward(p, x, visible), None), x, params["layers"])[0]

    def body(x: jax.Array, layer: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
      return forward(layer[0], x, jnp.where(layer[1], narrow, full)), None

    return jax.lax.scan(body, x, (params["layers"], jnp.asarray(windowed)))[0]

  def _cached_layers(
    self,
    params: Params,
    x: jax.Array,
    tables: tuple[jax.Array, jax.Array],
    mask: jax.Array | None,
    cache: Cache,
  ) -> tuple[jax.Array, Cache]:
    """All layers with a cache, unrolled always."""
    T, S = x.shape[1], cache.valid.shape[1]
    new = jnp.ones(x.shape[:2], bool) if mask is None else mask
    valid = jax.lax.dynamic_update_slice(cache.valid, new, (0, cache.index))
    full = _visible(T, valid, S, cache.index, None)
    windowed = self.config.windowed()
    narrow = (
      _visible(T, valid, S, cache.index, self.config.sliding_window) if any(windowed) else full
    )
    layers = stacking.unstack_layers(params)["layers"]
    written = []
    for i, window in enumerate(windowed):
      layer_cache: LayerCache = (cache.keys[i], cache.values[i], cache.index)
      x, pair = self._layer(layers[str(i)])(x, tables, narrow if window else full, layer_cache)
      assert pair is not None
      written.append(pair)
    keys, values = zip(*written, strict=True)
    return x, Cache(keys, values, valid, cache.index + T)
