"""Mitigations of the alignment tax that act while a policy is trained, by name, for any algorithm.

A mitigation changes what is trained (adapters in place of the weights), what is minimised (penalties towards θ_0,
replayed data), or what an update does (resets, merged updates); an algorithm asks a `Mitigation` for all three and
knows none of them. Leaves out what is done before (which data), after (averaging, early stopping) and in the reward
(KL).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params, PyTree
from wam.models.decoder import LanguageModel
from wam.models.lora import Lora
from wam.training import elastic_reset, penalties, replay
from wam.training.online_merging import OnlineMerging
from wam.training.state import Frozen, LossFn

NAMES = ("distillation", "elastic_reset", "l1", "l2", "lora", "online_merging", "replay")


@dataclasses.dataclass(frozen=True)
class Mitigation:
  """What an algorithm trains, minimises and does in an update. Without arguments: the weights, its loss, its optimizer.

  `frozen` are trees of weights by name that no step changes ("init" is θ_0, the parameters that the algorithm started
  from): losses, optimizers and `full` get as arguments what `freeze` returns; what none of them needs is not held.

  Attributes:
    start: (θ_0, key) -> what is trained.
    full: (what is trained, frozen) -> the weights of the policy; pure, for use under jit.
    while_training: (what is trained, frozen, key) -> the weights that the loss sees, where these are noisy; None: those
      of `full`.
    wrap_losses: LossFn -> LossFn, applied in order; they and the loss see the weights of the policy.
    wrap_optimizers: tx -> tx, applied in order; they see what is trained, and `frozen` as an extra argument.
    freeze: θ_0 -> frozen.
    augment: (batch, iteration, number) -> the batch with what the losses want beside the algorithm's own rows. Called
      on the host with a dict of arrays [B, ...], the iteration and the batch's number in it, from 0; what it adds is a
      function of these two. `replay.AugmentedBatches` does it for algorithms that take an iterator.
    carries_optimizer: whether the state of the optimizer must go from one iteration to the next.
  """

  start: Callable[[Params, jax.Array], PyTree] = lambda init, key: init
  full: Callable[[PyTree, Frozen], Params] = lambda trained, frozen: trained
  while_training: Callable[[PyTree, Frozen, jax.Array], Params] | None = None
  wrap_losses: Sequence[Callable[[LossFn], LossFn]] = ()
  wrap_optimizers: Sequence[
    Callable[[optax.GradientTransformation], optax.GradientTransformation]
  ] = ()
  freeze: Callable[[Params], Frozen] = lambda init: {}
  augment: Callable[[PyTree, int, int], PyTree] = lambda batch, iteration, number: batch
  carries_optimizer: bool = False

  @property
  def trains_weights(self) -> bool:
    """Whether what is trained are the weights of the policy themselves."""
    return self.full is NONE.full

  def loss(self, loss_fn: LossFn) -> LossFn:
    """The loss of what is trained, from a loss of the policy's weights."""
    for wrap in self.wrap_losses:
      loss_fn = wrap(loss_fn)

    def of_trained(trained: PyTree, batch: PyTree, key: jax.Array, frozen: Frozen) -> Any:
      if self.while_training is None:
        return loss_fn(self.full(trained, frozen), batch, key, frozen)
      key, own = jax.random.split(key)
      return loss_fn(self.while_training(trained, frozen, own), batch, key, frozen)

    return of_trained

  def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer of what is trained."""
    for wrap in self.wrap_optimizers:
      tx = wrap(tx)
    return tx


NONE = Mitigation()


def make(
  model: LanguageModel,
  section: Mapping[str, Mapping[str, Any]] | None,
  *,
  base: Params | None = None,
  replayed: Mapping[str, np.ndarray] | None = None,
  seed: int = 0,
  name: str = "mitigation",
) -> Mitigation:
  """The mitigation of a config section: names and their keywords, {} or None for none.

  "l1", "l2", "distillation": keywords of the functions of `penalties`. "lora": fields of `models.lora.Lora`.
  "elastic_reset": keywords of `elastic_reset.elastic_reset`. "online_merging": fields of `OnlineMerging`. "replay":
  keywords of `replay.loss` and of `replay.Rows`. All can be combined but online merging with LoRA.

  Args:
    model: the decoder.
    section: {"l2": {"coefficient": 0.01}, "lora": {"rank": 16}}.
    base: weights of the model that θ_0 was fine-tuned from, for "online_merging".
    replayed: rows of the pre-training data, for "replay"; see `replay.Rows`.
    seed: of the run.
    name: of the section, for messages.

  Raises:
    UnknownName: for a name that is no mitigation; ConfigError: for keys, values or combinations that make no sense, or
      where `base` or `replayed` is needed; BadData: if the replayed rows cannot be.
  """
  chosen = _read(model, section, seed=seed, name=name)
  if not section:
    return NONE
  if chosen.online_merging is not None and base is None:
    raise ConfigError(
      f"{name}.online_merging: needs the model that θ_0 was fine-tuned from, as `base`: its updates are merged with"
      " θ_0 - base"
    )
  if chosen.proportion is not None and replayed is None:
    raise ConfigError(f"{name}.replay: needs rows of the pre-training data, as `replayed`")
  return chosen.mitigation(base, replayed, seed)


def check(
  model: LanguageModel,
  section: Mapping[str, Mapping[str, Any]] | None,
  *,
  name: str = "mitigation",
) -> frozenset[str]:
  """Raises what `make` raises for the section alone; returns which of "base" and "replayed" `make` needs."""
  chosen = _read(model, section, seed=0, name=name)
  needed = {"base": chosen.online_merging, "replayed": chosen.proportion}
  return frozenset(n for n, setting in needed.items() if setting is not None)


@dataclasses.dataclass
class _Chosen:
  """What a section says."""

  losses: list[Callable[[LossFn], LossFn]]
  wants_init: bool = False
  lora: Lora | None = None
  reset: Mapping[str, Any] | None = None
  online_merging: OnlineMerging | None = None
  proportion: float | None = None

  def mitigation(
    self, base: Params | None, replayed: Mapping[str, np.ndarray] | None, seed: int
  ) -> Mitigation:
    """The pieces put together."""
    fields: dict[str, Any] = {"wrap_losses": tuple(self.losses)}
    lora, reset, merging = self.lora, self.reset, self.online_merging
    wrappers: list[Any] = []
    if merging is not None:
      wrappers.append(merging.optimizer)
    if reset is not None:
      # Outside, so that a reset is not merged with anything.
      wrappers.append(
        lambda tx: elastic_reset.elastic_reset(tx, keep_start=lora is not None, **reset)
      )
    if lora is not None:
      fields["start"] = lora.init
      fields["full"] = lambda trained, frozen: lora.fuse(frozen["init"], trained)
      if lora.dropout:
        fields["while_training"] = lambda trained, frozen, key: lora.fuse(
          frozen["init"], lora.drop(trained, key)
        )
    if replayed is not None and self.proportion is not None:
      fields["augment"] = replay.Rows(replayed, proportion=self.proportion, seed=seed).augment
    wants_init = self.wants_init or lora is not None or reset is not None

    def freeze(init: Params) -> Frozen:
      frozen = {"init": init} if wants_init else {}
      if merging is not None and base is not None:
        frozen["update"] = jax.jit(merging.reference)(init, base)
      return frozen

    return Mitigation(
      **fields,
      freeze=freeze,
      wrap_optimizers=tuple(wrappers),
      carries_optimizer=bool(wrappers),
    )


def _read(model: LanguageModel, section: Any, *, seed: int, name: str) -> _Chosen:
  """Checks names, keys, values and combinations."""
  if section is not None and not isinstance(section, Mapping):
    raise ConfigError(f"{name}: expected names and their sections, found {section!r}")
  given = dict(section or {})
  for each in given:
    if each not in NAMES:
      raise unknown_name("mitigation", each, NAMES)
  if "lora" in given and "online_merging" in given:
    raise ConfigError(
      f"{name}: online_merging merges updates of the weights with θ_0 - base, and lora has none: its updates are those"
      " of two factors. Drop one of them"
    )
  chosen = _Chosen([])
  # First, since a penalty is on the mean of all that is minimised.
  if "replay" in given:
    wrap, chosen.proportion = sections.call(_replay, given["replay"], f"{name}.replay", model=model)
    chosen.losses.append(wrap)
  for each in ("l1", "l2"):
    if each in given:
      wrap = sections.call(getattr(penalties, each), given[each], f"{name}.{each}")
      chosen.losses.append(wrap)
      chosen.wants_init = True
  if "distillation" in given:
    where = f"{name}.distillation"
    wrap = sections.call(penalties.distillation, given["distillation"], where, model=model)
    chosen.losses.append(wrap)
    chosen.wants_init = True
  if "lora" in given:
    chosen.lora = sections.call(Lora, given["lora"], f"{name}.lora")
  if "elastic_reset" in given:
    chosen.reset = sections.call(_reset, given["elastic_reset"], f"{name}.elastic_reset")
  if "online_merging" in given:
    where = f"{name}.online_merging"
    chosen.online_merging = sections.call(OnlineMerging, given["online_merging"], where, seed=seed)
  return chosen


def _replay(
  *,
  model: LanguageModel,
  coefficient: float = 1.0,
  proportion: float = 1.0,
  normalize: str = "separately",
  dtype: str = "float32",
  remat: bool = False,
) -> tuple[Callable[[LossFn], LossFn], float]:
  """The keys of "replay"."""
  wrap = replay.loss(model, coefficient=coefficient, normalize=normalize, dtype=dtype, remat=remat)
  replay.check_proportion(proportion)
  return wrap, proportion


def _reset(*, every: int, decay: float = 0.995) -> Mapping[str, Any]:
  """The keys of "elastic_reset"."""
  elastic_reset.elastic_reset(optax.identity(), every=every, decay=decay)
  return {"every": every, "decay": decay}
