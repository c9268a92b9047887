import pytest

from wam.core.errors import ConfigError
from wam.training.durations import to_steps

SIZES = {"total": 1000, "examples_per_step": 32, "examples_per_epoch": 330}


@pytest.mark.parametrize(
  ("spec", "steps"),
  [
    ({"num_steps": 7}, 7),
    ({"num_examples": 64}, 2),
    ({"num_examples": 65}, 3),
    ({"num_epochs": 2}, 21),  # 660 / 32 = 20.6
    ({"num_epochs": 0.1}, 2),  # 33 / 32
    ({"num_percent": 12.34}, 123),
    ({"num_steps": 0}, 0),
    ({"num_steps": 5, "num_epochs": None, "other_steps": 9}, 5),
  ],
)
def test_units(spec, steps):
  assert to_steps(spec, "num", **SIZES) == steps


def test_whole_examples_are_not_rounded_up_by_floating_point():
  assert to_steps({"num_epochs": 0.1}, "num", examples_per_step=1, examples_per_epoch=30) == 3


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({}, "exactly one of num_steps, num_examples, num_epochs, num_percent; found none"),
    ({"num_steps": 1, "num_epochs": 1}, "found num_epochs, num_steps"),
    ({"num_steps": -1}, "not negative, found -1"),
    ({"num_epochs": float("nan")}, "found nan"),
    ({"num_steps": 1.5}, "whole number, found 1.5"),
  ],
)
def test_bad_durations(spec, message):
  with pytest.raises(ConfigError, match=message):
    to_steps(spec, "num", **SIZES)


def test_missing_sizes_are_named():
  with pytest.raises(ConfigError, match="size of the data set"):
    to_steps({"num_epochs": 1}, "num", examples_per_step=4)
  with pytest.raises(ConfigError, match="number of steps of the whole training"):
    to_steps({"num_percent": 1}, "num")
  assert to_steps({}, "num", default=3) == 3
