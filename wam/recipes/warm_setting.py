"""What the studies of the recipe `warm` share: the models, the judge, samples, and the pairs that models are tested on.

Leaves out the studies themselves (warm_accuracy.py, warm_selection.py, warm_policies.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam.core import rng, sections
from wam.core.errors import BadData, ConfigError
from wam.core.types import Params
from wam.data import encoding
from wam.data.tokenizers import eos_id
from wam.generation.rollouts import Rollout
from wam.generation.sampling import generate
from wam.recipes import tuning
from wam.recipes.policies import Policy, sampling_settings
from wam.recipes.problems import Problem
from wam.recipes.reward_models import Judge, Rewards
from wam.recipes.reward_populations import RewardPopulation
from wam.rewards.scorers import RolloutScorer
from wam.training import sharding
from wam.training.workdir import Run

OOD = "out_of_distribution"


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the studies look at.

  Attributes:
    policy, reference, base, data, run, sampling: as in `tuning.Setting`.
    population: the reward models.
    judge: who judges their choices.
    reinforce: the section "reinforce", or None.
    variance_coefficient: λ of the uncertainty-weighted ensemble.
  """

  policy: Policy
  reference: Params
  base: Params
  data: Problem
  run: Run
  sampling: Mapping[str, Any]
  population: RewardPopulation
  judge: Judge
  reinforce: Mapping[str, Any] | None
  variance_coefficient: float

  def rl(self, plan: tuning.Plan, proxy: RolloutScorer) -> tuning.Setting:
    """The setting of a run of RL against a proxy, judged on the way."""
    judged = {self.judge.name: self.judge.scorer}
    rewards = Rewards({"proxy": proxy} | judged, self.population.model, self.population.average)
    shared = (self.policy, self.reference, self.base, self.data)
    return tuning.Setting(*shared, rewards, self.run, self.sampling, plan)

  def plan(self, family: str, label: str, settings: Mapping[str, Any]) -> tuning.Plan:
    """A run of REINFORCE with settings in place of the section's.

    Raises:
      ConfigError: if there is no section "reinforce".
    """
    if self.reinforce is None:
      raise ConfigError(f"reinforce: this section is missing, and {family} needs it")
    return tuning.Plan("reinforce", family, label, dict(self.reinforce) | dict(settings), {})


def check_judge(data: Problem, control: Mapping[str, Any] | None) -> None:
  """Raises ConfigError if there is neither a gold reward nor what a control reward model is made from."""
  if data.gold is None and (control is None or not data.control_pairs):
    raise ConfigError(
      "nobody judges: the problem has no gold reward; give problem.control_pairs and the section control"
    )


def draw(
  setting: Setting,
  params: Params,
  *,
  stream: str,
  split: str = "test",
  num_prompts: int | None = None,
  num_samples: int = 1,
  prompts_per_call: int | None = None,
) -> Rollout:
  """Samples of a policy for the first prompts of a split, in their order, those of a prompt next to each other.

  Args:
    setting: with prompts and the section "sampling".
    params: the policy.
    stream: the name of the random stream.
    split: of the prompts.
    num_prompts: so many at most; default all.
    num_samples: of each.
    prompts_per_call: prompts of one call of `generate`, to bound its memory. None: all.
  """
  length, settings = sampling_settings(**setting.sampling)
  written = setting.data.prompts[split][:num_prompts]
  rows = encoding.prompt_rows(setting.policy.tokenizer, written, length=length).arrays
  count, mesh = len(written), setting.run.mesh
  per_call = prompts_per_call or count
  parts = []
  for call, start in enumerate(range(0, count, per_call)):
    real = min(per_call, count - start)
    # The last call has the shape of the others; its rows are filled up with copies.
    filled = sharding.filled_rows(per_call, mesh)
    place = np.minimum(start + filled, count - 1)
    tokens, mask = sharding.put_whole_batch((rows["tokens"][place], rows["mask"][place]), mesh)
    samples = generate(
      setting.policy.model,
      params,
      tokens,
      mask,
      rng.key(setting.run.seed, stream, call),
      num_samples=num_samples,
      **settings,
      **setting.policy.ends,
    )
    whole = sharding.fetch({name: getattr(samples, name) for name in Rollout._fields})
    parts.append({name: array[: real * num_samples] for name, array in whole.items()})
  return Rollout(**{n: np.concatenate([part[n] for part in parts]) for n in Rollout._fields})


