"""What becomes of completions that reach their longest length without EOS, by name. Leaves out what is learnt."""

import numpy as np

from wam.core.errors import ConfigError, check_same_shape, unknown_name

RULES = ("keep", "penalty", "drop")


def check(rule: str, penalty: float | None) -> None:
  """Refuses rules that do not exist, and a penalty without its rule.

  Raises:
    UnknownName: if there is no such rule; ConfigError: if the penalty does not belong to it, or is no number >= 0.
  """
  if rule not in RULES:
    raise unknown_name("rule for a missing EOS", rule, RULES)
  if (penalty is not None) != (rule == "penalty"):
    raise ConfigError(
      f"missing_eos_penalty={penalty} with missing_eos='{rule}': the number belongs to 'penalty', which needs it"
    )
  if not 0 <= (penalty or 0) < float("inf"):
    raise ConfigError(f"missing_eos_penalty: expected 0 or more, found {penalty}")


def apply(
  rewards: np.ndarray, finished: np.ndarray, *, rule: str, penalty: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Rewards after the rule, and which completions have one.

  "keep" leaves the rewards as they are; "penalty" subtracts the penalty from the rewards of completions without EOS (as
  TRL's missing_eos_penalty; Ziegler et al. 2019 put a fixed reward in their place); "drop" says that those have no
  reward: they are compared with nothing and not trained on.

  Args:
    rewards: [R] float32.
    finished: [R] bool, whether EOS came.
    rule: its name.
    penalty: for "penalty", in units of the reward.

  Returns:
    Rewards [R] float32 and [R] bool.
  """
  check(rule, penalty)
  check_same_shape(rewards=rewards, finished=finished)
  if rule == "penalty":
    rewards = np.where(finished, rewards, rewards - np.float32(penalty or 0))
  return rewards, finished | (rule != "drop")
