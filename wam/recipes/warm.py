"""WARM: weight averaged reward models (Ramé et al. 2024, arXiv 2401.12187): train, average, and see who can be fooled.

The stages, each resumable: pre-training and supervised fine-tuning (where the config asks for them) -> θ_0, and earlier
checkpoints of the same run (Baklava); a probed head and M reward models from it; their average, ensembles, and the
average along one run; then studies, each with a section of its own: accuracy on clean and swapped training pairs, on
validation pairs and on pairs of another distribution; the straight line between two members; best-of-n; RL against each
of them with the gold reward (or a control reward model) as a witness; the merge with a domain model. The averaged
reward model, the best single one and the policies are left as Hugging Face directories in `models/`.
"""

import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from wam import pretrained
from wam.core import sections
from wam.core.types import Params
from wam.recipes import (
  policies,
  problems,
  reward_models,
  reward_populations,
  stages,
  warm_accuracy,
  warm_lines,
  warm_policies,
  warm_selection,
  warm_setting,
)
from wam.training import member_axis, sharding
from wam.training.workdir import Start

Section = Mapping[str, Any]


def recipe(
  *,
  seed: int,
  problem: Section,
  model: Section,
  warm: Section,
  sampling: Section,
  control: Section | None = None,
  pretrain: Section | None = None,
  sft: Section | None = None,
  reinforce: Section | None = None,
  ood: Section | None = None,
  accuracy: Section | None = None,
  interpolation: Section | None = None,
  best_of_n: Section | None = None,
  over_optimisation: Section | None = None,
  domain_model: Section | None = None,
  mesh: Mapping[str, int] | None = None,
  checkpoints: Section | None = None,
  start: Start,
) -> None:
  """The recipe, top to bottom; every argument but the last is a section of the config.

  "warm" is that of `reward_populations`; "control" a reward model that judges where there is no gold reward;
  "reinforce" has the settings of all runs of RL; "ood" is that of `warm_setting.shifted_pairs`, for problems that bring
  no pairs of another distribution. The five after it are studies (warm_accuracy.py, warm_lines.py, warm_selection.py,
  warm_policies.py), and one that is not there is left out. "mesh" may have an axis "member".
  """
  studies = {
    "accuracy": accuracy,
    "interpolation": interpolation,
    "domain_model": domain_model,
    "best_of_n": best_of_n,
    "over_optimisation": over_optimisation,
  }
  asked = {name: section for name, section in studies.items() if section is not None}
  stages.check(pretrain=pretrain, sft=sft, sampling=sampling)
  reward_populations.check(warm)
  _check(asked, control=control, ood=ood, reinforce=reinforce, sampling=sampling)
  data = problems.make(problem)
  warm_setting.check_judge(data, control)
  policy = policies.load_or_make(data.tokenizer(), seed=seed, section=model)
  axes = dict(mesh or {})
  devices = (member_axis if member_axis.AXIS in axes else sharding).make_mesh(mesh)
  with start.open(seed=seed, mesh=devices, checkpoints=checkpoints) as current:
    # θ_0, and where Baklava starts
    found = stages.foundation(policy, data, current, pretrain=pretrain, sft=sft)
    trajectory = stages.trajectory(found, current)

    # the reward models, and who judges
    population = reward_populations.train(
      policy, trajectory, data, current, section=warm, sampling=sampling
    )
    judge = reward_models.make_judge(
      policy, found.reference, data, current, section=control, sampling=sampling
    )
    assert judge is not None  # see warm_setting.check_judge
    setting = warm_setting.Setting(
      policy=policy,
      reference=found.reference,
      base=found.base,
      data=data,
      run=current,
      sampling=sampling,
      population=population,
      judge=judge,
      reinforce=reinforce,
      variance_coefficient=warm.get("variance_coefficient", 0.5),
    )
    _export_rewards(setting, current.directory / "models")

    # what they know, and what can be made of them
    shifted = None
    if data.ood_pairs:
      shifted = warm_setting.given_pairs(setting, length=warm["length"])
    elif ood is not None:
      shifted = warm_setting.shifted_pairs(setting, **ood)
    for name, section in asked.items():
      if name in ON_PAIRS:
        ON_PAIRS[name](setting, shifted, **section)
    if best_of_n is not None:
      warm_selection.best_of_n(setting, **best_of_n)
    if over_optimisation is not None:
      tuned = warm_policies.over_optimisation(setting, **over_optimisation)
      for family, params in tuned.items():
        policies.export(
          policy, params, current.directory / "models" / f"policy-{as_file_name(family)}"
        )


ON_PAIRS: dict[str, Callable[..., None]] = {
  "accuracy": warm_accuracy.accuracy,
  "interpolation": warm_lines.interpolation,
  "domain_model": warm_lines.domain_model,
}


def _check(
  studies: Mapping[str, Section],
  *,
  control: Section | None,
  ood: Section | None,
  reinforce: Section | None,
  sampling: Section,
) -> None:
  """Checks keys and values of the sections behind the reward models.

  Raises:
    ConfigError, UnknownName: names section and key.
  """
  if control is not None:
    function, also = reward_models.reward_model, [reward_models.algorithm.run]
    given = ("pairs", "samples", *stages.GIVEN)
    sections.check(function, control, "control", given=given, also=also)
    stages.check_optimizer(control["optimizer"], "control.optimizer")
  checks: dict[str, Callable[[Section], None]] = {
    "accuracy": warm_accuracy.check,
    "interpolation": warm_lines.check_interpolation,
    "domain_model": warm_lines.check_domain_model,
    "best_of_n": warm_selection.check,
    "over_optimisation": functools.partial(
      warm_policies.check, reinforce=reinforce, sampling=sampling
    ),
  }
  for name, section in studies.items():
    checks[name](section)
  if ood is not None:
    warm_setting.check_shift(ood, reinforce=reinforce, sampling=sampling)


def as_file_name(family: str) -> str:
  """A family's name as that of a directory.

  >>> as_file_name("ensemble mean, β = 0.05")
  'ensemble_mean_0.05'
  """
  kept = [c if c.isascii() and (c.isalnum() or c == ".") else " " for c in family]
  return "_".join("".join(kept).split())


def _export_rewards(setting: warm_setting.Setting, directory: pathlib.Path) -> None:
  """The averaged reward model and the best single one, normalised, in place of what an earlier call left."""
  found = setting.population
  models: dict[str, Params] = {
    "warm": found.average,
    "best-single": found.members[found.order[0]],
  }
  for name, params in models.items():
    shutil.rmtree(directory / name, ignore_errors=True)
    pretrained.save_scalar(directory / name, found.model, params, setting.policy.tokenizer)
