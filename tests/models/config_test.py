"""What a config refuses, and that equal networks have equal configs."""

import dataclasses

import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.models.config import DecoderConfig

BASE = DecoderConfig(vocab_size=8, hidden_size=12, intermediate_size=8, num_layers=2, num_heads=3)


def test_zeros_mean_the_usual():
  assert BASE.num_kv_heads == 3
  assert BASE.head_dim == 4
  assert hash(BASE) == hash(dataclasses.replace(BASE, num_kv_heads=3, head_dim=4))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_layers": 0}, "num_layers: expected at least 1"),
    ({"num_kv_heads": 2}, "multiple of num_kv_heads"),
    ({"head_dim": 5}, "even number"),
    ({"hidden_size": 13, "head_dim": 0}, "not a multiple of num_heads"),
    ({"sliding_window": 0}, "sliding_window"),
    ({"sliding_window": 4, "sliding_layers": (True,)}, "one entry per layer"),
  ],
)
def test_impossible_shapes_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(BASE, **changes)


def test_unknown_activations_are_refused():
  with pytest.raises(UnknownName, match="relu"):
    dataclasses.replace(BASE, activation="relu")


def test_two_spellings_of_a_window_are_one_config():
  every = dataclasses.replace(BASE, sliding_window=4)
  assert dataclasses.replace(BASE, sliding_window=4, sliding_layers=(True, True)) == every
  assert dataclasses.replace(BASE, sliding_window=4, sliding_layers=(False, False)) == BASE
  assert every.windowed() == (True, True)
