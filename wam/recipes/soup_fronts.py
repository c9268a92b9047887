"""What the points of a Rewarded Soups study say: fronts, linear mode connectivity, and λ for users.

From the records of soup_points.py, on the test split unless it says otherwise. Every objective is a reward, maximised,
on its declared scale. Leaves out figures (report).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wam.checkpoints import records
from wam.core.errors import ConfigError, unknown_name
from wam.evaluation import pareto, simplex
from wam.evaluation.statistics import check_level, percentile_interval
from wam.recipes import panels, soup_points
from wam.recipes.soup_models import INIT, MORL, SOUPS, name_of
from wam.training.workdir import Run

STAGE = "fronts"
STUDIES = ("fronts", "connectivity", "judges", "preferences")


@dataclasses.dataclass(frozen=True)
class Table:
  """The points of a split.

  Attributes:
    families: [P] of each point.
    lambdas: [P, R]; NaN for θ_0.
    rewards: [P, R], means over seeds and prompts.
    resampled: [B, P, R], bootstrap replicates; all points share the draws of seeds and prompts.
    items: [P, R, S, N], of S sampling seeds and N prompts.
    judged: [P, J, S, N], of rewards that nothing is trained on.
  """

  families: list[str]
  lambdas: np.ndarray
  rewards: np.ndarray
  resampled: np.ndarray
  items: np.ndarray
  judged: np.ndarray

  @property
  def trained(self) -> list[str]:
    """The families, in the order of their points; not θ_0."""
    return [name for name in dict.fromkeys(self.families) if name != INIT]

  @property
  def with_ends(self) -> list[str]:
    """The families that have all corners of the simplex."""
    return [f for f in self.trained if (self.lambdas[self.rows(f)] == 1).any(axis=0).all()]

  def rows(self, family: str) -> np.ndarray:
    """Indices of the points of a family."""
    return np.flatnonzero([name == family for name in self.families])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The section "fronts".

  Attributes:
    reference: the point that hypervolumes are taken above, by reward, on the scale of the rewards: as it is fixed,
      volumes compare between runs whose rewards are the same. None: the worst of all points of this run, in each
      reward, for which they do not.
    intervals: users are spread over the simplex in so many steps; see `simplex.preferences`.
    num_resamples: of the bootstrap.
    level: of confidence.
  """

  reference: Mapping[str, float] | None = None
  intervals: int = 20
  num_resamples: int = 500
  level: float = 0.95

  def __post_init__(self) -> None:
    """Raises ConfigError if a number cannot be."""
    check_level(self.level)
    for name in ("intervals", "num_resamples"):
      if getattr(self, name) < 1:
        raise ConfigError(f"fronts.{name}: expected at least 1, found {getattr(self, name)}")

  def check(self, names: Sequence[str]) -> None:
    """Raises WamError unless `reference` is None, or a finite number for each reward."""
    if self.reference is None:
      return
    for name in self.reference:
      if name not in names:
        raise unknown_name("reward in fronts.reference", name, names)
    bad = [n for n in names if not np.isfinite(self.reference.get(n, np.nan))]
    if bad:
      raise ConfigError(f"fronts.reference: expected a finite number for {', '.join(bad)}")


def write(
  run: Run,
  *,
  names: Sequence[str],
  settings: Settings,
  preferences: Mapping[str, np.ndarray],
  judges: Sequence[str] = (),
) -> dict[str, tuple[float, ...]]:
  """Writes all records that follow from the points, in place of those of an earlier call.

  Args:
    run: the open workdir, with its points.
    names: of the rewards.
    settings: of the fronts.
    preferences: μ [R] of users, by name.
    judges: names of further rewards that the points have.

  Returns:
    The λ that was chosen on the validation split for each user.
  """
  run.records.drop(
    lambda r: r["kind"] == "front" or (r["kind"] == "measurement" and r["stage"] in STUDIES)
  )
  every = records.read(run.directory / records.FILE_NAME)
  table, validation = (
    collect(
      every,
      split=split,
      names=names,
      judges=judges,
      num_resamples=settings.num_resamples,
      seed=run.seed,
    )
    for split in ("test", "validation")
  )
  _write_fronts(run, table, names, settings)
  _write_connectivity(run, table, names)
  _write_judges(run, table, validation, names, judges)
  return _write_preferences(run, table, validation, names, preferences)


