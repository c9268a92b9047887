"""Random bits from counters: equal to the hash written with Python's integers, uniform, unrelated, and cut anywhere."""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core import counters

pytestmark = pytest.mark.usefixtures("strict_dtypes")

WORD = 0xFFFFFFFF


def hashed(x, key):
  """lowbias32 with a key between its rounds, in unbounded integers."""
  x ^= x >> 16
  x = x * 0x7FEB352D & WORD
  x ^= key
  x ^= x >> 15
  x = x * 0x846CA68B & WORD
  return x ^ (x >> 16)


def one(key, row, column):
  """The bits of one place."""
  start = hashed((row * 0x9E3779B9 ^ key[0]) & WORD, key[1])
  own = hashed(start ^ key[1], key[0])
  word = hashed((column >> 1) ^ start, own)
  return word >> 16 if column & 1 else word & 0xFFFF


def table(key, rows, start, stop):
  """By `bits16`, entry by entry."""
  rows, columns = np.meshgrid(
    np.asarray(rows, np.uint32), np.arange(start, stop, dtype=np.uint32), indexing="ij"
  )
  return counters.bits16(key, rows, columns)


def matrix(seed=0, name="w", num_rows=256, num_columns=1024):
  return counters.bits16_run(counters.words(seed, name), np.arange(num_rows), 0, num_columns)


def test_words_are_the_first_of_sha256():
  digest = hashlib.sha256(b"3/merge/dare/0/w").digest()
  assert counters.words(3, "merge/dare/0/w") == (
    int.from_bytes(digest[:4], "little"),
    int.from_bytes(digest[4:8], "little"),
  )


@pytest.mark.parametrize("row", [0, 1, 77, 2**20 + 3, 2**32 - 1])
@pytest.mark.parametrize("column", [0, 1, 2, 131071, 131072, 2**31 + 5, 2**32 - 1])
def test_bits_are_the_hash_in_integers(row, column):
  key = counters.words(5, "layers/0/w")
  expected = one(key, row, column)
  found = counters.bits16(key, np.array([row], np.uint32), np.array([column], np.uint32))
  assert found.dtype == np.uint16
  assert found.tolist() == [expected]
  last = min(column + 1, 2**32 - 1)
  if last > column:
    run = counters.bits16_run(key, np.array([row]), column, last)
    assert run.tolist() == [[expected]]


@pytest.mark.parametrize(
  ("start", "stop"),
  [(0, 8), (0, 7), (1, 8), (1, 2), (3, 3), (65535, 65541), (2**18 - 3, 2**18 + 4)],
)
def test_a_run_is_its_places(start, stop):
  key = counters.words(1, "w")
  rows = np.array([0, 1, 2, 1000, 2**24 + 1])
  run = counters.bits16_run(key, rows, start, stop)
  assert run.dtype == np.uint16
  np.testing.assert_array_equal(run, table(key, rows, start, stop))


def test_cuts_do_not_show():
  key = counters.words(2, "w")
  whole = counters.bits16_run(key, np.arange(12), 0, 100)
  top = [counters.bits16_run(key, np.arange(5), a, b) for a, b in ((0, 33), (33, 34), (34, 100))]
  bottom = counters.bits16_run(key, np.arange(5, 12), 0, 100)
  np.testing.assert_array_equal(whole, np.concatenate([np.concatenate(top, 1), bottom]))


def test_jax_draws_the_same():
  key = counters.words(4, "w")
  rows, columns = np.arange(9, dtype=np.uint32)[:, None], np.arange(37, dtype=np.uint32)[None, :]
  expected = table(key, np.arange(9), 0, 37)
  np.testing.assert_array_equal(
    counters.bits16(key, jnp.asarray(rows), jnp.asarray(columns)), expected
  )
  traced = jax.jit(lambda words, r, c: counters.bits16((words[0], words[1]), r, c))
  found = traced(jnp.array(key, jnp.uint32), rows, columns)
  assert found.dtype == jnp.uint16
  np.testing.assert_array_equal(found, expected)


