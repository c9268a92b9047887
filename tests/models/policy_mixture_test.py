"""Multi-objective decoding: exact where it is exact, a policy's own bits at a corner, and measured as any policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError
from wam.evaluation import tabular
from wam.evaluation.divergence import kl_to_reference
from wam.generation import sampling
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.logit_mixture import join
from wam.models.policy_mixture import PolicyMixture

V, PAD, EOS = 11, 0, 1
CONFIG = DecoderConfig(
  vocab_size=V,
  hidden_size=16,
  intermediate_size=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  initializer_range=0.3,
  tie_embeddings=False,
)
MODEL = LanguageModel(CONFIG)
TOKENS = jnp.asarray([[0, 0, 5, 3], [7, 2, 9, 4], [0, 6, 6, 2]], jnp.int32)
MASK = jnp.asarray([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
OPTIONS = {"max_new_tokens": 7, "eos_id": EOS, "pad_id": PAD}


def mixture(count, alpha=0.0):
  return PolicyMixture(CONFIG, MODEL, count, alpha)


@pytest.fixture(scope="module")
def policies():
  return [MODEL.init(jax.random.key(i), stacked=False) for i in range(3)]


def next_logprobs(model, params, row):
  tokens = TOKENS[row][MASK[row]][None]
  logits = jax.jit(model.apply)(params, tokens).logits[0, -1]
  return np.asarray(jax.nn.log_softmax(logits), np.float64)


def optimal_policies(reference, rewards, beta):
  """Policies with log π_i = log π_0 + r_i/β - log Z_i after the prompt of row 1: its hidden state picks the reward."""
  output = jax.jit(MODEL.apply)(reference, TOKENS[1:2])
  hidden = np.asarray(output.hidden[0, -1], np.float64)
  found = []
  for reward in rewards:
    shift = np.outer(hidden / (hidden @ hidden), reward / beta)
    kernel = np.asarray(reference["lm_head"]["kernel"], np.float64) + shift
    found.append(reference | {"lm_head": {"kernel": jnp.asarray(kernel, jnp.float32)}})
  return found


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (0.0, 0.6, 0.4)])
def test_one_token_answers_are_the_exact_optimum_of_the_mixture_of_rewards(policies, weights):
  """Claim MOD-1: Π π_i^{λ_i} is π_0·exp(Σ λ_i r_i/β)/Z where π_i is π_0·exp(r_i/β)/Z_i."""
  draw, beta = np.random.default_rng(0), 0.5
  rewards = draw.normal(size=(3, V))
  trained = optimal_policies(policies[0], rewards, beta)
  reference = next_logprobs(MODEL, policies[0], 1)
  for policy, reward in zip(trained, rewards, strict=True):
    own = tabular.optimum(reference, reward, kl_coef=beta)
    np.testing.assert_allclose(next_logprobs(MODEL, policy, 1), own, atol=2e-5)
  found = next_logprobs(mixture(3), join(trained, jnp.asarray(weights)), 1)
  expected = tabular.optimum(reference, np.array(weights) @ rewards, kl_coef=beta)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  # The soup of policies that are linear in their weights is the same policy.
  soup = policies[0] | {
    "lm_head": {
      "kernel": sum(w * p["lm_head"]["kernel"] for w, p in zip(weights, trained, strict=True))
    }
  }
  np.testing.assert_allclose(next_logprobs(MODEL, soup, 1), expected, atol=2e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_divergences_against_their_formulas(policies, alpha):
  weights = np.array([0.2, 0.5, 0.3])
  single = np.exp([next_logprobs(MODEL, policy, 0) for policy in policies])
  if alpha:
    expected = (weights @ single**-alpha) ** (-1 / alpha)
  else:
    expected = np.prod(single ** weights[:, None], axis=0)
  found = next_logprobs(mixture(3, alpha), join(policies, jnp.asarray(weights)), 0)
  np.testing.assert_allclose(np.exp(found), expected / expected.sum(), rtol=1e-4)


def test_all_of_one_policy_is_its_own_generation(policies):
  for i in range(3):
    params = join(policies, jax.nn.one_hot(i, 3))
    key = jax.random.key(i)
    expected = sampling.generate(MODEL, policies[i], TOKENS, MASK, key, num_samples=8, **OPTIONS)
    found = sampling.generate(mixture(3), params, TOKENS, MASK, key, num_samples=8, **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_samples_have_the_probabilities_of_the_mixture(policies):
  """The log-probabilities of the loop with its caches are those of whole passes, and λ does not compile again."""
  compiled = sampling._generate._cache_size()
  for weights in ([0.3, 0.3, 0.4], [0.1, 0.8, 0.1]):
    params = join(policies, jnp.asarray(weights))
    samples = sampling.generate(
      mixture(3), params, TOKENS, MASK, jax.random.key(4), num_samples=5, **OPTIONS
    )
    parts = []
    for policy in policies:
      logits = MODEL.apply(policy, samples.tokens, mask=samples.mask).logits[:, 3:-1]
      parts.append(np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64))
    mixed = sum(w * part for w, part in zip(weights, parts, strict=True))
    mixed -= np.log(np.exp(mixed).sum(-1, keepdims=True))
    chosen = np.take_along_axis(mixed, np.asarray(samples.completions)[..., None], -1)[..., 0]
    expected = np.where(samples.completion_mask, chosen, 0.0)
    np.testing.assert_allclose(samples.logprobs, expected, atol=2e-5)
  assert sampling._generate._cache_size() - compiled <= 1


def test_kl_of_the_mixture_to_a_reference(policies):
  weights = jnp.asarray([0.5, 0.5, 0.0])
  model, params = mixture(3), join(policies, weights)
  samples = sampling.generate(model, params, TOKENS, MASK, jax.random.key(0), **OPTIONS)
  found = kl_to_reference(model, params, join([policies[2]], jnp.ones(1)), samples)
  logits = [MODEL.apply(p, samples.tokens, mask=samples.mask).logits[:, 3:-1] for p in policies]
  logprobs = [np.asarray(jax.nn.log_softmax(z, axis=-1), np.float64) for z in logits]
  mixed = 0.5 * logprobs[0] + 0.5 * logprobs[1]
  mixed -= np.log(np.exp(mixed).sum(-1, keepdims=True))
  expected = (np.exp(mixed) * (mixed - logprobs[2])).sum(-1)
  expected = np.where(samples.completion_mask, expected, 0.0)
  np.testing.assert_allclose(found.per_token, expected, atol=2e-5)


@pytest.mark.parametrize("alpha", [-0.5, float("nan")])
def test_divergences_that_cannot_be(alpha):
  with pytest.raises(ConfigError, match="decoding: alpha is"):
    mixture(2, alpha)
