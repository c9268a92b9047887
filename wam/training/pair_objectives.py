"""The objective that reward models share, trained alone or in a population: Bradley-Terry on pairs.

Leaves out evaluation and normalisation (algorithms/reward_model.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import ConfigError
from wam.core.types import Params, PyTree
from wam.losses import preference
from wam.models.heads import ScalarModel, at_last_token
from wam.training.members import SETTINGS
from wam.training.state import Frozen, LossFn, Pair


def bradley_terry(
  model: ScalarModel,
  *,
  center_rewards_coefficient: float = 0.0,
  margin: float = 0.0,
  dropout: float = 0.0,
  dtype: str = "float32",
  remat: bool = False,
) -> LossFn:
  """Σ over pairs of -log σ(r⁺ - r⁻ - margin) + c·(r⁺ + r⁻)², and the number of pairs.

  Metrics: "accuracy" (ties count 1/2), "margin" (r⁺ - r⁻) and "reward" (mean of both).

  Decoders have no dropout inside. `dropout` is that of the features which the head reads, an own mask for every
  sequence, as classifiers on top of a trunk have it: with probability p an entry of the last token's hidden state is 0,
  otherwise it is divided by 1 - p. A member of a population brings its own p, as frozen["settings"]["dropout"].

  Args:
    model: trunk and head.
    center_rewards_coefficient: c, which holds the rewards around 0; 0.01 is usual.
    margin: the chosen reward ought to be higher by this.
    dropout: p in [0, 1), where no setting gives it; 0 draws nothing.
    dtype, remat: of the trunk.

  Raises:
    ConfigError: if `dropout` is not in [0, 1).
  """
  check_dropout(dropout)

  def loss_fn(
    params: Params, batch: PyTree, key: jax.Array, frozen: Frozen | None = None
  ) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    # One pass over both; side by side, so that a pair stays on its device.
    tokens = _side_by_side(batch["chosen"], batch["rejected"])
    mask = _side_by_side(batch["chosen_mask"], batch["rejected_mask"])
    hidden = model.hidden(params, tokens, mask=mask, dtype=jnp.dtype(dtype), remat=remat)
    features = at_last_token(hidden, mask)
    rate = dict(frozen or {}).get(SETTINGS, {}).get("dropout", dropout or None)
    if rate is not None:
      features = _drop(features, rate, key)
    rewards = model.read(params, features)
    chosen, rejected = rewards[0::2], rewards[1::2]
    losses = preference.bradley_terry(chosen, rejected, margin)
    if center_rewards_coefficient:
      losses += center_rewards_coefficient * preference.centering(chosen, rejected)
    pairs = jnp.asarray(chosen.shape[0], jnp.float32)
    metrics = {
      "accuracy": (jnp.sum(preference.correct(chosen, rejected)), pairs),
      "margin": (jnp.sum(chosen - rejected), pairs),
      "reward": (0.5 * jnp.sum(chosen + rejected), pairs),
    }
    return jnp.sum(losses), pairs, metrics

  return loss_fn


def check_dropout(rate: float) -> None:
  """Raises ConfigError unless the rate is in [0, 1)."""
  if not 0 <= rate < 1:
    raise ConfigError(f"dropout is {rate}, expected at least 0 and less than 1")


def count_tokens(batch: PyTree) -> int:
  """Real tokens of a batch of pairs."""
  return int(np.count_nonzero(batch["chosen_mask"]) + np.count_nonzero(batch["rejected_mask"]))


def _drop(x: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
  """Dropout with a rate that may be traced; a rate of 0 changes no bit."""
  rate = jnp.asarray(rate, jnp.float32)
  kept = jax.random.uniform(key, x.shape) >= rate
  # A factor, and not a division, so that a rate known to the compiler rounds as a traced one.
  factor = jax.lax.optimization_barrier(1.0 / (1.0 - rate))
  return x * jnp.where(kept, factor, 0.0).astype(x.dtype)


def _side_by_side(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """[B, T], [B, T] -> [2B, T]: chosen in the even rows."""
  return jnp.stack([chosen, rejected], axis=1).reshape(-1, chosen.shape[1])
