"""How a tensor is cut into the blocks that a rule sees, and how they are read, checked and cast.

The cut depends on the shape and the size of a block alone, never on threads or memory in use, and no result depends on
it but through the last bits of sums. NumPy only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from wam.core import counters
from wam.core.errors import NonFinite
from wam.merging import rules
from wam.merging.rules import Block
from wam.streaming.plan import Output, Reader

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (
  np.dtype(np.float32),
  BFLOAT16,
  np.dtype(np.float16),
  np.dtype(np.float64),
  np.dtype(ml_dtypes.float8_e4m3fn),
  np.dtype(ml_dtypes.float8_e5m2),
)
# Entries of a block: a float32 array of this size and its few companions stay in a core's cache.
ENTRIES = 1 << 17
# Entries that one thread takes on at a time.
SEGMENT = 1 << 24


class Place(NamedTuple):
  """A block of a tensor seen as [rows, columns]: whole rows, or a part of one row."""

  first_row: int
  last_row: int
  first_column: int
  last_column: int
  num_columns: int

  @property
  def start(self) -> int:
    """The first entry in C order."""
    return self.first_row * self.num_columns + self.first_column

  @property
  def stop(self) -> int:
    """One past the last entry in C order."""
    return (self.last_row - 1) * self.num_columns + self.last_column

  @property
  def shape(self) -> tuple[int, int]:
    """Rows and columns of the block."""
    return self.last_row - self.first_row, self.last_column - self.first_column


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
  """Rows and columns of a tensor: the first axis and the rest; a tensor of rank 0 or 1 is one row."""
  if len(shape) < 2:
    return 1, math.prod(shape)
  return shape[0], math.prod(shape[1:])


def cut(
  shape: Sequence[int], *, entries: int | None = None, whole_rows: bool = False
) -> list[Place]:
  """The blocks of a tensor, in the order of its entries; of `entries` at most (default ENTRIES), or one row."""
  entries = entries or ENTRIES
  num_rows, num_columns = as_matrix(shape)
  if num_rows * num_columns == 0:
    return []
  if num_columns <= entries or whole_rows:
    step = max(1, entries // num_columns)
    return [
      Place(r, min(r + step, num_rows), 0, num_columns, num_columns)
      for r in range(0, num_rows, step)
    ]
  return [
    Place(r, r + 1, c, min(c + entries, num_columns), num_columns)
    for r in range(num_rows)
    for c in range(0, num_columns, entries)
  ]


def sample(shape: Sequence[int], *, entries: int, whole_rows: bool) -> list[Place]:
  """Short runs of entries, evenly spread over a tensor: about `entries` in all, or all that there are."""
  num_rows, num_columns = as_matrix(shape)
  if num_rows * num_columns <= entries:
    return cut(shape, entries=max(entries, 1), whole_rows=whole_rows)
  run = num_columns if whole_rows else min(num_columns, 512)
  runs = max(1, entries // run)
  places = []
  for i in range(runs):
    # Golden-ratio steps over the columns, so that no stride of the tensor is met by one of ours.
    row = (2 * i + 1) * num_rows // (2 * runs)
    column = int((i * 0.6180339887498949 % 1.0) * (num_columns - run + 1))
    places.append(Place(row, row + 1, column, column + run, num_columns))
  return places


def segments(places: Sequence[Place]) -> Iterator[list[Place]]:
  """The blocks in portions of about SEGMENT entries."""
  portion: list[Place] = []
  size = 0
  for place in places:
    portion.append(place)
    size += place.stop - place.start
    if size >= SEGMENT:
      yield portion
      portion, size = [], 0
  if portion:
    yield portion


def accumulator(output: Output) -> np.dtype:
  """The dtype in which an output is computed: float32, float64 where an input is."""
  readers = [*output.members, *([output.base] if output.base else [])]
  double = any(r.dtype == np.float64 for r in readers)
  return np.dtype(np.float64 if double else np.float32)


_SIGN_AND_INFINITY = {2: (0x7F80, 0xFF80), 4: (0x7F800000, 0xFF800000)}


def is_finite(values: np.ndarray) -> bool:
  """Whether no entry is NaN or infinite; two passes over the bits for bfloat16 and float32."""
  if not values.size:
    return True
  if values.dtype == BFLOAT16 or values.dtype == np.float32:
    size = values.dtype.itemsize
    positive, negative = _SIGN_AND_INFINITY[size]
    signed, unsigned = (np.int16, np.uint16) if size == 2 else (np.int32, np.uint32)
    return bool(values.view(signed).max() < positive and values.view(unsigned).max() < negative)
  wide = values if values.dtype.kind == "f" else values.astype(np.float32)
  return bool(np.isfinite(wide).all())


def _wide(reader: Reader, place: Place, dtype: np.dtype, *, check: bool) -> np.ndarray:
  values = reader.read(place.start, place.stop)
  if check and not is_finite(values):
    raise NonFinite(
      f"{describe(reader)} holds NaN or infinity among its entries {place.start} to"
      f" {place.stop - 1}; the merge would spread them. Mend the checkpoint, or allow them with"
      " --allow-non-finite"
    )
  return values.astype(dtype, copy=False).reshape(place.shape)


def describe(reader: Reader) -> str:
  """A tensor and where it comes from, for messages."""
  origin = getattr(reader, "origin", None)
  return f"tensor '{reader.name}'" + (f" of {origin}" if origin else "")


def read_block(
  output: Output,
  place: Place,
  *,
  seed: int,
  check: bool,
  memory: Callable[[str, Callable[[], np.ndarray]], np.ndarray] | None = None,
) -> Block:
  """Reads the entries of a block in every input; `memory` is the block's.

  Raises:
    NonFinite: if `check` and one is NaN or infinite; names the tensor.
  """
  dtype = accumulator(output)

  def bits(stream: str) -> np.ndarray:
    key = rules.key_words(seed, output.stream or output.name, stream)
    rows = np.arange(place.first_row, place.last_row)
    return counters.bits16_run(key, rows, place.first_column, place.last_column)

  return Block(
    np,
    tuple(_wide(r, place, dtype, check=check) for r in output.members),
    None if output.base is None else _wide(output.base, place, dtype, check=check),
    tuple(dtype.type(c) for c in output.coefficients),
    tuple(_wide(r, place, dtype, check=check) for r in output.importances),
    bits,
    memory,
  )


def read_sample(output: Output, *, entries: int, whole_rows: bool, seed: int, check: bool) -> Block:
  """A sample of a tensor as one block; not for functions that draw at random."""
  places = sample(output.shape, entries=entries, whole_rows=whole_rows)
  parts = [read_block(output, place, seed=seed, check=check) for place in places]
  axis = 0 if len({p.members[0].shape[1] for p in parts}) == 1 else None

  def joined(arrays: Sequence[Any]) -> np.ndarray:
    if axis is None:
      return np.concatenate([a.ravel() for a in arrays])[None, :]
    return np.concatenate(arrays, axis=0)

  return Block(
    np,
    tuple(joined([p.members[m] for p in parts]) for m in range(len(output.members))),
    None if output.base is None else joined([p.base for p in parts]),
    parts[0].coefficients,
    tuple(joined([p.importances[m] for p in parts]) for m in range(len(output.importances))),
  )
