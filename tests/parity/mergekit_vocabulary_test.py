"""Models with different tokenizers through mergekit and through wam: the same row for every token.

mergekit makes added tokens of all tokens of a union, in an order of its own, and cuts the matrix to them; so rows are
compared by token, and only where both rules agree (see wam/streaming/vocabularies/vocabulary.py).
"""

import json
import pathlib
import subprocess

import jax
import numpy as np
import pytest
import transformers
from safetensors import numpy as safetensors

from tests.parity.merge_parity_test import PYTHON, pytestmark  # noqa: F401 (marks this module too)
from tests.streaming import small_tokenizers as small
from wam import pretrained
from wam.cli import merge
from wam.core import trees
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel

IDS = {
  "base": {"<unk>": 0, "the": 1, "red": 2, "kite": 3},
  "a": {"<unk>": 0, "red": 1, "the": 2, "flies": 3, "high": 4},
  "b": {"<unk>": 0, "the": 1, "high": 2, "kite": 3, "flies": 4, "far": 5},
}
ADDED = {"base": [], "a": ["<|im_end|>"], "b": ["<|pad|>", "<|im_end|>"]}
TASK = """
merge_method: task_arithmetic
base_model: {base}
models:
  - {{model: {a}, parameters: {{weight: 0.3}}}}
  - {{model: {b}, parameters: {{weight: 0.6}}}}
"""
# Coefficients whose sum and products with it are exact: how sums are normalised is the matter of other tests.
LINEAR = """
merge_method: linear
models:
  - {{model: {base}, parameters: {{weight: 0.25}}}}
  - {{model: {a}, parameters: {{weight: 0.25}}}}
  - {{model: {b}, parameters: {{weight: 0.5}}}}
"""
RECIPES = {
  "task_base": TASK + "tokenizer_source: base",
  "task_union": TASK + "tokenizer_source: union",
  "task_a": TASK + "tokenizer_source: {a}",
  "task_b": TASK + "tokenizer_source: {b}",
  "linear_a": LINEAR + "tokenizer_source: {a}",
  "linear_b": LINEAR + "tokenizer: {{source: {b}, pad_to_multiple_of: 16}}",
  "overrides": TASK
  + """
tokenizer:
  source: union
  pad_to_multiple_of: 4
  tokens:
    flies: {{source: {a}, force: true}}
    far: {{source: {{kind: zero}}}}
    <|im_end|>: {{source: {{kind: model_token, model: {b}, token: kite}}}}
    high: {{source: {{kind: model_token, model: {a}, token_id: 1}}, force: true}}
""",
}


def make_models(folder):
  """Llamas with heads of their own, each with its tokenizer; directories by name."""
  models = {}
  for seed, (label, ids) in enumerate(IDS.items()):
    tokenizer = small.words(ids, ADDED[label])
    model = LanguageModel(
      DecoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        max_position_embeddings=32,
      )
    )
    random = np.random.default_rng(seed)
    params = {
      name: random.normal(size=leaf.shape).astype(np.float32)
      for name, leaf in trees.flatten(model.init(jax.random.key(0))).items()
    }
    pretrained.save(folder / label, model, trees.unflatten(params))
    small.save(tokenizer, folder / label, unk_token="<unk>")
    models[label] = str(folder / label)
  return models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Every recipe, merged by both: NAME.theirs and NAME.ours."""
  directory = tmp_path_factory.mktemp("vocabularies")
  models = make_models(directory / "models")
  for name, text in RECIPES.items():
    (directory / f"{name}.yaml").write_text(text.format(**models))
  script = pathlib.Path(__file__).with_name("run_mergekit.py")
  subprocess.run([PYTHON, script, directory], check=True, capture_output=True, cwd=directory)
  for name in RECIPES:
    merge.main([str(directory / f"{name}.yaml"), str(directory / f"{name}.ours"), "--quiet"])
  return directory


def read(directory):
  """Tensors, token -> id, config."""
  tensors = {}
  for path in directory.glob("*.safetensors"):
    tensors |= safetensors.load_file(path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  return tensors, tokenizer.get_vocab(), json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_row_for_every_token(folder, name):
  error = folder / f"{name}.error"
  assert not error.exists(), error.read_text()
  theirs, their_ids, their_config = read(folder / f"{name}.theirs")
  ours, ids, config = read(folder / f"{name}.ours")
  assert ids.keys() == their_ids.keys()
  assert config["vocab_size"] == their_config["vocab_size"]
  tokens = sorted(ids)
  for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
    mine, other = ours.pop(tensor), theirs.pop(tensor)
    assert mine.shape == other.shape == (config["vocab_size"], 16)
    np.testing.assert_array_equal(
      mine[[ids[t] for t in tokens]], other[[their_ids[t] for t in tokens]]
    )
    # Padding: a mean, which sums in another order.
    np.testing.assert_allclose(mine[len(ids) :], other[len(ids) :], rtol=1e-5, atol=1e-6)
  assert ours.keys() == theirs.keys()
  for tensor, values in ours.items():
    np.testing.assert_array_equal(values, theirs[tensor])
