"""Token rows in memory into batches: padding, and an endless shuffled stream that resumes exactly where it was.

Leaves out tokenisation (encoding.py), packing (packing.py), and data that does not fit in memory.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError

Arrays = dict[str, np.ndarray]
# Batches are numbered from 0 to here; only there because a grain source must have a length.
_ENDLESS = 2**40


def pad_right(
  sequences: Sequence[Sequence[int]],
  pad_id: int,
  *,
  length: int | None = None,
  multiple: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
  """Pads token lists on the right into one array.

  Args:
    sequences: B lists of token ids.
    pad_id: what fills the rest; never looked at again, since the mask says what is real.
    length: T; default the longest list.
    multiple: T is rounded up to a multiple of this, so that few shapes are compiled.

  Returns:
    tokens [B, T] int32 and mask [B, T] bool, True at real tokens.

  Raises:
    ValueError: a list is longer than `length`.
  """
  tokens, mask = _pad_empty(sequences, pad_id, length, multiple)
  for row, ids in enumerate(sequences):
    tokens[row, : len(ids)] = ids
    mask[row, : len(ids)] = True
  return tokens, mask


def pad_left(
  sequences: Sequence[Sequence[int]],
  pad_id: int,
  *,
  length: int | None = None,
  multiple: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
  """Pads token lists on the left, as prompts of a generation need it; see `pad_right` for the arguments."""
  tokens, mask = _pad_empty(sequences, pad_id, length, multiple)
  for row, ids in enumerate(sequences):
    # Not [-len(ids):], which is the whole row when the list is empty.
    tokens[row, tokens.shape[1] - len(ids) :] = ids
    mask[row, tokens.shape[1] - len(ids) :] = True
  return tokens, mask


def _pad_empty(
  sequences: Sequence[Sequence[int]], pad_id: int, length: int | None, multiple: int
) -> tuple[np.ndarray, np.ndarray]:
  """The all-padding tokens and mask that `sequences` fit in."""
  longest = max((len(ids) for ids in sequences), default=0)
  if length is None:
    length = longest
  if longest > length:
    raise ValueError(f"a sequence of {longest} tokens does not fit in length {length}")
  shape = (len(sequences), -(-length // multiple) * multiple)
  return np.full(shape, pad_id, np.int32), np.zeros(shape, bool)


class _BatchSource:
  """Random access to batches by number: what grain iterates over.

  A batch is one grain element, gathered by numpy at once: grain's own row by row shuffle and batch costs about
  2 ms for 80 rows, this 0.03 ms.
  """

  def __init__(
    self,
    rows: Mapping[str, np.ndarray],
    *,
    size: int,
    seed: int,
    stream: str,
    shuffle: bool,
    part: slice,
  ):
    self._rows = dict(rows)
    self._num_rows = len(next(iter(rows.values())))
    self._size = size
    self._seed = seed
    self._stream = stream
    self._shuffle = shuffle
    self._part = part
    self._orders: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return _ENDLESS

  def _order(self, epoch: int) -> np.ndarray:
    """The permutation of the rows in this epoch; a function of seed, stream and epoch alone."""
    if not self._shuffle:
      return np.arange(self._num_rows)
    if epoch not in self._orders:
      # Only the newest few are kept: a batch touches one epoch, or two neighbours.
      while len(self._orders) > 1:
        del self._orders[min(self._orders)]
      draw = rng.generator(self._seed, f"{self._stream}/epoch {epoch}")
      self._orders[epoch] = draw.permutation(self._num_rows)
    return self._orders[epoch]

  def __getitem__(self, number: int) -> Arrays:
    start = number * self._size
    positions = np.arange(start + self._part.start, start + self._part.stop)
    epochs, places = np.divmod(positions, self._num_rows)
    index = np.empty(len(positions), np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
      here = epochs == epoch
      index[here] = self._order(epoch)[places[here]]
    return {name: array[index] for name, array in self._rows.items()}


class Batches:
  """An endless, deterministic stream of batches over rows that lie in memory.

  Every epoch is a fresh permutation that depends on (seed, stream, epoch) only. Epochs follow each other without a gap:
  the batch in which one ends is filled up with the first rows of the next. So no row is ever dropped, every row is seen
  exactly once per epoch (the n-th run of `num_rows` positions of the stream), and a batch may be larger than the data.

  With several processes each builds the same `Batches` with its own `process_index` and gets its slice of the same
  global batches; concatenated in the order of the processes they are what one process would have got.

  >>> batches = Batches({"x": np.arange(6)}, batch_size=4, seed=0, shuffle=False)
  >>> next(batches)["x"].tolist(), next(batches)["x"].tolist()
  ([0, 1, 2, 3], [4, 5, 0, 1])
  """

  def __init__(
    self,
    rows: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    stream: str = "batches",
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Checks the rows and stands before the first batch.

    Args:
      rows: arrays with one leading axis of rows, the same for all; not copied.
      batch_size: rows of the global batch B, over all processes.
      seed: the run's seed.
      stream: the name of the random stream, such as "sft/batches": two stages with one seed differ.
      shuffle: whether rows are permuted; otherwise they come in file order.
      process_index: which process this is, from 0.
      process_count: number of processes; must divide `batch_size`.

    Raises:
      BadData: there are no rows.
      ConfigError: the batch size is not a positive multiple of the number of processes.
      ValueError: the arrays differ in their number of rows.
    """
    sizes = {name: len(array) for name, array in rows.items()}
    if len(set(sizes.values())) > 1:
      raise ValueError(f"arrays differ in their number of rows: {sizes}")
    if not sizes or not next(iter(sizes.values())):
      raise BadData(f"no rows to make batches of for '{stream}'; the data set is empty")
    if batch_size < 1 or batch_size % process_count:
      raise ConfigError(
        f"batch size {batch_size} cannot be split over {process_count} processes: give a positive multiple"
      )
    if not 0 <= process_index < process_count:
      raise ValueError(f"process index {process_index} of {process_count} processes")
    self.num_rows = next(iter(sizes.values()))
    self.batch_size = batch_size
    local = batch_size // process_count
    part = slice(process_index * local, (process_index + 1) * local)
    source = _BatchSource(
      rows, size=batch_size, seed=seed, stream=stream, shuffle=shuffle, part=part
    )
    identity = f"{seed} {stream} {shuffle} {batch_size} {sorted(sizes)}".encode()
    self._fingerprint = zlib.crc32(identity)
    for name in sorted(rows):
      self._fingerprint = zlib.crc32(np.ascontiguousarray(rows[name]).tobytes(), self._fingerprint)
    # No prefetch threads: gathering takes microseconds, and a queue of batches would only cost memory.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._iterator = iter(grain.MapDataset.source(source).to_iter_dataset(options))

  @property
  def steps_per_epoch(self) -> float:
    """Batches in an epoch; not a whole number unless the batch size divides the rows."""
    return self.num_rows / self.batch_size

  def __iter__(self) -> Iterator[Arrays]:
    return self

  def __next__(self) -> Arrays:
    """The next batch: the names of the rows, each [B / processes, ...], in fresh memory."""
    return next(self._iterator)

  def get_state(self) -> dict[str, int]:
    """Where the stream stands, as plain integers: the next batch's number, and a fingerprint of data and settings.

    The state is the same on every process.
    """
    return {
      "next_index": int(self._iterator.get_state()["next_index"]),
      "fingerprint": self._fingerprint,
    }

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes to where `get_state` was called: the following batches are the same to the bit.

    Raises:
      ConfigError: the state belongs to other rows, another seed or another batch size, with which the stream could
        not go on as it would have.
    """
    if int(state["fingerprint"]) != self._fingerprint:
      raise ConfigError(
        "the saved input position belongs to other data, another seed or another batch size; resume with the"
        " configuration of the run, or start in a new directory"
      )
    self._iterator.set_state({"next_index": int(state["next_index"])})
