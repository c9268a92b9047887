import numpy as np
import pytest

from wam.core.errors import ConfigError
from wam.evaluation import tabular


def test_the_optimum_is_one_and_its_value_is_known():
  draw = np.random.default_rng(0)
  shares, rewards, beta = draw.dirichlet(np.ones(6)), draw.normal(size=6), 0.3
  weights = [s * np.exp(r / beta) for s, r in zip(shares, rewards, strict=True)]
  found = tabular.optimum(np.log(shares) + 7.0, rewards, kl_coef=beta)
  np.testing.assert_allclose(np.exp(found), np.array(weights) / sum(weights))
  best = tabular.value(found, np.log(shares), rewards, kl_coef=beta)
  assert best == pytest.approx(beta * np.log(sum(weights)))
  others = np.log(draw.dirichlet(np.ones(6), size=200))
  values = tabular.value(others, np.log(shares), rewards, kl_coef=beta)
  expected = [
    sum(p * (r - beta * np.log(p / s)) for p, s, r in zip(np.exp(o), shares, rewards, strict=True))
    for o in others[:3]
  ]
  np.testing.assert_allclose(values[:3], expected)
  assert values.shape == (200,) and (values < best).all()


def test_mixtures_of_rewards_are_products_of_policies():
  """π*_λ ∝ Π (π*_i)^{λ_i}: claim MOD-1."""
  draw = np.random.default_rng(1)
  reference, rewards = np.log(draw.dirichlet(np.ones(7))), draw.normal(size=(3, 7))
  single = tabular.optimum(reference, rewards, kl_coef=0.5)
  for weights in draw.dirichlet(np.ones(3), size=5):
    product = weights @ single
    product -= np.log(np.exp(product).sum())
    expected = tabular.optimum(reference, weights @ rewards, kl_coef=0.5)
    np.testing.assert_allclose(product, expected, atol=1e-12)


def test_answers_that_never_come():
  reference = np.array([0.0, 0.0, -np.inf])
  found = tabular.optimum(reference, np.array([1.0, 0.0, 50.0]), kl_coef=1.0)
  assert found[2] == -np.inf and np.exp(found).sum() == pytest.approx(1)
  assert np.isfinite(tabular.value(found, reference, np.ones(3), kl_coef=1.0))
  assert tabular.value(np.zeros(3), reference, np.ones(3), kl_coef=1.0) == -np.inf
  with pytest.raises(ConfigError, match="kl_coef: expected a number above 0"):
    tabular.optimum(reference, np.zeros(3), kl_coef=0.0)
