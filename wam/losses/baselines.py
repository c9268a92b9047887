"""Baselines of policy gradients: what a reward is compared with, by name. Leaves out learnt value functions.

Each returns advantages r - b. A baseline that does not depend on the sample itself leaves the expectation of
r·∇log π(y) unchanged and lowers its variance; the three here are of that kind.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from wam.core.errors import check_rank, check_same_shape, unknown_name


def advantages(name: str, rewards: jax.Array, scorable: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rewards minus a baseline.

  Args:
    name: "leave_one_out", "batch_mean" or "none".
    rewards: [P, N] float, N samples of each of P prompts.
    scorable: [P, N] bool; the other samples have no reward: they enter no baseline and get no advantage, whatever
      stands in `rewards` there (NaN, too).

  Returns:
    Advantages [P, N] float32, 0 where they do not count, and which of them count, [P, N] bool: the scorable ones that
    have something to be compared with.

  Raises:
    UnknownName: if there is no such baseline. ValueError: if shapes do not fit.
  """
  check_rank("rewards", rewards, 2)
  check_same_shape(rewards=rewards, scorable=scorable)
  if name not in BASELINES:
    raise unknown_name("baseline", name, BASELINES)
  scorable = jnp.asarray(scorable, bool)
  known = jnp.where(scorable, jnp.asarray(rewards, jnp.float32), 0.0)
  return BASELINES[name](known, scorable)


def leave_one_out(rewards: jax.Array, scorable: jax.Array) -> tuple[jax.Array, jax.Array]:
  """RLOO: r_i - mean of r_j over the other scorable samples j of the same prompt.

  Kool et al. 2019; Ahmadian et al. 2024.

  A prompt with a single scorable sample teaches nothing and does not count. Exactly 0 where all rewards are equal.
  """
  return _minus_the_others(rewards, scorable, axis=1)


def batch_mean(rewards: jax.Array, scorable: jax.Array) -> tuple[jax.Array, jax.Array]:
  """r_i - mean of all other scorable rewards of the batch, whatever their prompts.

  The sample itself is left out of its mean: with it the gradient would be too short by a factor 1 - 1/B.
  """
  return _minus_the_others(rewards, scorable, axis=None)


def none(rewards: jax.Array, scorable: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The rewards themselves."""
  return rewards, scorable


def _minus_the_others(
  rewards: jax.Array, scorable: jax.Array, *, axis: int | None
) -> tuple[jax.Array, jax.Array]:
  """r_i - mean of the other scorable rewards along `axis` (None: all)."""
  # Shifted so that the largest is 0: equal rewards give exactly 0. A rounding left over would look like a signal to an
  # optimizer that divides by the size of the gradient.
  peak = jnp.max(jnp.where(scorable, rewards, -jnp.inf), axis=axis, keepdims=True)
  shifted = jnp.where(scorable, rewards - peak, 0.0)
  others = jnp.sum(scorable, axis=axis, keepdims=True) - 1
  total = jnp.sum(shifted, axis=axis, keepdims=True)
  mean = (total - shifted) / jnp.maximum(others, 1).astype(jnp.float32)
  counted = scorable & (others > 0)
  return jnp.where(counted, shifted - mean, 0.0), counted


BASELINES: dict[str, Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]] = {
  "leave_one_out": leave_one_out,
  "batch_mean": batch_mean,
  "none": none,
}
