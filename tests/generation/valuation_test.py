import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithms import enumerable
from wam.core.errors import ConfigError
from wam.generation import valuation
from wam.models.config import DecoderConfig
from wam.models.heads import ScalarModel

CRITIC = ScalarModel(enumerable.CONFIG)
EVERY = enumerable.rollout()


@pytest.fixture(scope="module")
def readers():
  critic = CRITIC.init(jax.random.key(3), stacked=False)
  return valuation.Readers(enumerable.params(1), enumerable.params(2), critic)


@pytest.fixture(scope="module")
def reading(readers):
  return valuation.read(enumerable.MODEL, CRITIC, readers, EVERY, rows_per_call=16, temperature=0.7)


def test_log_probabilities_are_those_of_whole_completions(readers, reading):
  for found, params in (
    (reading.logprobs, readers.policy), (reading.reference_logprobs, readers.reference)
  ):  # fmt: skip
    exact = enumerable.logprobs(params, temperature=0.7)
    np.testing.assert_allclose(found.sum(1), exact, atol=1e-5)


def test_kl_has_the_expectation_of_the_exact_one(readers, reading):
  p, q = (
    np.asarray(enumerable.logprobs(x, temperature=0.7), np.float64)
    for x in (readers.policy, readers.reference)
  )
  exact = np.sum(np.exp(p) * (p - q))
  assert np.sum(np.exp(p) * reading.kl.sum(1)) == pytest.approx(exact, rel=1e-4)


def test_values_are_those_before_the_token_is_chosen(readers, reading):
  """Each is the number of the prefix alone, read by a model that sees nothing of what follows."""
  assert reading.values.dtype == np.float32
  tokens, mask = enumerable.completions()
  apply = jax.jit(lambda t: CRITIC.apply(readers.critic, t))
  for t in range(3):
    rows = np.flatnonzero(mask[:, t])
    prefixes = np.concatenate([EVERY.prompt_tokens[rows], tokens[rows, :t]], axis=1)
    np.testing.assert_allclose(reading.values[rows, t], apply(jnp.asarray(prefixes)), atol=1e-5)


def test_what_is_masked_is_0_and_does_not_matter(readers, reading):
  assert all((array[~EVERY.completion_mask] == 0).all() for array in reading)
  changed = np.where(EVERY.completion_mask, EVERY.completions, 3)
  other = EVERY._replace(completions=changed)
  again = valuation.read(
    enumerable.MODEL, CRITIC, readers, other, rows_per_call=16, temperature=0.7
  )
  assert all(np.array_equal(x, y) for x, y in zip(reading, again, strict=True))


def test_how_many_rows_at_a_time_does_not_matter(readers, reading):
  again = valuation.read(
    enumerable.MODEL, CRITIC, readers, EVERY, rows_per_call=40, temperature=0.7
  )
  for x, y in zip(reading, again, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_a_critic_of_another_vocabulary_is_refused():
  other = ScalarModel(
    DecoderConfig(
      vocab_size=5, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, head_dim=4
    )
  )
  with pytest.raises(
    ConfigError, match="ppo: the critic's vocabulary has 5 tokens, the policy's 4"
  ):
    valuation.check(enumerable.MODEL, other, stage="ppo")
  valuation.check(enumerable.MODEL, CRITIC, stage="ppo")
