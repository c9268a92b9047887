"""Conditional language policies (Wang et al. 2024, arXiv 2407.15762) against Rewarded Soups at equal compute.

The stages, each resumable: pre-training and supervised fine-tuning (where the config asks for them) -> θ_0; the rewards
(recipes/reward_specs.py), on one scale; one run of REINFORCE from θ_0 a reward, whose weights are averaged with λ
(rewarded soups); and one run of CLP for each kind of conditioning, which draws as many completions as those runs
together and has their ratio of KL to reward. Every policy is measured over a grid of preferences that training never
saw: rewards, KL to θ_0, length, skills, completions; from these follow fronts with hypervolumes and expected utility,
and how much they differ from those of the soups. Policies that are plain models once the preference is given ("full",
"attention") are left as Hugging Face directories in `models/`: for each reward alone, and for given users.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.checkpoints import records
from wam.core import sections, trees
from wam.core.types import Params
from wam.evaluation import pareto, simplex
from wam.evaluation.statistics import percentile_interval
from wam.models.conditioning import Conditioning
from wam.recipes import (
  clp_variants,
  panels,
  policies,
  problems,
  reward_specs,
  soup_fronts,
  soup_models,
  soup_points,
  stages,
  tuning,
)
from wam.recipes.clp_variants import Point, Variant
from wam.recipes.panels import Panel
from wam.recipes.policies import Policy
from wam.recipes.soup_models import SOUPS, Candidate, Lambda, Runs
from wam.training import sharding
from wam.training.workdir import Run, Start

STUDIES = ("compute", "comparison")


def recipe(
  *,
  seed: int,
  problem: Mapping[str, Any],
  model: Mapping[str, Any],
  rewards: Mapping[str, Mapping[str, Any]],
  reinforce: Mapping[str, Any],
  clp: Mapping[str, Any],
  grid: Mapping[str, Any],
  sampling: Mapping[str, Any],
  evaluation: Mapping[str, Any],
  morl: Mapping[str, Any] | None = None,
  preferences: Mapping[str, Mapping[str, float]] | None = None,
  fronts: Mapping[str, Any] | None = None,
  pretrain: Mapping[str, Any] | None = None,
  sft: Mapping[str, Any] | None = None,
  mesh: Mapping[str, int] | None = None,
  checkpoints: Mapping[str, Any] | None = None,
  start: Start,
) -> None:
  """The recipe, top to bottom; every argument but the last is a section of the config.

  Those that are this recipe's own: "reinforce": of the runs that are averaged; "clp", see `clp_variants`; "grid", the
  preferences that are measured, and "morl", mixtures that have a run each (none without it): keys of
  `soup_models.grid`; "preferences": w by reward, by the name of a user, whose policies are written; "rewards", see
  `reward_specs`; "fronts": fields of `soup_fronts.Settings`.
  """
  stages.check(pretrain=pretrain, sft=sft, sampling=sampling)
  reward_specs.check(rewards, least=2)
  names = list(rewards)
  settings = sections.call(soup_fronts.Settings, fronts or {}, "fronts")
  settings.check(names)
  # Each reward alone, and who else is named.
  users = dict(zip(names, np.eye(len(names)), strict=True))
  users |= soup_models.users(preferences, names, taken=names)
  shares = sections.call(soup_models.grid, grid, "grid", names=names, where="grid")
  mixed: list[Lambda] = []
  if morl is not None:
    mixed = sections.call(soup_models.grid, morl, "morl", names=names, where="morl")
  panels.check(evaluation)
  every = soup_models.runs(
    names, algorithm="reinforce", section=reinforce, mitigation={}, mixtures=mixed, adapters=None
  )
  data = problems.make(problem)
  reward_specs.check(rewards, data=data)
  policy = policies.load_or_make(data.tokenizer(), seed=seed, section=model)
  tuning.check([trained.plan for trained in every.every], policy, data, sampling)
  trained = clp_variants.variants(clp, names, reinforce, sampling)
  steered = {v.kind: clp_variants.conditioning(v, policy, names) for v in trained}
  devices = sharding.make_mesh(mesh)
  clp_variants.check_batches(trained, devices)
  with start.open(seed=seed, mesh=devices, checkpoints=checkpoints) as current:
    # θ_0
    base, reference = stages.foundation(policy, data, current, pretrain=pretrain, sft=sft)

    # the rewards
    scorers = reward_specs.make(
      policy, reference, data, current, section=rewards, sampling=sampling
    )

    # θ_i, to be averaged
    first = soup_models.optimised(scorers, every.single[0].preference, policy, reference)
    setting = tuning.Setting(
      policy, reference, base, data, first, current, sampling, every.single[0].plan
    )
    for single in every.every:
      own = soup_models.optimised(scorers, single.preference, policy, reference)
      tuning.train(single.plan, dataclasses.replace(setting, rewards=own))

    # θ(w)
    found = {v.kind: clp_variants.train(v, setting, scorers) for v in trained}

    # what each preference is worth
    both = panels.make_panels(
      data=data,
      evaluation=evaluation,
      validation_skills=False,
      policy=policy,
      reference=reference,
      scorers=scorers,
      run=current,
      sampling=sampling,
    )
    reads = {kind: [steered_panel(p, how) for p in both] for kind, how in steered.items()}
    soup_weights = soup_models.Weights(setting)
    mixes = {kind: jax.jit(how.weights) for kind, how in steered.items()}

    def weights(point: Candidate | Point) -> Params:
      if isinstance(point, Candidate):
        return soup_weights(point)
      w = np.asarray(point.coefficients, np.float32)
      return mixes[point.variant.kind](found[point.variant.kind], w)

    models: list[Candidate | Point] = [
      *soup_models.candidates(every, soups=shares, decoded=(), mixtures=mixed),
      *(Point(v, share) for v in trained for share in shares),
    ]
    soup_points.measure(
      models,
      current,
      names=names,
      weights=weights,
      panels=lambda p: both if isinstance(p, Candidate) else reads[p.variant.kind],
    )
    soup_fronts.write(current, names=names, settings=settings, preferences={})
    export(steered, found, policy, users, current.directory / "models")
    write_compute(current, every, trained, found, reinforce, reference)
    write_comparison(current, names, settings, kl_coef=reinforce.get("kl_coef", 0.1))


def export(
  steered: Mapping[str, Conditioning],
  found: Mapping[str, Params],
  policy: Policy,
  users: Mapping[str, np.ndarray],
  directory: pathlib.Path,
) -> None:
  """Writes θ(w) of every user as `<kind>_<user>`, for the kinds that are a plain model then."""
  for kind, how in steered.items():
    if how.model == policy.model:
      for user, w in users.items():
        params = how.weights(found[kind], jnp.asarray(w, jnp.float32))
        policies.export(policy, params, directory / f"{kind}_{user}")


def steered_panel(panel: Panel, how: Conditioning) -> Panel:
  """The panel of policies that a preference steers, read with θ(w)."""
  policy = dataclasses.replace(panel.policy, model=how.model)
  return dataclasses.replace(panel, policy=policy, reference=how.reference(panel.reference))


def write_compute(
  run: Run,
  every: Runs,
  trained: Sequence[Variant],
  found: Mapping[str, Params],
  reinforce: Mapping[str, Any],
  reference: Params,
) -> None:
  """Records of study "compute": completions drawn, numbers trained, and seconds of each family."""
  run.records.drop(lambda record: record["stage"] in STUDIES)
  done = records.read(run.directory / records.FILE_NAME)
  seconds: dict[str, float] = {}
  for record in done:
    if record["kind"] == "stage":
      seconds[record["stage"]] = seconds.get(record["stage"], 0.0) + record["seconds"]
  count, size = len(every.single), trees.num_params(reference)
  rows = {
    SOUPS: {
      "completions": count * clp_variants.completions_of(reinforce),
      "numbers": count * size,
      "seconds": sum(seconds.get(t.plan.stage, 0.0) for t in every.single),
    }
  }
  for variant in trained:
    rows[variant.family] = {
      "completions": variant.completions,
      "numbers": trees.num_params(found[variant.kind]),
      "seconds": seconds.get(variant.stage, 0.0),
    }
  for step, (family, values) in enumerate(rows.items()):
    fields = {"family": family, "label": "training", "values": values}
    run.log({"study": STUDIES[0], **fields}, kind="measurement", stage=STUDIES[0], step=step)


def write_comparison(
  run: Run, names: Sequence[str], settings: soup_fronts.Settings, *, kl_coef: float
) -> None:
  """Records of study "comparison": each family against the soups, on the test split.

  Hypervolumes as a ratio, expected utilities as a difference, both with percentile intervals over prompts and sampling
  seeds that all families share; coverage and the additive ε both ways. Those look at rewards alone; "objective_gain" is
  the difference of λ·R(θ_λ) - kl_coef·KL, as both are trained for, each λ asked for itself, in the mean over the grid.
  """
  table = soup_fronts.collect(
    records.read(run.directory / records.FILE_NAME),
    split="test",
    names=names,
    num_resamples=settings.num_resamples,
    seed=run.seed,
  )
  origin = table.rewards.min(axis=0)
  if settings.reference is not None:
    origin = np.array([settings.reference[name] for name in names])
  users = simplex.preferences(len(names), settings.intervals)
  soups = table.rows(SOUPS)
  objectives = _objectives(run, names, kl_coef)

  def volume(points_: np.ndarray, rows: np.ndarray) -> float:
    return pareto.hypervolume(points_[rows], origin)

  for step, family in enumerate(name for name in table.trained if name != SOUPS):
    rows = table.rows(family)
    every = (table.rewards, *table.resampled)
    ratios = np.array([volume(p, rows) / max(volume(p, soups), 1e-12) for p in every])
    gains = np.array(
      [
        simplex.expected_utility(p[rows], users) - simplex.expected_utility(p[soups], users)
        for p in every
      ]
    )
    found = {"hypervolume_ratio": ratios, "expected_utility_gain": gains}
    intervals = {n: percentile_interval(v[0], v[1:], settings.level) for n, v in found.items()}
    values = {n: i.value for n, i in intervals.items()}
    pair = (table.rewards[rows], table.rewards[soups])
    values |= {
      "coverage_of_soups": pareto.coverage(*pair),
      "coverage_by_soups": pareto.coverage(*pair[::-1]),
      "additive_epsilon_to_soups": simplex.additive_epsilon(*pair),
      "objective_gain": _mean_gain(objectives[family], objectives[SOUPS]),
    }
    fields = {
      "family": family,
      "label": f"against {SOUPS}",
      "values": values,
      "intervals": {n: [i.low, i.high] for n, i in intervals.items()},
    }
    about = {"study": STUDIES[1], "split": "test"}
    run.log(about | fields, kind="measurement", stage=STUDIES[1], step=step)


def _objectives(run: Run, names: Sequence[str], kl_coef: float) -> dict[str, dict[Lambda, float]]:
  """λ·R(θ_λ) - kl_coef·KL of every point of the test split, by family and λ."""
  found: dict[str, dict[Lambda, float]] = {}
  for record in records.read(run.directory / records.FILE_NAME):
    if record["kind"] != "measurement" or record["stage"] != soup_points.STUDY:
      continue
    if record["split"] == "test" and record["x"]:
      share = tuple(record["x"][f"lambda_{name}"] for name in names)
      values = record["values"]
      worth = sum(w * values[f"reward_{n}"] for w, n in zip(share, names, strict=True))
      found.setdefault(record["family"], {})[share] = worth - kl_coef * values["kl"]
  return found


def _mean_gain(own: Mapping[Lambda, float], soups: Mapping[Lambda, float]) -> float:
  """The mean difference over the λ that both have."""
  return float(np.mean([own[share] - soups[share] for share in own if share in soups]))
