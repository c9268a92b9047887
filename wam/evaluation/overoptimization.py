"""How a gold score rises and falls with the distance from the initial policy: the fits of Gao et al.

With d = √KL, in √nats, and R the gain of the gold score over that of the initial policy (so R(0) = 0):

  best_of_n:  R(d) = d·(α - β·d),      highest at α/(2β), where it is α²/(4β);
  rl:         R(d) = d·(α - β·log d),  highest at exp(α/β - 1), where it is β·exp(α/β - 1)

(Gao, Schulman & Hilton 2023, arXiv 2210.10760, section 3.1). Both are linear in α and β, so the fits are exact least
squares. A β that is not positive means that no over-optimisation is seen. A peak beyond the furthest point measured is
an extrapolation: compare `Fit.peak_distance` with `Fit.furthest`.

NumPy only. Leaves out the measurements themselves: `best_of_n_curves.py`, `divergence.py`.
"""

from typing import NamedTuple

import numpy as np

from wam.core.errors import BadData, NonFinite, check_same_shape, unknown_name
from wam.evaluation.statistics import Interval, check_level, percentile_interval, resampling_counts

FORMS = ("best_of_n", "rl")


class Fit(NamedTuple):
  """A fitted form. The peak is that of the fitted curve at d >= 0; infinite where the curve never falls for good.

  Attributes:
    form: one of FORMS.
    alpha: α, the gain per √nat (rl: at d = 1).
    beta: β.
    peak_distance: d*.
    peak_gain: R(d*).
    r_squared: 1 - Σ residuals² / Σ (R - mean R)²; at most 1, negative where the mean of R would do better, NaN where R
      does not vary.
    furthest: the largest distance measured.
    num_points: points fitted.
  """

  form: str
  alpha: Interval
  beta: Interval
  peak_distance: Interval
  peak_gain: Interval
  r_squared: float
  furthest: float
  num_points: int


def distances(kl: np.ndarray) -> np.ndarray:
  """√KL, any shape; KL in nats.

  Raises:
    BadData: if a KL is negative, as estimates from few samples can be (`losses.policy.k3` cannot).
    NonFinite: if a KL is NaN or infinite.
  """
  values = np.asarray(kl, np.float64)
  _check_finite("kl", values)
  if (values < 0).any():
    raise BadData(
      f"kl: {int((values < 0).sum())} of {values.size} are negative, the lowest {values.min()}; use an estimator"
      " that cannot be, or leave these points out"
    )
  return np.sqrt(values)


def predict(
  form: str, alpha: np.ndarray | float, beta: np.ndarray | float, distance: np.ndarray
) -> np.ndarray:
  """R(d) of a form: distances [...] of at least 0 -> gains [...], 0 at d = 0.

  Raises:
    UnknownName: if there is no such form.
  """
  terms = _terms(form, np.asarray(distance, np.float64))
  return np.asarray(alpha * terms[..., 0] + beta * terms[..., 1])


