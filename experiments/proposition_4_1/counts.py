"""The accuracy with finitely many features: by simulation, and exactly by counting.

Per feature only the class that it shows matters (definition E.1 with σ -> 0), so that a draw is three multinomials:
how many of the shared features, of those of model a alone and of model b alone show each class. In the noise-free
limit equal scores are a draw by lot: the noise of the scores is independent between classes and of equal size, as the
μ are orthonormal. `limits` has what the coefficients are and what happens with many features.
"""

import numpy as np
import scipy.signal
from scipy.special import gammaln

from experiments.proposition_4_1 import limits


def shares(p: float, num_classes: int, outside: int = 0) -> np.ndarray:
  """Probabilities of what a feature shows: the right class, the K - 1 others, and (if any) outside: [K (+1)]."""
  limits.check(p, num_classes, outside)
  M = num_classes + outside
  found = [1 - p + p / M] + [p / M] * (num_classes - 1) + ([p * outside / M] if outside else [])
  return np.array(found)


def simulate(
  generator: np.random.Generator,
  num_draws: int,
  *,
  n: int,
  overlap: int,
  p: float,
  num_classes: int,
  outside: int = 0,
) -> dict[str, float]:
  """The accuracy of every method on task a over the same draws.

  Args:
    generator: where the draws come from.
    num_draws: samples of the right class; Q is drawn anew for each, which changes no expectation.
    n, overlap: features of a model, and how many of them both models have.
    p: how often a feature fails.
    num_classes, outside: K, and M - K.

  Returns:
    By method of `limits.METHODS`.
  """
  q = shares(p, num_classes, outside)
  kinds = [
    generator.multinomial(size, q, size=num_draws) for size in (overlap, n - overlap, n - overlap)
  ]
  both, only_a, only_b = (found[:, :num_classes] for found in kinds)
  scores = {
    "single": both + only_a,
    "ensemble": 2 * both + only_a + only_b,
    "average": 4 * both + only_a + only_b,
    "average, other labels": 2 * both + only_a,
  }
  return {method: _accuracy(found) for method, found in scores.items()}


def _accuracy(scores: np.ndarray) -> float:
  """How often class 0 wins [S, K]; a tie of m counts 1/m."""
  best = scores.max(axis=1)
  tied = (scores == best[:, None]).sum(axis=1)
  return float(np.mean((scores[:, 0] == best) / tied))


def exact(
  method: str, *, n: int, overlap: int, p: float, num_classes: int, outside: int = 0
) -> float:
  """The accuracy of a method on task a, to rounding.

  Let class k show in i shared and j other features, with score s = c₁i + c₂j. Independent Poisson counts, conditioned
  on their totals, are the multinomial: so the probability of a score of the right class and none higher elsewhere is a
  coefficient of a product of polynomials in two variables, one factor a class. Ties: with G for "below s" and E for
  "equal to s", Σ_m C(K-1, m) G^(K-1-m) E^m / (m+1) = ∫₀¹ (G + uE)^(K-1) du, which Gauss and Legendre's rule with
  ⌈K/2⌉ nodes gives exactly.

  Args:
    method: one of `limits.METHODS`.
    n, overlap, p, num_classes, outside: as for `simulate`.
  """
  (first, rows), (second, columns) = _kinds(method, n, overlap)
  q = shares(p, num_classes, outside)
  size = (rows + 1, columns + 1)
  scores = first * np.arange(rows + 1)[:, None] + second * np.arange(columns + 1)[None, :]
  right, other = (_poisson(size, rows * share, columns * share) for share in (q[0], q[1]))
  rest = _poisson(size, rows * q[-1], columns * q[-1]) if outside else None
  nodes, weights = np.polynomial.legendre.leggauss(-(-num_classes // 2))
  total = 0.0
  for s in np.unique(scores):
    wins = np.where(scores == s, right, 0.0)
    if rest is not None:
      wins = _product(wins, rest)
    below, equal = np.where(scores < s, other, 0.0), np.where(scores == s, other, 0.0)
    for node, weight in zip(nodes, weights, strict=True):
      others = _power(below + (node + 1) / 2 * equal, num_classes - 1)
      # The last coefficient of the product: all features are spoken for.
      total += weight / 2 * float(np.sum(wins * others[::-1, ::-1]))
  whole = _poisson(size, float(rows), float(columns))[-1, -1]
  return total / float(whole)


def _kinds(method: str, n: int, overlap: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """The two kinds of features; as one, which is faster, where they count the same or there is only one."""
  (first, rows), (second, columns) = limits.coefficients(method, n, overlap)
  if first == second or not columns:
    return (first, rows + columns), (second, 0)
  return ((second, columns), (second, 0)) if not rows else ((first, rows), (second, columns))


def _poisson(size: tuple[int, int], first: float, second: float) -> np.ndarray:
  """Probabilities of independent Poisson counts (i, j), i < size[0], j < size[1]."""
  tables = []
  for length, mean in zip(size, (first, second), strict=True):
    i = np.arange(length)
    # Without features of a kind (mean 0, length 1) its count is 0.
    tables.append(np.exp(i * np.log(mean) - mean - gammaln(i + 1)) if mean > 0 else np.ones(length))
  return tables[0][:, None] * tables[1][None, :]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Product of two polynomials, without the powers that are beyond the first one's size."""
  return scipy.signal.convolve(a, b)[: a.shape[0], : a.shape[1]]


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
  """base to a power of at least 0, truncated as `_product` does, by squaring."""
  result = np.zeros_like(base)
  result[0, 0] = 1.0
  while exponent:
    if exponent % 2:
      result = _product(result, base)
    base, exponent = _product(base, base), exponent // 2
  return result