def collect(
  every: Sequence[Mapping[str, Any]],
  *,
  split: str,
  names: Sequence[str],
  num_resamples: int,
  seed: int,
  judges: Sequence[str] = (),
) -> Table:
  """The points of a split, from the records of a run."""
  found = [
    r
    for r in every
    if r["kind"] == "measurement" and r["stage"] == soup_points.STUDY and r["split"] == split
  ]
  items, judged = (
    np.array([[r["items"][name] for name in chosen] for r in found], np.float64)
    for chosen in (names, judges)
  )
  columns = [items[:, i] for i in range(len(names))]
  _, resampled = pareto.resample(columns, num_resamples=num_resamples, seed=seed)
  return Table(
    families=[r["family"] for r in found],
    lambdas=np.array([[r["x"].get(f"lambda_{n}", np.nan) for n in names] for r in found]),
    rewards=np.array([[r["values"][f"reward_{n}"] for n in names] for r in found]),
    resampled=resampled,
    items=items,
    judged=judged,
  )


def _write_fronts(run: Run, table: Table, names: Sequence[str], settings: Settings) -> None:
  """Records of kind "front" (hypervolumes), and of study "fronts" (everything that is one number a family)."""
  reference = settings.reference
  origin = (
    table.rewards.min(axis=0)
    if reference is None
    else np.array([reference[name] for name in names])
  )
  users = simplex.preferences(len(names), settings.intervals)

  def volume(points: np.ndarray) -> float:
    return pareto.hypervolume(points, origin)

  def utility(points: np.ndarray) -> float:
    return simplex.expected_utility(points, users)

  axes = {**dict(zip("xyz", names, strict=False)), "rewards": list(names)}
  for step, (label, (rows, mixtures)) in enumerate(_groups(table).items()):
    volumes, utilities = _values(volume, table, rows), _values(utility, table, rows)
    found = {"hypervolume": volumes, "expected_utility": utilities}
    if len(mixtures) and label != MORL:
      other = _values(volume, table, mixtures)
      if (other > 0).all():
        found[f"hypervolume_ratio_to_{MORL}"] = volumes / other
      # Utilities have no zero of their own: a difference, in standard deviations where rewards are z-scores.
      found[f"expected_utility_gain_over_{MORL}"] = utilities - _values(utility, table, mixtures)
    intervals = {
      name: percentile_interval(values[0], values[1:], settings.level)
      for name, values in found.items()
    }
    own = intervals["hypervolume"]
    fields = {"family": label, **axes, "reference": origin.tolist(), "points": len(rows)}
    fields |= {"hypervolume": own.value, "low": own.low, "high": own.high, "level": own.level}
    run.log(fields, kind="front", stage=STAGE, step=step)
    values = {name: interval.value for name, interval in intervals.items()}
    if len(mixtures) and label != MORL:
      values |= _dominance(table.rewards[rows], table.rewards[mixtures])
    fields = {"values": values, "intervals": {n: [i.low, i.high] for n, i in intervals.items()}}
    _log(run, "fronts", step, family=label, label=f"{len(rows)} points", **fields)


