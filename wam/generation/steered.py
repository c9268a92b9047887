"""Completions by a policy that a preference steers, and how far it is from θ_0 along them. Leaves out rewards."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from wam.core.types import Params, PyTree
from wam.generation import rollouts, scoring
from wam.generation.rollouts import Rollout
from wam.generation.scoring import Comparison
from wam.models.conditioning import Conditioning


class SteeredSampler:
  """Samples from θ(w) of conditioned weights, and compares it with θ_0; compiled once for all preferences."""

  def __init__(
    self,
    steered: Conditioning,
    init: Params,
    prompts: tuple[np.ndarray, np.ndarray],
    *,
    sampling: Mapping[str, Any],
    rows_per_call: int | None = None,
    dtype: str = "float32",
    place: Callable[[PyTree], PyTree] = lambda batch: batch,
    fetch: Callable[[PyTree], PyTree] = jax.device_get,
    **drawing: Any,
  ):
    """Keeps what all calls share.

    Args:
      steered: how a preference steers the model.
      init: θ_0, weights of the plain model.
      prompts: as in `rollouts.draw`.
      sampling: keywords of `generate`; log-probabilities are those at its temperature.
      rows_per_call: as in `scoring.compare`.
      dtype, place, fetch: as in both.
      **drawing: other keywords of `rollouts.draw`: seed, num_prompts, num_samples, prompts_per_call.
    """
    self._model, self._reference = steered.model, steered.reference(init)
    self._mix = jax.jit(steered.weights)
    self._prompts = prompts
    shared: dict[str, Any] = {"dtype": dtype, "place": place, "fetch": fetch}
    self._drawing: dict[str, Any] = {**drawing, **shared, "sampling": sampling}
    self._reading: dict[str, Any] = {
      **shared,
      "temperature": float(sampling.get("temperature", 1.0)),
      "rows_per_call": rows_per_call,
    }

  def __call__(
    self, conditioned: Params, steering: np.ndarray, stream: str, iteration: int
  ) -> tuple[Rollout, Comparison]:
    """A rollout by θ(w), and its comparison with θ_0, which is called "init".

    Args:
      conditioned: the weights.
      steering: w, [N].
      stream: what the random streams are named after.
      iteration: from 1.
    """
    policy = self._mix(conditioned, steering)
    rollout = rollouts.draw(
      self._model, policy, self._prompts, stream=stream, iteration=iteration, **self._drawing
    )
    others = {"init": self._reference}
    return rollout, scoring.compare(self._model, policy, others, rollout, **self._reading)
