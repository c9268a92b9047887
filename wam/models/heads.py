"""`ScalarModel`: a decoder that ends in one number per token: reward models, value functions.

A reward is the number at the last real token of a sequence. Leaves out ensembles and rules (`rewards`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from wam.core.types import Params
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel


def at_last_token(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Picks from x [B, T, ...] the entry at each row's last real token: [B, ...]; mask bool [B, T], None: all real."""
  if mask is None:
    return x[:, -1]
  last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  return jax.vmap(lambda row, t: row[t])(x, last)


@dataclasses.dataclass(frozen=True)
class ScalarModel:
  """A decoder with a linear head D -> 1. Frozen and hashable, as `LanguageModel` is.

  Its weights are {"decoder": ..., "head": {"kernel": [D, 1], "bias": [1]}}; the decoder has no output matrix.

  Attributes:
    config: shape of the decoder.
  """

  config: DecoderConfig

  @functools.cached_property
  def decoder(self) -> LanguageModel:
    """The trunk; "tied" because a tied decoder is one without an output matrix of its own."""
    return LanguageModel(dataclasses.replace(self.config, tie_embeddings=True))

  def init(
    self,
    key: jax.Array,
    decoder: Params | None = None,
    *,
    stacked: bool = True,
    zeros: bool = False,
  ) -> Params:
    """Fresh weights.

    Args:
      key: a typed jax key.
      decoder: weights of a trained decoder to start from (used as they are, without their lm_head); None: fresh ones.
      stacked: layout of a fresh decoder.
      zeros: a head of zeros, as value functions start; else normal(1 / sqrt(D + 1)) and no bias, as reward models do
        (Stiennon et al. 2020).
    """
    trunk = self.decoder.init(key, stacked=stacked) if decoder is None else decoder
    size = self.config.hidden_size
    kernel = jnp.zeros((size, 1), jnp.float32)
    if not zeros:
      kernel = jax.random.normal(jax.random.fold_in(key, 2), (size, 1)) / jnp.sqrt(size + 1.0)
    head = {"kernel": kernel, "bias": jnp.zeros((1,), jnp.float32)}
    return {"decoder": {n: v for n, v in trunk.items() if n != "lm_head"}, "head": head}

  def hidden(
    self,
    params: Params,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
  ) -> jax.Array:
    """The trunk's hidden states [B, T, D] after the final norm."""
    return self.decoder.apply(
      params["decoder"], tokens, mask=mask, dtype=dtype, remat=remat, logits=False
    ).hidden

  def read(self, params: Params, hidden: jax.Array) -> jax.Array:
    """The head alone: [..., D] -> [...] float32."""
    head = params["head"]
    kernel = head["kernel"].astype(jnp.float32)
    return (hidden.astype(jnp.float32) @ kernel)[..., 0] + head["bias"].astype(jnp.float32)[0]

  def values(
    self,
    params: Params,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
  ) -> jax.Array:
    """The head's number at every token: float32 [B, T]; arguments as in `LanguageModel.apply`."""
    return self.read(params, self.hidden(params, tokens, mask=mask, dtype=dtype, remat=remat))

  def apply(
    self,
    params: Params,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
  ) -> jax.Array:
    """The head's number at the last real token of each row: float32 [B] (a row without real tokens: its last slot)."""
    hidden = self.hidden(params, tokens, mask=mask, dtype=dtype, remat=remat)
    return self.read(params, at_last_token(hidden, mask))
