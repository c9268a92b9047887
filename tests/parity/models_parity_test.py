"""What we write, transformers loads, and gives the same logits; and the other way round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.cases import CASES, tokens, weights
from wam import pretrained
from wam.models import stacking
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel

torch = pytest.importorskip("torch", reason="needs torch: run `make parity`")
transformers = pytest.importorskip("transformers")

pytestmark = [
  pytest.mark.parity,
  # Their deprecations are not our errors.
  pytest.mark.filterwarnings("default"),
]


def their_logits(model, ids, mask=None):
  with torch.no_grad():
    return model(
      torch.tensor(ids), attention_mask=None if mask is None else torch.tensor(mask)
    ).logits.numpy()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_we_save_transformers_loads_with_the_same_logits(name, attention, tmp_path):
  config = CASES[name]
  model, params, ids = LanguageModel(config), weights(config), tokens(config)
  pretrained.save(tmp_path / "model", model, params, shard_bytes=8000)
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "model", attn_implementation=attention, dtype="float32", output_loading_info=True
  )
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  ours = model.apply(params, jnp.asarray(ids)).logits
  np.testing.assert_allclose(ours, their_logits(theirs.eval(), ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_transformers_saves_we_load_with_the_same_logits(name, tmp_path):
  config = CASES[name]
  pretrained.save(tmp_path / "ours", LanguageModel(config), weights(config))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
  theirs.save_pretrained(tmp_path / "theirs")
  loaded = pretrained.load(tmp_path / "theirs")
  # Theirs may leave out what equals its default; the network must be the same.
  assert dataclasses.replace(loaded.model.config, initializer_range=0.02) == config
  ids = tokens(config)
  ours = loaded.model.apply(loaded.params, jnp.asarray(ids)).logits
  np.testing.assert_allclose(ours, their_logits(theirs, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3_window"])
def test_padded_rows_agree(name, tmp_path):
  config = CASES[name]
  model, params, ids = LanguageModel(config), weights(config), tokens(config)
  pretrained.save(tmp_path / "model", model, params)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
  mask = np.ones(ids.shape, np.int64)
  mask[0, 14:] = 0
  ours = model.apply(params, jnp.asarray(ids), mask=jnp.asarray(mask, bool)).logits
  found = their_logits(theirs, ids, mask)
  keep = mask.astype(bool)
  np.testing.assert_allclose(np.asarray(ours)[keep], found[keep], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_reward_model_gives_the_scores_of_their_classifier(name, tmp_path):
  config = CASES[name]
  model = ScalarModel(config)
  params = model.init(jax.random.key(0), stacking.stack_layers(weights(config)))
  ids = tokens(config)
  mask = np.ones(ids.shape, bool)
  mask[0, 14:] = False
  ids = np.where(mask, ids, config.pad_token_id)
  pretrained.save_scalar(tmp_path / "model", model, params)
  theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / "model", output_loading_info=True
  )
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  assert theirs.config.num_labels == 1
  ours = model.apply(params, jnp.asarray(ids), mask=jnp.asarray(mask))
  found = their_logits(theirs.eval(), ids, mask.astype(np.int64))[:, 0]
  np.testing.assert_allclose(ours, found, rtol=0, atol=1e-4)