def texts(setting: Setting, rollout: Rollout, rows: Sequence[int]) -> tuple[list[str], list[str]]:
  """Prompts and completions of some rows of a rollout."""
  decode, end = setting.policy.decode, eos_id(setting.policy.tokenizer)
  said = rollout.completion_mask & ~np.isin(rollout.completions, end)
  prompts = [decode(rollout.prompt_tokens[r][rollout.prompt_mask[r]].tolist()) for r in rows]
  return prompts, [decode(rollout.completions[r][said[r]].tolist()) for r in rows]


def given_pairs(setting: Setting, *, length: int) -> dict[str, np.ndarray]:
  """The problem's own pairs of another distribution, tokenised; longer ones than `length` are dropped.

  Raises:
    BadData: if none is left.
  """
  pairs = setting.data.ood_pairs
  return encoding.pair_rows(setting.policy.tokenizer, pairs, length=length, trim=True).arrays


def shifted_pairs(
  setting: Setting,
  *,
  iterations: Sequence[int] = (0,),
  num_prompts: int | None = None,
  samples_per_prompt: int = 4,
  shift: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Pairs of another distribution than the training pairs: samples of policies, the judge's higher score preferred.

  The policies are θ_0 and what REINFORCE makes of it with the judge as its reward: none that any of the reward models
  had a part in. Samples that the judge finds equal make no pair.

  Args:
    setting: the section "sampling", prompts of the test split, the judge.
    iterations: of that run; 0 is θ_0.
    num_prompts: so many of the prompts at most.
    samples_per_prompt: of each policy; they are paired in the order in which they were drawn.
    shift: what differs from the section "reinforce".

  Returns:
    "chosen", "rejected" [N, T] int32 and "chosen_mask", "rejected_mask" [N, T] bool.

  Raises:
    BadData: if the judge prefers none.
  """
  trained = [i for i in iterations if i]
  loaded = {0: setting.reference}
  if trained:
    plan = setting.plan("shift", "", shift or {})
    run = setting.rl(plan, setting.judge.scorer)
    tuning.train(plan, run)
    loaded |= {i: tuning.load(plan, run, i) for i in trained}
  found: dict[str, list[np.ndarray]] = {}
  for i in iterations:
    rollout = draw(
      setting, loaded[i], stream=f"ood/{i}", num_prompts=num_prompts, num_samples=samples_per_prompt
    )
    judged = setting.judge.scorer(*rollout[:4]).reshape(-1, 2)
    first = 2 * np.arange(len(judged)) + np.argmax(judged, axis=1)
    clear = judged[:, 0] != judged[:, 1]
    for side, rows in {"chosen": first, "rejected": first ^ 1}.items():
      found.setdefault(side, []).append(rollout.tokens[rows[clear]])
      found.setdefault(f"{side}_mask", []).append(rollout.mask[rows[clear]])
  pairs = {name: np.concatenate(parts) for name, parts in found.items()}
  if not len(pairs["chosen"]):
    raise BadData("ood: the judge finds all samples equal, so that there are no pairs")
  return pairs


def check_shift(
  section: Mapping[str, Any],
  *,
  reinforce: Mapping[str, Any] | None,
  sampling: Mapping[str, Any],
) -> None:
  """Checks the section "ood"; see `shifted_pairs`.

  Raises:
    ConfigError: names the key, or numbers with which nothing can be paired.
  """
  sections.check(shifted_pairs, section, "ood")
  iterations, samples = section.get("iterations", (0,)), section.get("samples_per_prompt", 4)
  if not iterations or samples < 2 or samples % 2:
    raise ConfigError(
      f"ood: expected iterations and an even samples_per_prompt, found {list(iterations)} and {samples}"
    )
  if not any(iterations):
    return
  if reinforce is None:
    raise ConfigError("reinforce: this section is missing, and ood.iterations above 0 need it")
  own = dict(reinforce) | dict(section.get("shift") or {})
  tuning.ALGORITHMS["reinforce"].check(own, "ood.shift", sampling)
  outside = [i for i in iterations if not 0 <= i <= own["num_iterations"]]
  if outside:
    raise ConfigError(
      f"ood.iterations: expected numbers from 0 to {own['num_iterations']}, found {outside}"
    )
