"""Stacked and unrolled layouts."""

import numpy as np
import pytest

from tests.parity.cases import CASES, weights
from wam.core import trees
from wam.core.errors import BadCheckpoint, MismatchedTrees
from wam.models.stacking import is_stacked, stack_layers, unstack_layers


def test_stacking_and_unstacking_are_inverse():
  params = weights(CASES["qwen3"])
  stacked = stack_layers(params)
  assert is_stacked(stacked)
  assert not is_stacked(params)
  assert stacked["layers"]["mlp"]["up"]["kernel"].shape == (3, 24, 40)
  back = trees.flatten(unstack_layers(stacked))
  for name, leaf in trees.flatten(params).items():
    np.testing.assert_array_equal(back[name], leaf)
  assert stack_layers(stacked) is stacked
  assert unstack_layers(params) is params


def test_more_than_ten_layers_keep_their_order():
  params = {"layers": {str(i): {"x": np.full((1,), i)} for i in range(12)}}
  np.testing.assert_array_equal(stack_layers(params)["layers"]["x"][:, 0], np.arange(12))


def test_gaps_and_unequal_layers_are_refused():
  leaf = {"x": np.zeros(2)}
  with pytest.raises(BadCheckpoint, match="0 to 1"):
    stack_layers({"layers": {"0": leaf, "2": leaf}})
  with pytest.raises(MismatchedTrees, match="layer 1"):
    stack_layers({"layers": {"0": leaf, "1": {"x": np.zeros(3)}}})
