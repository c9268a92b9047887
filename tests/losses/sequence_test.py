import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.losses import sequence


def slow_logprobs(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
  """One position at a time, in float64."""
  result = np.zeros(tokens.shape)
  for b in range(tokens.shape[0]):
    for t in range(1, tokens.shape[1]):
      row = logits[b, t - 1].astype(np.float64)
      probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
      result[b, t] = np.log(probabilities[tokens[b, t]])
  return result


@pytest.fixture
def case():
  draw = np.random.default_rng(0)
  logits = draw.normal(size=(3, 7, 11), scale=3).astype(np.float32)
  return logits, draw.integers(0, 11, (3, 7)).astype(np.int32)


def test_logprobs_equal_the_slow_twin(case, strict_dtypes):
  logits, tokens = case
  found = sequence.token_logprobs(jnp.asarray(logits), jnp.asarray(tokens))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found[:, 0], 0)
  np.testing.assert_allclose(found, slow_logprobs(logits, tokens), rtol=1e-5, atol=1e-6)


def test_logprobs_of_large_and_of_bfloat16_logits(case, strict_dtypes):
  logits, tokens = case
  # logsumexp adds the largest logit back: the error is an ulp of it, 8e-6 at 100.
  found = sequence.token_logprobs(jnp.asarray(logits) + 100.0, jnp.asarray(tokens))
  np.testing.assert_allclose(found, slow_logprobs(logits + np.float32(100), tokens), atol=2e-5)
  low = jnp.asarray(logits, jnp.bfloat16)
  twin = slow_logprobs(np.asarray(low, np.float32), tokens)
  np.testing.assert_allclose(sequence.token_logprobs(low, jnp.asarray(tokens)), twin, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 10])
def test_chunks_give_the_same_values_and_gradients(chunk, strict_dtypes):
  draw = np.random.default_rng(1)
  hidden = jnp.asarray(draw.normal(size=(2, 7, 5)), jnp.float32)
  kernel = jnp.asarray(draw.normal(size=(5, 11)), jnp.float32)
  tokens = jnp.asarray(draw.integers(0, 11, (2, 7)), jnp.int32)
  weights = jnp.asarray(draw.normal(size=(2, 7)), jnp.float32)

  def whole(hidden, kernel):
    return jnp.sum(weights * sequence.token_logprobs(hidden @ kernel, tokens))

  def chunked(hidden, kernel):
    found = sequence.token_logprobs_from_hidden(hidden, tokens, lambda h: h @ kernel, chunk=chunk)
    return jnp.sum(weights * found)

  expected = jax.value_and_grad(whole, argnums=(0, 1))(hidden, kernel)
  found = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(hidden, kernel)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def test_chunks_never_hold_all_logits():
  """The largest array of the compiled gradient has chunk·V entries a row and not T·V."""
  B, T, D, V, chunk = 2, 64, 4, 512, 8
  hidden, kernel = jnp.ones((B, T, D)), jnp.ones((D, V))
  tokens = jnp.ones((B, T), jnp.int32)

  def loss(hidden, kernel):
    return sequence.token_logprobs_from_hidden(
      hidden, tokens, lambda h: h @ kernel, chunk=chunk
    ).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, kernel)
  assert f"f32[{B},{chunk},{V}]" in str(jaxpr)
  assert f"{T},{V}]" not in str(jaxpr)
  assert f"{T // chunk},{B},{chunk},{V}]" not in str(jaxpr)


def test_masked_mean_ignores_what_is_masked(strict_dtypes):
  values = jnp.asarray([[1.0, jnp.nan, 3.0], [5.0, 7.0, jnp.inf]])
  mask = jnp.asarray([[True, False, True], [True, False, False]])
  assert float(sequence.masked_mean(values, mask)) == 3.0
  assert float(sequence.masked_mean(values, jnp.zeros_like(mask))) == 0.0
  gradient = jax.grad(lambda v: sequence.masked_mean(v, mask))(values)
  np.testing.assert_allclose(gradient, np.asarray(mask) / 3)
  with pytest.raises(ValueError, match="shapes differ"):
    sequence.masked_sum(values, mask[0])


def test_wrong_ranks_are_refused():
  with pytest.raises(ValueError, match="logits: expected 3 axes"):
    sequence.token_logprobs(jnp.ones((2, 3)), jnp.ones((2, 3), jnp.int32))
  with pytest.raises(ValueError, match="chunk"):
    sequence.token_logprobs_from_hidden(
      jnp.ones((1, 2, 3)), jnp.ones((1, 2), jnp.int32), lambda h: h, chunk=0
    )