def test_inputs_are_not_written_to():
  rows, columns = np.arange(4, dtype=np.uint32), np.arange(4, dtype=np.uint32)
  counters.bits16(counters.words(0, "w"), rows, columns)
  counters.bits16_run(counters.words(0, "w"), rows, 0, 6)
  np.testing.assert_array_equal(rows, np.arange(4))
  np.testing.assert_array_equal(columns, np.arange(4))


def chi_square(values, bins):
  """(Σ (found - expected)² / expected - degrees of freedom) in standard deviations."""
  counts = np.bincount(values.ravel(), minlength=bins)
  expected = values.size / bins
  statistic = ((counts - expected) ** 2 / expected).sum()
  return (statistic - (bins - 1)) / math.sqrt(2 * (bins - 1))


SHAPES = [(256, 1024), (1, 2**18), (2**17, 2), (2**18, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_uniform(shape):
  values = matrix(7, "layers/3/mlp/down", *shape).astype(np.int64)
  assert abs(chi_square(values, 1 << 16)) < 5
  for part in (values >> 8, values & 0xFF, (values >> 4) & 0xFF):
    assert abs(chi_square(part, 256)) < 5
  ones = [((values >> bit) & 1).mean() for bit in range(16)]
  np.testing.assert_allclose(ones, 0.5, atol=5 * 0.5 / math.sqrt(values.size))


def deviations(a, b):
  """The correlation of two uniform arrays, in standard deviations of what independent ones have."""
  scale = counters.RANGE / math.sqrt(12)
  a, b = ((x.ravel().astype(np.float64) - (counters.RANGE - 1) / 2) / scale for x in (a, b))
  return (a * b).mean() * math.sqrt(a.size)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 64, 512])
def test_columns_are_uncorrelated(lag):
  values = matrix()
  assert abs(deviations(values[:, lag:], values[:, :-lag])) < 5


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 128])
def test_rows_are_uncorrelated(lag):
  values = matrix()
  assert abs(deviations(values[lag:], values[:-lag])) < 5
  assert abs(deviations(values[lag:, 1:], values[:-lag, :-1])) < 5


def test_tensors_of_one_column_are_uncorrelated_along_their_rows():
  values = matrix(0, "bias", 2**18, 1)
  for lag in (1, 2, 7, 4096):
    assert abs(deviations(values[lag:], values[:-lag])) < 5


@pytest.mark.parametrize("other", [(1, "w"), (0, "v"), (0, "w/1"), (2**40, "w")])
def test_keys_are_unrelated(other):
  a, b = matrix(0, "w"), matrix(*other)
  assert abs(deviations(a, b)) < 5
  equal = (a == b).mean() * counters.RANGE
  assert abs(equal - 1) < 5 / math.sqrt(a.size / counters.RANGE)


def test_no_row_is_another_row_rearranged():
  """A row's pairs are a permutation of the same counters; without keys of their own, rows would share their words."""
  values = matrix(3, "w", 64, 4096)
  words = values.reshape(64, -1, 2).astype(np.uint32)
  words = (words[..., 0] | words[..., 1] << 16).ravel()
  # 131072 words of 32 bits: two pairs of equal ones are expected.
  assert words.size - np.unique(words).size < 14


@pytest.mark.parametrize("density", [1 / 65536, 0.01, 0.1, 0.5, 0.9])
def test_masks_have_their_density(density):
  values = matrix(9, "w", 512, 2048)
  limit = round(density * counters.RANGE)
  p = limit / counters.RANGE
  kept = values < np.uint16(limit)
  bound = 5 * math.sqrt(p * (1 - p) * values.size)
  assert abs(kept.sum() - p * values.size) < bound
  for counts, size in ((kept.sum(0), 512), (kept.sum(1), 2048)):
    # Rows and columns vary as much as binomial counts do, no more and no less.
    variance = p * (1 - p) * size
    spread = ((counts - p * size) ** 2).mean() / variance
    kurtosis = 2 + 1 / variance
    assert abs(spread - 1) < 6 * math.sqrt(kurtosis / counts.size)
