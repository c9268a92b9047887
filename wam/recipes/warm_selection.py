"""Best-of-n with every reward model as the selector, judged by the gold reward: how far each can be trusted.

N completions of each prompt are drawn from θ_0 once and scored once by every model; best-of-n for every n follows
without bias (Ramé et al. 2024, WARM, section 5.1; Coste et al. 2024; Gao et al. 2023 for the fits). Completions and
scores are kept on the disk, so that a run that is killed scores nothing twice. Leaves out RL (warm_policies.py).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wam.checkpoints import orbax
from wam.core import sections
from wam.core.errors import BadData, ConfigError
from wam.evaluation import best_of_n_curves, overoptimization
from wam.generation.rollouts import Rollout
from wam.recipes import measurements
from wam.recipes.measurements import point
from wam.recipes.reward_populations import ALONG, BEST, RULES
from wam.recipes.warm_setting import Setting, draw, texts
from wam.rewards import ensembles
from wam.rewards.scorers import RolloutScorer

STAGE = "best_of_n"
NUM_SAMPLES = 4


def check(section: Mapping[str, Any]) -> None:
  """Checks the section "best_of_n"; see `best_of_n`.

  Raises:
    ConfigError: names the key, or numbers that cannot be.
  """
  sections.check(best_of_n, section, STAGE)
  total, ns = section["num_candidates"], section.get("ns")
  if total < 2 or (ns is not None and not all(1 <= n <= total for n in ns)):
    raise ConfigError(
      f"best_of_n: expected num_candidates of at least 2 and ns from 1 to it, found {total} and {ns}"
    )


def best_of_n(
  setting: Setting,
  *,
  num_candidates: int,
  num_prompts: int | None = None,
  ns: Sequence[int] | None = None,
  counts: Sequence[int] = (2,),
  prompts_per_call: int | None = None,
) -> None:
  """Writes what the best of n is worth to the judge, by selector, with intervals over prompts, and Gao's fits.

  Selectors: the best single model, the average along one run, the ensembles, WARM of all members and of the best M of
  `counts`, whose ensembles come too. x: n, and "kl", log n - (n - 1)/n: the KL from θ_0 where no two completions are
  alike, else a bound ("repeated" of the record "candidates" says how many are). Values: the judge's score, the win rate
  against one more sample of θ_0 (ties 1/2), and the selector's own score.

  Args:
    setting: the models.
    num_candidates: N, of each prompt.
    num_prompts: of the test split; default all.
    ns: default the powers of 2 up to N.
    counts: sizes M of further averages and ensembles of the best members.
    prompts_per_call: prompts of one call of `generate`, to bound its memory.
  """
  numbers = list(ns or [2**i for i in range(num_candidates.bit_length()) if 2**i <= num_candidates])

  def make() -> list[dict[str, Any]]:
    directory = setting.run.stage_directory(STAGE)
    candidates = _kept(
      directory / "candidates",
      lambda: draw(
        setting,
        setting.reference,
        stream=STAGE,
        num_prompts=num_prompts,
        num_samples=num_candidates,
        prompts_per_call=prompts_per_call,
      )._asdict(),
    )
    rollout = Rollout(**candidates)
    shape = (-1, num_candidates)

    def score(name: str, scorer: RolloutScorer) -> np.ndarray:
      place = directory / "scores" / name.replace(" ", "_")
      made = _kept(place, lambda: {"rewards": scorer(*rollout[:4])})
      setting.run.interrupts.check(f"{STAGE}: the scores of {name} are saved")
      return made["rewards"].astype(np.float64).reshape(shape)

    worth = score(setting.judge.name, setting.judge.scorer)
    other = draw(setting, setting.reference, stream=f"{STAGE}/baseline", num_prompts=len(worth))
    wins = best_of_n_curves.win_credit(worth, setting.judge.scorer(*other[:4]))
    found = [_about(rollout, num_candidates)]
    for family, chosen in selectors(setting, score, counts).items():
      found += _curve(family, setting.judge.name, numbers, worth, wins, chosen)
      found.append(_samples(setting, family, rollout, chosen))
    return found

  measurements.once(setting.run, STAGE, make)


def selectors(
  setting: Setting, score: Callable[[str, RolloutScorer], np.ndarray], counts: Sequence[int]
) -> dict[str, np.ndarray]:
  """The scores of every selector, by family; `score` scores the candidates with a scorer of a name: [P, N]."""
  found = setting.population
  members = np.stack(
    [score(f"member {m}", found.scorers[f"member {m}"]) for m in range(len(found.members))]
  )
  every = {BEST: members[found.order[0]]}
  if ALONG in found.scorers:
    every[ALONG] = score(ALONG, found.scorers[ALONG])
  sizes = sorted({c for c in counts if 1 < c < len(members)} | {len(members)})
  for count in sizes:
    whole = count == len(members)
    ending = "" if whole else f", M = {count}"
    for name, rule in RULES.items():
      weight = setting.variance_coefficient if rule == "uncertainty_weighted" else None
      chosen = members[found.order[:count]]
      every[name + ending] = ensembles.combine(chosen, rule=rule, variance_coefficient=weight)
    params = found.average if whole else found.of_best(count)
    every[f"WARM{ending}"] = score(f"WARM {count}", found.scorer(params, f"WARM of {count}"))
  return every


def _curve(
  family: str,
  judge: str,
  ns: Sequence[int],
  worth: np.ndarray,
  wins: np.ndarray,
  chosen: np.ndarray,
) -> list[dict[str, Any]]:
  """The measurements of one selector, and its fit."""
  scores = {judge: worth, "win_rate": wins, "proxy": chosen}
  drawn = {
    name: best_of_n_curves.curve(values, ns, ranked_by=chosen) for name, values in scores.items()
  }
  gold = drawn[judge]
  points = [
    point(
      STAGE,
      family,
      f"n = {n}",
      {name: curve.values[i] for name, curve in drawn.items()},
      split="test",
      x={"n": n, "kl": gold.kl[i]},
      halves={name: (curve.high[i] - curve.low[i]) / 2 for name, curve in drawn.items()},
    )
    for i, n in enumerate(ns)
  ]
  start = float(worth.mean())
  distances = overoptimization.distances(gold.kl)
  return points + fitted(family, "best_of_n", distances, gold.values, start)


def fitted(
  family: str, form: str, distances: np.ndarray, scores: np.ndarray, start: float
) -> list[dict[str, Any]]:
  """The record of a fit; none where there are too few distances, or the judge's score does not vary."""
  try:
    fit = overoptimization.fit(distances, scores, form=form, start=start)
  except BadData:
    return []
  values = {
    "alpha": fit.alpha.value,
    "beta": fit.beta.value,
    "r2": fit.r_squared,
    "peak": fit.peak_distance.value,
    "peak_gain": fit.peak_gain.value,
    "furthest": fit.furthest,
    "start": start,
  }
  # JSON has no infinity: a curve without a peak has none in its record.
  finite = {name: value for name, value in values.items() if np.isfinite(value)}
  return [{"kind": measurements.FIT, "family": family, "curve": form, "values": finite}]


