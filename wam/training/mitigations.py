"""Mitigations of the alignment tax that act while a policy is trained, by name, for any algorithm.

A mitigation changes what is trained (adapters in place of the weights), what is minimised (penalties towards θ_0), or
what an update does (resets, merged updates); an algorithm asks a `Mitigation` for all three and knows none of them.
Leaves out what is done before (data), after (averaging) and in the reward (KL).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from wam.core.types import Params, PyTree
from wam.models.decoder import LanguageModel
from wam.training.state import Frozen, LossFn


@dataclasses.dataclass(frozen=True)
class Mitigation:
  """What an algorithm trains, minimises and does in an update. Without arguments: the weights, its loss, its optimizer.

  `frozen` are trees of weights by name that no step changes ("init" is θ_0, the parameters that the algorithm started
  from): losses, optimizers and `full` get as arguments what `freeze` returns; what none of them needs is not held.

  Attributes:
    start: (θ_0, key) -> what is trained.
    full: (what is trained, frozen) -> the weights of the policy; pure, for use under jit.
    wrap_losses: LossFn -> LossFn, applied in order; they and the loss see the weights of the policy.
    wrap_optimizers: tx -> tx, applied in order; they see what is trained, and `frozen` as an extra argument.
    freeze: θ_0 -> frozen.
  """

  start: Callable[[Params, jax.Array], PyTree] = lambda init, key: init
  full: Callable[[PyTree, Frozen], Params] = lambda trained, frozen: trained
  wrap_losses: Sequence[Callable[[LossFn], LossFn]] = ()
  wrap_optimizers: Sequence[
    Callable[[optax.GradientTransformation], optax.GradientTransformation]
  ] = ()
  freeze: Callable[[Params], Frozen] = lambda init: {}

  @property
  def trains_weights(self) -> bool:
    """Whether what is trained are the weights of the policy themselves."""
    return self.full is NONE.full

  def loss(self, loss_fn: LossFn) -> LossFn:
    """The loss of what is trained, from a loss of the policy's weights."""
    for wrap in self.wrap_losses:
      loss_fn = wrap(loss_fn)

    def of_trained(trained: PyTree, batch: PyTree, key: jax.Array, frozen: Frozen) -> Any:
      return loss_fn(self.full(trained, frozen), batch, key, frozen)

    return of_trained

  def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer of what is trained."""
    for wrap in self.wrap_optimizers:
      tx = wrap(tx)
    return tx


NONE = Mitigation()


def make(model: LanguageModel, section: Mapping[str, Mapping[str, Any]] | None) -> Mitigation:
  """The mitigation of a config section: {} or None for none."""
  del model
  assert not section
  return NONE
