"""Names, layers and tied heads: which tensors go into which."""

import numpy as np
import pytest

from tests.streaming.in_memory_checkpoint import ArrayReader
from tests.streaming.small_models import (
  EMBEDDING,
  HEAD,
  NORM,
  MemorySource,
  constant,
  llama,
  names,
  plan,
  run,
  without,
)
from wam.core.errors import ConfigError, MismatchedTrees
from wam.streaming.recipes import slices

LINEAR = {"merge_method": "linear", "models": ["A", "B"], "parameters": {"weight": 1.0}}


@pytest.mark.parametrize(
  ("name", "place"),
  [
    ("model.embed_tokens.weight", "before"),
    ("transformer.wte.weight", "before"),
    ("transformer.wpe.weight", "before"),
    ("transformer.word_embeddings_layernorm.weight", "before"),
    ("gpt_neox.embed_in.weight", "before"),
    ("gpt_neox.final_layer_norm.weight", "after"),
    ("embed_out.weight", "after"),
    ("transformer.ln_f.bias", "after"),
    ("score.weight", "after"),
  ],
)
def test_before_and_after_the_layers(name, place):
  assert slices.place_of(name) == place


def test_every_missing_and_extra_tensor_is_named():
  a, b = llama("A"), llama("B", bias=np.zeros(3, np.float32), other=np.zeros(2, np.float32))
  without(b, NORM, "model.layers.1.mlp.up_proj.weight")
  with pytest.raises(MismatchedTrees) as caught:
    plan(LINEAR, a, b)
  message = str(caught.value)
  assert "4 reasons not to merge" in message
  for text in (
    f"B has no '{NORM}', which A has",
    "B has no 'model.layers.1.mlp.up_proj.weight', which A has",
    "B has 'bias', which A has not",
    "B has 'other', which A has not",
  ):
    assert text in message
  assert a.closed and b.closed


def test_the_base_says_which_tensors_there_are():
  base, a = llama("S"), llama("A", extra=np.zeros(2, np.float32))
  data = {"merge_method": "expo", "base_model": "S", "models": ["A"]}
  with pytest.raises(MismatchedTrees, match="A has 'extra', which S has not"):
    plan(data, base, a)


def test_buffers_are_left_out():
  name = "model__layers__0__self_attn__rotary_emb__inv_freq"
  made = plan(LINEAR, llama("A", **{name: np.ones(2, np.float32)}), llama("B"))
  assert [x.name for x in made.outputs] == names(3)
  assert any("A: 1 buffers that every program recomputes are left out" in x for x in made.notes)


def test_what_is_not_floating_point_is_copied_from_the_donor():
  ids = np.arange(6)
  a, b = llama("A", position_ids=ids), llama("B", position_ids=ids + 1)
  made = plan({**LINEAR, "base_model": "B"}, a, b)
  np.testing.assert_array_equal(run(made)["position_ids"], ids + 1)
  assert "'position_ids' is int64: it is copied from one model, not averaged" in made.notes
  # Whoever else has it.
  assert "position_ids" not in [x.name for x in plan(LINEAR, llama("A"), b).outputs]
  np.testing.assert_array_equal(run(plan(LINEAR, a, llama("B")))["position_ids"], ids)
  with pytest.raises(MismatchedTrees, match="'position_ids' is int64 in A and float64 in B"):
    plan(LINEAR, a, llama("B", position_ids=ids.astype(float)))


def test_tied_models_stay_tied():
  made = plan(LINEAR, llama("A", tied=True), llama("B", tied=True))
  assert HEAD not in [x.name for x in made.outputs]
  assert made.config["tie_word_embeddings"] is True


def test_copies_of_a_tied_head_are_left_out():
  """mergekit writes them, and the model grows by its embedding."""
  spurious = llama("B", tied=True, lm_head__weight=np.ones((5, 4), np.float32))
  made = plan(LINEAR, llama("A", tied=True), spurious)
  assert [x.name for x in made.outputs] == names(3, head=False)
  assert any("B: 'lm_head.weight' is left out: config.json says" in x for x in made.notes)


@pytest.mark.parametrize("donor", ["A", "B"])
def test_a_tied_model_gives_its_embedding_to_the_head_of_another(donor):
  a, b = constant("A", 1.0), constant("B", 3.0, tied=True)
  made = plan({**LINEAR, "base_model": donor}, a, b)
  merged = run(made)
  assert (merged[HEAD] == 2.0).all()
  assert [x.name for x in made.outputs].count(HEAD) == 1
  assert made.config["tie_word_embeddings"] is False
  assert any("others (B) use their embedding as head" in x for x in made.notes)


