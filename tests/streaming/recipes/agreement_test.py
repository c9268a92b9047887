"""Configs, shapes and tokenizers that do not agree: what is refused, what is noted, and all in one message."""

import ml_dtypes
import numpy as np
import pytest

from tests.streaming.in_memory_checkpoint import ArrayReader
from tests.streaming.small_models import (
  EMBEDDING,
  HEAD,
  NORM,
  VOCABULARY,
  llama,
  plan,
  run,
  tokenizer_directory,
)
from wam.core.errors import MismatchedTrees

LINEAR = {"merge_method": "linear", "models": ["A", "B"], "parameters": {"weight": 1.0}}


def notes(a=None, b=None, **keys):
  return "\n".join(plan({**LINEAR, **keys}, llama("A", changes=a), llama("B", changes=b)).notes)


@pytest.mark.parametrize(
  ("key", "mine", "other"),
  [
    ("hidden_size", 4, 8),
    ("num_attention_heads", 2, 4),
    ("num_key_value_heads", 1, 2),
    ("rope_theta", 10000.0, 500000.0),
    ("model_type", "llama", "qwen2"),
    ("hidden_act", "silu", "gelu"),
    ("head_dim", 2, 4),
    ("final_logit_softcapping", 30.0, None),
    ("layer_types", ["a", "b"], ["b", "a"]),
  ],
)
def test_keys_that_change_what_weights_mean_are_refused(key, mine, other):
  message = f"{key} is {mine!r} in A and {other!r} in B"
  with pytest.raises(MismatchedTrees) as caught:
    notes({key: mine}, {key: other})
  assert message in str(caught.value)
  assert message in notes({key: mine}, {key: other}, accept_config_differences=[key])


@pytest.mark.parametrize(
  "key",
  ["rms_norm_eps", "max_position_embeddings", "eos_token_id", "attention_dropout", "architectures"],
)
def test_other_keys_are_noted(key):
  assert f"{key} is 1 in A and 2 in B; the output has those of A" in notes({key: 1}, {key: 2})


@pytest.mark.parametrize(
  "key", ["_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype"]
)
def test_and_some_say_nothing(key):
  assert notes({key: "x"}, {key: "y"}) == ""


def test_a_key_that_one_does_not_have_is_noted_if_it_means_something():
  assert "head_dim is not given in A and 64 in B" in notes(None, {"head_dim": 64})
  assert notes(None, {"pad_token_id": 3}) == ""


def test_scaled_positions_are_no_default():
  scaled = {"rope_scaling": {"type": "linear", "factor": 4.0}}
  with pytest.raises(MismatchedTrees, match="rope_type is not given in A and 'linear' in B"):
    notes(None, scaled)
  assert (
    notes(scaled, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}})
    == ""
  )
  with pytest.raises(MismatchedTrees, match=r"rope_factor is \{'factor': 4.0\} in A"):
    notes(scaled, {"rope_scaling": {"type": "linear", "factor": 2.0}})
  # The two ways to write the base.
  new = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
  assert notes(None, new) == ""


def test_nested_configs_are_compared_too():
  with pytest.raises(MismatchedTrees, match=r"text_config.hidden_size is 4 in A and 8 in B"):
    notes({"text_config": {"hidden_size": 4}}, {"text_config": {"hidden_size": 8}})


def test_everything_is_said_in_one_message():
  b = llama("B", changes={"rope_theta": 1.0, "hidden_size": 8}, more=np.zeros(1, np.float32))
  b.tensors[NORM] = ArrayReader(NORM, np.ones(7, np.float32))
  with pytest.raises(MismatchedTrees) as caught:
    plan(LINEAR, llama("A"), b)
  message = str(caught.value)
  assert "4 reasons not to merge" in message
  for text in (
    "B has 'more', which A has not",
    "hidden_size is 4 in A and 8 in B",
    "rope_theta is 10000.0 in A and 1.0 in B",
    f"'{NORM}' is [4] in A, [7] in B",
  ):
    assert text in message


def larger_vocabulary(label, rows, **options):
  source = llama(label, changes={"vocab_size": rows}, **options)
  for name in (EMBEDDING, HEAD):
    source.tensors[name] = ArrayReader(name, np.ones((rows, 4), np.float32))
  return source


def test_vocabularies_that_differ():
  with pytest.raises(MismatchedTrees) as caught:
    plan(LINEAR, llama("A"), larger_vocabulary("B", 7))
  assert (
    f"'{EMBEDDING}' is [5, 4] in A, [7, 4] in B; the vocabularies differ: give 'tokenizer_source'"
    in str(caught.value)
  )


