"""The proxy reward of a recipe, from one reward model or from the average of a population (WARM), and who judges.

Leaves out how either is trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.recipes import reward_models, reward_populations
from wam.recipes.policies import Policy
from wam.recipes.problems import Problem
from wam.rewards.scorers import RolloutScorer
from wam.training.workdir import Run


def check(
  *, reward_model: Mapping[str, Any] | None, warm: Mapping[str, Any] | None, data: Problem
) -> None:
  """Checks the two sections; with "warm" the other one is needed for a control reward model only.

  Raises:
    ConfigError: if there is neither, or for a key that does not exist.
  """
  if warm is not None:
    reward_populations.check(warm)
  if reward_model is not None:
    reward_models.check(reward_model)
  elif warm is None:
    raise ConfigError("reward_model: give this section, or warm for a population of reward models")
  elif data.gold is None and data.control_pairs:
    raise ConfigError("reward_model: this section is needed for the control reward model")


def make(
  policy: Policy,
  references: Sequence[Params],
  data: Problem,
  run: Run,
  *,
  reward_model: Mapping[str, Any] | None,
  warm: Mapping[str, Any] | None,
  sampling: Mapping[str, Any],
) -> dict[str, RolloutScorer]:
  """Scorers by name: "proxy" is optimised; "gold", the true reward, or "control", another reward model, judges.

  Args:
    policy: the language model.
    references: checkpoints of one trajectory of supervised fine-tuning; the last is θ_SFT.
    data: pairs and gold reward.
    run: the open workdir.
    reward_model: the section of one reward model: the proxy where there is no "warm", and the control.
    warm: the section of a population; its average is the proxy.
    sampling: the section "sampling".
  """
  reference = references[-1]
  if warm is None:
    assert reward_model is not None
    return reward_models.train(
      policy, reference, data, run, section=reward_model, sampling=sampling
    ).scorers
  population = reward_populations.train(
    policy, references, data, run, section=warm, sampling=sampling
  )
  found = {"proxy": population.scorers["warm"]}
  judge = reward_models.make_judge(
    policy, reference, data, run, section=reward_model, sampling=sampling
  )
  return found if judge is None else found | {judge.name: judge.scorer}
