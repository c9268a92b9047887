"""config.json <-> DecoderConfig."""

import dataclasses

import pytest

from tests.parity.cases import CASES
from wam.core.errors import BadCheckpoint, ConfigError, UnknownName
from wam.models import families, hf_names
from wam.models.config import DecoderConfig, RopeScaling

LLAMA = {
  "model_type": "llama",
  "vocab_size": 32,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
}


@pytest.mark.parametrize("name", CASES)
def test_a_config_survives_writing_and_reading(name):
  written = families.config_to_hf(CASES[name], dtype="float32")
  assert families.config_from_hf(written) == CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_the_same_shape(name):
  transformers = pytest.importorskip("transformers")
  config = CASES[name]
  written = families.config_to_hf(config, dtype="bfloat16")
  theirs = transformers.AutoConfig.for_model(**written)
  assert theirs.head_dim == config.head_dim
  assert theirs.num_key_value_heads == config.num_kv_heads
  assert theirs.rope_parameters["rope_theta"] == config.rope_theta
  kind = config.rope_scaling.kind if config.rope_scaling else "default"
  assert theirs.rope_parameters["rope_type"] == kind
  assert getattr(theirs, "sliding_window", None) == config.sliding_window


def test_defaults_are_those_of_transformers():
  config = families.config_from_hf(LLAMA)
  assert config.num_kv_heads == 4
  assert config.head_dim == 4
  assert config.rms_norm_eps == 1e-6
  assert config.rope_theta == 10000.0
  assert not config.tie_embeddings
  mistral = families.config_from_hf(LLAMA | {"model_type": "mistral", "num_key_value_heads": 2})
  assert mistral.sliding_window == 4096


@pytest.mark.parametrize(
  "keys",
  [
    {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
  ],
)
def test_old_and_new_spellings_of_rope_mean_the_same(keys):
  config = families.config_from_hf(LLAMA | keys)
  assert config.rope_theta == 5e5
  assert config.rope_scaling == RopeScaling("linear", factor=2.0)


def test_the_layers_of_a_window_come_from_a_list_or_from_a_count():
  base = LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 7}
  assert families.config_from_hf(base).sliding_window is None
  counted = families.config_from_hf(base | {"use_sliding_window": True, "max_window_layers": 1})
  assert counted.windowed() == (False, True)
  listed = families.config_from_hf(
    base | {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
  )
  assert listed.windowed() == (True, False)


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"model_type": "lama"}, UnknownName, "Did you mean 'llama'"),
    ({"model_type": "gpt2"}, UnknownName, "llama, mistral, qwen2, qwen3"),
    ({"hidden_act": "relu"}, UnknownName, "relu"),
    ({"vocab_size": None, "hidden_size": None}, BadCheckpoint, "vocab_size, hidden_size"),
    ({"hidden_size": "16"}, BadCheckpoint, "hidden_size='16'"),
    ({"rope_scaling": {"rope_type": "mrope"}}, UnknownName, "mrope"),
    ({"rope_scaling": {"rope_type": "linear"}}, ConfigError, "needs factor"),
    ({"partial_rotary_factor": 0.5}, BadCheckpoint, "partial_rotary_factor"),
    ({"num_key_value_heads": 3}, ConfigError, "multiple of num_kv_heads"),
    ({"num_hidden_layers": 0}, ConfigError, "num_layers"),
  ],
)
def test_what_cannot_be_read_is_refused_by_name(changes, error, message):
  with pytest.raises(error, match=message):
    families.config_from_hf(LLAMA | changes)


def test_what_a_family_cannot_express_is_not_lost_silently():
  config = DecoderConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_layers=1,
    num_heads=2,
    qk_norm=True,
    sliding_window=3,
  )
  with pytest.raises(ConfigError, match="sliding_window=3, qk_norm=True"):
    families.config_to_hf(config, dtype="float32")


def test_every_tensor_has_one_name_on_each_side():
  for config in CASES.values():
    entries = hf_names.entries(config)
    assert len({e.theirs for e in entries}) == len({e.ours for e in entries}) == len(entries)
  scalar = hf_names.entries(dataclasses.replace(CASES["llama"]), scalar=True)
  names = {e.theirs for e in scalar}
  assert "score.weight" in names
  assert "lm_head.weight" not in names
