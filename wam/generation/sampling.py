"""Completions from a decoder: one pass over the prompts, then a compiled loop with a KV cache.

Prompts are padded on the left by the caller, to a few lengths (every new shape is compiled once). Leaves out
continuous batching, paged caches and text: tokens in, tokens out.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wam.core import trees
from wam.core.errors import ConfigError, check_rank, check_same_shape
from wam.core.types import Params
from wam.generation import selection
from wam.models import stacking
from wam.models.decoder import Cache, LanguageModel

# A step reads the whole cache, so long completions start with a shorter one, lengthened after so many tokens; each
# length is one more loop to compile, hence so many at most.
_SEGMENT_TOKENS = 64
_SEGMENTS = 4


class Samples(NamedTuple):
  """Prompts and what followed; R = prompts * num_samples rows, the samples of one prompt next to each other.

  Attributes:
    prompt_tokens: int32 [R, P], padded on the left.
    prompt_mask: bool [R, P].
    completions: int32 [R, N]; EOS is kept, pad_id after it.
    completion_mask: bool [R, N]; true up to EOS, inclusive.
    logprobs: float32 [R, N], of the distribution at the sampling temperature before top-k and top-p; greedy: at
      temperature 1. 0 where masked.
    finished: bool [R], whether EOS came.
  """

  prompt_tokens: jax.Array
  prompt_mask: jax.Array
  completions: jax.Array
  completion_mask: jax.Array
  logprobs: jax.Array
  finished: jax.Array

  @property
  def tokens(self) -> jax.Array:
    """Prompts and completions: int32 [R, P + N]."""
    return jnp.concatenate([self.prompt_tokens, self.completions], axis=1)

  @property
  def mask(self) -> jax.Array:
    """Which of `tokens` are real: bool [R, P + N], one run in each row."""
    return jnp.concatenate([self.prompt_mask, self.completion_mask], axis=1)


class _Settings(NamedTuple):
  """What a compiled program is made for."""

  max_new_tokens: int
  eos_ids: tuple[int, ...]
  pad_id: int
  greedy: bool
  top_k: int
  num_samples: int
  dtype: Any


class _Drawing(NamedTuple):
  """What a compiled program takes: one key a row [R], folded with the number of the token; temperature []; top_p []."""

  keys: jax.Array
  temperature: jax.Array
  top_p: jax.Array


class _State(NamedTuple):
  """The loop's carry.

  Attributes:
    step: how many tokens were chosen, in every row.
    token: [R], the last ones.
    finished: [R], whether EOS came.
    lengths: [R], how many tokens are real.
    cache: of R rows.
    tokens: [N, R], all that was chosen, rows that ended included.
    logprobs: [N, R].
  """

  step: jax.Array
  token: jax.Array
  finished: jax.Array
  lengths: jax.Array
  cache: Cache
  tokens: jax.Array
  logprobs: jax.Array


def generate(
  model: LanguageModel,
  params: Params,
  prompt_tokens: jax.Array,
  prompt_mask: jax.Array,
  key: jax.Array,
  *,
  max_new_tokens: int,
  eos_id: int | Sequence[int],
  pad_id: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  num_samples: int = 1,
  dtype: Any = jnp.float32,
) -> Samples:
  """Samples completions of every prompt.

  The n-th token of a row depends on the row's own prompt, `key`, the row's number and n; not on how many rows there
  are, on the others, on padding or on max_new_tokens (but for rounding, which can turn a token that was on the edge).

  Args:
    model: the decoder.
    params: its weights, stacked or unrolled.
    prompt_tokens: int32 [B, P], padded on the left; every row holds at least one token.
    prompt_mask: bool [B, P].
    key: a typed key.
    max_new_tokens: N. Static, as are num_samples, top_k, eos_id, pad_id and whether the temperature is 0;
      other temperatures and top_p do not compile again.
    eos_id: token or tokens that end a completion; an empty tuple: none does.
    pad_id: what follows EOS.
    temperature: 0: greedy.
    top_k: keep the k most probable tokens; 0: all.
    top_p: keep the nucleus of this probability, as `selection.sample` says.
    num_samples: completions a prompt; row b * num_samples + n. A prompt is read once.
    dtype: of the computation and the cache.

  Raises:
    ConfigError: if a number is out of range.
    ValueError: if shapes do not fit.
  """
  check_rank("prompt_tokens", prompt_tokens, 2)
  check_same_shape(prompt_tokens=prompt_tokens, prompt_mask=prompt_mask)
  _check(max_new_tokens, temperature, top_k, top_p, num_samples)
  settings = _Settings(
    max_new_tokens,
    (eos_id,) if isinstance(eos_id, int) else tuple(eos_id),
    pad_id,
    temperature == 0,
    top_k,
    num_samples,
    jnp.dtype(dtype),
  )
  rows = jnp.arange(len(prompt_tokens) * num_samples, dtype=jnp.uint32)
  drawing = _Drawing(
    jax.vmap(lambda row: jax.random.fold_in(key, row))(rows),
    jnp.float32(temperature or 1.0),
    jnp.float32(top_p),
  )
  tokens, mask = jnp.asarray(prompt_tokens, jnp.int32), jnp.asarray(prompt_mask, bool)
  return _generate(model, params, tokens, mask, drawing, settings=settings)


def _check(
  max_new_tokens: int, temperature: float, top_k: int, top_p: float, num_samples: int
) -> None:
  """Refuses numbers that mean nothing (NaN included)."""
  for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
    if value < 1:
      raise ConfigError(f"{name}: expected at least 1, found {value}")
  if not 0 <= temperature < float("inf"):
    raise ConfigError(f"temperature: expected 0 (greedy) or more, found {temperature}")
  if top_k < 0:
    raise ConfigError(f"top_k: expected 0 (all tokens) or more, found {top_k}")
  if not 0 < top_p <= 1:
    raise ConfigError(f"top_p: expected a number in (0, 1], found {top_p}")


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _generate(
  model: LanguageModel,
  params: Params,
  prompt_tokens: jax.Array,
  prompt_mask: jax.Array,
  drawing: _Drawing,
  *,
  settings: _Settings,
) -> Samples:
  """`generate` after the checks."""
  P, N = prompt_tokens.shape[1], settings.max_new_tokens
  # Once, not in every step: layers apart (a cache inside a scan halves the speed), in the dtype of the computation.
  params = trees.cast(stacking.unstack_layers(params), settings.dtype)
  state = _prefill(model, params, (prompt_tokens, prompt_mask), drawing, settings)
  for end in _segment_ends(N):
    state = state._replace(cache=state.cache.lengthen(P + end))
    state = _decode(model, params, state, drawing, settings, end)
  mask = jnp.arange(N, dtype=jnp.int32)[None, :] < state.lengths[:, None]
  return Samples(
    prompt_tokens=jnp.repeat(prompt_tokens, settings.num_samples, axis=0),
    prompt_mask=jnp.repeat(prompt_mask, settings.num_samples, axis=0),
    completions=jnp.where(mask, state.tokens.T, settings.pad_id),
    completion_mask=mask,
    logprobs=jnp.where(mask, state.logprobs.T, 0.0),
    finished=state.finished,
  )


def _segment_ends(tokens: int) -> list[int]:
  """How many tokens are written at the end of each segment.

  >>> _segment_ends(20), _segment_ends(128), _segment_ends(1000)
  ([20], [64, 128], [250, 500, 750, 1000])
  """
  segments = min(max(tokens // _SEGMENT_TOKENS, 1), _SEGMENTS)
  return [tokens * (i + 1) // segments for i in range(segments)]


def _choose(
  logits: jax.Array, drawing: _Drawing, settings: _Settings, step: jax.Array | int
) -> selection.Choice:
  """The token number `step` of each row."""
  if settings.greedy:
    return selection.greedy(logits)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(drawing.keys)
  return selection.sample(
    logits,
    keys,
    temperature=drawing.temperature,
    top_k=settings.top_k,
    top_p=drawing.top_p,
  )


def _ends(token: jax.Array, eos_ids: tuple[int, ...]) -> jax.Array:
  """Whether each token ends its completion."""
  return functools.reduce(
    jnp.logical_or, (token == e for e in eos_ids), jnp.zeros(token.shape, bool)
  )


def _prefill(
  model: LanguageModel,
  params: Params,
  prompts: tuple[jax.Array, jax.Array],
  drawing: _Drawing,
  settings: _Settings,
) -> _State:
  """Reads each prompt once, copies the cache for its samples and chooses their first tokens."""
  B, P = prompts[0].shape
  R, N, dtype = B * settings.num_samples, settings.max_new_tokens, settings.dtype
  cache = model.init_cache(B, P, dtype)
  output = model.apply(params, prompts[0], mask=prompts[1], cache=cache, dtype=dtype, logits=False)
  assert output.cache is not None
  # Logits of the last slot only: padding is on the left.
  logits = model.logits(params, output.hidden[:, -1])
  choice = _choose(jnp.repeat(logits, settings.num_samples, axis=0), drawing, settings, 0)
  return _State(
    step=jnp.ones((), jnp.int32),
    token=choice.token,
    finished=_ends(choice.token, settings.eos_ids),
    lengths=jnp.ones((R,), jnp.int32),
    cache=output.cache.repeat(settings.num_samples),
    tokens=jnp.zeros((N, R), jnp.int32).at[0].set(choice.token),
    logprobs=jnp.zeros((N, R), jnp.float32).at[0].set(choice.logprob),
  )


def _decode(
  model: LanguageModel,
  params: Params,
  state: _State,
  drawing: _Drawing,
  settings: _Settings,
  end: int,
) -> _State:
  """Goes on until `end` tokens are written or all rows have ended."""

  def unfinished(state: _State) -> jax.Array:
    return (state.step < end) & ~jnp.all(state.finished)

  def step(state: _State) -> _State:
    output = model.apply(
      params, state.token[:, None], cache=state.cache, dtype=settings.dtype, logits=False
    )
    assert output.cache is not None
    logits = model.logits(params, output.hidden[:, 0])
    choice = _choose(logits, drawing, settings, state.step)
    return _State(
      step=state.step + 1,
      token=choice.token,
      finished=state.finished | _ends(choice.token, settings.eos_ids),
      lengths=state.lengths + ~state.finished,
      cache=output.cache,
      tokens=state.tokens.at[state.step].set(choice.token),
      logprobs=state.logprobs.at[state.step].set(choice.logprob),
    )

  return jax.lax.while_loop(unfinished, step, state)
