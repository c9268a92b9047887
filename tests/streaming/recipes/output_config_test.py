"""config.json of the output, key by key."""

import numpy as np
import pytest

from tests.streaming.small_models import llama, plan
from wam.streaming.recipes import output_config

BASE = {"num_hidden_layers": 3, "vocab_size": 5}


def stacked(config, *layers):
  return output_config.stack_layers(config, [(config, n) for n in layers])


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers"])
def test_the_number_of_layers(key):
  changed, notes = stacked({key: 3, "other": 1}, 0, 1, 1, 2)
  assert changed == {key: 4, "other": 1}
  assert notes == []
  changed, _ = stacked({"text_config": {key: 3}}, 0, 1)
  assert changed == {"text_config": {key: 2}}


def test_lists_with_an_entry_a_layer_follow_the_layers():
  config = {**BASE, "layer_types": ["full", "sliding", "full"], "eos_token_id": [1, 2, 3]}
  changed, _ = stacked(config, 0, 1, 1, 2)
  assert changed["layer_types"] == ["full", "sliding", "sliding", "full"]
  assert changed["eos_token_id"] == [1, 2, 3]
  assert config["layer_types"] == ["full", "sliding", "full"]
  other = {"layer_types": ["a", "b", "c", "d"]}
  changed, _ = output_config.stack_layers(config, [(config, 0), (other, 3), (None, 1)])
  assert changed["layer_types"] == ["full", "d", "sliding"]


def test_lists_of_layer_numbers_are_numbered_anew():
  config = {**BASE, "mlp_only_layers": [0, 2]}
  assert stacked(config, 2, 1, 0, 2)[0]["mlp_only_layers"] == [0, 2, 3]


def test_rules_by_number_are_noted_unless_nothing_moves():
  config = {**BASE, "sliding_window_pattern": 6}
  changed, notes = stacked(config, 1, 2)
  assert changed["sliding_window_pattern"] == 6
  assert "sliding_window_pattern = 6 speaks of layers by their number" in notes[0]
  assert stacked(config, 0, 1, 2) == (config, [])


def test_ties_and_dtypes():
  config = {
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "text_config": {"dtype": "float16"},
  }
  changed = output_config.finish(config, tied=False, dtypes=[np.dtype(np.float64)] * 2)
  assert changed == {
    "tie_word_embeddings": False,
    "torch_dtype": "float64",
    "text_config": {"dtype": "float64"},
  }
  assert output_config.finish(config, tied=None, dtypes=[np.dtype("f4"), np.dtype("f2")]) == config
  nested = {"text_config": {"tie_word_embeddings": True}}
  assert output_config.finish(nested, tied=False, dtypes=[])["text_config"] == {
    "tie_word_embeddings": False
  }


def test_of_a_stack():
  types = {"layer_types": ["a", "b", "c"]}
  made = plan(
    """
    merge_method: passthrough
    slices:
      - sources: [{model: A, layer_range: [0, 2]}]
      - sources: [{model: B, layer_range: [1, 3]}]
    """,
    llama("A", changes=types),
    llama("B", changes=types),
  )
  assert made.config["num_hidden_layers"] == 4
  assert made.config["layer_types"] == ["a", "b", "b", "c"]