def peak(
  form: str, alpha: np.ndarray | float, beta: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
  """Where R(d) is highest over d >= 0, and how high: d* [...] and R(d*) [...], for α and β [...].

  Both are infinite where R grows without end (β < 0, or β = 0 < α), and 0 where it only falls.

  Raises:
    UnknownName: if there is no such form.
  """
  a, b = np.broadcast_arrays(np.asarray(alpha, np.float64), np.asarray(beta, np.float64))
  falls = b > 0
  safe = np.where(falls, b, 1.0)
  with np.errstate(over="ignore"):  # a tiny β puts the peak out of reach
    if form == "best_of_n":
      place = np.maximum(a, 0) / (2 * safe)
      height = np.maximum(a, 0) * place / 2
    elif form == "rl":
      place = np.exp(a / safe - 1)
      height = safe * place
    else:
      raise unknown_name("form of over-optimisation", form, FORMS)
  endless = np.where((b == 0) & (a <= 0), 0.0, np.inf)
  return np.where(falls, place, endless), np.where(falls, height, endless)


def fit(
  distance: np.ndarray,
  score: np.ndarray,
  *,
  form: str,
  start: np.ndarray | float,
  level: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> Fit:
  """Fits a form by least squares, with percentile intervals by resampling points, or seeds.

  Points [K] are resampled one by one, as if they were independent, which points of one curve are not: its intervals are
  of the fit, not of a new run. Points [S, K] of S seeds are fitted together, and whole seeds are resampled; of fewer
  than five seeds such intervals are too narrow. Resamples without two different distances fix no curve and are drawn
  anew.

  Args:
    distance: √KL, [K], or [S, K] with one row a seed (one row [K] serves seeds that share it).
    score: gold scores at these distances, [K] or [S, K].
    form: one of FORMS.
    start: the score of the initial policy, which is subtracted; a number, or one a seed, [S]. 0 if scores are gains.
    level: of confidence.
    num_resamples: bootstrap samples.
    seed: of the resampling.

  Raises:
    UnknownName: if there is no such form.
    NonFinite: if a distance or a score is NaN or infinite.
    BadData: if a distance is negative, fewer than three different ones are above 0, or there is one seed only.
    ConfigError: if the level is not between 0 and 1.
  """
  check_level(level)
  d, gains = _units(distance, score, start)
  terms = _terms(form, d)
  alpha, beta = np.linalg.lstsq(terms.reshape(-1, 2), gains.reshape(-1))[0]
  residuals = gains - terms @ np.asarray([alpha, beta])
  spread = np.sum(np.square(gains - gains.mean()))
  drawn = _refits(d, terms, gains, num_resamples, np.random.default_rng(seed))
  place, height = peak(form, alpha, beta)
  places, heights = peak(form, *drawn)
  return Fit(
    form,
    percentile_interval(alpha, drawn[0], level),
    percentile_interval(beta, drawn[1], level),
    _interval_with_infinities(float(place), places, level),
    _interval_with_infinities(float(height), heights, level),
    float(1 - np.sum(np.square(residuals)) / spread) if spread > 0 else float("nan"),
    float(d.max()),
    d.size,
  )


def _terms(form: str, d: np.ndarray) -> np.ndarray:
  """What α and β are multiplied by: [..., 2]."""
  if form == "best_of_n":
    return np.stack([d, -np.square(d)], axis=-1)
  if form == "rl":
    # d·log d tends to 0 at 0.
    return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=-1)
  raise unknown_name("form of over-optimisation", form, FORMS)


def _units(
  distance: np.ndarray, score: np.ndarray, start: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
  """Distances and gains by unit of resampling: [U, points of a unit], after all checks."""
  scores, origin = np.asarray(score, np.float64), np.asarray(start, np.float64)
  if scores.ndim == 2 and len(scores) < 2:
    raise BadData("over-optimisation: seeds are resampled, found 1; give one seed's points as [K]")
  if scores.ndim not in (1, 2) or origin.ndim > scores.ndim - 1:
    raise ValueError(
      f"over-optimisation: expected scores [K] or [S, K] and a start [] or [S], found shapes"
      f" {scores.shape} and {origin.shape}"
    )
  d = np.asarray(distance, np.float64)
  if scores.ndim == 2 and d.shape == scores.shape[1:]:
    d = np.broadcast_to(d, scores.shape)
  check_same_shape(distance=d, score=scores)
  for name, values in (("distance", d), ("score", scores), ("start", origin)):
    _check_finite(name, values)
  if (d < 0).any():
    raise BadData(f"distance: found {d.min()}; a distance √KL is at least 0")
  if len(np.unique(_rounded(d[d > 0]))) < 3:
    raise BadData(
      "over-optimisation: a fit of two coefficients needs at least 3 different distances above 0,"
      f" found {np.unique(d).tolist()}"
    )
  gains = scores - (origin[:, None] if origin.ndim else origin)
  return (d[:, None], gains[:, None]) if d.ndim == 1 else (d, gains)


def _refits(
  d: np.ndarray,
  terms: np.ndarray,
  gains: np.ndarray,
  num_resamples: int,
  generator: np.random.Generator,
) -> np.ndarray:
  """α and β of resamples of units: [2, B]. d, gains [U, points], terms [U, points, 2]."""
  rounded = _rounded(d)
  holds = np.stack([(rounded == x).any(axis=1) for x in np.unique(rounded[rounded > 0])], axis=1)
  counts = np.zeros((0, len(d)))
  while len(counts) < num_resamples:
    more = resampling_counts(generator, len(d), num_resamples)
    enough = ((more @ holds) > 0).sum(axis=1) >= 2
    counts = np.concatenate([counts, more[enough]])
  counts = counts[:num_resamples]
  squares = np.einsum("b u, u k i, u k j -> b i j", counts, terms, terms, optimize=True)
  products = np.einsum("b u, u k i, u k -> b i", counts, terms, gains, optimize=True)
  return np.asarray(np.linalg.solve(squares, products[..., None])[..., 0].T)


def _rounded(d: np.ndarray) -> np.ndarray:
  """Distances that differ by rounding only are made equal."""
  return np.round(d / d.max(), 9) if d.size and d.max() > 0 else d


def _interval_with_infinities(value: float, replicates: np.ndarray, level: float) -> Interval:
  """As `percentile_interval`, without interpolation, which infinities do not survive."""
  ordered = np.sort(replicates)
  last = len(ordered) - 1
  low, high = int((1 - level) / 2 * last), int(np.ceil((1 + level) / 2 * last))
  return Interval(value, float(ordered[low]), float(ordered[high]), level)


def _check_finite(name: str, values: np.ndarray) -> None:
  bad = int((~np.isfinite(values)).sum())
  if bad:
    raise NonFinite(f"{name}: {bad} of {values.size} points are NaN or infinite")
