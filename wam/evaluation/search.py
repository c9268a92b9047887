"""A search over the ratios of K parts for the front of several objectives, such as reward and tax, by Optuna.

For those who can afford to evaluate: every point is a model that is merged and measured. Needs the extra `search`
(pip install 'wam[search]'). Leaves out the evaluation itself, and searches by gradient (wam/algorithms).
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from wam.core.errors import BadData, ConfigError, unknown_name
from wam.evaluation import pareto
from wam.merging import ratios

# Ratios [K] float64 -> objectives [R], each the better the higher.
Evaluate = Callable[[np.ndarray], Sequence[float] | np.ndarray]
METHODS = ("tpe", "nsga2")
# Vanilla averaging, which a search starts from: it cannot end behind it.
EQUAL_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class FrontSearch:
  """What was evaluated, in order.

  Attributes:
    ratios: [N, K] float64, every point once.
    objectives: [N, R] float64.
    front: [F] int, the rows that no other dominates, by rising first objective.
  """

  ratios: np.ndarray
  objectives: np.ndarray
  front: np.ndarray


def search_front(
  evaluate: Evaluate,
  num_parts: int,
  *,
  num_evaluations: int,
  alpha: float | None = None,
  low: float = 0.0,
  high: float = 1.0,
  method: str = "tpe",
  population: int = 20,
  starts: np.ndarray | None = None,
  seen: FrontSearch | None = None,
  on_point: Callable[[FrontSearch], None] | None = None,
  seed: int = 0,
) -> FrontSearch:
  """Evaluates ratios that a multi-objective search proposes; the same points for the same seed and objectives.

  Args:
    evaluate: ratios [K] float64 -> R objectives, each maximised: negate a tax or a KL.
    num_parts: K.
    num_evaluations: how often `evaluate` is called, at most; points that come up again are not evaluated again.
    alpha: the mean that all ratios have; None: any ratios.
    low, high: bounds of every ratio.
    method: "tpe" (Parzen estimators; Ozaki et al. 2022) or "nsga2" (Deb et al. 2002). With the 40 to 160
      evaluations that models can be given, on a smooth front of two objectives and K = 3, "tpe" was ahead.
    population: of a generation of NSGA-II; for "tpe" the points that are drawn at random first.
    starts: [S, K], evaluated first. Default: equal ratios of 0, 0.25, ... 1; with `alpha` equal ratios and the corners
      of the set, as many as fit into a population.
    seen: what an interrupted search of the same seed had evaluated: its values are taken in place of `evaluate`.
    on_point: called after every evaluation with all that there is so far, to save it.
    seed: of the search.

  Raises:
    ConfigError: if Optuna is not installed, or a number is out of range. UnknownName: if there is no such method.
    BadData: if objectives are NaN, or not always of one number; names the ratios.
  """
  if method not in METHODS:
    raise unknown_name("search method", method, METHODS)
  if num_evaluations < 1 or num_parts < 1 or population < 2:
    raise ConfigError(
      "expected num_evaluations and num_parts from 1 and a population from 2, found"
      f" {num_evaluations}, {num_parts} and {population}"
    )
  if not low < high or (alpha is not None and not low <= alpha <= high):
    raise ConfigError(f"expected low < high and alpha between them, found {low}, {high}, {alpha}")
  optuna = _optuna()
  archive = _Archive(evaluate, seen, on_point)
  names = [f"ratio {k}" for k in range(num_parts)]
  space = {name: optuna.distributions.FloatDistribution(low, high) for name in names}

  def point(values: Sequence[float] | np.ndarray) -> np.ndarray:
    if alpha is None:
      return np.round(np.asarray(values, np.float64), 6)
    inside = ratios.projection(jnp.asarray(values, jnp.float32), alpha, low=low, high=high)
    return np.round(np.asarray(inside, np.float64), 6)

  first = _starts(num_parts, alpha, low, high, population) if starts is None else starts
  queue = iter([np.asarray(row, np.float64) for row in first])
  first_row = next(queue, np.full(num_parts, (low + high) / 2 if alpha is None else alpha))
  num_objectives = len(archive(point(first_row)))
  with _quiet(optuna):
    study = optuna.create_study(
      directions=["maximize"] * num_objectives,
      sampler=_sampler(optuna, method, seed=seed, population=population),
    )
    for row in itertools.chain([first_row], queue):
      study.enqueue_trial(dict(zip(names, row.tolist(), strict=True)))
    # Points that come up again cost nothing, but a search of nothing else has to end.
    for _ in range(20 * num_evaluations):
      trial = study.ask(space)
      proposed = point([trial.params[name] for name in names])
      if len(archive) >= num_evaluations and not archive.knows(proposed):
        break
      study.tell(trial, archive(proposed).tolist())
  return archive.result()


def _starts(
  num_parts: int, alpha: float | None, low: float, high: float, population: int
) -> list[np.ndarray]:
  """The first points."""
  if alpha is None:
    return [np.full(num_parts, low + (high - low) * share) for share in EQUAL_RATIOS]
  corners = ratios.corners(num_parts, alpha, low=low, high=high) if num_parts <= 6 else []
  return [np.full(num_parts, alpha), *corners[: population - 1]]


def _sampler(optuna: Any, method: str, *, seed: int, population: int) -> Any:
  if method == "tpe":
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=population)
  return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)


class _Archive:
  """Every point once, with its objectives."""

  def __init__(
    self,
    evaluate: Evaluate,
    seen: FrontSearch | None,
    on_point: Callable[[FrontSearch], None] | None,
  ):
    self._evaluate, self._on_point = evaluate, on_point
    self._before = (
      {} if seen is None else dict(zip(map(_key, seen.ratios), seen.objectives, strict=True))
    )
    self._found: dict[tuple[float, ...], np.ndarray] = {}

  def __len__(self) -> int:
    return len(self._found)

  def knows(self, point: np.ndarray) -> bool:
    return _key(point) in self._found

  def __call__(self, point: np.ndarray) -> np.ndarray:
    key = _key(point)
    if key in self._found:
      return self._found[key]
    new = key not in self._before
    values = np.asarray(self._evaluate(point) if new else self._before[key], np.float64)
    expected = next(iter(self._found.values()), values).shape
    if values.ndim != 1 or values.shape != expected or not len(values):
      raise BadData(
        f"evaluate must return the same objectives for all ratios, found shape {values.shape} at"
        f" {point.tolist()} and {expected} before"
      )
    if not np.isfinite(values).all():
      raise BadData(f"evaluate returned {values.tolist()} at the ratios {point.tolist()}")
    self._found[key] = values
    if new and self._on_point is not None:
      self._on_point(self.result())
    return values

  def result(self) -> FrontSearch:
    objectives = np.array(list(self._found.values()))
    return FrontSearch(np.array(list(self._found)), objectives, pareto.front(objectives))


def _key(point: np.ndarray) -> tuple[float, ...]:
  return tuple(np.round(point, 6).tolist())


def _optuna() -> Any:
  try:
    import optuna
  except ImportError as error:
    raise ConfigError(
      "the search for a front needs the package optuna, which is not installed: pip install 'wam[search]'"
    ) from error
  return optuna


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
  """Optuna writes a line a trial to standard error otherwise."""
  before = optuna.logging.get_verbosity()
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  try:
    yield
  finally:
    optuna.logging.set_verbosity(before)
