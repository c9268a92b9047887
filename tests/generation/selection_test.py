import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from wam.generation import selection

V = 37


def keep_by_sorting(logits, temperature, top_k, top_p):
  """What transformers' warpers keep, in their order: temperature, top-k, top-p; one row, float64."""
  scores = logits.astype(np.float64) / temperature
  keep = np.ones(len(scores), bool)
  if top_k:
    keep &= scores >= np.sort(scores)[-top_k]
  probabilities = np.where(keep, np.exp(scores - scores.max()), 0.0)
  probabilities /= probabilities.sum()
  ascending = np.argsort(probabilities)
  # Removed while the cumulative probability from the smallest up is at most 1 - top_p; the largest always stays.
  removed = np.cumsum(probabilities[ascending]) <= 1 - top_p
  removed[-1] = False
  keep[ascending[removed]] = False
  return keep, np.where(keep, probabilities, 0.0) / probabilities[keep].sum()


def draws(logits, n, **kwargs):
  """n independent choices from one row of logits."""
  keys = jax.random.split(jax.random.key(3), n)
  return jax.jit(selection.sample, static_argnames="top_k")(
    jnp.tile(jnp.asarray(logits)[None], (n, 1)), keys, **kwargs
  )


@pytest.mark.parametrize(
  "kwargs",
  [
    {},
    {"temperature": 0.5},
    {"top_k": 5},
    {"top_p": 0.7},
    {"top_p": 0.05},
    {"temperature": 1.7, "top_k": 9, "top_p": 0.8},
  ],
  ids=str,
)
def test_draws_have_the_distribution_that_sorting_gives(kwargs):
  logits = 2 * np.random.default_rng(0).standard_normal(V).astype(np.float32)
  options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | kwargs
  keep, expected = keep_by_sorting(logits, **options)
  n = 20000
  tokens = np.asarray(draws(logits, n, **kwargs).token)
  counts = np.bincount(tokens, minlength=V)
  assert counts[~keep].sum() == 0
  if keep.sum() == 1:
    return
  # Cells that expect fewer than 5 are pooled, as the chi-square approximation asks.
  rare = keep & (expected * n < 5)
  observed = np.append(counts[keep & ~rare], counts[rare].sum())
  wanted = np.append(expected[keep & ~rare], expected[rare].sum()) * n
  observed, wanted = observed[wanted > 0], wanted[wanted > 0]
  assert stats.chisquare(observed, wanted * (n / wanted.sum())).pvalue > 1e-3


@pytest.mark.parametrize("top_k", [0, 3, 40])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_support_is_what_sorting_keeps(top_k, top_p):
  rows = 2 * np.random.default_rng(1).standard_normal((6, 97)).astype(np.float32)
  for row in rows:
    keep, expected = keep_by_sorting(row, 1.0, top_k, top_p)
    tokens = np.asarray(draws(row, 4000, top_k=top_k, top_p=top_p).token)
    seen = np.isin(np.arange(97), tokens)
    assert not seen[~keep].any()
    # What should come up twenty times does come up.
    assert seen[keep & (expected > 5e-3)].all()


def test_logprob_is_of_the_untruncated_distribution_at_the_temperature():
  logits = np.random.default_rng(2).standard_normal(V).astype(np.float32)
  choice = draws(logits, 50, temperature=0.6, top_k=4, top_p=0.8)
  wide = logits.astype(np.float64) / 0.6
  expected = wide - np.log(np.exp(wide).sum())
  np.testing.assert_allclose(choice.logprob, expected[np.asarray(choice.token)], atol=1e-6)


def test_a_row_depends_on_its_own_logits_and_key_only():
  logits = jax.random.normal(jax.random.key(0), (9, V)) * 3
  keys = jax.random.split(jax.random.key(1), 9)
  together = selection.sample(logits, keys, top_p=0.6).token
  alone = [selection.sample(logits[i : i + 1], keys[i : i + 1], top_p=0.6).token for i in range(9)]
  np.testing.assert_array_equal(together, np.concatenate(alone))


def test_ties_with_the_last_token_kept_are_kept():
  logits = np.log(np.array([0.4, 0.2, 0.2, 0.2], np.float32))
  assert set(np.asarray(draws(logits, 400, top_p=0.5).token)) == {0, 1, 2, 3}
  assert set(np.asarray(draws(logits, 400, top_k=2).token)) == {0, 1, 2, 3}
  assert set(np.asarray(draws(logits, 400, top_p=0.39).token)) == {0}


@pytest.mark.parametrize("V", [1, 2, 3, 64, 65, 1000])
def test_any_vocabulary_size(V):
  logits = np.full(V, -np.inf, np.float32)
  logits[V - 1] = 2.0
  choice = draws(logits, 8, top_p=0.9, top_k=1)
  np.testing.assert_array_equal(choice.token, V - 1)
  np.testing.assert_allclose(choice.logprob, 0.0, atol=1e-6)


def test_uniform_numbers_at_the_ends_of_their_range_stay_inside_the_support():
  logits = jnp.asarray([[-jnp.inf, 0.0, -jnp.inf, -30.0, -jnp.inf]])
  rows = selection._Rows(
    jnp.pad(logits, ((0, 0), (0, 3)), constant_values=-jnp.inf).reshape(1, 2, 4),
    jnp.zeros((1,)),
    jnp.ones(()),
  )
  pivot = jnp.full((1,), -jnp.inf)
  sums = selection._block_sums(rows, pivot)
  for uniform in (0.0, float(np.nextafter(np.float32(1), np.float32(0)))):
    token = selection._invert(rows, pivot, sums, jnp.full((1,), uniform))
    assert int(token[0]) in (1, 3)


def test_nan_settles_and_shows():
  choice = draws(np.array([0.0, np.nan, 1.0], np.float32), 4, top_p=0.5, top_k=2)
  assert np.isnan(np.asarray(choice.logprob)).all()


def test_greedy_takes_the_first_of_equals_and_its_logprob():
  logits = np.array([[1.0, 3.0, 3.0], [0.0, -1.0, -np.inf]], np.float32)
  choice = selection.greedy(jnp.asarray(logits))
  np.testing.assert_array_equal(choice.token, [1, 0])
  wide = logits.astype(np.float64)
  expected = wide.max(1) - np.log(np.exp(wide).sum(1))
  np.testing.assert_allclose(choice.logprob, expected, atol=1e-6)
