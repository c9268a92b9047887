"""Experience replay: rows of the pre-training data in every batch, and their next-token loss beside the algorithm's.

Lin et al. 2024, section 3.2, which sets the weight of the loss by the proportion of the data. Which rows come with a
batch is a function of seed, iteration and the batch's number: a run that resumes sees them again. Leaves out where the
rows come from.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError, unknown_name
from wam.core.types import Params, PyTree
from wam.models.decoder import LanguageModel
from wam.training import objectives
from wam.training.loop import Batches
from wam.training.state import Frozen, LossFn

KEY = "replay"
NAMES = ("tokens", "mask", "loss_mask")
NORMALIZATIONS = ("separately", "together")


def loss(
  model: LanguageModel,
  *,
  coefficient: float = 1.0,
  normalize: str = "separately",
  dtype: str = "float32",
  remat: bool = False,
) -> Callable[[LossFn], LossFn]:
  """Adds λ times the next-token loss of batch["replay"] = {"tokens", "mask", "loss_mask"}, all [B', T'].

  Args:
    model: the decoder.
    coefficient: λ.
    normalize: "separately": mean loss + λ·(mean over the replayed tokens), whatever the algorithm's loss counts; under
      microbatches the means are averaged by the weight of its loss. "together": (Σ loss + λ·Σ replayed) / (weight +
      λ·tokens), one mean over all tokens as if replayed rows were rows of the algorithm: for losses that count tokens,
      where the paper has λ = 1 and the proportion of the data decides.
    dtype, remat: as in `sft.run`.

  Raises:
    ConfigError: if λ is negative or not finite; UnknownName: if there is no such normalisation.
  """
  if not (math.isfinite(coefficient) and coefficient >= 0):
    raise ConfigError(f"replay: coefficient is {coefficient}, expected at least 0")
  if normalize not in NORMALIZATIONS:
    raise unknown_name("normalize of replay", normalize, NORMALIZATIONS)
  replayed = objectives.next_token(model, dtype=dtype, remat=remat)

  def wrap(loss_fn: LossFn) -> LossFn:
    def both(params: Params, batch: PyTree, key: jax.Array, frozen: Frozen) -> Any:
      if KEY not in batch:
        raise ConfigError("replay: this algorithm does not put replayed rows into its batches")
      rest = {name: x for name, x in batch.items() if name != KEY}
      total, weight, metrics = loss_fn(params, rest, key, frozen)
      extra, tokens, _ = replayed(params, batch[KEY], key, frozen)
      weight = jax.lax.stop_gradient(weight).astype(jnp.float32)
      metrics = {**metrics, "replay_loss": (extra, tokens)}
      if normalize == "together":
        return total + coefficient * extra, weight + coefficient * tokens, metrics
      return total + coefficient * extra / jnp.maximum(tokens, 1.0) * weight, weight, metrics

    return both

  return wrap


def check_proportion(proportion: float) -> None:
  """Raises ConfigError unless it is a positive number."""
  if not (math.isfinite(proportion) and proportion > 0):
    raise ConfigError(f"replay: proportion is {proportion}, expected a positive number")


class Rows:
  """The rows that are replayed with each batch.

  Within an iteration every row comes once before one comes again; each iteration has an order of its own.
  """

  def __init__(self, rows: Mapping[str, np.ndarray], *, proportion: float = 1.0, seed: int = 0):
    """Checks the rows.

    Args:
      rows: "tokens" [A, T] int32, "mask" and "loss_mask" [A, T] bool, right-padded or packed; not copied.
      proportion: replayed rows for each row of a batch: the paper's λ, if rows are about as long.
      seed: of the run.

    Raises:
      BadData: if there are no rows, if an array is missing, or none of them trains a token.
      ConfigError: if the proportion is not positive.
    """
    missing = [name for name in NAMES if name not in rows]
    if missing:
      raise BadData(f"replay: the rows have no {', '.join(missing)}; found {', '.join(rows)}")
    if len({np.shape(rows[name]) for name in NAMES}) > 1 or not len(rows["tokens"]):
      shapes = {name: np.shape(rows[name]) for name in NAMES}
      raise BadData(f"replay: expected arrays of one shape with at least one row, found {shapes}")
    if not np.any(rows["loss_mask"]):
      raise BadData("replay: no token of the rows is trained: their loss mask is empty")
    check_proportion(proportion)
    self._rows = {name: np.asarray(rows[name]) for name in NAMES}
    self._proportion, self._seed = proportion, seed
    # A batch takes rows of one order, or of two that follow each other.
    self._order = functools.lru_cache(maxsize=2)(self._draw)

  def count(self, batch_size: int) -> int:
    """How many rows are replayed with a batch.

    Raises:
      ConfigError: if that is not a whole number.
    """
    wanted = self._proportion * batch_size
    if abs(wanted - round(wanted)) > 1e-6 * wanted or not round(wanted):
      raise ConfigError(
        f"replay: a proportion of {self._proportion} of a batch of {batch_size} is {wanted} rows, expected a whole"
        " number"
      )
    return round(wanted)

  def take(self, number_of_rows: int, iteration: int, number: int) -> dict[str, np.ndarray]:
    """The rows for batch `number` (from 0) of an iteration, in which all batches take equally many."""
    places = number * number_of_rows + np.arange(number_of_rows)
    rounds, places = np.divmod(places, len(self._rows["tokens"]))
    chosen = np.empty(number_of_rows, np.int64)
    for r in range(int(rounds[0]), int(rounds[-1]) + 1):
      here = rounds == r
      chosen[here] = self._order(iteration, r)[places[here]]
    return {name: x[chosen] for name, x in self._rows.items()}

  def augment(self, batch: PyTree, iteration: int, number: int) -> PyTree:
    """The batch, a dict of arrays [B, ...], with its replayed rows."""
    size = len(jax.tree.leaves(batch)[0])
    return {**batch, KEY: self.take(self.count(size), iteration, number)}

  def _draw(self, iteration: int, round_: int) -> np.ndarray:
    draw = rng.generator(self._seed, f"replay/{iteration}/{round_}")
    return draw.permutation(len(self._rows["tokens"]))


class AugmentedBatches:
  """An iterator of batches for `loop.fit`, each as `augment` leaves it; its position is saved with theirs.

  Every process augments its own slices; joined in the order of the processes they are what one process would have got.
  """

  def __init__(
    self,
    batches: Batches,
    augment: Callable[[PyTree, int, int], PyTree],
    *,
    process_index: int = 0,
    process_count: int = 1,
  ):
    self._batches, self._augment = batches, augment
    self._index, self._count = process_index, process_count
    self._number = 0

  def __iter__(self) -> Iterator[PyTree]:
    return self

  def __next__(self) -> PyTree:
    """The next batch."""
    place = self._number * self._count + self._index
    self._number += 1
    return self._augment(next(self._batches), 0, place)

  def get_state(self) -> Any:
    """Its position, as JSON."""
    return {"batches": self._batches.get_state(), "number": self._number}

  def set_state(self, state: Any) -> None:
    """Goes to a position."""
    self._batches.set_state(state["batches"])
    self._number = int(state["number"])
