"""Log-probabilities of completions, against exact ones and a slow twin."""

import jax
import numpy as np
import pytest
import scipy.special

from tests.algorithms import enumerable
from wam.core.errors import BadData, ConfigError
from wam.generation import preconditions, scoring
from wam.generation.rollouts import Rollout

EVERY = enumerable.rollout()


def padded(rollout: Rollout, width: int) -> Rollout:
  """The same with prompts padded on the left by something that is no padding id."""
  filling = np.full((len(rollout.finished), width), 3, np.int32)
  return rollout._replace(
    prompt_tokens=np.concatenate([filling, rollout.prompt_tokens], axis=1),
    prompt_mask=np.concatenate([filling == 0, rollout.prompt_mask], axis=1),
  )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_against_exact_probabilities(temperature):
  """Also in pieces, and with padding; the KL summed along completions is the KL of completions in expectation."""
  params, other = enumerable.params(1), enumerable.params(2)
  p, q = (
    np.asarray(enumerable.logprobs(w, temperature=temperature), np.float64) for w in (params, other)
  )
  for rollout, rows in ((EVERY, None), (padded(EVERY, 2), 12), (EVERY, 64)):
    found = scoring.compare(
      enumerable.MODEL, params, {"other": other, "same": params}, rollout, temperature=temperature,
      rows_per_call=rows,
    )  # fmt: skip
    np.testing.assert_allclose(found.logprobs.sum(1), p, atol=1e-5)
    np.testing.assert_allclose(found.log_ratio("other"), p - q, atol=1e-5)
    assert not found.log_ratio("same").any()
    assert not any(x[~EVERY.completion_mask].any() for x in (found.logprobs, found.kl["other"]))
    np.testing.assert_allclose(found.kl["same"], 0, atol=1e-6)
    exact = np.exp(p) @ (p - q)
    assert np.exp(p) @ found.kl["other"].sum(1) == pytest.approx(exact, abs=1e-5)


def test_kl_of_each_token_by_a_slow_twin():
  params, other = enumerable.TABLE.init(1), enumerable.TABLE.init(2)
  found = scoring.compare(enumerable.TABLE, params, {"other": other}, EVERY, temperature=0.5)
  tables = [
    np.asarray(w["layers"]["0"]["head"]["kernel"], np.float64) / 0.5 for w in (params, other)
  ]
  p, q = (scipy.special.softmax(t, axis=1) for t in tables)
  expected = scipy.special.rel_entr(p, q).sum(1)
  # The empty prefix is row 0, "1" row 1, "1 2" row 5.
  row = enumerable.index_of(np.asarray([[1, 2, 3]]), np.ones((1, 3), bool))[0]
  np.testing.assert_allclose(found.kl["other"][row], expected[[0, 1, 5]], rtol=1e-4)


def test_logits_of_prompts_are_not_made():
  tokens, mask = padded(EVERY, 2).tokens, padded(EVERY, 2).mask
  found = jax.eval_shape(
    lambda p: scoring.completion_logits(enumerable.MODEL, p, tokens, mask, prompt=4),
    enumerable.params(0),
  )
  assert found.shape == (40, 4, 4)


def test_sampling_that_is_not_the_policys_is_refused():
  preconditions.check_sampling({"temperature": 0.9, "top_k": 0, "top_p": 1.0}, algorithm="x")
  preconditions.check_sampling({}, algorithm="x")
  for bad in ({"temperature": 0.0}, {"temperature": float("nan")}, {"top_k": 5}, {"top_p": 0.9}):
    with pytest.raises(ConfigError, match=f"x: sampling.{next(iter(bad))} is"):
      preconditions.check_sampling(bad, algorithm="x")


def test_prompts_that_cannot_be_continued_are_refused():
  """Real tokens count, not padding."""
  tokens = np.zeros((3, 3000), np.int32)
  mask = np.arange(3000) >= np.asarray([2990, 2900, 3000 - 2045])[:, None]
  check = lambda m: preconditions.check_context(  # noqa: E731
    enumerable.MODEL, (tokens, m), max_new_tokens=3, stage="ppo"
  )
  check(mask)
  mask[2, 954] = True
  with pytest.raises(ConfigError, match=r"ppo: the longest prompt \(2046 tokens\).* 2048 tokens"):
    check(mask)
  with pytest.raises(BadData, match="ppo: 1 of 3 prompts have no token, the first is number 0"):
    check(mask & (np.arange(3) > 0)[:, None])
