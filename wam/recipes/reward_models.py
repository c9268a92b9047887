"""The rewards of a recipe, from a config section: a proxy that is optimised, and who judges.

Leaves out populations of reward models.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam.algorithms import reward_model as algorithm
from wam.core import rng
from wam.core.errors import BadData, ConfigError
from wam.core.types import Params
from wam.data import encoding
from wam.data.examples import Pair
from wam.data.tokenizers import eos_id
from wam.generation.sampling import generate
from wam.models.heads import ScalarModel
from wam.recipes import stages
from wam.recipes.policies import Policy, sampling_settings
from wam.recipes.problems import Problem
from wam.rewards import scorers
from wam.rewards.scorers import RolloutScorer
from wam.training import sharding
from wam.training.workdir import Run


class Rewards(NamedTuple):
  """Who scores completions.

  Attributes:
    scorers: by name: "proxy" is optimised; "gold" or "control" judges.
    model, params: of the proxy.
  """

  scorers: dict[str, RolloutScorer]
  model: ScalarModel
  params: Params


class Judge(NamedTuple):
  """Who judges, and as what: "gold" or "control"."""

  name: str
  scorer: RolloutScorer


def check(section: Mapping[str, Any]) -> None:
  """Checks the keys of the section "reward_model".

  Raises:
    ConfigError: names the key.
  """
  stages.check_section(reward_model, section, "reward_model", also=[algorithm.run])


def train(
  policy: Policy,
  reference: Params,
  data: Problem,
  run: Run,
  *,
  section: Mapping[str, Any],
  sampling: Mapping[str, Any],
) -> Rewards:
  """The proxy reward, and its judge: the gold reward where there is one, a control reward model otherwise.

  Reward models start from the trunk of θ_0, and are normalised on samples of θ_0: mean 0, standard deviation 1.

  Args:
    policy: the language model.
    reference: θ_0.
    data: pairs and gold reward.
    run: the open workdir.
    section: see `reward_model` for its keys.
    sampling: see `sampling_settings` for its keys.
  """
  stage, dtype = "reward_model", section.get("dtype", "float32")
  samples = reference_samples(policy, reference, data, run, sampling, dtype)
  model = ScalarModel(policy.model.config)
  proxy = reward_model(
    data.pairs, samples, policy=policy, params=reference, run=run, stage=stage, **section
  )
  found = {"proxy": scorer(model, proxy, run, dtype, stage)}
  judge = make_judge(
    policy, reference, data, run, section=section, sampling=sampling, samples=samples
  )
  if judge is not None:
    found[judge.name] = judge.scorer
  return Rewards(found, model, proxy)


def make_judge(
  policy: Policy,
  reference: Params,
  data: Problem,
  run: Run,
  *,
  section: Mapping[str, Any] | None,
  sampling: Mapping[str, Any],
  samples: Mapping[str, np.ndarray] | None = None,
) -> Judge | None:
  """The gold reward; where there is none, a control reward model trained on the problem's other pairs, if it has any.

  Args:
    policy, reference, data, run, sampling: as in `train`.
    section: of the control reward model, see `reward_model` for its keys; not needed with a gold reward.
    samples: `reference_samples`, where they have been drawn.

  Raises:
    ConfigError: if there are pairs for a control reward model, and no section.
  """
  if data.gold is not None:
    end = eos_id(policy.tokenizer)
    gold = scorers.from_text(data.gold, policy.decode, eos_id=end, name="gold reward")
    return Judge("gold", gold)
  if not data.control_pairs:
    return None
  if section is None:
    raise ConfigError("a section is needed for the control reward model")
  stage, dtype = "control_model", section.get("dtype", "float32")
  if samples is None:
    samples = reference_samples(policy, reference, data, run, sampling, dtype)
  control = reward_model(
    data.control_pairs, samples, policy=policy, params=reference, run=run, stage=stage, **section
  )
  model = ScalarModel(policy.model.config)
  return Judge("control", scorer(model, control, run, dtype, stage))


def reward_model(
  pairs: Mapping[str, Sequence[Pair]],
  samples: Mapping[str, np.ndarray],
  *,
  policy: Policy,
  params: Params,
  run: Run,
  stage: str,
  batch_size: int,
  length: int,
  optimizer: Mapping[str, Any],
  num_steps: int | None = None,
  num_examples: int | None = None,
  num_epochs: float | None = None,
  **training: Any,
) -> Params:
  """Trains a reward model, records its held-out accuracy and normalises it.

  Args:
    pairs: by split.
    samples: prompt and completion arrays to normalise on.
    policy, params, run, stage: whose trunk, where, under which name.
    batch_size: pairs a step.
    length: tokens of prompt and completion; longer pairs are dropped, and counted in the record.
    optimizer: keywords of `optimizers.make`.
    num_steps, num_examples, num_epochs: how long; exactly one.
    **training: keywords of `reward_model.run`: probe_steps, center_rewards_coefficient, margin, ...
  """
  model = ScalarModel(policy.model.config)
  rows = {
    split: encoding.pair_rows(policy.tokenizer, pairs[split], length=length, trim=True)
    for split in ("train", "validation")
  }
  for split, encoded in rows.items():
    if not len(encoded.kept):
      raise BadData(
        f"{stage}: all {len(pairs[split])} {split} pairs are longer than {length} tokens; raise"
        f" reward_model.length"
      )
  found = stages.batches(rows["train"].arrays, batch_size, run, stage)
  steps = {"num_steps": num_steps, "num_examples": num_examples, "num_epochs": num_epochs}
  fresh = model.init(rng.key(run.seed, f"{stage}/head"), decoder=params)
  trained = algorithm.run(
    model,
    fresh,
    found,
    run=run,
    stage=stage,
    optimizer=optimizer,
    num_steps=stages.to_steps(steps, found),
    **training,
  )
  heldout = algorithm.evaluate(model, trained, rows["validation"].arrays, run=run)
  counts = {f"{split}_dropped": float(len(pairs[split]) - len(r.kept)) for split, r in rows.items()}
  stages.once(run, kind="heldout", stage=stage, fields=heldout | counts)
  raw = scorer(model, trained, run, training.get("dtype", "float32"), stage)
  return algorithm.normalise(trained, raw(**samples))


def scorer(model: ScalarModel, params: Params, run: Run, dtype: str, name: str) -> RolloutScorer:
  """A reward model as a scorer, its rows split over the devices."""
  return scorers.from_model(
    model,
    params,
    chunk=len(sharding.filled_rows(256, run.mesh)),
    dtype=dtype,
    place=functools.partial(sharding.put_whole_batch, mesh=run.mesh),
    fetch=sharding.fetch,
    name=name,
  )


def reference_samples(
  policy: Policy,
  reference: Params,
  data: Problem,
  run: Run,
  sampling: Mapping[str, Any],
  dtype: str,
) -> dict[str, np.ndarray]:
  """One completion by θ_0 of each of up to 256 training prompts."""
  prompt_length, settings = sampling_settings(**sampling)
  prompts = data.prompts["train"][:256]
  rows = encoding.prompt_rows(policy.tokenizer, prompts, length=prompt_length).arrays
  filled = sharding.filled_rows(len(prompts), run.mesh)
  tokens, mask = sharding.put_whole_batch((rows["tokens"][filled], rows["mask"][filled]), run.mesh)
  key = rng.key(run.seed, "reference_samples")
  samples = sharding.fetch(
    generate(
      policy.model, reference, tokens, mask, key, dtype=jnp.dtype(dtype), **settings, **policy.ends
    )
  )
  names = ("prompt_tokens", "prompt_mask", "completions", "completion_mask")
  return {name: np.asarray(getattr(samples, name))[: len(prompts)] for name in names}