def test_a_checkpoint_that_contradicts_its_own_config():
  a = llama("A", changes={"num_hidden_layers": 5, "vocab_size": 9})
  with pytest.raises(MismatchedTrees) as caught:
    plan(LINEAR, a, llama("B"))
  assert "A: config.json says 5 layers, the tensors are of 3" in str(caught.value)
  assert f"A: config.json says vocab_size 9, '{EMBEDDING}' has 5 rows" in str(caught.value)
  accepted = {**LINEAR, "accept_config_differences": ["vocab_size"]}
  assert plan(accepted, llama("A", changes={"vocab_size": 9}), llama("B")).outputs


def test_quantised_models_are_refused():
  a = llama("A", changes={"quantization_config": {"quant_method": "gptq"}})
  with pytest.raises(MismatchedTrees, match="A is quantised"):
    plan(LINEAR, a, llama("B"))


def test_dtypes_may_differ_and_the_donor_says_what_is_stored():
  half = ml_dtypes.bfloat16
  made = plan(LINEAR, llama("A", dtype=half), llama("B"))
  assert {x.dtype for x in made.outputs} == {np.dtype(half)}
  assert made.notes == (
    "12 tensors are stored as bfloat16 and float32 in different models; all are computed in"
    " float32 or wider",
  )
  assert made.config["dtype"] == "bfloat16"
  merged = run(made)[NORM]
  exact = (llama("A", dtype=half).array(NORM).astype(np.float32) + llama("B").array(NORM)) / 2
  np.testing.assert_array_equal(merged, exact.astype(half))


def with_tokenizers(path, a, b):
  models = llama("A"), llama("B")
  for model, ids in zip(models, (a, b), strict=True):
    model.directory = tokenizer_directory(path / model.label, **ids)
  return models


def test_tokenizers_that_mean_something_else_by_a_row_are_refused(tmp_path):
  words = {"unk": 0, "cat": 1, "dog": 2}
  models = with_tokenizers(tmp_path, words, {"unk": 0, "dog": 1, "cat": 2})
  with pytest.raises(
    MismatchedTrees, match=r"different tokens the same row .*accept_config_differences"
  ):
    plan(LINEAR, *models)
  made = plan({**LINEAR, "accept_config_differences": ["tokenizer"]}, *models)
  assert any("different tokens the same row" in x for x in made.notes)
  models = with_tokenizers(tmp_path, words, {**words, "bird": 3})
  assert any("bird" in x for x in plan(LINEAR, *models).notes)
  models = with_tokenizers(tmp_path, words, words)
  made = plan(LINEAR, *models)
  assert made.notes == ()
  assert set(made.tokenizer_files) == {"tokenizer.json", "tokenizer_config.json"}
  assert made.tokenizer_files["tokenizer.json"] == tmp_path / "A" / "tokenizer.json"


def test_tokenizer_source_matches_rows_by_token(tmp_path):
  words = {"unk": 0, "cat": 1, "dog": 2, "sat": 3, "ran": 4}
  a, b = with_tokenizers(tmp_path, words, words | {"dog": 1, "cat": 2})
  made = plan({**LINEAR, "tokenizer_source": "A"}, a, b)
  order = [0, 2, 1, 3, 4]
  merged = run(made)
  for name in (EMBEDDING, HEAD):
    expected = (a.array(name).astype(float) + b.array(name)[order]) / 2
    np.testing.assert_allclose(merged[name], expected, rtol=1e-6)
  assert made.config["vocab_size"] == VOCABULARY
  assert made.recipe["tokenizer"] == {"source": "A"}


def test_tied_heads_follow_the_rows_of_the_vocabulary(tmp_path):
  words = {"unk": 0, "cat": 1, "dog": 2, "sat": 3, "ran": 4}
  a, b = llama("A"), llama("B", tied=True)
  a.directory = tokenizer_directory(tmp_path / "A", **words)
  b.directory = tokenizer_directory(tmp_path / "B", **(words | {"dog": 1, "cat": 2}))
  made = plan({**LINEAR, "tokenizer_source": "A"}, a, b)
  expected = (a.array(HEAD).astype(float) + b.array(EMBEDDING)[[0, 2, 1, 3, 4]]) / 2
  np.testing.assert_allclose(run(made)[HEAD], expected, rtol=1e-6)


def test_a_union_makes_the_embedding_larger(tmp_path):
  words = {"unk": 0, "cat": 1, "dog": 2, "sat": 3, "ran": 4}
  a = llama("A")
  b = larger_vocabulary("B", 6)
  a.directory = tokenizer_directory(tmp_path / "A", **words)
  b.directory = tokenizer_directory(tmp_path / "B", **words, bird=5)
  made = plan({**LINEAR, "tokenizer_source": "union"}, a, b)
  merged = run(made)
  assert merged[EMBEDDING].shape == merged[HEAD].shape == (6, 4)
  assert (merged[EMBEDDING][5] == 1.0).all()  # the only owner's
  assert made.config["vocab_size"] == 6
