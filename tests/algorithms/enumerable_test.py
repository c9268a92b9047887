"""The exact test-bed itself: it must be right before anything is compared with it."""

import jax
import numpy as np
import pytest

from tests.algorithms import enumerable
from wam.generation.sampling import generate


def test_all_completions_are_there_once():
  tokens, mask = enumerable.completions()
  assert tokens.shape == mask.shape == (40, 3)
  texts = {tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)}
  assert len(texts) == 40
  for text in texts:
    assert 0 not in text[:-1]
    assert text[-1] == 0 or len(text) == 3
  assert np.array_equal(enumerable.index_of(tokens, mask), np.arange(40))
  # 1 + 3 + 9 end; 27 are cut.
  assert enumerable.rollout().finished.sum() == 13


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_probabilities_sum_to_1(temperature):
  for seed in range(3):
    decoder = enumerable.logprobs(enumerable.params(seed), temperature=temperature)
    table = enumerable.logprobs(
      enumerable.TABLE.init(seed), model=enumerable.TABLE, temperature=temperature
    )
    for found in (decoder, table):
      assert np.exp(np.asarray(found, np.float64)).sum() == pytest.approx(1, abs=1e-6)
      assert np.ptp(np.asarray(found)) > 2  # far from uniform


def test_objective_by_its_definition():
  values, beta = enumerable.rewards(0), 0.3
  policy, reference = enumerable.params(1), enumerable.params(2)
  p, q = (np.exp(np.asarray(enumerable.logprobs(w), np.float64)) for w in (policy, reference))
  expected = (p * values).sum() - beta * (p * np.log(p / q)).sum()
  found = float(enumerable.objective(policy, reference, values, beta))
  assert found == pytest.approx(expected, abs=1e-6)
  logs = np.log(p), np.log(q)
  assert enumerable.value_of(*logs, values, beta) == pytest.approx(expected, abs=1e-6)


def test_optimum_is_above_every_other_policy():
  values, beta = enumerable.rewards(0), 0.3
  reference = np.asarray(enumerable.logprobs(enumerable.params(0)), np.float64)
  best = enumerable.optimum(reference, values, beta)
  assert np.exp(best).sum() == pytest.approx(1)
  # The maximum is known: β log Z.
  height = enumerable.value_of(best, reference, values, beta)
  assert height == pytest.approx(beta * np.log(np.exp(reference + values / beta).sum()), abs=1e-6)
  draw = np.random.default_rng(0)
  others = [reference, *(np.log(draw.dirichlet(np.full(40, a))) for a in (0.3, 1, 3, 10, 100))]
  others += [np.log(0.99 * np.exp(best) + 0.01 * np.exp(other)) for other in others]
  for other in others:
    assert enumerable.value_of(other, reference, values, beta) < height - 1e-6


@pytest.mark.parametrize("model", [enumerable.MODEL, enumerable.TABLE], ids=["decoder", "table"])
def test_gradient_by_finite_differences(model):
  values, beta = enumerable.rewards(3), 0.2
  is_table = model is enumerable.TABLE
  make = enumerable.TABLE.init if is_table else enumerable.params
  weights, reference = make(4), make(5)
  slope = enumerable.gradient(weights, reference, values, beta, model=model, temperature=0.8)
  height = jax.jit(
    lambda w: enumerable.objective(w, reference, values, beta, model=model, temperature=0.8)
  )
  draw = np.random.default_rng(0)
  for _ in range(3):
    direction = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), weights)

    def difference(step, direction=direction):
      ends = [jax.tree.map(lambda x, d: x + s * d, weights, direction) for s in (step, -step)]  # noqa: B023
      return (float(height(ends[0])) - float(height(ends[1]))) / (2 * step)

    # Richardson's extrapolation: a direction has a length of about 25, so third derivatives show.
    found = (4 * difference(2e-3) - difference(4e-3)) / 3
    along = sum(
      float(np.sum(np.asarray(g, np.float64) * d))
      for g, d in zip(jax.tree.leaves(slope), jax.tree.leaves(direction), strict=True)
    )
    assert found == pytest.approx(along, abs=5e-4, rel=5e-4)


@pytest.mark.parametrize("model", [enumerable.MODEL, enumerable.TABLE], ids=["decoder", "table"])
def test_generation_samples_these_probabilities(model):
  """The frequencies of 40 000 samples lie within 5 standard errors; their log-probabilities are the exact ones."""
  is_table = model is enumerable.TABLE
  weights = (enumerable.TABLE.init if is_table else enumerable.params)(1)
  samples = generate(
    model, weights, *enumerable.prompts(1), jax.random.key(0), num_samples=40_000, temperature=0.9,
    **enumerable.SAMPLING,
  )  # fmt: skip
  index = enumerable.index_of(np.asarray(samples.completions), np.asarray(samples.completion_mask))
  exact = np.asarray(enumerable.logprobs(weights, model=model, temperature=0.9), np.float64)
  np.testing.assert_allclose(np.asarray(samples.logprobs).sum(1), exact[index], atol=1e-5)
  p = np.exp(exact)
  frequencies = np.bincount(index, minlength=40) / len(index)
  assert (abs(frequencies - p) < 5 * np.sqrt(p * (1 - p) / len(index)) + 1e-4).all()
