"""LoRA adapters while they are read: equal to dense float64 sums, whatever rows are asked for; others are refused."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from wam.core.errors import BadCheckpoint, MissingFile
from wam.streaming.inputs import adapters
from wam.streaming.inputs.sources import open_source

BF16 = np.dtype(ml_dtypes.bfloat16)
Q, K, UP, EMBED, HEAD = (
  "model.layers.0.self_attn.q_proj",
  "model.layers.1.self_attn.k_proj",
  "model.layers.0.mlp.up_proj",
  "model.embed_tokens",
  "lm_head",
)
SHAPES = {Q: (12, 8), K: (4, 8), UP: (20, 8), EMBED: (15, 8), HEAD: (15, 8)}


def base_arrays(dtype=BF16):
  rng = np.random.default_rng(1)
  arrays = {f"{m}.weight": rng.standard_normal(s).astype(dtype) for m, s in SHAPES.items()}
  return arrays | {"model.norm.weight": rng.standard_normal(8).astype(dtype)}


def factors(module, rank, *, transposed=False, dtype=np.float32, seed=2):
  """B and A for a module, named as PEFT names them."""
  rng = np.random.default_rng([seed, len(module)])
  rows, columns = SHAPES[module][::-1] if transposed else SHAPES[module]
  a, b = rng.standard_normal((rank, columns)), rng.standard_normal((rows, rank))
  if module == EMBED:
    names = f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
  else:
    names = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
  return {f"base_model.model.{n}": x.astype(dtype) for n, x in zip(names, (a, b), strict=True)}


def dense(weight, tensors, module, scaling, *, transposed=False):
  """W + scaling · B A in float64."""
  a, b = (np.asarray(x, np.float64) for n, x in tensors.items() if f".{module}." in n)
  update = scaling * (b @ a)
  return np.asarray(weight, np.float64) + (update.T if transposed else update)


@pytest.fixture
def build(tmp_path):
  """Writes a base and an adapter and opens the sum."""
  opened = []

  def build(tensors, *, arrays=None, number=0, **config):
    base, adapter = tmp_path / "base", tmp_path / f"adapter{number}"
    if not base.exists():
      base.mkdir()
      safetensors.numpy.save_file(arrays or base_arrays(), base / "model.safetensors")
      (base / "config.json").write_text('{"model_type": "llama"}')
    adapter.mkdir()
    safetensors.numpy.save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **config}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    opened.append(open_source(f"{base}+{adapter}"))
    return opened[-1]

  yield build
  for source in opened:
    source.close()


def close(reader, expected):
  """Within the rounding of float32 sums, and the same bits however the rows are asked for."""
  assert reader.dtype == np.float32
  assert reader.shape == expected.shape
  flat = expected.reshape(-1)
  whole = reader.read(0, flat.size)
  assert whole.dtype == np.float32
  np.testing.assert_allclose(whole, flat, rtol=1e-5, atol=1e-5)
  for start, stop in [(0, 3), (3, 3), (5, 30), (8, 16), (17, 19), (flat.size - 1, flat.size)]:
    assert reader.read(start, stop).tobytes() == whole[start:stop].tobytes()
  return whole


def test_the_sum_of_base_and_product(build):
  tensors = factors(Q, 4) | factors(UP, 4, dtype=BF16)
  source = build(tensors)
  arrays = base_arrays()
  for module in (Q, UP):
    expected = dense(arrays[f"{module}.weight"], tensors, module, 2.0)
    close(source.tensors[f"{module}.weight"], expected)
  untouched = source.tensors[f"{K}.weight"]
  assert untouched.dtype == BF16
  assert untouched.read(0, 32).tobytes() == arrays[f"{K}.weight"].tobytes()
  assert set(source.tensors) == set(arrays)
  assert source.config == {"model_type": "llama"}
  assert source.directory.name == "base"
  names = ["model.safetensors", "config.json", "adapter_model.safetensors", "adapter_config.json"]
  assert [file.name for file in source.files] == names
  assert source.tensors[f"{Q}.weight"].origin == source.label
  assert {adapters.stored_dtype(r) for r in source.tensors.values()} == {BF16}


def test_rows_in_tiles_and_columns_in_runs(build, monkeypatch):
  tensors = factors(UP, 4)
  reader = build(tensors).tensors[f"{UP}.weight"]
  whole = reader.read(0, 160)
  for tile in (1, 8, 24, 1000):
    monkeypatch.setattr(adapters, "_TILE", tile)
    for start in range(0, 160, 7):
      for stop in (start + 1, start + 9, 160):
        found = reader.read(start, min(stop, 160))
        assert found.tobytes() == whole[start : min(stop, 160)].tobytes()


def test_scaling_by_the_root_of_the_rank(build):
  tensors = factors(Q, 4)
  source = build(tensors, use_rslora=True)
  close(
    source.tensors[f"{Q}.weight"],
    dense(base_arrays()[f"{Q}.weight"], tensors, Q, 8 / math.sqrt(4)),
  )


def test_patterns_of_rank_and_alpha(build):
  """The first pattern that matches the end of a name from a dot on, or all of it, as a regular expression."""
  tensors = factors(Q, 2) | factors(K, 3) | factors(UP, 4)
  source = build(
    tensors,
    rank_pattern={"q_proj": 2, r"^model\.layers\.1\..*k_proj": 3, "proj": 7},
    alpha_pattern={"layers.0.mlp.up_proj": 1, "roj": 9, "k_proj": 6, ".*_proj": 5},
  )
  for module, scaling in ((Q, 5 / 2), (K, 6 / 3), (UP, 1 / 4)):
    expected = dense(base_arrays()[f"{module}.weight"], tensors, module, scaling)
    close(source.tensors[f"{module}.weight"], expected)


def test_weights_stored_transposed(build):
  tensors = factors(UP, 4, transposed=True)
  source = build(tensors, fan_in_fan_out=True)
  expected = dense(base_arrays()[f"{UP}.weight"], tensors, UP, 2.0, transposed=True)
  close(source.tensors[f"{UP}.weight"], expected)


def test_embeddings(build):
  tensors = factors(EMBED, 4, transposed=True)
  source = build(tensors)
  expected = dense(base_arrays()[f"{EMBED}.weight"], tensors, EMBED, 2.0, transposed=True)
  close(source.tensors[f"{EMBED}.weight"], expected)


def test_modules_that_are_saved_whole(build):
  head = np.random.default_rng(5).standard_normal(SHAPES[HEAD]).astype(np.float16)
  embedding = np.random.default_rng(6).standard_normal(SHAPES[EMBED]).astype(np.float32)
  tensors = factors(EMBED, 4, transposed=True)
  saved = tensors | {
    f"base_model.model.{HEAD}.weight": head,
    f"base_model.model.{EMBED}.base_layer.weight": embedding,
  }
  source = build(saved, modules_to_save=["lm_head"])
  reader = source.tensors[f"{HEAD}.weight"]
  assert (reader.name, reader.dtype, reader.shape) == (f"{HEAD}.weight", np.float16, head.shape)
  assert reader.read(0, head.size).tobytes() == head.tobytes()
  assert adapters.stored_dtype(reader) == BF16
  expected = dense(embedding, tensors, EMBED, 2.0, transposed=True)
  close(source.tensors[f"{EMBED}.weight"], expected)


def test_one_adapter_after_the_other(build):
  first, second = factors(Q, 4, seed=3), factors(Q, 4, seed=4)
  build(first)
  build(second, number=1)
  base = str(build(first, number=2).directory)
  source = open_source(f"{base}+{base[:-4]}adapter0+{base[:-4]}adapter1")
  once = dense(base_arrays()[f"{Q}.weight"], first, Q, 2.0)
  close(source.tensors[f"{Q}.weight"], dense(once, second, Q, 2.0))
  source.close()


def test_factors_are_not_all_kept_in_memory(build, monkeypatch):
  monkeypatch.setattr(adapters, "_KEPT", 1)
  source = build(factors(Q, 4) | factors(UP, 4))
  loaded = []
  whole = adapters.files.read_whole
  monkeypatch.setattr(
    adapters.files, "read_whole", lambda reader: loaded.append(reader.name) or whole(reader)
  )
  for _ in range(3):
    source.tensors[f"{Q}.weight"].read(0, 8)
  assert len(loaded) == 2
  source.tensors[f"{UP}.weight"].read(0, 8)
  source.tensors[f"{Q}.weight"].read(0, 8)
  assert len(loaded) == 6


def test_every_tensor_without_a_target_is_named(build):
  tensors = (
    factors(Q, 4)
    | {
      "base_model.model.model.layers.9.q_proj.lora_A.weight": np.ones((4, 8), np.float32),
      "base_model.model.model.layers.9.q_proj.lora_B.weight": np.ones((8, 4), np.float32),
      "base_model.model.score.weight": np.ones((1, 8), np.float32),
      "base_model.model.lm_head.weight": np.ones((16, 8), np.float32),
      "base_model.model.x.lora_magnitude_vector": np.ones(8, np.float32),
      "transformer.wte.weight": np.ones(8, np.float32),
      f"base_model.model.{UP}.lora_A.weight": np.ones((4, 8), np.float32),
    }
    | factors(K, 2)
  )
  with pytest.raises(BadCheckpoint, match="7 tensors do not fit") as error:
    build(tensors)
  for part in (
    "'model.layers.9.q_proj' finds no 'model.layers.9.q_proj.weight'",
    "'base_model.model.score.weight' finds no 'score.weight'",
    "'lm_head.weight' has shape (16, 8) there and (15, 8) here",
    "'base_model.model.x.lora_magnitude_vector' is of an unknown kind",
    "'transformer.wte.weight' is of an unknown kind",
    f"'{UP}' has A and not a pair of A and B",
    f"'{K}' has A (2, 8) and B (4, 2) on a base of (4, 8) and rank 4",
    "merge it with PEFT (merge_and_unload) first",
  ):
    assert part in str(error.value)


def test_numbers_that_are_no_floats_are_refused(build):
  arrays = base_arrays() | {f"{Q}.weight": np.ones(SHAPES[Q], np.int8)}
  with pytest.raises(BadCheckpoint, match=r"self_attn\.q_proj' has numbers of type int8"):
    build(factors(Q, 4), arrays=arrays)


REFUSED = {
  "peft_type": ("IA3", "peft_type is 'IA3'"),
  "bias": ("lora_only", "bias is 'lora_only'"),
  "use_dora": (True, "use_dora is True"),
  "use_qalora": (True, "use_qalora is True"),
  "lora_bias": (True, "lora_bias is True"),
  "layer_replication": ([[0, 4]], "layer_replication is"),
  "trainable_token_indices": ([1], "trainable_token_indices is"),
  "target_parameters": (["experts.up"], "target_parameters is"),
  "init_lora_weights": (
    "pissa_niter_4",
    "init_lora_weights is 'pissa_niter_4': the base was changed",
  ),
  "arrow_config": ({"top_k": 3}, "arrow_config is"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_other_kinds_are_refused_by_name(build, key):
  value, message = REFUSED[key]
  with pytest.raises(BadCheckpoint, match=f"{message}.*only plain LoRA is"):
    build(factors(Q, 4), **{key: value})


def test_settings_that_change_nothing_are_taken(build):
  build(
    factors(Q, 4), init_lora_weights="eva", eva_config={"rho": 2}, use_dora=False, lora_bias=False
  )


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"r": 0}, "r is 0, expected a positive number"),
    ({"lora_alpha": "8"}, "lora_alpha is '8'"),
    ({"r": True}, "r is True"),
    ({"rank_pattern": [1]}, "rank_pattern is .*expected modules"),
    ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern is"),
    ({"alpha_pattern": {"(q_proj": 1}}, "is no regular expression"),
  ],
)
def test_damaged_settings(build, config, message):
  with pytest.raises(BadCheckpoint, match=message):
    build(factors(Q, 4), **config)


def test_missing_files(tmp_path, build):
  base = build(factors(Q, 4)).directory
  with pytest.raises(MissingFile, match=r"nor is there an adapter at .*nothing"):
    open_source(f"{base}+{tmp_path}/nothing")
  adapter = tmp_path / "adapter0"
  (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
  with pytest.raises(MissingFile, match=r"adapter_model.bin is a pickle and is refused"):
    open_source(f"{base}+{adapter}")
  (adapter / "adapter_config.json").unlink()
  with pytest.raises(MissingFile, match=r"expected adapter_config\.json"):
    open_source(f"{base}+{adapter}")
