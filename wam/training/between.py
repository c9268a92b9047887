"""The policies between two sets of weights: what they make of completions, and its derivatives along the parts.

What a search for ratios asks of its models. Leaves out the search and where completions come from.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import NonFinite, unknown_name
from wam.core.types import Params, PyTree
from wam.losses import sequence
from wam.losses.policy_gradient import entropy
from wam.merging import adaptive
from wam.models import stacking
from wam.models.decoder import LanguageModel
from wam.training import sharding

OBJECTIVES = ("likelihood", "entropy")


class Weighted(NamedTuple):
  """Completions and what their tokens count for: NumPy arrays on the host, JAX arrays in a program.

  Attributes:
    tokens: [R, P + N] int32, prompts padded on the left and completions on the right.
    mask: [R, P + N] bool, the real tokens.
    weights: [R, N] float32, of the log-probability of every token of the completions; 0 where there is none.
  """

  tokens: Any
  mask: Any
  weights: Any


class Between:
  """The policies θ(a) between two sets of weights, on the devices.

  A program is compiled once for every shape of completions, for whatever weights, ratios, α and temperature.
  """

  def __init__(
    self,
    model: LanguageModel,
    reference: Params,
    tuned: Params,
    *,
    num_parts: int = 3,
    parts: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    rows_per_call: int = 8,
    mode: str = "forward",
    objective: str = "likelihood",
    dtype: str = "float32",
    place: Callable[[PyTree], PyTree] = lambda batch: batch,
  ):
    """Compiles nothing yet.

    Args:
      model: the decoder.
      reference: θ_0, before RLHF.
      tuned: θ, after it.
      num_parts: K.
      parts: keywords of `adaptive.layout`.
      temperature: all logits are divided by it.
      rows_per_call: completions of one forward pass, to bound its memory.
      mode: of the derivatives, a key of `adaptive.MODES`.
      objective: "likelihood" of the tokens, or minus the "entropy" of what is predicted in their place.
      dtype: of the computation.
      place: puts arrays [B, ...] that every process holds on the devices.
    """
    keywords = dict(parts or {})
    self.layout = adaptive.layout(reference, num_parts, **keywords)
    self._ends = (reference, tuned)
    self._rows, self._place = rows_per_call, place
    if mode not in adaptive.MODES:
      raise unknown_name("mode", mode, adaptive.MODES)
    if objective not in OBJECTIVES:
      raise unknown_name("objective", objective, OBJECTIVES)
    # One subtree a layer: a direction that begins in a layer costs nothing before it.
    unrolled = jax.eval_shape(stacking.unstack_layers, reference)
    by_layer = adaptive.layout(unrolled, num_parts, **keywords)
    self._evaluate = functools.partial(
      _evaluate,
      model=model,
      layout=by_layer,
      objective=objective,
      temperature=temperature,
      dtype=jnp.dtype(dtype),
    )
    self._mode = mode

  @property
  def names(self) -> tuple[str, ...]:
    """The K parts, from input to output."""
    return self.layout.names

  def params(self, ratios: Any, alpha: float) -> Params:
    """The weights of a policy; ratios [K] outside [0, 1], as the coded form has them, extrapolate."""
    steps = np.asarray(ratios, np.float32)
    return adaptive.merge(self.layout, *self._ends, steps, alpha=alpha, extrapolate=True)

  def value(self, ratios: Any, alpha: float, examples: Weighted) -> float:
    """Σ weights·log π(token | tokens before), or minus Σ weights·entropy, in nats."""
    batches = self._batches(examples)
    return sum(
      float(self._evaluate(*self._at(ratios, alpha), batch, mode="value")) for batch in batches
    )

  def gradient(self, ratios: Any, alpha: float, examples: Weighted) -> tuple[float, np.ndarray]:
    """As `value`, with its derivatives [K] float64 with respect to the ratios.

    Raises:
      NonFinite: if the value or a derivative is NaN or infinite.
    """
    total, slopes = 0.0, np.zeros(len(self.names))
    for batch in self._batches(examples):
      part, slope = sharding.fetch(self._evaluate(*self._at(ratios, alpha), batch, mode=self._mode))
      total, slopes = total + float(part), slopes + np.asarray(slope, np.float64)
    if not np.isfinite([total, *slopes]).all():
      raise NonFinite(
        f"the objective at the ratios {np.asarray(ratios).tolist()} is {total}, its slopes {slopes.tolist()}"
      )
    return total, slopes

  def _at(self, ratios: Any, alpha: float) -> tuple[Any, ...]:
    return (jnp.asarray(ratios, jnp.float32), jnp.float32(alpha), *self._ends)

  def _batches(self, examples: Weighted) -> Iterator[Weighted]:
    """`rows_per_call` rows at a time; the last are filled up with copies that have no weight."""
    count = len(examples.tokens)
    for start in range(0, count, self._rows):
      rows = np.arange(start, start + self._rows)
      real = (rows < count)[:, None].astype(np.float32)
      tokens, mask, weights = (x[np.minimum(rows, count - 1)] for x in examples)
      yield self._place(Weighted(tokens, mask, weights * real))


@functools.partial(jax.jit, static_argnames=("model", "layout", "objective", "mode", "dtype"))
def _evaluate(
  ratios: jax.Array,
  alpha: jax.Array,
  reference: Params,
  tuned: Params,
  batch: Weighted,
  *,
  temperature: jax.Array | float,
  model: LanguageModel,
  layout: adaptive.Layout,
  objective: str,
  mode: str,
  dtype: Any,
) -> Any:
  """The objective, and but for the mode "value" its derivatives; the layout is that of unrolled layers."""

  def total(params: Params, batch: Weighted) -> jax.Array:
    # Slot t - 1 predicts token t; the logits of prompts are never made.
    first = batch.tokens.shape[1] - batch.weights.shape[1] - 1
    output = model.apply(params, batch.tokens, mask=batch.mask, dtype=dtype, logits=False)
    logits = model.logits(params, output.hidden[:, first:]) / temperature
    if objective == "entropy":
      return -sequence.masked_sum(entropy(logits[:, :-1]), batch.weights)
    logprobs = sequence.token_logprobs(logits, batch.tokens[:, first:])
    return sequence.masked_sum(logprobs[:, 1:], batch.weights)

  make = adaptive.value if mode == "value" else adaptive.MODES[mode]
  ends = (stacking.unstack_layers(reference), stacking.unstack_layers(tuned))
  return make(total, layout)(ratios, alpha, *ends, batch)
