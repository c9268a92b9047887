import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError
from wam.generation import sampling
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel

V, PAD, EOS = 11, 0, 1
MODEL = LanguageModel(
  DecoderConfig(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    initializer_range=0.3,
  )
)
PROMPTS = jnp.asarray([[0, 0, 5, 3], [7, 2, 9, 4], [0, 6, 6, 2]], jnp.int32)
MASK = jnp.asarray([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)


@pytest.fixture(scope="module")
def params():
  return MODEL.init(jax.random.key(0))


def generate(params, prompts=PROMPTS, mask=MASK, seed=0, **kwargs):
  options = {"max_new_tokens": 6, "eos_id": EOS, "pad_id": PAD} | kwargs
  return sampling.generate(MODEL, params, prompts, mask, jax.random.key(seed), **options)


def full_logprobs(params, samples, temperature=1.0):
  """Log-probabilities of the completions by one pass over prompt and completion, in float64 from the logits on."""
  logits = MODEL.apply(params, samples.tokens, mask=samples.mask).logits
  wide = np.asarray(logits, np.float64) / temperature
  wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
  P = samples.prompt_tokens.shape[1]
  chosen = np.take_along_axis(wide[:, P - 1 : -1], np.asarray(samples.completions)[..., None], -1)
  return np.where(samples.completion_mask, chosen[..., 0], 0.0)


@pytest.mark.parametrize(
  "options",
  [{}, {"temperature": 0.7, "top_k": 4}, {"temperature": 1.3, "top_p": 0.8}, {"num_samples": 3}],
  ids=str,
)
def test_logprobs_equal_the_full_forward_pass(params, options):
  samples = generate(params, **options)
  expected = full_logprobs(params, samples, options.get("temperature", 1.0))
  np.testing.assert_allclose(samples.logprobs, expected, atol=1e-5)


@pytest.mark.slow
def test_segments_of_the_cache_change_nothing(params, monkeypatch):
  whole = generate(params, eos_id=(), max_new_tokens=13, seed=4)
  monkeypatch.setattr(sampling, "_SEGMENT_TOKENS", 3)
  assert sampling._segment_ends(13) == [3, 6, 9, 13]
  sampling._generate.clear_cache()
  parts = generate(params, eos_id=(), max_new_tokens=13, seed=4)
  sampling._generate.clear_cache()
  np.testing.assert_array_equal(parts.completions, whole.completions)
  np.testing.assert_allclose(parts.logprobs, full_logprobs(params, parts), atol=1e-5)


def test_greedy_is_the_argmax_loop_of_the_full_forward_pass(params):
  samples = generate(params, temperature=0.0)
  forward = jax.jit(lambda params, ids: MODEL.apply(params, ids).logits)
  for row in range(len(PROMPTS)):
    tokens = [int(t) for t, real in zip(PROMPTS[row], MASK[row], strict=True) if real]
    expected = []
    while len(expected) < 6 and (not expected or expected[-1] != EOS):
      # Zeros behind, which a causal model does not see, keep one compiled shape.
      ids = np.zeros((1, 10), np.int32)
      ids[0, : len(tokens + expected)] = tokens + expected
      expected.append(int(np.argmax(forward(params, ids)[0, len(tokens + expected) - 1])))
    n = len(expected)
    np.testing.assert_array_equal(samples.completions[row, :n], expected)
    assert int(samples.completion_mask[row].sum()) == n


def test_sequences_come_as_often_as_enumeration_says(params):
  """All 121 completions of two tokens, by the chain rule from the full forward pass."""
  n = 3000
  samples = generate(params, PROMPTS[:1], MASK[:1], num_samples=n, max_new_tokens=2, eos_id=())
  pairs = np.stack(np.meshgrid(np.arange(V), np.arange(V), indexing="ij"), -1).reshape(-1, 2)
  tokens = jnp.concatenate([jnp.tile(PROMPTS[:1, 2:], (V * V, 1)), jnp.asarray(pairs)], 1)
  logprobs = np.asarray(jax.nn.log_softmax(MODEL.apply(params, tokens).logits, -1), np.float64)
  rows = np.arange(V * V)
  p = np.exp(logprobs[rows, 1, pairs[:, 0]] + logprobs[rows, 2, pairs[:, 1]])
  assert abs(p.sum() - 1) < 1e-5
  counts = np.bincount(np.asarray(samples.completions) @ [V, 1], minlength=V * V)
  frequent = p * n >= 5
  statistic = ((counts - n * p) ** 2 / (n * p))[frequent].sum()
  rest = n * p[~frequent].sum()
  statistic += (counts[~frequent].sum() - rest) ** 2 / rest
  degrees = frequent.sum()
  # Mean `degrees`, variance 2 * degrees: four standard deviations.
  assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)


