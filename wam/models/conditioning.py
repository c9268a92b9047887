"""One set of weights for every preference: θ(w) = S ∪ {Σ_i w_i·θ_i}, and its relatives (Wang et al. 2024, CLP).

A preference is a vector w of N numbers, at least 0, that sum to 1. Conditioned weights are a tree named as the weights
of the model; leaves that the preference steers have N copies, [N, ...], or as many rows more as it needs. Four kinds:

- "full": every leaf has N copies, and the policy is one model with the weights Σ_i w_i·θ_i;
- "attention": only the attention matrices have; all other leaves are shared;
- "logit": N whole models, whose logits are mixed: Σ_i w_i·z_i(x);
- "prompt": all weights are shared, and the model reads the preference: N learnt tokens before every text, one for each
  w_i. A token's embedding lies between those of the two nearest of `levels` numbers from 0 to 1 (tenths for 11), each
  of which has an embedding of its own, as if "0.3" were a word of the vocabulary. It needs nothing of a tokenizer.

Leaves out training (algorithms/clp.py).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from wam.core import trees
from wam.core.errors import ConfigError, unknown_name
from wam.core.names import kind_of
from wam.core.types import Params
from wam.models import logit_mixture
from wam.models.decoder import LanguageModel
from wam.models.logit_mixture import LogitMixture
from wam.models.prefixed import PrefixedModel

KINDS = ("full", "attention", "logit", "prompt")
_EMBEDDING = "embed/embedding"
# Rows of learnt tokens come in multiples of this, so that they can be split over devices as the vocabulary is.
_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """How a preference steers a model. Frozen and hashable: it may be a static argument of `jax.jit`.

  Attributes:
    kind: one of `KINDS`.
    size: N, how many numbers a preference has.
    base: the model that is steered.
    levels: for "prompt", how many numbers have a token of their own.

  Raises:
    UnknownName: if there is no such kind; ConfigError: if a number makes no sense.
  """

  kind: str
  size: int
  base: LanguageModel
  levels: int = 11

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise unknown_name("conditioning", self.kind, KINDS)
    if self.size < 1:
      raise ConfigError(f"conditioning: a preference of {self.size} numbers; expected at least 1")
    if self.levels < 2:
      raise ConfigError(f"conditioning: {self.levels} levels; expected at least 2, for 0 and for 1")

  @property
  def model(self) -> LanguageModel:
    """What reads `weights` and `reference`."""
    if self.kind == "logit":
      return LogitMixture(self.base.config, self.base, self.size)
    if self.kind == "prompt":
      return PrefixedModel(self.base.config, self.base, self.size)
    return self.base

  @property
  def extra_tokens(self) -> int:
    """Positions of the context that the preference takes."""
    return self.size if self.kind == "prompt" else 0

  def init(self, params: Params) -> Params:
    """Conditioned weights that are `params` whatever the preference: all copies are equal.

    For "prompt" all learnt tokens begin as the mean of the embedding: the preference makes no difference yet, though
    the tokens that are read do.

    Args:
      params: weights of the model, stacked or unrolled.

    Raises:
      ConfigError: if there is no leaf to condition.
    """

    def leaf(name: str, x: jax.Array) -> jax.Array:
      if self._copied(name):
        return jnp.broadcast_to(x, (self.size, *jnp.shape(x)))
      if self._widened(name):
        mean = jnp.mean(x.astype(jnp.float32), axis=0, keepdims=True).astype(x.dtype)
        return jnp.concatenate([x, jnp.repeat(mean, self._rows, axis=0)], axis=0)
      return x

    if not any(self.conditions(name) for name in trees.names(params)):
      raise ConfigError(
        f"conditioning '{self.kind}': the weights have no leaf that it could condition, such as"
        f" '{_EMBEDDING if self.kind == 'prompt' else 'layers/0/attention/q/kernel'}'"
      )
    return trees.map_named(leaf, params)

  def weights(self, conditioned: Params, preference: jax.Array) -> Params:
    """θ(w), for `model`; pure and differentiable, for use under jit.

    A one-hot preference gives S ∪ θ_i bit for bit. Otherwise ∂θ(w)/∂θ_i = w_i·I.

    Args:
      conditioned: conditioned weights.
      preference: w, [N] float.
    """
    w = jnp.asarray(preference, jnp.float32)
    if self.kind == "logit":
      return logit_mixture.join([self.member(conditioned, i) for i in range(self.size)], w)

    def leaf(name: str, x: jax.Array) -> jax.Array:
      if self._copied(name):
        # Not a matrix product: those are not float32 by default on every device.
        wide = x.astype(jnp.float32) * w.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.sum(wide, axis=0).astype(x.dtype)
      return self._read_aloud(x, w) if self._widened(name) else x

    return trees.map_named(leaf, conditioned)

  def member(self, conditioned: Params, i: int) -> Params:
    """S ∪ θ_i, for `base`: what a one-hot preference would choose; for "prompt" the shared weights alone."""

    def leaf(name: str, x: jax.Array) -> jax.Array:
      if self._widened(name):
        return x[: self.base.config.vocab_size]
      return x[i] if self._copied(name) else x

    return trees.map_named(leaf, conditioned)

  def reference(self, params: Params) -> Params:
    """Weights of the plain model as `model` reads them: the same distribution, unsteered."""
    return logit_mixture.join([params], jnp.ones(1)) if self.kind == "logit" else params

  def conditions(self, name: str) -> bool:
    """Whether a leaf of this name is steered by the preference."""
    return self._copied(name) or self._widened(name)

  def freeze_shared(self, conditioned: Params) -> Params:
    """The same numbers; no gradient flows into S."""

    def leaf(name: str, x: jax.Array) -> jax.Array:
      if self._widened(name):
        size = self.base.config.vocab_size
        return jnp.concatenate([jax.lax.stop_gradient(x[:size]), x[size:]], axis=0)
      return x if self._copied(name) else jax.lax.stop_gradient(x)

    return trees.map_named(leaf, conditioned)

  def _copied(self, name: str) -> bool:
    if self.kind == "attention":
      return kind_of(name) == "attention"
    return self.kind in ("full", "logit")

  def _widened(self, name: str) -> bool:
    return self.kind == "prompt" and name == _EMBEDDING

  @property
  def _rows(self) -> int:
    """Rows of learnt tokens, those that fill up included."""
    return math.ceil(self.size * self.levels / _ROWS) * _ROWS

  def _read_aloud(self, table: jax.Array, w: jax.Array) -> jax.Array:
    """The embedding [V + rows, D] -> [V + N, D]: the vocabulary, and a token for each w_i."""
    V, count = self.base.config.vocab_size, self.size * self.levels
    words = table[V : V + count].reshape(self.size, self.levels, -1)
    place = w[:, None] * (self.levels - 1) - jnp.arange(self.levels, dtype=jnp.float32)[None, :]
    # 1 at the level itself, falling to 0 at its neighbours.
    share = jnp.maximum(1.0 - jnp.abs(place), 0.0)
    spoken = jnp.sum(share[:, :, None] * words.astype(jnp.float32), axis=1)
    return jnp.concatenate([table[:V], spoken.astype(table.dtype)], axis=0)
