"""Optimizers and schedules from names, on top of optax.

Which leaves are decayed, trained or orthogonalised is decided by regexes on leaf names, since a rank does not tell a
matrix from a stacked vector: the scale of a norm over stacked layers has two axes.
"""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from wam.core import trees
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import PyTree
from wam.training import durations

# Matrices, whether stacked or not; not norms, not biases.
MATRICES = r"(.*/)?(kernel|embedding)"
# The matrices inside a layer: what Muon orthogonalises. Embeddings and heads go to AdamW (Jordan et al. 2024).
HIDDEN_MATRICES = r"(.*/)?layers/.*/kernel"
NAMES = ("adafactor", "adam", "adamw", "lion", "muon", "sgd")
SCHEDULES = ("constant", "cosine", "linear")


def make_schedule(
  *,
  learning_rate: float,
  total_steps: int,
  schedule: str = "constant",
  warmup_steps: int | None = None,
  warmup_examples: float | None = None,
  warmup_epochs: float | None = None,
  warmup_percent: float | None = None,
  final_fraction: float = 0.0,
  examples_per_step: int | None = None,
  examples_per_epoch: int | None = None,
) -> optax.Schedule:
  """Step -> learning rate: a linear warm-up, then constant, cosine or linear decay.

  Args:
    learning_rate: the peak.
    total_steps: where the decay ends, warm-up included.
    schedule: "constant", "cosine" or "linear".
    warmup_steps, warmup_examples, warmup_epochs, warmup_percent: at most one of them; none means no warm-up.
    final_fraction: the last learning rate as a fraction of the peak (not for "constant").
    examples_per_step, examples_per_epoch: sizes for the units that need them.

  Raises:
    UnknownName: if there is no such schedule; ConfigError: if the warm-up is longer than the training.
  """
  spec = {
    "warmup_steps": warmup_steps,
    "warmup_examples": warmup_examples,
    "warmup_epochs": warmup_epochs,
    "warmup_percent": warmup_percent,
  }
  warmup = durations.to_steps(
    spec,
    "warmup",
    total=total_steps,
    examples_per_step=examples_per_step,
    examples_per_epoch=examples_per_epoch,
    default=0,
  )
  if warmup > total_steps:
    raise ConfigError(f"a warm-up of {warmup} steps does not fit into {total_steps} steps")
  decay_steps = max(total_steps - warmup, 1)
  if schedule == "constant":
    main = optax.constant_schedule(learning_rate)
  elif schedule == "cosine":
    main = optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=final_fraction)
  elif schedule == "linear":
    main = optax.linear_schedule(learning_rate, learning_rate * final_fraction, decay_steps)
  else:
    raise unknown_name("schedule", schedule, SCHEDULES)
  if not warmup:
    return main
  # From 1/warmup and not from 0: the first step would change nothing.
  ramp = optax.linear_schedule(learning_rate / warmup, learning_rate, max(warmup - 1, 1))
  return optax.join_schedules([ramp, main], [warmup])


def make(
  *,
  learning_rate: float,
  total_steps: int,
  name: str = "adamw",
  weight_decay: float = 0.0,
  decay: str = MATRICES,
  clip_norm: float | None = 1.0,
  b1: float = 0.9,
  b2: float | None = None,
  eps: float = 1e-8,
  momentum: float = 0.0,
  trainable: str = ".*",
  **schedule: Any,
) -> optax.GradientTransformation:
  """An optimizer with schedule, clipping and decoupled weight decay.

  Args:
    learning_rate: the peak; see `make_schedule` for it and for the keywords it takes.
    total_steps: of the whole training.
    name: "adamw", "adam" (never decays), "adafactor", "sgd", "lion" or "muon".
    weight_decay: decoupled, multiplied by the learning rate; for the leaves whose names match `decay`.
    decay: regex on leaf names; the default decays matrices and no norms or biases.
    clip_norm: clips the gradient by its global norm; None does not.
    b1, b2: of Adam and Lion (b2 defaults to 0.999 for Adam, 0.99 for Lion); b1 is Muon's momentum too.
    eps: of Adam.
    momentum: of SGD and Adafactor; 0 is none.
    trainable: regex on leaf names; other leaves stay as they are, cost no state and do not count in the clipping.
    **schedule: keywords of `make_schedule`.

  Raises:
    UnknownName: if there is no such optimizer; ConfigError: if `weight_decay` is given to one that never decays.
  """
  rate = make_schedule(learning_rate=learning_rate, total_steps=total_steps, **schedule)
  if name == "adam" and weight_decay:
    raise ConfigError("adam has no weight decay; use adamw, or weight_decay=0")
  adam_b2 = 0.999 if b2 is None else b2
  scalers: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.scale_by_adam(b1, adam_b2, eps),
    "adamw": lambda: optax.scale_by_adam(b1, adam_b2, eps),
    "adafactor": lambda: _adafactor(momentum),
    "sgd": lambda: optax.trace(momentum) if momentum else optax.identity(),
    "lion": lambda: optax.scale_by_lion(b1, 0.99 if b2 is None else b2),
    "muon": lambda: _muon(b1, adam_b2, eps),
  }
  if name not in scalers:
    raise unknown_name("optimizer", name, NAMES)
  parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
  parts.append(scalers[name]())
  if weight_decay:
    parts.append(optax.add_decayed_weights(weight_decay, mask=matching(decay)))
  parts.append(optax.scale_by_learning_rate(rate))
  tx = optax.chain(*parts)
  if trainable == ".*":
    return tx
  labels = matching(trainable)
  # Outside the chain, so that the clipping sees the trained leaves alone and frozen ones keep no moments.
  return optax.partition({True: tx, False: optax.set_to_zero()}, labels)


def matching(pattern: str) -> Callable[[PyTree], PyTree]:
  """A function from a tree to the tree of booleans: whose names match `pattern` as a whole."""
  compiled = re.compile(pattern)
  return lambda tree: trees.map_named(lambda name, _: bool(compiled.fullmatch(name)), tree)


def _adafactor(momentum: float) -> optax.GradientTransformation:
  """Shazeer & Stern 2018 with the learning rate left to the schedule."""
  parts = [
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.scale_by_param_block_rms(),
  ]
  return optax.chain(*parts, *([optax.ema(momentum, debias=False)] if momentum else []))


def _muon(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Muon for the matrices of the layers, Adam for the rest; updates as large as AdamW's (Liu et al. 2025, eq. 4)."""

  def muon_dimensions(params: PyTree) -> PyTree:
    dimensions = optax.contrib.MuonDimensionNumbers
    return trees.map_named(
      # The last two axes are the matrix; a leading axis of layers is batched over.
      lambda _, x: dimensions(reduction_axis=jnp.ndim(x) - 2, output_axis=jnp.ndim(x) - 1),
      params,
    )

  muon = optax.contrib.scale_by_muon(beta=b1, weight_dimension_numbers=muon_dimensions)
  hidden = matching(HIDDEN_MATRICES)
  labels = lambda tree: trees.map_named(lambda _, m: "muon" if m else "adam", hidden(tree))  # noqa: E731
  rms = optax.stateless(
    lambda updates, _: trees.map_named(
      lambda _, u: u * (0.2 * float(max(u.shape[-2:])) ** 0.5), updates
    )
  )
  return optax.partition(
    {"muon": optax.chain(muon, rms), "adam": optax.scale_by_adam(b1, b2, eps)}, labels
  )
