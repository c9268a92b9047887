import jax
import jax.numpy as jnp
import numpy as np

from wam.evaluation.divergence import kl_to_reference
from wam.generation.sampling import generate
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel

V = 5
MODEL = LanguageModel(
  DecoderConfig(
    vocab_size=V,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=2,
    initializer_range=0.5,
  )
)
POLICY, REFERENCE = (MODEL.init(jax.random.key(i)) for i in (0, 1))
PROMPTS = jnp.asarray([[0, 2, 3], [4, 1, 2]]), jnp.asarray([[0, 1, 1], [1, 1, 1]], bool)


def sample(num_samples, new_tokens, eos_id=1):
  return generate(
    MODEL,
    POLICY,
    *PROMPTS,
    jax.random.key(5),
    max_new_tokens=new_tokens,
    eos_id=eos_id,
    pad_id=0,
    num_samples=num_samples,
  )


FORWARD = jax.jit(lambda params, tokens: MODEL.apply(params, tokens).logits[0])


def distributions(params, ids):
  """log p of each next token, one sequence without masks; zeros behind it keep one compiled shape."""
  padded = np.zeros((1, 8), np.int32)
  padded[0, : len(ids)] = ids
  logits = np.asarray(FORWARD(params, padded), np.float64)[: len(ids)]
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_equals_a_loop_over_rows_and_tokens():
  samples = sample(3, 4)
  found = kl_to_reference(MODEL, POLICY, REFERENCE, samples, batch_size=4)
  expected = np.zeros((6, 4))
  for row in range(6):
    prompt = [int(t) for t in samples.prompt_tokens[row][samples.prompt_mask[row]]]
    completion = [int(t) for t in samples.completions[row][samples.completion_mask[row]]]
    for n in range(len(completion)):
      p = distributions(POLICY, prompt + completion[:n])[-1]
      q = distributions(REFERENCE, prompt + completion[:n])[-1]
      expected[row, n] = (np.exp(p) * (p - q)).sum()
  np.testing.assert_allclose(found.per_token, expected, atol=1e-5)
  np.testing.assert_allclose(found.per_sequence, expected.sum(1), atol=1e-5)


def test_mean_is_the_kl_of_whole_completions():
  """Against the sum over all 25 completions of two tokens."""
  samples = sample(2000, 2, eos_id=())
  found = kl_to_reference(MODEL, POLICY, REFERENCE, samples).per_sequence
  prompt, exact = [2, 3], 0.0
  for a in range(V):
    for b in range(V):
      steps = [1, 2], [a, b]
      p, q = (distributions(w, [*prompt, a, b])[steps].sum() for w in (POLICY, REFERENCE))
      exact += np.exp(p) * (p - q)
  of_first = found[:2000]
  assert abs(of_first.mean() - exact) < 4 * of_first.std() / np.sqrt(2000)


def test_of_itself_is_zero():
  found = kl_to_reference(MODEL, POLICY, POLICY, sample(2, 3))
  np.testing.assert_allclose(found.per_sequence, 0.0, atol=1e-6)
