"""Random bits from counters: a pure function of (seed, name, place in the tensor), the same in NumPy and in JAX.

A mask drawn here does not depend on the order of tensors, on how a tensor is cut into pieces or sharded, or on the
number of threads, so that a merge from disk to disk draws what a merge in memory draws. Two rounds of xor, shift and
multiply with the constants of lowbias32 (C. Wellons's hash prospector, 2018), each with a key word of its own; good
enough for masks and rounding, not for secrets. `rng` has the streams for everything else. No JAX in here.
"""

import hashlib
import sys
from typing import Any

import numpy as np

# One more than the largest value of `bits16`.
RANGE = 1 << 16
_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_ROW = np.uint32(0x9E3779B9)


def words(seed: int, name: str) -> tuple[int, int]:
  """The two 32-bit key words of the stream `name`, from SHA-256."""
  digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
  return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _mix(x: Any, key: Any) -> Any:
  """A bijection of 32-bit words, with a key xored in between its rounds."""
  x = x ^ (x >> 16)
  # From here on in place where x is NumPy's.
  x *= _FIRST
  x ^= key
  x ^= x >> 15
  x *= _SECOND
  x ^= x >> 16
  return x


def bits16(key: tuple[Any, Any], rows: Any, columns: Any) -> Any:
  """Uniform integers in [0, 65536) for the places (row, column) of a tensor.

  A tensor of rank 2 or more has its first axis as rows and the others, in C order, as columns; one of rank 1 is a row.

  Args:
    key: two words; ints or uint32 scalars (possibly traced).
    rows: uint32 row numbers, broadcasting against `columns`.
    columns: uint32 column numbers.

  Returns:
    uint16, of the shape that rows and columns broadcast to.
  """
  first, second = (np.uint32(k) if isinstance(k, int) else k for k in key)
  # Each row has a pair of words of its own, so that no row is a shifted copy of another.
  start = _mix(rows * _ROW ^ first, second)
  own = _mix(start ^ second, first)
  pairs = columns >> 1
  word = _mix(pairs ^ start, own)
  return ((word >> ((columns & 1) * 16)) & 0xFFFF).astype(np.uint16)


def bits16_run(key: tuple[int, int], rows: np.ndarray, start: int, stop: int) -> np.ndarray:
  """`bits16` for all columns from `start` to `stop`, by NumPy and at half the work: [number of rows, stop - start]."""
  first, second = np.uint32(key[0]), np.uint32(key[1])
  row = _mix(rows.astype(np.uint32)[:, None] * _ROW ^ first, second)
  own = _mix(row ^ second, first)
  pairs = np.arange(start >> 1, (stop + 1) >> 1, dtype=np.uint32)[None, :]
  # Here `_mix`: its first step splits into one for the rows and one for the pairs, and one array serves all shifts.
  words_ = (pairs ^ (pairs >> 16)) ^ (row ^ (row >> 16))
  words_ *= _FIRST
  words_ ^= own
  shifted = words_ >> 15
  words_ ^= shifted
  words_ *= _SECOND
  np.right_shift(words_, 16, out=shifted)
  words_ ^= shifted
  if sys.byteorder == "big":
    words_ = words_.byteswap()
    return words_.view(np.uint16).byteswap()[:, start & 1 :][:, : stop - start]
  return words_.view(np.uint16)[:, start & 1 :][:, : stop - start]
