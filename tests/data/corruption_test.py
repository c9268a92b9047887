"""Which pairs are swapped, how many, and that the others stay."""

import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError
from wam.data import corruption
from wam.data.examples import Pair
from wam.data.world import World

PAIRS = [Pair(f"prompt {i}", f"good {i}", f"bad {i}") for i in range(103)]


def test_an_exact_share_is_swapped_and_named():
  found = corruption.swap_labels(PAIRS, 0.25, seed=3)
  assert found.swapped.tolist() == sorted(set(found.swapped.tolist()))
  assert len(found.swapped) == 25  # of 25.75
  for i, (before, after) in enumerate(zip(PAIRS, found.pairs, strict=True)):
    swapped = Pair(before.prompt, before.rejected, before.chosen)
    assert after == (swapped if i in found.swapped else before)
  assert corruption.swap_labels(found.pairs, 0.25, seed=3).pairs == PAIRS


@pytest.mark.parametrize(
  ("count", "share", "expected"),
  [
    (100, 0.29, 29),
    (100, 0.57, 57),
    (12_000, 0.25, 3000),
    (7, 0.25, 1),
    (3, 0.25, 0),
    (0, 0.5, 0),
    (10, 0.0, 0),
    (10, 1.0, 10),
  ],
)
def test_how_many_are_swapped(count, share, expected):
  assert len(corruption.swapped_rows(count, share, seed=0)) == expected


def test_the_draw_depends_on_seed_and_stream_and_grows_with_the_share():
  def rows(share, **keywords):
    return set(corruption.swapped_rows(1000, share, **({"seed": 0} | keywords)).tolist())

  assert rows(0.25) == rows(0.25)
  assert rows(0.25) < rows(0.4)
  for other in (rows(0.25, seed=1), rows(0.25, stream="member 1")):
    # 250 of 1000 have 62.5 in common with another 250, with a standard deviation of 5.9.
    assert 33 < len(rows(0.25) & other) < 92


def test_rows_are_drawn_evenly():
  hits = np.zeros(20)
  for seed in range(2000):
    hits[corruption.swapped_rows(20, 0.25, seed=seed)] += 1
  # 500 each, with a standard deviation of 19.4.
  assert np.abs(hits - 500).max() < 5 * 19.4


def test_which_pairs_the_world_has_swapped():
  world = World(seed=2)
  clean = world.pairs("train", 200)
  noisy = world.pairs("train", 200, label_noise=0.25)
  differ = [i for i in range(200) if clean[i] != noisy[i]]
  rows = corruption.swapped_rows(200, 0.25, seed=2, stream="world/label_noise/train")
  # A pair of two equal replies looks the same when it is swapped.
  assert set(differ) == {i for i in rows if clean[i].chosen != clean[i].rejected}
  assert len(differ) > 40


def test_tokenised_pairs_are_swapped_with_their_masks():
  draw = np.random.default_rng(0)
  arrays = {
    name: draw.integers(9, size=(6, 4))
    for name in ("chosen", "rejected", "chosen_mask", "rejected_mask", "weight")
  }
  before = {name: array.copy() for name, array in arrays.items()}
  found = corruption.swap_arrays(arrays, np.asarray([1, 4]))
  for suffix in ("", "_mask"):
    for i in range(6):
      first, second = ("rejected", "chosen") if i in (1, 4) else ("chosen", "rejected")
      np.testing.assert_array_equal(found[f"chosen{suffix}"][i], before[first + suffix][i])
      np.testing.assert_array_equal(found[f"rejected{suffix}"][i], before[second + suffix][i])
  assert found["weight"] is arrays["weight"]
  for name, array in before.items():
    np.testing.assert_array_equal(arrays[name], array)


def test_rows_are_told_apart_after_pairs_were_dropped():
  found = corruption.rows_by_label(np.asarray([0, 2, 3, 7]), np.asarray([1, 2, 7]))
  np.testing.assert_array_equal(found["clean_train"], [0, 2])
  np.testing.assert_array_equal(found["corrupt_train"], [1, 3])


def test_bad_input_is_refused():
  for share in (-0.1, 25, float("nan")):
    with pytest.raises(ConfigError, match="from 0 to 1"):
      corruption.swap_labels(PAIRS, share, seed=0)
  with pytest.raises(BadData, match="needs a 'rejected_mask'"):
    corruption.swap_arrays(
      {"chosen": np.ones((2, 3)), "rejected": np.ones((2, 3)), "chosen_mask": np.ones((2, 3))},
      np.asarray([0]),
    )
  with pytest.raises(BadData, match=r"found \(2, 4\)"):
    corruption.swap_arrays(
      {"chosen": np.ones((2, 3)), "rejected": np.ones((2, 4))}, np.asarray([0])
    )
