"""The decoder: layouts, caches, padding, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core import trees
from wam.models.config import DecoderConfig, RopeScaling
from wam.models.decoder import LanguageModel

BASE = DecoderConfig(
  vocab_size=50,
  hidden_size=32,
  intermediate_size=48,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  initializer_range=0.2,
)
QWEN = DecoderConfig(
  vocab_size=50,
  hidden_size=32,
  intermediate_size=48,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=12,
  initializer_range=0.2,
  qk_norm=True,
  attention_bias=True,
  attention_output_bias=True,
  mlp_bias=True,
  tie_embeddings=True,
  sliding_window=3,
  sliding_layers=(True, False, True),
  activation="gelu_tanh",
  rope_scaling=RopeScaling("linear", factor=2.0),
)
CONFIGS = pytest.mark.parametrize("config", [BASE, QWEN], ids=["base", "options"])


@functools.partial(jax.jit, static_argnames=("model", "dtype", "remat", "logits"))
def apply(model, params, tokens, **options):
  return model.apply(params, tokens, **options)


def tokens_of(config: DecoderConfig, batch: int = 2, length: int = 9) -> jax.Array:
  return jax.random.randint(jax.random.key(1), (batch, length), 0, config.vocab_size)


@CONFIGS
def test_init_has_the_shapes_of_the_config(config):
  params = LanguageModel(config).init(jax.random.key(0), stacked=False)
  flat = trees.flatten(params)
  assert {name: leaf.shape for name, leaf in flat.items()} == config.shapes()
  assert all(leaf.dtype == jnp.float32 for leaf in flat.values())
  assert trees.num_params(params) == config.num_params()


def test_init_draws_the_asked_spread():
  params = LanguageModel(BASE).init(jax.random.key(0))
  kernel = params["layers"]["mlp"]["up"]["kernel"]
  np.testing.assert_allclose(kernel.std(), 0.2, rtol=0.05)
  assert not np.allclose(kernel[0], kernel[1])


@CONFIGS
def test_stacked_equals_unrolled(config):
  model = LanguageModel(config)
  tokens = tokens_of(config)
  stacked = apply(model, model.init(jax.random.key(0)), tokens).logits
  unrolled = apply(model, model.init(jax.random.key(0), stacked=False), tokens).logits
  np.testing.assert_allclose(stacked, unrolled, atol=1e-5)


@CONFIGS
@pytest.mark.parametrize("stacked", [True, False])
def test_decoding_with_a_cache_equals_the_full_forward_pass(config, stacked):
  model = LanguageModel(config)
  params = model.init(jax.random.key(0), stacked=stacked)
  tokens = tokens_of(config)
  full = apply(model, params, tokens).logits
  prefill = apply(model, params, tokens[:, :4], cache=model.init_cache(2, 12))
  found, cache = [prefill.logits], prefill.cache
  for t in range(4, 9):
    output = apply(model, params, tokens[:, t : t + 1], cache=cache)
    found.append(output.logits)
    cache = output.cache
  np.testing.assert_allclose(jnp.concatenate(found, axis=1), full, atol=2e-5)
  assert cache.index == 9
  np.testing.assert_array_equal(cache.valid.sum(axis=1), [9, 9])


@CONFIGS
def test_padding_on_either_side_changes_nothing(config):
  model = LanguageModel(config)
  params = model.init(jax.random.key(0))
  tokens = tokens_of(config, batch=1, length=6)
  expected = apply(model, params, tokens).logits[0]
  real = jnp.ones((1, 6), bool)
  beyond = config.vocab_size + 3  # a padding id outside the vocabulary
  for left, right in [(3, 0), (0, 3), (2, 1)]:
    padded = jnp.pad(tokens, ((0, 0), (left, right)), constant_values=beyond)
    mask = jnp.pad(real, ((0, 0), (left, right)))
    found = apply(model, params, padded, mask=mask).logits[0, left : left + 6]
    np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{left} left, {right} right")


@CONFIGS
def test_left_padded_prompts_decode_as_they_do_alone(config):
  model = LanguageModel(config)
  params = model.init(jax.random.key(0))
  tokens = tokens_of(config)
  lengths = [3, 5]
  mask = jnp.arange(5)[None, :] >= 5 - jnp.asarray(lengths)[:, None]
  prompts = jnp.stack(
    [jnp.pad(tokens[b, :n], (5 - n, 0), constant_values=49) for b, n in enumerate(lengths)]
  )
  output = apply(model, params, prompts, mask=mask, cache=model.init_cache(2, 9))
  found = [output.logits[:, -1]]
  for t in range(3):
    chosen = jnp.stack([tokens[b, n + t] for b, n in enumerate(lengths)])[:, None]
    output = apply(model, params, chosen, cache=output.cache)
    found.append(output.logits[:, 0])
  for b, n in enumerate(lengths):
    alone = apply(model, params, tokens[b : b + 1, : n + 3]).logits[0, n - 1 :]
    np.testing.assert_allclose(jnp.stack(found)[:, b], alone, atol=2e-5)


@CONFIGS
def test_later_tokens_do_not_reach_earlier_logits(config):
  model = LanguageModel(config)
  params = model.init(jax.random.key(0))
  tokens = tokens_of(config)
  changed = tokens.at[:, 6].set((tokens[:, 6] + 1) % config.vocab_size)
  before, after = (apply(model, params, x).logits for x in (tokens, changed))
  np.testing.assert_array_equal(before[:, :6], after[:, :6])
  assert not np.allclose(before[:, 6], after[:, 6], atol=1e-3)


def test_a_window_on_every_layer_limits_how_far_a_token_reaches():
  config = DecoderConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=16,
    num_layers=2,
    num_heads=2,
    sliding_window=2,
    initializer_range=0.3,
  )
  model = LanguageModel(config)
  params = model.init(jax.random.key(0))
  tokens = tokens_of(config)
  changed = tokens.at[:, 0].set((tokens[:, 0] + 1) % 50)
  before, after = (apply(model, params, x).logits for x in (tokens, changed))
  # Each of the two layers passes information on by one slot.
  np.testing.assert_array_equal(before[:, 3:], after[:, 3:])
  assert not np.allclose(before[:, 2], after[:, 2], atol=1e-3)


@CONFIGS
def test_bfloat16_compute_is_near_float32_and_keeps_float32_gradients(config):
  model = LanguageModel(config)
  params = model.init(jax.random.key(0))
  tokens = tokens_of(config)
  exact = apply(model, params, tokens)
  rounded = apply(model, params, tokens, dtype=jnp.bfloat16)
  assert rounded.logits.dtype == jnp.float32
  assert rounded.hidden.dtype == jnp.bfloat16
  error = jnp.abs(rounded.logits - exact.logits).max() / exact.logits.std()
  assert 0 < error < 0.15
  gradients = jax.grad(lambda p: apply(model, p, tokens, dtype=jnp.bfloat16).logits[0, 0, 0])(
    params
  )
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("stacked", [True, False])
def test_remat_changes_no_gradient(stacked):
  model = LanguageModel(BASE)
  params = model.init(jax.random.key(0), stacked=stacked)
  tokens = tokens_of(BASE)

  def gradient(remat):
    return jax.grad(lambda p: jnp.square(apply(model, p, tokens, remat=remat).logits).mean())(
      params
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    gradient(False),
    gradient(True),
  )


def test_logits_can_be_left_out_and_made_later():
  model = LanguageModel(BASE)
  params = model.init(jax.random.key(0))
  output = apply(model, params, tokens_of(BASE), logits=False)
  assert output.logits is None
  expected = apply(model, params, tokens_of(BASE)).logits
  np.testing.assert_allclose(model.logits(params, output.hidden), expected, atol=1e-5)


def test_explicit_positions_replace_the_counted_ones():
  model = LanguageModel(BASE)
  params = model.init(jax.random.key(0))
  tokens = tokens_of(BASE)
  expected = apply(model, params, tokens).logits
  # Rotary attention sees differences of positions only.
  shifted = apply(model, params, tokens, positions=jnp.arange(9)[None, :] + 7).logits
  np.testing.assert_allclose(shifted, expected, atol=2e-5)
  stretched = apply(model, params, tokens, positions=3 * jnp.arange(9)[None, :]).logits
  assert not np.allclose(stretched, expected, atol=1e-2)


def test_a_cache_too_short_for_the_tokens_is_refused():
  model = LanguageModel(BASE)
  with pytest.raises(ValueError, match="do not fit a cache of 4 slots"):
    apply(model, model.init(jax.random.key(0)), tokens_of(BASE), cache=model.init_cache(2, 4))