def _groups(table: Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Rows by family, and those of MORL to compare them with; and again both with the λ that they share alone.

  A soup with another λ costs no training, so more of them is fair; the second group tells what the number of points
  does.
  """
  found = {}
  baseline = table.rows(MORL)
  names = [name_of(row) for row in table.lambdas]
  for family in table.trained:
    rows = table.rows(family)
    found[family] = rows, baseline
    common = {names[i] for i in rows} & {names[i] for i in baseline}
    if family != MORL and common and len(common) < len(rows):
      both = [np.array([i for i in group if names[i] in common]) for group in (rows, baseline)]
      found[f"{family}, λ of {MORL}"] = both[0], both[1]
  return found


def _values(measure: Callable[[np.ndarray], float], table: Table, rows: np.ndarray) -> np.ndarray:
  """Of the points [P, R] that were measured, and of every resample of them: [1 + B]."""
  return np.array([measure(points[rows]) for points in (table.rewards, *table.resampled)])


def _dominance(points: np.ndarray, mixtures: np.ndarray) -> dict[str, float]:
  """Coverage both ways, and how much a front would have to gain to cover MORL's."""
  return {
    f"coverage_of_{MORL}": pareto.coverage(points, mixtures),
    f"coverage_by_{MORL}": pareto.coverage(mixtures, points),
    f"additive_epsilon_to_{MORL}": simplex.additive_epsilon(points, mixtures),
  }


def _write_connectivity(run: Run, table: Table, names: Sequence[str]) -> None:
  """Records of study "connectivity": R(θ_λ) - Σ λ_i R(θ_i) of each soup and reward, at least 0 by hypothesis 1.

  Of families that do not average weights it is only what they gain.
  """
  step = 0
  for family in table.with_ends:
    rows = table.rows(family)
    lambdas = table.lambdas[rows]
    # By prompt, so that the interval is that of paired differences.
    items = table.items[rows].mean(axis=2)
    gaps = simplex.connectivity_gaps(lambdas, items.reshape(len(rows), -1)).reshape(items.shape)
    for weights, gap in zip(lambdas, gaps, strict=True):
      if weights.max() == 1:
        continue
      named = dict(zip(names, gap, strict=True))
      _log(
        run,
        "connectivity",
        step,
        family=family,
        label=f"λ = {name_of(weights)}",
        x={f"lambda_{n}": float(v) for n, v in zip(names, weights, strict=True)},
        values={n: float(g.mean()) for n, g in named.items()},
        halves={n: panels.half_width(g[None]) for n, g in named.items() if len(g) > 1},
      )
      step += 1


def _write_judges(
  run: Run, table: Table, validation: Table, names: Sequence[str], judges: Sequence[str]
) -> None:
  """Records of study "judges": the best inner λ for a judge by validation, on test, against the better end on test."""
  step = 0
  for family in table.with_ends:
    rows, first = table.rows(family), validation.rows(family)
    ends = table.lambdas[rows].max(axis=1) == 1
    if ends.all():
      continue
    for number, judge in enumerate(judges):
      tried = np.where(ends, -np.inf, validation.judged[first, number].mean(axis=(1, 2)))
      items = table.judged[rows, number]  # [P, S, N]
      means = items.mean(axis=(1, 2))
      best = int(tried.argmax())
      end = int(np.where(ends, means, -np.inf).argmax())
      gain = items[best] - items[end]
      weights = table.lambdas[rows][best]
      _log(
        run,
        "judges",
        step,
        family=family,
        label=judge,
        x={f"lambda_{n}": float(v) for n, v in zip(names, weights, strict=True)},
        values={
          f"reward_{judge}": float(means[best]),
          "better_end": float(means[end]),
          "gain_over_better_end": float(gain.mean()),
        },
        halves={"gain_over_better_end": panels.half_width(gain)} if gain.shape[1] > 1 else {},
      )
      step += 1


# How λ is chosen for a user, and the split that the rule sees; the last is what no rule can beat.
EQUAL, VALIDATED, ORACLE = "λ = μ", "best on validation", "best on test (oracle)"


def _write_preferences(
  run: Run,
  table: Table,
  validation: Table,
  names: Sequence[str],
  preferences: Mapping[str, np.ndarray],
) -> dict[str, tuple[float, ...]]:
  """Records of study "preferences": what λ a rule chooses for a user among the soups, and its μ·R on test."""
  if not preferences:
    return {}
  rows, first = table.rows(SOUPS), validation.rows(SOUPS)
  users = np.stack(list(preferences.values()))
  lambdas, rewards = table.lambdas[rows], table.rewards[rows]
  rules = {
    EQUAL: simplex.nearest(lambdas, users),
    VALIDATED: simplex.best_for(validation.rewards[first], users),
    ORACLE: simplex.best_for(rewards, users),
  }
  init = table.rewards[table.rows(INIT)[0]]
  step = 0
  for number, (user, mu) in enumerate(preferences.items()):
    x = {f"mu_{n}": float(v) for n, v in zip(names, mu, strict=True)}
    for rule, chosen in rules.items():
      row = chosen[number]
      values = {"utility": float(rewards[row] @ mu), "utility_of_init": float(init @ mu)}
      values |= {f"lambda_{n}": float(v) for n, v in zip(names, lambdas[row], strict=True)}
      _log(run, "preferences", step, family=rule, label=user, x=x, values=values)
      step += 1
  best = zip(preferences, rules[VALIDATED], strict=True)
  return {user: tuple(validation.lambdas[first][row].tolist()) for user, row in best}


def _log(run: Run, study: str, step: int, **fields: Any) -> None:
  about = {"study": study, "split": "test"}
  run.log(about | fields, kind="measurement", stage=study, step=step)
