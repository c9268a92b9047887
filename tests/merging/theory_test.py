"""What papers prove about averages of weights, on models small enough to know the answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from wam.merging import averages


@pytest.mark.parametrize("M", [1, 2, 6, 40])
def test_averaged_weights_keep_features_by_the_square_of_their_probability(M):
  """WARM (arXiv 2401.12187, equations 4 and 5): a member learns a feature with probability p, in featuriser and head.

  Predictions of the ensemble keep it with weight p; averaged weights with p² + p(1 - p)/M, p² for many members.
  """
  p = np.array([0.1, 0.5, 0.9])
  draw = np.random.default_rng(M)
  runs = 4000
  learnt = (draw.random((M, runs, 3)) < p).astype(np.float32)
  members = [{"features": jnp.asarray(x), "head": jnp.asarray(x)} for x in learnt]
  averaged = averages.uniform_mean(members)
  kept = np.asarray(averaged["features"] * averaged["head"])
  together = np.mean([m["features"] * m["head"] for m in members], axis=0)
  error = 4 / np.sqrt(runs)  # four standard errors at most
  np.testing.assert_allclose(together.mean(axis=0), p, atol=error / np.sqrt(M))
  np.testing.assert_allclose(kept.mean(axis=0), p**2 + p * (1 - p) / M, atol=error)


def quadratic(weights, best, hessian):
  return -np.sum(hessian * (weights - best) ** 2)


def test_soups_are_optimal_where_hessians_are_proportional():
  """Rewarded Soups (arXiv 2306.04488): (1 - μ)R_1 + μR_2 is best on the line, at λ = μη_2/((1 - μ)η_1 + μη_2)."""
  draw = np.random.default_rng(0)
  hessian = draw.uniform(0.1, 3, 5)
  first, second = draw.standard_normal((2, 5))
  eta = 1.0, 4.0
  for mu in (0.1, 0.5, 0.8):
    h = (1 - mu) * eta[0] * hessian, mu * eta[1] * hessian
    optimum = (h[0] * first + h[1] * second) / (h[0] + h[1])
    coefficient = mu * eta[1] / ((1 - mu) * eta[0] + mu * eta[1])
    soup = averages.lerp({"w": jnp.asarray(first)}, {"w": jnp.asarray(second)}, coefficient)
    np.testing.assert_allclose(soup["w"], optimum, rtol=1e-5, atol=1e-6)


def test_soups_lose_no_more_than_the_bound_where_hessians_differ():
  """The bound for diagonal Hessians whose eigenvalues differ by a factor of M at most, for the best λ of the line."""
  draw = np.random.default_rng(1)
  grid = np.linspace(0, 1, 501)
  tight = 0.0
  for _ in range(200):
    ratio = draw.uniform(1.2, 5)
    hessians = draw.uniform(1, ratio, (2, 3))
    first, second = draw.standard_normal((2, 3))
    mu = draw.uniform(0.05, 0.95)
    h = (1 - mu) * hessians[0], mu * hessians[1]
    optimum = (h[0] * first + h[1] * second) / (h[0] + h[1])

    def mixed(w, mu=mu, hessians=hessians, ends=(first, second)):
      return (1 - mu) * quadratic(w, ends[0], hessians[0]) + mu * quadratic(w, ends[1], hessians[1])

    gap = mixed(optimum) - max(mixed((1 - t) * first + t * second) for t in grid)
    worst = [-quadratic(second, first, hessians[0]), -quadratic(first, second, hessians[1])]
    top = mu**2 * (1 - mu) ** 2 * (ratio * worst[0] - worst[1]) * (ratio * worst[1] - worst[0])
    bottom = mu * (1 - mu) * (ratio - 1) ** 2 + ratio
    bound = top / (bottom * ((1 - mu) * worst[0] + mu * worst[1]))
    assert -1e-4 <= gap <= bound + 1e-4
    tight = max(tight, gap / bound)
  assert tight > 0.1  # the bound is of the size of the gap
