"""Direct preference losses: on pairs of log-ratios log π(y|x) - log π_ref(y|x), where rewards would stand otherwise.

The reward that a policy implies is β times its log-ratio, up to a constant of the prompt (Rafailov et al. 2023, eq. 5):
these losses are Bradley-Terry, and relatives of it, on that reward. Leaves out log-probabilities (sequence.py) and
losses on rewards (preference.py).
"""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp

from wam.core.errors import ConfigError, check_same_shape, unknown_name


class PairLoss(Protocol):
  """A loss of pairs, elementwise."""

  def __call__(
    self,
    chosen: jax.Array,
    rejected: jax.Array,
    chosen_length: jax.Array,
    rejected_length: jax.Array,
    /,
  ) -> jax.Array:
    """Losses of log-ratios, each the sum over a completion, and of the completions' lengths; all [B]."""


def sigmoid(
  chosen: jax.Array, rejected: jax.Array, *, beta: float, label_smoothing: float = 0.0
) -> jax.Array:
  """-(1 - ε) log σ(β h) - ε log σ(-β h) with h = chosen - rejected, elementwise, in nats.

  DPO for ε = 0 (Rafailov et al. 2023, eq. 7); conservative DPO for the belief that a share ε of the labels is wrong
  (Mitchell 2023), lowest at h = log((1 - ε)/ε)/β in place of infinity.

  Args:
    chosen: log π(y⁺|x) - log π_ref(y⁺|x), summed over the completion with its EOS; any shape, float.
    rejected: the same of y⁻.
    beta: how strongly the policy is held to the reference; above 0.
    label_smoothing: ε.

  Returns:
    Losses of the same shape; log 2 where the log-ratios are equal.
  """
  check_same_shape(chosen=chosen, rejected=rejected)
  rewards = beta * (chosen - rejected)
  losses = -jax.nn.log_sigmoid(rewards)
  if not label_smoothing:
    return losses
  return (1.0 - label_smoothing) * losses - label_smoothing * jax.nn.log_sigmoid(-rewards)


def robust(
  chosen: jax.Array, rejected: jax.Array, *, beta: float, label_smoothing: float = 0.0
) -> jax.Array:
  """(-(1 - ε) log σ(β h) + ε log σ(-β h)) / (1 - 2ε): DPO's loss, unbiased although a share ε of labels is flipped.

  Its mean over flips is the loss of the true labels; it can be negative. Chowdhury et al. 2024; arguments as in
  `sigmoid`, ε < 1/2.
  """
  check_same_shape(chosen=chosen, rejected=rejected)
  rewards = beta * (chosen - rejected)
  right, wrong = -jax.nn.log_sigmoid(rewards), -jax.nn.log_sigmoid(-rewards)
  return ((1.0 - label_smoothing) * right - label_smoothing * wrong) / (1.0 - 2.0 * label_smoothing)


def ipo(
  chosen: jax.Array,
  rejected: jax.Array,
  chosen_length: jax.Array,
  rejected_length: jax.Array,
  *,
  beta: float,
) -> jax.Array:
  """(chosen / |y⁺| - rejected / |y⁻| - 1/(2β))², elementwise: identity preference optimisation.

  Azar et al. 2023, eq. 17, their τ being β; of log-ratios averaged over tokens, as in TRL after its authors'
  correction, so that long completions are not pulled harder. Labels that agree in a share p of the cases make it lowest
  where the difference of the averages is (p - 1/2)/β, however sure they are.

  Args:
    chosen: log-ratios summed over the completion, any shape, float.
    rejected: the same of y⁻.
    chosen_length: |y⁺|, tokens with EOS, same shape; at least 1.
    rejected_length: |y⁻|.
    beta: as in `sigmoid`.
  """
  check_same_shape(chosen=chosen, rejected=rejected)
  check_same_shape(chosen=chosen, chosen_length=chosen_length, rejected_length=rejected_length)
  difference = chosen / chosen_length - rejected / rejected_length
  return jnp.square(difference - 1.0 / (2.0 * beta))


def length_normalised(
  chosen: jax.Array,
  rejected: jax.Array,
  chosen_length: jax.Array,
  rejected_length: jax.Array,
  *,
  beta: float,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """`sigmoid` of log-ratios averaged over tokens. Lambert et al. 2024 (Tülu 3, section 5), with β = 5.

  Arguments as in `ipo` and `sigmoid`.
  """
  check_same_shape(chosen=chosen, chosen_length=chosen_length, rejected_length=rejected_length)
  return sigmoid(
    chosen / chosen_length,
    rejected / rejected_length,
    beta=beta,
    label_smoothing=label_smoothing,
  )


NAMES = ("ipo", "length_normalised", "robust", "sigmoid")


def make(name: str, *, beta: float, label_smoothing: float = 0.0) -> PairLoss:
  """The loss of that name, its numbers checked.

  Args:
    name: "sigmoid" (DPO; cDPO with `label_smoothing`), "robust", "ipo" or "length_normalised".
    beta: above 0.
    label_smoothing: in [0, 1/2); not for "ipo", whose optimum is finite anyway.

  Raises:
    UnknownName: if there is no such loss; ConfigError: if a number is out of its range.
  """
  if name not in NAMES:
    raise unknown_name("preference loss", name, NAMES)
  if not 0.0 < beta < float("inf"):
    raise ConfigError(f"beta: expected a number above 0, found {beta}")
  if not 0.0 <= label_smoothing < 0.5:
    raise ConfigError(f"label_smoothing: expected a share in [0, 1/2), found {label_smoothing}")
  if name == "ipo":
    if label_smoothing:
      raise ConfigError("label_smoothing belongs to sigmoid, robust and length_normalised, not ipo")
    return functools.partial(ipo, beta=beta)
  if name == "length_normalised":
    return functools.partial(length_normalised, beta=beta, label_smoothing=label_smoothing)
  summed = functools.partial(
    sigmoid if name == "sigmoid" else robust, beta=beta, label_smoothing=label_smoothing
  )
  return lambda chosen, rejected, chosen_length, rejected_length: summed(chosen, rejected)
