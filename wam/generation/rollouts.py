"""Rollouts: a batch of prompts drawn from many, n completions of each, on the host; and their rewards.

What every online algorithm (RSF, PPO, RLOO) does first in an iteration. Leaves out which reward, and what is learnt.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError, check_same_shape
from wam.core.types import Params, PyTree
from wam.generation import sampling as generation
from wam.models.decoder import LanguageModel


class Rollout(NamedTuple):
  """What an iteration drew, on the host; R = prompts * n rows, the n samples of a prompt next to each other."""

  prompt_tokens: np.ndarray  # [R, P] int32, left-padded
  prompt_mask: np.ndarray  # [R, P] bool
  completions: np.ndarray  # [R, N] int32, right-padded, EOS kept
  completion_mask: np.ndarray  # [R, N] bool, EOS included
  finished: np.ndarray  # [R] bool, EOS was emitted

  @property
  def tokens(self) -> np.ndarray:
    """Prompts and completions: [R, P + N] int32."""
    return np.concatenate([self.prompt_tokens, self.completions], axis=1)

  @property
  def mask(self) -> np.ndarray:
    """Which of `tokens` are real: [R, P + N] bool, one run in each row."""
    return np.concatenate([self.prompt_mask, self.completion_mask], axis=1)

  @property
  def loss_mask(self) -> np.ndarray:
    """Which of `tokens` the policy chose: [R, P + N] bool, the completions with their EOS."""
    return np.concatenate([np.zeros_like(self.prompt_mask), self.completion_mask], axis=1)


def check(
  prompts: tuple[np.ndarray, np.ndarray],
  *,
  stage: str,
  prompts_per_iteration: int,
  prompts_per_call: int | None,
) -> None:
  """Refuses what `draw` cannot do.

  Raises:
    BadData: if there are no prompts; ConfigError: if the calls do not divide the prompts.
  """
  check_same_shape(prompt_tokens=prompts[0], prompt_mask=prompts[1])
  if not len(prompts[0]):
    raise BadData(f"{stage}: there are no prompts to sample from")
  per_call = prompts_per_call or prompts_per_iteration
  if prompts_per_iteration % per_call:
    raise ConfigError(
      f"{stage}: prompts_per_call={per_call} does not divide prompts_per_iteration={prompts_per_iteration}"
    )


def draw(
  model: LanguageModel,
  params: Params,
  prompts: tuple[np.ndarray, np.ndarray],
  *,
  seed: int,
  stream: str,
  iteration: int,
  num_prompts: int,
  num_samples: int,
  sampling: Mapping[str, Any],
  prompts_per_call: int | None = None,
  dtype: str = "float32",
  place: Callable[[PyTree], PyTree] = lambda batch: batch,
  fetch: Callable[[PyTree], PyTree] = jax.device_get,
) -> Rollout:
  """Draws an iteration's prompts, and completions of each.

  Args:
    model: the decoder.
    params: the policy.
    prompts: tokens [A, P] int32, left-padded, and their mask [A, P] bool, to draw from: without replacement where
      there are enough.
    seed: of the run.
    stream: what the random streams are named after; they are <stream>/prompts and <stream>/samples.
    iteration: from 1.
    num_prompts: P.
    num_samples: n.
    sampling: keywords of `sampling.generate`.
    prompts_per_call: prompts of one call of `generate`, to bound its memory; divides num_prompts. None: all.
    dtype: of the computation.
    place: puts arrays [B, ...] that every process holds on the devices.
    fetch: brings whole arrays to the host.
  """
  numbers = rng.generator(seed, f"{stream}/prompts/{iteration}")
  available = len(prompts[0])
  chosen = numbers.choice(available, num_prompts, replace=available < num_prompts)
  per_call = prompts_per_call or num_prompts
  parts = []
  for call, start in enumerate(range(0, num_prompts, per_call)):
    rows = chosen[start : start + per_call]
    tokens, mask = place((prompts[0][rows], prompts[1][rows]))
    key = rng.key(seed, f"{stream}/samples/{iteration}", call)
    samples = generation.generate(
      model,
      params,
      tokens,
      mask,
      key,
      num_samples=num_samples,
      dtype=jnp.dtype(dtype),
      **sampling,
    )
    parts.append(fetch({name: getattr(samples, name) for name in Rollout._fields}))
  joined = {name: np.concatenate([part[name] for part in parts]) for name in Rollout._fields}
  return Rollout(**joined)
