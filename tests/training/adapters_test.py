"""Adapters written as PEFT writes them, read back, and merged into their base by the streaming merges."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.models.lora_test import BOTH, MODEL, fresh, params, random_like
from wam import pretrained
from wam.core import trees
from wam.core.errors import BadCheckpoint, ConfigError, MissingFile, NonFinite
from wam.models import hf_names, stacking
from wam.models.lora import Lora, average
from wam.streaming.inputs.sources import open_source
from wam.training import adapters


def trained(lora=BOTH, seed=0):
  return random_like(fresh(lora), seed, scale=0.1)


def test_names_and_shapes_are_those_of_peft(tmp_path):
  lora = Lora(rank=3, alpha=6.0, targets="mlp+q", dropout=0.05)
  tree = trained(lora)
  adapters.save(tmp_path / "a", lora, tree, base="a/base")
  config = json.loads((tmp_path / "a/adapter_config.json").read_text())
  assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
  assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 6, 0.05)
  assert config["target_modules"] == ["gate_proj", "up_proj", "down_proj", "q_proj"]
  assert config["base_model_name_or_path"] == "a/base"
  tensors = safetensors.numpy.load_file(tmp_path / "a/adapter_model.safetensors")
  assert len(tensors) == 2 * 4 * 2
  prefix = "base_model.model.model.layers.1."
  down, q = (f"{prefix}{n}_proj.lora_" for n in ("mlp.down", "self_attn.q"))
  assert tensors[f"{down}A.weight"].shape == (3, 20)
  assert tensors[f"{down}B.weight"].shape == (8, 3)
  expected = tree["layers"]["attention"]["q"]["lora_b"][1]
  np.testing.assert_array_equal(tensors[f"{q}B.weight"], expected.T)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("targets", ["mlp", "mlp+attention", "gate+q+v"])
def test_what_is_written_is_read(tmp_path, targets, stacked):
  lora = Lora(rank=2, alpha=3.5, targets=targets, dropout=0.1)
  tree = trained(lora)
  adapters.save(tmp_path / "a", lora, tree)
  found, again = adapters.load(tmp_path / "a", stacked=stacked)
  assert found == lora
  expected = tree if stacked else stacking.unstack_layers(tree)
  assert trees.names(again) == trees.names(expected)
  for name, x in trees.flatten(again).items():
    np.testing.assert_array_equal(x, trees.flatten(expected)[name], name)


def test_base_and_adapter_merged_from_disk_are_the_fused_weights(tmp_path):
  """One adapter, and the average of the products of two."""
  pretrained.save(tmp_path / "base", MODEL, params())
  lora, joined = average([(BOTH, trained(seed=0)), (BOTH, trained(seed=1))])
  for i, (kind, tree) in enumerate(((BOTH, trained()), (lora, joined))):
    adapters.save(tmp_path / f"adapter{i}", kind, tree)
    fused = trees.flatten(stacking.unstack_layers(kind.fuse(params(), tree)))
    source = open_source(f"{tmp_path}/base+{tmp_path}/adapter{i}")
    for entry in hf_names.entries(MODEL.config):
      reader = source.tensors[entry.theirs]
      found = reader.read(0, int(np.prod(reader.shape))).reshape(reader.shape)
      np.testing.assert_allclose(
        found.T if entry.transposed else found, fused[entry.ours], rtol=1e-5, atol=1e-6
      )
    source.close()


def edited(tmp_path, name="edited", tensors=None, **config):
  """The directory of an adapter of the MLP with other settings or tensors."""
  lora = Lora(rank=2, alpha=4.0)
  directory = tmp_path / name
  adapters.save(directory, lora, trained(lora))
  path = directory / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | config))
  if tensors is not None:
    path = directory / "adapter_model.safetensors"
    safetensors.numpy.save_file(tensors(safetensors.numpy.load_file(path)), path)
  return directory


def test_rank_stabilised_adapters_are_read_with_their_scaling(tmp_path):
  lora, _ = adapters.load(edited(tmp_path, use_rslora=True))
  assert lora.scaling == pytest.approx(4 / np.sqrt(2))


def test_defaults_of_peft_are_harmless(tmp_path):
  """What LoraConfig().to_dict() of PEFT 0.21 holds besides, where it is not false."""
  found = adapters.load(
    edited(tmp_path, megatron_core="megatron.core", qalora_group_size=16, peft_version="0.21.2")
  )
  assert found[0] == Lora(rank=2, alpha=4.0)


OTHERS = [
  ({"peft_type": "IA3"}, "peft_type"),
  ({"use_dora": True}, "use_dora"),
  ({"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
  ({"init_lora_weights": "pissa"}, "init_lora_weights"),
  ({"bias": "all"}, "bias"),
  ({"r": 0}, "r is 0"),
  ({"lora_alpha": "32"}, "lora_alpha is '32'"),
  ({"r": 3}, "config says rank 3"),
]


@pytest.mark.parametrize(("config", "message"), OTHERS)
def test_other_kinds_are_refused(tmp_path, config, message):
  with pytest.raises(BadCheckpoint, match=message):
    adapters.load(edited(tmp_path, **config))


def test_damaged_adapters_are_refused(tmp_path):
  first = "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight"

  def without(tensors):
    return {name: x for name, x in tensors.items() if name != first}

  with pytest.raises(BadCheckpoint, match=r"'layers/0/mlp/gate/lora_a' is missing"):
    adapters.load(edited(tmp_path, "a", without))
  with pytest.raises(BadCheckpoint, match=r"'lm_head.lora_A.weight' is no factor"):
    adapters.load(
      edited(tmp_path, "b", lambda t: t | {"lm_head.lora_A.weight": np.ones((2, 8), np.float32)})
    )
  with pytest.raises(NonFinite, match="layers/0/mlp/gate/lora_a"):
    adapters.load(edited(tmp_path, "c", lambda t: t | {first: np.full_like(t[first], np.inf)}))
  with pytest.raises(BadCheckpoint, match="there is no factor"):
    adapters.load(edited(tmp_path, "d", lambda t: {}))
  (tmp_path / "a" / "adapter_model.safetensors").unlink()
  with pytest.raises(MissingFile, match=r"no adapter_model\.safetensors"):
    adapters.load(tmp_path / "a")
  lora = Lora(rank=2)
  with pytest.raises(ConfigError, match="not empty"):
    adapters.save(tmp_path / "b", lora, trained(lora))
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), trained(lora))
  with pytest.raises(NonFinite, match="are not written"):
    adapters.save(tmp_path / "e", lora, broken)
  assert not (tmp_path / "e").exists()
