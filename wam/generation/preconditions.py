"""What an algorithm that samples needs of its sampling and its prompts; refused before anything is trained.

Leaves out how many prompts a call takes (rollouts.py) and how text becomes tokens (data/encoding.py).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wam.core.errors import BadData, ConfigError
from wam.models.decoder import LanguageModel


def check_sampling(sampling: Mapping[str, Any], *, algorithm: str) -> None:
  """Refuses sampling from another distribution than the policy's at a temperature: its gradient would be biased.

  Raises:
    ConfigError: for greedy decoding, top-k or top-p.
  """
  temperature = sampling.get("temperature", 1.0)
  if not 0 < temperature < float("inf"):
    raise ConfigError(
      f"{algorithm}: sampling.temperature is {temperature}; a policy gradient needs samples, so a number above 0"
    )
  for name, neutral in (("top_k", 0), ("top_p", 1.0)):
    if sampling.get(name, neutral) != neutral:
      raise ConfigError(
        f"{algorithm}: sampling.{name} is {sampling[name]}; truncated samples are not the policy's, whose gradient"
        f" would be biased. Remove it, or set {name}={neutral}"
      )


def check_context(
  model: LanguageModel, prompts: tuple[np.ndarray, np.ndarray], *, max_new_tokens: int, stage: str
) -> None:
  """Refuses prompts that cannot be continued.

  Raises:
    BadData: if a prompt has no token; ConfigError: if prompts and completions are longer than the model's context.
  """
  tokens, mask = prompts
  empty = np.flatnonzero(~np.asarray(mask).any(axis=1))
  if empty.size:
    raise BadData(
      f"{stage}: {empty.size} of {len(tokens)} prompts have no token, the first is number {empty[0]}; remove them, or"
      " let the tokenizer begin prompts with a BOS token"
    )
  context = model.config.max_position_embeddings
  longest = int(np.asarray(mask).sum(axis=1).max(initial=0))
  if longest + max_new_tokens > context:
    raise ConfigError(
      f"{stage}: the longest prompt ({longest} tokens) and max_new_tokens ({max_new_tokens}) are more than the model's"
      f" context of {context} tokens; cut or drop long prompts (encoding.prompt_rows, length and too_long), or lower"
      " max_new_tokens"
    )
