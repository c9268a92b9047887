"""The exact k-th largest, against a sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wam.streaming.selection import Selection, sample_size


def sweep_until_found(values, k, sample, piece=1000):
  selection = Selection(k, values.size)
  selection.bracket(sample)
  sweeps = 0
  while selection.answer is None:
    pieces = [values[i : i + piece] for i in range(0, values.size, piece)]
    selection.absorb([selection.count(x) for x in pieces])
    sweeps += 1
    assert sweeps < 12
  return selection.answer, sweeps


def data(kind, size, seed):
  values = np.abs(np.random.default_rng(seed).normal(size=size)).astype(np.float32)
  if kind == "quantised":  # deltas of bfloat16 weights: many entries sit exactly on the threshold
    return np.round(values * 4) / 4
  if kind == "sorted":
    return np.sort(values)
  if kind == "constant":
    return np.full(size, 0.25, np.float32)
  if kind == "mostly zero":
    return values * (values > 2.5)
  return values


@pytest.mark.parametrize("kind", ["normal", "quantised", "sorted", "constant", "mostly zero"])
@pytest.mark.parametrize("good_sample", [True, False])
@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 20000), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_equals_the_sorted_array_whatever_the_sample(kind, good_sample, size, share, seed):
  values = data(kind, size, seed)
  k = max(1, int(share * size))
  stride = max(1, size // 500)
  sample = values[::stride] if good_sample else values[: size // stride]
  answer, _ = sweep_until_found(values, k, sample)
  assert answer == np.sort(values)[::-1][k - 1]


def test_one_sweep_is_enough_for_a_fair_sample_and_little_is_kept():
  values = data("normal", 1 << 20, 0)
  for share in (0.01, 0.2, 0.5, 0.99):
    selection = Selection(int(share * values.size), values.size)
    selection.bracket(values[:: values.size // sample_size(values.size)])
    counts = selection.count(values)
    assert counts.inside.size < 0.05 * values.size
    selection.absorb([counts])
    assert selection.answer == np.sort(values)[::-1][int(share * values.size) - 1]


def test_k_is_clipped_and_infinities_are_numbers():
  values = np.array([0.0, np.inf, 1.0], np.float32)
  assert sweep_until_found(values, 0, values)[0] == np.inf
  assert sweep_until_found(values, 9, values)[0] == 0.0
  assert sweep_until_found(values, 1, values[:1])[0] == np.inf