def test_without_a_config_a_model_is_tied_if_it_has_no_head():
  a, b = llama("A"), llama("B", tied=True)
  a.config = b.config = None
  made = plan(LINEAR, a, b)
  assert made.outputs[-1].members[1] is b.tensors[EMBEDDING]
  assert made.config is None


def test_a_head_that_should_be_there_is_missing():
  with pytest.raises(MismatchedTrees, match=f"B has no '{HEAD}'"):
    plan(LINEAR, llama("A"), without(llama("B"), HEAD))


def test_the_head_of_a_reward_model_is_never_tied():
  score = {"score__weight": np.ones((1, 4), np.float32)}
  made = plan(LINEAR, llama("A", tied=True, **score), llama("B", tied=True, **score))
  assert made.outputs[-1].name == "score.weight"


STACK = """
merge_method: passthrough
slices:
  - sources: [{model: A, layer_range: [0, %d]}]
  - sources: [{model: B, layer_range: [1, 2]}]
"""


def test_stacks_of_tied_and_untied_models():
  made = plan(STACK % 1, llama("A", tied=True), llama("B", tied=True))
  assert HEAD not in [x.name for x in made.outputs]
  assert "the head of the output is its embedding, which is made of A" in made.notes
  b = llama("B")
  made = plan(STACK % 1, llama("A", tied=True), b)
  np.testing.assert_array_equal(run(made)[HEAD], b.array(HEAD))
  assert made.config["tie_word_embeddings"] is False
  b = llama("B", tied=True)
  made = plan(STACK % 1, llama("A"), b)
  np.testing.assert_array_equal(run(made)[HEAD], b.array(EMBEDDING))
  assert made.config["tie_word_embeddings"] is False


def test_layers_that_are_not_there():
  with pytest.raises(ConfigError, match=r"layer_range \[0, 4\] of A: it has the layers \[0, 3\)"):
    plan(STACK % 4, llama("A"), llama("B"))


def test_layers_of_other_kinds_are_refused():
  a = llama("A", model__layers__1__extra=np.zeros(2, np.float32))
  data = """
    merge_method: linear
    parameters: {weight: 1}
    slices: [{sources: [{model: A, layer_range: [1, 2]}, {model: B, layer_range: [0, 1]}]}]
    """
  with pytest.raises(MismatchedTrees, match=r"B has no 'model.layers.1.extra', which A has"):
    plan(data, a, llama("B"))
  # The other way round nothing is missing from A's layer 0.
  data = data.replace("A, layer_range: [1, 2]", "A, layer_range: [0, 1]")
  assert len(plan(data, a, llama("B")).outputs) == 6


def test_slices_need_one_stack_of_layers():
  arrays = {"encoder.layers.0.w": np.ones(2), "decoder.layers.0.w": np.ones(2)}
  source = MemorySource("A", {n: ArrayReader(n, x) for n, x in arrays.items()})
  with pytest.raises(ConfigError, match=r"A has 2: decoder.layers, encoder.layers"):
    plan(STACK % 1, source, llama("B"))
  source = MemorySource("A", {"w": ArrayReader("w", np.ones(2))})
  with pytest.raises(ConfigError, match="no name says which layer"):
    plan(STACK % 1, source, llama("B"))


def test_several_stacks_have_gradients_of_their_own():
  def model(label):
    arrays = {
      f"{s}.layers.{i}.w": np.ones(2) for s, n in (("enc", 2), ("dec", 3)) for i in range(n)
    }
    return MemorySource(label, {n: ArrayReader(n, x) for n, x in arrays.items()})

  data = {
    "merge_method": "slerp",
    "base_model": "A",
    "models": ["A", "B"],
    "parameters": {"t": [0, 1]},
  }
  made = plan(data, model("A"), model("B"))
  assert [x.coefficients[1] for x in made.outputs] == [0, 1, 0, 0.5, 1]


def test_arrays_that_hold_all_layers():
  def model(label):
    arrays = {"layers/mlp/up/kernel": np.ones((3, 2)), "embed/kernel": np.ones((2, 2))}
    return MemorySource(label, {n: ArrayReader(n, x) for n, x in arrays.items()})

  data = {"merge_method": "linear", "models": ["A", "B"], "parameters": {"weight": [1, 2]}}
  with pytest.raises(ConfigError, match="'layers/mlp/up/kernel' holds all layers in one array"):
    plan(data, model("A"), model("B"))
  data["parameters"] = {"weight": 1.0}
  assert not plan(data, model("A"), model("B")).notes
  made = plan({**data, "merge_method": "multislerp"}, model("A"), model("B"))
  assert (
    "arrays that hold all layers are taken as one vector each, not layer by layer" in made.notes
  )
