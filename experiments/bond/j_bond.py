"""J-BOND on a table of answers to one prompt, from samples, with every reward and KL exact.

Sessa et al. 2024, BOND (arXiv 2407.14622): the policy π is drawn to the best of two samples of an anchor by the
Jeffreys divergence (1 - β)·KL(π ‖ best) + β·KL(best ‖ π), and the anchor follows the policy, so that best-of-n with a
growing n is distilled. Leaves out language models.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# r_J of an answer that is worse than both samples of the anchor; its mean at the anchor's median is log ½.
WORSE = -math.log(16.0)


class Settings(NamedTuple):
  """The numbers of a run.

  Attributes:
    num_answers: in the table.
    num_steps: updates.
    batch_size: answers of the policy a step, and pairs of the anchor's.
    learning_rate: of Adam, on logits.
    forward: β, the share of KL(best ‖ π).
    kl_coef: γ, what a nat of KL(π ‖ anchor) costs besides.
    ema_rate: η of the moving average of the logits.
    period: steps after which the periodic anchor becomes the policy.
  """

  num_answers: int = 256
  num_steps: int = 600
  batch_size: int = 128
  learning_rate: float = 0.02
  forward: float = 0.5
  kl_coef: float = 0.0
  ema_rate: float = 0.02
  period: int = 50


class Path(NamedTuple):
  """Along a run, before each step and after the last: [T + 1].

  Attributes:
    reward: E_π[r], exact.
    kl: KL(π ‖ π_0) in nats, exact.
  """

  reward: jax.Array
  kl: jax.Array


def gradient(
  logits: jax.Array, anchor: jax.Array, rewards: jax.Array, key: jax.Array, settings: Settings
) -> jax.Array:
  """An estimate of the gradient of the divergence in the policy's logits, [A], by samples of both.

  -(1 - β)·(r_J - mean)·∇log π(y) - β·∇log π(better of two) + γ·∇KL(π ‖ anchor), the last one exact.
  """
  own, others = jax.random.split(key)
  drawn = jax.random.categorical(own, logits, shape=(settings.batch_size,))
  pairs = jax.random.categorical(others, anchor, shape=(settings.batch_size, 2))
  worth = rewards[pairs]
  better = jnp.take_along_axis(pairs, worth.argmax(axis=1)[:, None], axis=1)[:, 0]
  r_j = jnp.where(rewards[drawn] < worth.min(axis=1), WORSE, 0.0)
  advantage = r_j - r_j.mean()

  def loss(logits: jax.Array) -> jax.Array:
    logprobs = jax.nn.log_softmax(logits)
    backward = -jnp.mean(jax.lax.stop_gradient(advantage) * logprobs[drawn])
    forward = -jnp.mean(logprobs[better])
    extra = divergence(logits, anchor)
    return (1 - settings.forward) * backward + settings.forward * forward + settings.kl_coef * extra

  return jax.grad(loss)(logits)


def divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
  """KL of the first policy to the second, in nats: []."""
  ours, theirs = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
  return jnp.sum(jnp.exp(ours) * (ours - theirs))


def train(seed: int, anchor: str, settings: Settings) -> Path:
  """A run from the π_0 and the rewards of the seed; `anchor` is "ema" or "periodic"."""
  tables, key = jax.random.split(jax.random.key(seed))
  start, rewards = jax.random.normal(tables, (2, settings.num_answers))
  tx = optax.adam(settings.learning_rate)
  State = tuple[jax.Array, jax.Array, optax.OptState]

  def measure(logits: jax.Array) -> Path:
    return Path(jax.nn.softmax(logits) @ rewards, divergence(logits, start))

  def step(state: State, at: tuple[jax.Array, jax.Array]) -> tuple[State, Path]:
    number, key = at
    logits, held, inner = state
    found = gradient(logits, held, rewards, key, settings)
    updates, inner = tx.update(found, inner)
    moved = logits + updates
    if anchor == "ema":
      held = (1 - settings.ema_rate) * held + settings.ema_rate * moved
    else:
      held = jnp.where(number % settings.period == 0, moved, held)
    return (moved, held, inner), measure(moved)

  count = settings.num_steps
  every = (jnp.arange(1, count + 1), jax.random.split(key, count))
  _, path = jax.lax.scan(step, (start, start, tx.init(start)), every)
  first = measure(start)
  return Path(*(jnp.concatenate([a[None], b]) for a, b in zip(first, path, strict=True)))
