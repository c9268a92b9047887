"""Masks between sweeps: what comes back is what was put in, and no more is held than there is room for."""

import numpy as np
import pytest

from wam.streaming.masks import Masks


class Mask:
  """Counts how often it is worked out."""

  def __init__(self, shape, seed):
    self.values = np.random.default_rng(seed).random(shape) < 0.4
    self.times = 0

  def __call__(self):
    self.times += 1
    return self.values


def ask(masks, mask, *, tensor="w", start=0, name="dare/0", keep=True):
  found = masks.get(tensor, start, name, mask, shape=mask.values.shape, keep=keep)
  assert found.dtype == bool
  np.testing.assert_array_equal(found, mask.values)


@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (7, 9), (4, 16)])
def test_worked_out_once(shape):
  masks, mask = Masks(1000), Mask(shape, 0)
  for _ in range(3):
    ask(masks, mask)
  assert mask.times == 1


def test_blocks_and_names_and_tensors_are_kept_apart():
  masks = Masks(1000)
  places = [("w", 0, "a"), ("w", 63, "a"), ("w", 0, "b"), ("v", 0, "a")]
  made = [Mask((7, 9), seed) for seed in range(4)]
  for _ in range(2):
    for mask, (tensor, start, name) in zip(made, places, strict=True):
      ask(masks, mask, tensor=tensor, start=start, name=name)
  assert [m.times for m in made] == [1, 1, 1, 1]


def test_what_does_not_fit_is_worked_out_again():
  masks, first, second = Masks(8), Mask((7, 9), 0), Mask((7, 9), 1)
  for _ in range(2):
    ask(masks, first)
    ask(masks, second, start=63)
  assert (first.times, second.times) == (1, 2)


def test_a_tensor_that_is_done_makes_room():
  masks, first, second = Masks(8), Mask((7, 9), 0), Mask((7, 9), 1)
  ask(masks, first)
  masks.forget("w")
  masks.forget("w")
  for _ in range(2):
    ask(masks, second, tensor="v")
  assert second.times == 1


def test_nothing_is_kept_for_a_last_time():
  masks, mask = Masks(1000), Mask((7, 9), 0)
  ask(masks, mask, keep=False)
  ask(masks, mask)
  assert mask.times == 2
