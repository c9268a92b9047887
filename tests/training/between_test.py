"""Log-likelihoods of policies between two sets of weights, against the forward pass of the averaged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import NonFinite, UnknownName
from wam.losses import sequence
from wam.merging import averages
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.training import sharding
from wam.training.between import Between, Weighted

MODEL = LanguageModel(
  DecoderConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_layers=2,
    num_heads=2,
    head_dim=4,
    initializer_range=0.4,
  )
)
REFERENCE, TUNED = (MODEL.init(jax.random.key(seed)) for seed in (0, 1))
RATIOS, ALPHA = [0.2, 0.6], 0.4


def examples(count=5):
  draw = np.random.default_rng(0)
  mask = np.ones((count, 6), bool)
  mask[0, 0] = mask[1, 5] = False  # a shorter prompt, a shorter completion
  weights = draw.normal(size=(count, 3)).astype(np.float32) * mask[:, 3:]
  return Weighted(draw.integers(0, 8, (count, 6)).astype(np.int32), mask, weights)


def between(**keywords):
  return Between(MODEL, REFERENCE, TUNED, num_parts=2, **keywords)


def expected(params, batch, temperature=1.0):
  logits = MODEL.apply(params, jnp.asarray(batch.tokens), mask=jnp.asarray(batch.mask)).logits
  logprobs = sequence.token_logprobs(logits / temperature, jnp.asarray(batch.tokens))
  return float(np.sum(np.asarray(logprobs)[:, 3:] * batch.weights))


@pytest.fixture(scope="module")
def forward():
  return between(rows_per_call=2)


def test_log_likelihood_of_the_average(forward):
  batch = examples()
  found = forward.value(RATIOS, ALPHA, batch)
  np.testing.assert_allclose(found, expected(forward.params(RATIOS, ALPHA), batch), rtol=1e-5)
  equal = forward.params([0.3, 0.3], 0.3)
  jax.tree.map(np.testing.assert_array_equal, equal, averages.lerp(REFERENCE, TUNED, 0.3))
  assert forward.names == ("part 1", "part 2")


def test_temperature():
  batch = examples()
  found = between(temperature=0.7, rows_per_call=8)
  merged = found.params(RATIOS, ALPHA)
  value = found.value(RATIOS, ALPHA, batch)
  np.testing.assert_allclose(value, expected(merged, batch, 0.7), rtol=1e-5)


def test_entropy_of_the_predictions():
  batch = examples()
  found = between(objective="entropy", temperature=0.7, rows_per_call=2)
  merged = found.params(RATIOS, ALPHA)
  tokens, mask = jnp.asarray(batch.tokens), jnp.asarray(batch.mask)
  p = jax.nn.softmax(MODEL.apply(merged, tokens, mask=mask).logits / 0.7, axis=-1)
  # What is predicted in the place of the three last tokens.
  entropies = -np.sum(np.asarray(p * jnp.log(p)), axis=-1)[:, 2:5]
  value, slopes = found.gradient(RATIOS, ALPHA, batch)
  np.testing.assert_allclose(value, -np.sum(entropies * batch.weights), rtol=1e-5)
  step = 1e-2
  for part in range(2):
    ends = [np.array(RATIOS) + sign * step * np.eye(2)[part] for sign in (1, -1)]
    difference = np.subtract(*[found.value(end, ALPHA, batch) for end in ends]) / (2 * step)
    np.testing.assert_allclose(slopes[part], difference, rtol=2e-2, atol=2e-3)


def test_objectives_have_names():
  with pytest.raises(UnknownName, match="objective"):
    between(objective="entropies")


def test_forward_reverse_and_any_number_of_rows_agree(forward):
  batch = examples()
  value, slopes = forward.gradient(RATIOS, ALPHA, batch)
  np.testing.assert_allclose(value, forward.value(RATIOS, ALPHA, batch), rtol=1e-6)
  other, backward = between(mode="reverse", rows_per_call=8).gradient(RATIOS, ALPHA, batch)
  np.testing.assert_allclose(other, value, rtol=1e-5)
  np.testing.assert_allclose(backward, slopes, rtol=1e-5, atol=1e-5)
  assert np.abs(slopes).max() > 1e-2


@pytest.mark.slow
def test_the_same_on_a_mesh(forward):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  where = sharding.shardings(REFERENCE, REFERENCE, sharding.DECODER_RULES, mesh, uneven="replicate")
  ends = [sharding.put(weights, where) for weights in (REFERENCE, TUNED)]
  place = lambda batch: sharding.put_whole_batch(batch, mesh)  # noqa: E731
  with jax.set_mesh(mesh):
    spread = Between(MODEL, *ends, num_parts=2, rows_per_call=4, place=place)
    value, slopes = spread.gradient(RATIOS, ALPHA, examples())
  other, expected_slopes = forward.gradient(RATIOS, ALPHA, examples())
  np.testing.assert_allclose(value, other, rtol=1e-5)
  np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_is_refused(forward):
  batch = examples(2)
  with pytest.raises(NonFinite, match=r"at the ratios \[0.2, 0.6\] is nan"):
    forward.gradient(RATIOS, ALPHA, batch._replace(weights=np.full((2, 3), np.nan, np.float32)))
