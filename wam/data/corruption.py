"""Label corruption of preference pairs: an exact share of them swapped, and which ones.

What a reward model makes of pairs whose labels are wrong is told apart from what it makes of the others: with 25 %
swapped, averaged weights fit the swapped pairs far less than ensembles do (Ramé et al. 2024, WARM, arXiv 2401.12187,
observation 3). Works on pairs of any source, before or after tokenisation, and depends on the seed, the name of the
stream and the number of pairs only: a larger share swaps the pairs of a smaller one, and more.

`World.pairs` swaps by its own stream; `swapped_rows(count, label_noise, seed=world.seed,
stream=f"world/label_noise/{split}")` says which.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError
from wam.data.examples import Pair

STREAM = "data/corruption"


class Corrupted(NamedTuple):
  """Pairs of which some are swapped.

  Attributes:
    pairs: all of them, in the order given.
    swapped: indices of the swapped ones, [S] int64, ascending.
  """

  pairs: list[Pair]
  swapped: np.ndarray


def swap_labels(
  pairs: Sequence[Pair], share: float, *, seed: int, stream: str = STREAM
) -> Corrupted:
  """Exchanges chosen and rejected in exactly ⌊share·N⌋ pairs.

  Args:
    pairs: N pairs; stay as they are.
    share: from 0 to 1.
    seed: of the draw.
    stream: its name; another name draws other pairs with the same seed.

  Raises:
    ConfigError: if the share is not in [0, 1].
  """
  swapped = swapped_rows(len(pairs), share, seed=seed, stream=stream)
  found = list(pairs)
  for i in swapped:
    found[i] = Pair(found[i].prompt, found[i].rejected, found[i].chosen)
  return Corrupted(found, swapped)


def swapped_rows(count: int, share: float, *, seed: int, stream: str = STREAM) -> np.ndarray:
  """Which of `count` pairs `swap_labels` exchanges: ⌊share·count⌋ indices, int64, ascending.

  Raises:
    ConfigError: if the share is not in [0, 1].
  """
  if not 0 <= share <= 1:
    raise ConfigError(f"share of swapped labels: expected a number from 0 to 1, found {share}")
  # 1e-9: 0.29 * 100 is 28.999999999999996 in floating point, and 29 pairs are meant.
  size = math.floor(share * count + 1e-9)
  return np.sort(rng.generator(seed, stream).permutation(count)[:size])


def swap_arrays(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
  """The same on tokenised pairs (`encoding.pair_rows`): exchanges every "chosen…" array with its "rejected…" in `rows`.

  Args:
    arrays: "chosen", "rejected", and as many with suffixes ("chosen_mask", ...), all [B, ...]; others stay.
    rows: indices, [S].

  Returns:
    A new mapping; arrays that are exchanged are copies.

  Raises:
    BadData: if an array has no counterpart, or is of another shape.
  """
  found = dict(arrays)
  names = [name for name in arrays if name.startswith(("chosen", "rejected"))]
  for name in names:
    side, other = ("chosen", "rejected") if name.startswith("chosen") else ("rejected", "chosen")
    partner = other + name.removeprefix(side)
    if partner not in arrays or arrays[partner].shape != arrays[name].shape:
      there = arrays[partner].shape if partner in arrays else "none"
      raise BadData(
        f"'{name}' {arrays[name].shape} needs a '{partner}' of its shape; found {there}"
      )
    found[name] = arrays[name].copy()
    found[name][rows] = arrays[partner][rows]
  return found


def rows_by_label(kept: np.ndarray, swapped: np.ndarray) -> dict[str, np.ndarray]:
  """Rows of tokenised pairs whose labels are right, and whose are swapped.

  Args:
    kept: which pair each row came from, [B] (`encoding.Rows.kept`; pairs that are too long are dropped there).
    swapped: indices of the swapped pairs.

  Returns:
    "clean_train" and "corrupt_train": indices of rows; together all of them.
  """
  wrong = np.isin(kept, swapped)
  return {"clean_train": np.flatnonzero(~wrong), "corrupt_train": np.flatnonzero(wrong)}
