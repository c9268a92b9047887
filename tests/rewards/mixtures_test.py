import numpy as np
import pytest

from wam.core.errors import ConfigError, NonFinite, UnknownName
from wam.rewards import mixtures

ARRAYS = (np.zeros((3, 2)), np.ones((3, 2), bool), np.zeros((3, 4)), np.ones((3, 4), bool))


def constant(*rewards):
  return lambda *arrays: np.float32(rewards)


SCORERS = {"a": constant(1, 2, 3.5), "b": constant(-1, 0, 4), "c": constant(0, 0, np.nan)}


def test_scaled():
  found = mixtures.scaled(SCORERS["a"], mean=2.0, std=0.5)(*ARRAYS)
  np.testing.assert_array_equal(found, np.float32([-2, 0, 3]))
  with pytest.raises(ConfigError, match="r: expected a finite mean and a positive std"):
    mixtures.scaled(SCORERS["a"], mean=0.0, std=0.0, name="r")


def test_mixture():
  found = mixtures.mixture(SCORERS, {"a": 0.25, "b": 0.75, "c": 0.0})(*ARRAYS)
  np.testing.assert_array_equal(found, np.float32([-0.5, 0.5, 3.875]))
  # One-hot is the reward itself.
  assert mixtures.mixture(SCORERS, {"a": 0.0, "b": 1.0}) is SCORERS["b"]


def test_mixtures_that_cannot_be():
  with pytest.raises(UnknownName, match="unknown reward 'd'"):
    mixtures.mixture(SCORERS, {"d": 1.0})
  with pytest.raises(ConfigError, match="coefficient"):
    mixtures.mixture(SCORERS, {"a": 0.0})
  with pytest.raises(NonFinite, match="mixture of rewards: 1 of 3"):
    mixtures.mixture(SCORERS, {"a": 0.5, "c": 0.5})(*ARRAYS)
