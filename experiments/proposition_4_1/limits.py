"""Proposition 4.1 of Lin et al. 2024 (arXiv 2309.06256), appendix E: its formulas, and those that hold.

A class y shows in feature i as class Q_i(y): y itself with probability 1 - p, else one of M classes at random. A model
learnt n features; the score of class k is Σ_i c_i 1{Q_i(y) = k}, and how two models are combined is in the
coefficients c_i alone (`coefficients`). With y the right class and k another, the margin of one feature,
1{Q_i = y} - 1{Q_i = k}, has

* mean 1 - p, since P(Q_i = y) = 1 - p + p/M and P(Q_i = k) = p/M;
* variance (1 - p + 2p/M) - (1 - p)² = p(M + 2 - pM)/M;
* covariance with the margin over a third class (1 - p + p/M) - (1 - p)² = p(M + 1 - pM)/M.

A sum of many of them, divided by √Σc², is normal with the mean x = (1 - p) Σc / √Σc² and that covariance (the central
limit theorem); the accuracy is the probability that all K - 1 margins are positive, F_p(x) (`accuracy_limit`).

Leaves out what finitely many features do to it (`counts`). Features outside the K classes of the task (M > K) are the
authors' definition E.1 to the letter; their formulas have M = K.
"""

import math

import numpy as np
import scipy.stats

from wam.core.errors import ConfigError, unknown_name

# How a model of task a is made of two: the model itself; the mean of the predictions; the mean of the weights, where
# both tasks have the same labels (case 1) and where they share none (case 2). The ensemble of case 2 is the single
# model on either task, since the other one gives its classes a score of 0.
METHODS = ("single", "ensemble", "average", "average, other labels")
_NODES = 200


def coefficients(method: str, n: int, overlap: int) -> tuple[tuple[int, int], ...]:
  """What each feature counts in the scores of task a: (coefficient, number of features) of each kind.

  A model is w(k) = Σ_i Φ_i μ_i(k) over its n features, with orthonormal μ; f(x) = wᵀ(x Φ). Shared features come first.

  * single: 1 for each of its features.
  * ensemble, (f_a + f_b)/2: 2 where both models have the feature, 1 where one has.
  * average, (w_a + w_b)ᵀ x(Φ_a + Φ_b)/4 (definition E.2): the same factors once from w and once from Φ, so 4 and 1.
  * average, other labels: w_b is 0 for the classes of task a, so that of w a shared feature gets 1 and of Φ 2; one that
    only model b has gets 0.

  Args:
    method: one of `METHODS`.
    n: features of each model.
    overlap: how many of them both have, n_o in the paper.

  Raises:
    ConfigError: unless 0 <= overlap <= n and n >= 1; UnknownName: if there is no such method.
  """
  if n < 1 or not 0 <= overlap <= n:
    raise ConfigError(f"overlap: expected 0 to n = {n} >= 1, found {overlap}")
  own = n - overlap
  kinds = {
    "single": ((1, overlap), (1, own)),
    "ensemble": ((2, overlap), (1, 2 * own)),
    "average": ((4, overlap), (1, 2 * own)),
    "average, other labels": ((2, overlap), (1, own)),
  }
  if method not in kinds:
    raise unknown_name("method", method, METHODS)
  return kinds[method]


def argument(method: str, n: int, overlap: int, p: float) -> float:
  """x = (1 - p) Σc / √Σc²: what F_p is taken of.

  With r = n_o / n: single (1-p)√n; ensemble √2(1-p)n/√(n+n_o), which is what the paper prints for averaging; average
  √2(1-p)(n+n_o)/√(n+7n_o); average, other labels (1-p)(n+n_o)/√(n+3n_o).
  """
  kinds = coefficients(method, n, overlap)
  total = sum(c * count for c, count in kinds)
  return (1 - p) * total / math.sqrt(sum(c * c * count for c, count in kinds))


def covariance(p: float, num_classes: int, outside: int = 0) -> tuple[float, float]:
  """Variance of a feature's margin, and covariance of two of them; `outside`: M - K, classes of no task at hand."""
  M = num_classes + outside
  return p * (M + 2 - p * M) / M, p * (M + 1 - p * M) / M


def accuracy_limit(x: float, p: float, num_classes: int, outside: int = 0) -> float:
  """F_p(x) = P(all K - 1 margins > 0), the margins normal with mean x and `covariance`.

  Equal covariances are one common factor: margin_k = x + √c Z + √(v - c) ε_k with the variance v and the covariance c,
  v - c = p/M, so that F_p(x) = E_Z[Φ((x + √c Z) / √(v - c))^(K-1)]: one integral over Z, by Gauss and Hermite.

  Args:
    x: the mean of a margin.
    p: how often a feature fails, in (0, 1].
    num_classes: K, at least 2.
    outside: M - K.

  Raises:
    ConfigError: if p or the number of classes is out of range.
  """
  check(p, num_classes, outside)
  variance, shared = covariance(p, num_classes, outside)
  nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
  z = (x + math.sqrt(shared) * nodes) / math.sqrt(variance - shared)
  values = scipy.stats.norm.cdf(z) ** (num_classes - 1)
  return float(weights @ values / math.sqrt(2 * math.pi))


def limit(method: str, n: int, overlap: int, p: float, num_classes: int, outside: int = 0) -> float:
  """The accuracy on task a as the central limit theorem has it."""
  return accuracy_limit(argument(method, n, overlap, p), p, num_classes, outside)


def printed(n: int, overlap: int, p: float, num_classes: int) -> float:
  """ξ⁽¹⁾ - ξ⁽²⁾ as Proposition 4.1 prints it: F_p(√2(1-p)n/√(n+n_o)) - F_p((1-p)√n)."""
  together = math.sqrt(2) * (1 - p) * n / math.sqrt(n + overlap)
  alone = (1 - p) * math.sqrt(n)
  return accuracy_limit(together, p, num_classes) - accuracy_limit(alone, p, num_classes)


def check(p: float, num_classes: int, outside: int = 0) -> None:
  """Refuses settings that mean nothing."""
  if not 0 < p <= 1:
    raise ConfigError(f"p: expected a probability above 0, found {p} (at p = 0 nothing ever fails)")
  if num_classes < 2 or outside < 0:
    raise ConfigError(
      f"expected at least 2 classes and 0 outside of them, found {num_classes} and {outside}"
    )
