"""Several rewards by name, from the config section "rewards": {name: spec}; a spec has a kind, and the kind's keys.

"world": a component of the invented world's rewards (data/world_rewards.py). "rule": a rule on text
(rewards/text_rules.py). "pairs": a reward model trained on preference pairs. Each is put on one scale by a declared
rule, which the record of kind "reward" states with the mean and the standard deviation on samples of θ_0. Leaves out
the rewards of recipes that have a single proxy (reward_models.py), and populations.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from wam.core import sections
from wam.core.errors import BadData, ConfigError, WamError, unknown_name
from wam.core.types import Params
from wam.data import preferences, world_rewards
from wam.data.examples import Pair
from wam.data.tokenizers import eos_id
from wam.data.words import WARM
from wam.models.heads import ScalarModel
from wam.recipes import reward_models, stages
from wam.recipes.policies import Policy
from wam.recipes.problems import Problem
from wam.rewards import mixtures, scorers, text_rules
from wam.rewards.scorers import RolloutScorer, check_rewards
from wam.training.workdir import Run

SECTION = "rewards"
NORMALISATIONS = ("z-score", "none")
# Pairs that the problem brings, by the name that a spec gives them.
OF_PROBLEM = {"problem": "pairs", "control": "control_pairs"}


@dataclasses.dataclass(frozen=True)
class _Setting:
  """What a spec is made a scorer with."""

  name: str
  policy: Policy
  reference: Params
  data: Problem
  run: Run
  samples: Mapping[str, np.ndarray]


def world(*, component: str) -> Callable[[_Setting], RolloutScorer]:
  """The kind "world": `component` is one of `world_rewards.COMPONENTS`."""
  score = world_rewards.scorer(component)
  return lambda setting: _from_text(score, setting)


def rule(*, rule: str, **settings: Any) -> Callable[[_Setting], RolloutScorer]:
  """The kind "rule": `rule` is one of `text_rules.RULES`, and the other keys are its keywords."""
  score = text_rules.RULES[rule](**settings)
  return lambda setting: _from_text(score, setting)


def pairs(
  *,
  pairs: str | Mapping[str, Any] = "problem",
  data_dir: str | None = None,
  reward_model: Mapping[str, Any],
) -> Callable[[_Setting], RolloutScorer]:
  """The kind "pairs": a reward model.

  Args:
    pairs: "problem" or "control": those that the problem brings; or {"train": spec, "validation": spec} of
      `preferences.load_pairs`.
    data_dir: where relative paths of specs start; default the environment variable WAM_DATA.
    reward_model: keys of `reward_models.reward_model`. Its rewards have mean 0 and standard deviation 1 on the samples
      already.
  """

  def make(setting: _Setting) -> RolloutScorer:
    found = _pairs(pairs, data_dir, setting.data)
    stage = f"reward_{setting.name}"
    trained = reward_models.reward_model(
      found,
      setting.samples,
      policy=setting.policy,
      params=setting.reference,
      run=setting.run,
      stage=stage,
      **reward_model,
    )
    model = ScalarModel(setting.policy.model.config)
    dtype = reward_model.get("dtype", "float32")
    return reward_models.scorer(model, trained, setting.run, dtype, stage)

  return make


KINDS: dict[str, Callable[..., Callable[[_Setting], RolloutScorer]]] = {
  "world": world,
  "rule": rule,
  "pairs": pairs,
}


def check(
  section: Mapping[str, Mapping[str, Any]],
  *,
  data: Problem | None = None,
  least: int = 1,
  taken: Collection[str] = (),
  where: str = SECTION,
) -> None:
  """Checks names, kinds, keys and values.

  Args:
    section: the section "rewards", or another one of the same form.
    data: the problem, where it is at hand: whether it has what the specs need.
    least: rewards that there must be.
    taken: names that others have already.
    where: what the section is called.

  Raises:
    WamError: names the reward.
  """
  if not isinstance(section, Mapping) or len(section) < least:
    found = ", ".join(section) if isinstance(section, Mapping) else repr(section)
    raise ConfigError(f"{where}: expected {least} at least, by name; found {found or 'none'}")
  for name, spec in section.items():
    this = f"{where}.{name}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
      raise ConfigError(f"{this}: a name is letters, digits and underscores, after a letter")
    if name in taken:
      raise ConfigError(f"{this}: another reward is called {name!r} already; rename one")
    kind, keywords = _read(spec, this)
    _check_kind(kind, keywords, this)
    if data is not None:
      _check_data(kind, keywords, data, this)


def make(
  policy: Policy,
  reference: Params,
  data: Problem,
  run: Run,
  *,
  section: Mapping[str, Mapping[str, Any]],
  sampling: Mapping[str, Any],
  where: str = SECTION,
) -> dict[str, RolloutScorer]:
  """The rewards, by name and in the order of the section, each on its declared scale.

  "normalise" of a spec: "z-score" (the default): (r - mean)/std of one completion by θ_0 of each of up to 256 training
  prompts; "none": r as it is. Either way mean and std of r are in the record of kind "reward".

  Args:
    policy: the language model.
    reference: θ_0.
    data: pairs, and the prompts of the samples.
    run: the open workdir; reward models are trained in it, or taken from it.
    section: as `check` takes it.
    sampling: see `sampling_settings` for its keys.
    where: what the section is called.

  Raises:
    BadData: if a reward that is to be normalised gives all samples the same; names it.
    NonFinite: if a reward is NaN or infinite; names it.
  """
  check(section, data=data, where=where)
  samples = reward_models.reference_samples(policy, reference, data, run, sampling, "float32")
  found = {}
  for name, spec in section.items():
    kind, keywords = _read(spec, f"{where}.{name}")
    normalise = keywords.pop("normalise", NORMALISATIONS[0])
    raw = KINDS[kind](**keywords)(_Setting(name, policy, reference, data, run, samples))
    values = check_rewards(raw(**samples), len(samples["completions"]), name=name)
    wide = values.astype(np.float64)
    mean, std = float(wide.mean()), float(wide.std())
    if normalise == "z-score" and not std > 0:
      raise BadData(
        f"{where}.{name}: all {len(wide)} samples of the policy before RL have the reward {mean:g}; it cannot be"
        " normalised, and nothing can be learnt from it. Choose another reward"
      )
    stages.once(
      run,
      kind="reward",
      stage=f"reward_{name}",
      fields={
        "name": name,
        "spec": dict(spec),
        "normalise": normalise,
        "mean": mean,
        "std": std,
        "samples": len(wide),
      },
    )
    scale = {"mean": mean, "std": std} if normalise == "z-score" else {"mean": 0.0, "std": 1.0}
    found[name] = mixtures.scaled(raw, name=name, **scale)
  return found


def _read(spec: Any, where: str) -> tuple[str, dict[str, Any]]:
  """The kind of a spec and its other keys.

  Raises:
    ConfigError: if it is none; UnknownName: for an unknown kind or normalisation.
  """
  if not isinstance(spec, Mapping):
    raise ConfigError(f"{where}: expected a kind ({', '.join(KINDS)}) and its keys, found {spec!r}")
  keywords = dict(spec)
  kind = keywords.pop("kind", "")
  if kind not in KINDS:
    raise unknown_name(f"kind of {where}", kind, KINDS)
  normalise = keywords.get("normalise", NORMALISATIONS[0])
  if normalise not in NORMALISATIONS:
    raise unknown_name(f"{where}.normalise", normalise, NORMALISATIONS)
  return kind, keywords


def _check_kind(kind: str, keywords: Mapping[str, Any], where: str) -> None:
  """Checks the keys of a kind, and makes what can be made without a model."""
  keywords = {key: value for key, value in keywords.items() if key != "normalise"}
  if kind == "rule":
    name = keywords.get("rule", "")
    if name not in text_rules.RULES:
      raise unknown_name(f"{where}.rule", name, text_rules.RULES)
    settings = {key: value for key, value in keywords.items() if key != "rule"}
    sections.check(text_rules.RULES[name], settings, where)
  else:
    sections.check(KINDS[kind], keywords, where)
  if kind == "pairs":
    reward_models.check(keywords["reward_model"])
  try:
    KINDS[kind](**keywords)
  except WamError as error:
    raise type(error)(f"{where}: {error}") from error


def _check_data(kind: str, keywords: Mapping[str, Any], data: Problem, where: str) -> None:
  """Whether the problem has what a spec needs; specs of pairs are loaded."""
  if kind == "world" and not set(WARM) <= set(data.words or ()):
    raise ConfigError(f"{where}: the kind 'world' scores replies of problem.kind='world' only")
  if kind == "pairs":
    try:
      _pairs(keywords.get("pairs", "problem"), keywords.get("data_dir"), data)
    except WamError as error:
      raise type(error)(f"{where}.pairs: {error}") from error


def _pairs(
  source: str | Mapping[str, Any], data_dir: str | None, data: Problem
) -> Mapping[str, Sequence[Pair]]:
  """Pairs by split ("train", "validation").

  Raises:
    WamError: if there are none, or they cannot be loaded.
  """
  splits = ("train", "validation")
  if isinstance(source, str):
    if source not in OF_PROBLEM:
      raise unknown_name("pairs", source, OF_PROBLEM)
    found: Mapping[str, Sequence[Pair]] = getattr(data, OF_PROBLEM[source])
    if not found:
      raise ConfigError(f"the problem has no {OF_PROBLEM[source]}")
    return found
  if set(source) != set(splits):
    raise ConfigError(f"expected the splits {', '.join(splits)}; found {', '.join(sorted(source))}")
  return {s: preferences.load_pairs({"data_dir": data_dir, **source[s]}) for s in splits}


def _from_text(score: scorers.Scorer, setting: _Setting) -> RolloutScorer:
  policy = setting.policy
  return scorers.from_text(score, policy.decode, eos_id=eos_id(policy.tokenizer), name=setting.name)
