"""Scalar heads: where a reward is read, how heads start."""

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import trees
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel, at_last_token

CONFIG = DecoderConfig(
  vocab_size=30,
  hidden_size=24,
  intermediate_size=32,
  num_layers=2,
  num_heads=2,
  initializer_range=0.2,
)


def test_the_last_real_token_is_found_with_padding_on_either_side():
  x = jnp.arange(12.0).reshape(3, 4)
  mask = jnp.asarray([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]], bool)
  np.testing.assert_array_equal(at_last_token(x, mask), [1.0, 7.0, 10.0])
  np.testing.assert_array_equal(at_last_token(x, None), [3.0, 7.0, 11.0])


def test_a_reward_is_the_value_at_the_last_real_token():
  model = ScalarModel(CONFIG)
  params = model.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 30)
  mask = jnp.asarray([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
  values = jax.jit(model.values)(params, tokens, mask=mask)
  rewards = jax.jit(model.apply)(params, tokens, mask=mask)
  assert values.shape == (2, 6)
  assert rewards.dtype == jnp.float32
  np.testing.assert_allclose(rewards, [values[0, 3], values[1, 5]], atol=1e-5)
  alone = model.apply(params, tokens[:1, :4])
  np.testing.assert_allclose(rewards[:1], alone, atol=1e-5)


def test_values_are_the_head_times_the_hidden_states():
  model = ScalarModel(CONFIG)
  params = model.init(jax.random.key(0))
  params["head"]["bias"] = jnp.asarray([0.7])
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 30)
  hidden = np.asarray(model.decoder.apply(params["decoder"], tokens).hidden, np.float64)
  expected = hidden @ np.asarray(params["head"]["kernel"], np.float64)[:, 0] + 0.7
  np.testing.assert_allclose(model.values(params, tokens), expected, atol=1e-5)


def test_the_head_starts_from_a_trained_decoder_without_its_output_matrix():
  trained = LanguageModel(CONFIG).init(jax.random.key(3), stacked=False)
  params = ScalarModel(CONFIG).init(jax.random.key(0), trained)
  assert "lm_head" in trained
  assert "lm_head" not in params["decoder"]
  assert params["decoder"]["embed"]["embedding"] is trained["embed"]["embedding"]
  assert set(trees.flatten(params["head"])) == {"kernel", "bias"}


def test_heads_start_as_asked():
  wide = DecoderConfig(
    vocab_size=8, hidden_size=4096, intermediate_size=2, num_layers=1, num_heads=1, head_dim=2
  )
  kernel = ScalarModel(wide).init(jax.random.key(0))["head"]["kernel"]
  np.testing.assert_allclose(kernel.std(), 1 / np.sqrt(4097), rtol=0.05)
  zeros = ScalarModel(CONFIG).init(jax.random.key(0), zeros=True)
  tokens = jnp.ones((1, 3), jnp.int32)
  np.testing.assert_array_equal(ScalarModel(CONFIG).values(zeros, tokens), np.zeros((1, 3)))