def _about(rollout: Rollout, num_candidates: int) -> dict[str, Any]:
  """How many completions there are, and what share of them was drawn before for the same prompt."""
  rows = rollout.completions.reshape(-1, num_candidates, rollout.completions.shape[1])
  unique = sum(len(np.unique(own, axis=0)) for own in rows)
  total = rows.shape[0] * num_candidates
  return {"kind": "candidates", "prompts": rows.shape[0], "candidates": num_candidates,
          "repeated": 1 - unique / total}  # fmt: skip


def _samples(setting: Setting, family: str, rollout: Rollout, chosen: np.ndarray) -> dict[str, Any]:
  """What a selector takes of all candidates, for the first prompts."""
  count = min(NUM_SAMPLES, len(chosen))
  rows = np.arange(count) * chosen.shape[1] + np.argmax(chosen[:count], axis=1)
  prompts, completions = texts(setting, rollout, rows.tolist())
  n = chosen.shape[1]
  about = {"family": family, "label": f"n = {n}", "x": {"n": n}}
  return {"kind": measurements.SAMPLES, **about, "prompts": prompts, "completions": completions}


def _kept(
  path: pathlib.Path, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """The arrays at `path`; made and saved where they are not there."""
  if not orbax.exists(path):
    orbax.save(path, {name: np.asarray(x) for name, x in make().items()})
  return {name: np.asarray(jax.device_get(x)) for name, x in orbax.load(path).items()}