def test_eos_is_kept_and_padding_follows(params):
  samples = generate(params, num_samples=40, max_new_tokens=12, seed=1)
  completions, mask = np.asarray(samples.completions), np.asarray(samples.completion_mask)
  assert samples.finished.any()
  for row, real, finished in zip(completions, mask, np.asarray(samples.finished), strict=True):
    ends = np.flatnonzero(row == EOS)
    length = ends[0] + 1 if len(ends) else 12
    assert finished == bool(len(ends))
    np.testing.assert_array_equal(real, np.arange(12) < length)
    assert (row[length:] == PAD).all()
  assert (np.asarray(samples.logprobs)[~mask] == 0).all()


def test_several_eos_and_none(params):
  samples = generate(params, eos_id=range(V), num_samples=2)
  np.testing.assert_array_equal(samples.completion_mask.sum(1), 1)
  samples = generate(params, eos_id=())
  assert samples.completion_mask.all()
  assert not samples.finished.any()


def test_pad_equal_to_eos_does_not_confuse_the_masks(params):
  samples = generate(params, num_samples=40, max_new_tokens=12, seed=1)
  same = generate(params, num_samples=40, max_new_tokens=12, seed=1, pad_id=EOS)
  np.testing.assert_array_equal(samples.completion_mask, same.completion_mask)
  np.testing.assert_array_equal(same.completions[~same.completion_mask], EOS)


def test_padding_rows_and_length_do_not_move_a_sample(params):
  base = generate(params)
  wider = generate(
    params, jnp.pad(PROMPTS, ((0, 0), (3, 0))), jnp.pad(MASK, ((0, 0), (3, 0))), seed=0
  )
  np.testing.assert_array_equal(base.completions, wider.completions)
  np.testing.assert_allclose(base.logprobs, wider.logprobs, atol=1e-5)
  fewer = generate(params, PROMPTS[:2], MASK[:2])
  np.testing.assert_array_equal(base.completions[:2], fewer.completions)
  shorter = generate(params, max_new_tokens=3)
  np.testing.assert_array_equal(base.completions[:, :3], shorter.completions)


def test_rows_of_samples_and_shapes(params):
  samples = generate(params, num_samples=2)
  np.testing.assert_array_equal(samples.prompt_tokens, np.repeat(PROMPTS, 2, axis=0))
  np.testing.assert_array_equal(samples.prompt_mask, np.repeat(MASK, 2, axis=0))
  assert samples.tokens.shape == samples.mask.shape == (6, 10)
  assert (samples.completions[0] != samples.completions[1]).any()


def test_stacked_and_unrolled_layers_agree(params):
  from wam.models.stacking import unstack_layers

  np.testing.assert_array_equal(
    generate(params).completions, generate(unstack_layers(params)).completions
  )


def test_bfloat16_runs_near_float32(params):
  samples = generate(params, dtype=jnp.bfloat16)
  assert samples.logprobs.dtype == jnp.float32
  np.testing.assert_allclose(samples.logprobs, full_logprobs(params, samples), atol=0.1)


def test_temperature_top_p_and_seed_do_not_compile_again(params):
  generate(params, temperature=0.9, top_p=0.9)
  before = sampling._generate._cache_size()
  generate(params, temperature=1.1, top_p=1.0, seed=8)
  generate(jax.tree.map(lambda x: x * 1.01, params), temperature=0.3, top_p=0.2)
  assert sampling._generate._cache_size() == before


@pytest.mark.parametrize(
  "options",
  [
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"top_k": -1},
    {"num_samples": 0},
    {"max_new_tokens": 0},
  ],
  ids=str,
)
def test_numbers_out_of_range_are_refused(params, options):
  with pytest.raises(ConfigError, match=next(iter(options))):
    generate(params, **options)


def test_mask_of_another_shape_is_refused(params):
  with pytest.raises(ValueError, match="prompt_mask"):
    generate(params, mask=MASK[:, 1:])
