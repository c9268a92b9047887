"""What a base model is for every method, as mergekit has it, and what only we have."""

import pytest

from tests.streaming.small_models import llama, output, plan, run
from wam.core.errors import ConfigError
from wam.merging.table import METHODS
from wam.streaming.recipes import recipes

NAME = "model.layers.0.mlp.up_proj.weight"
NEEDS_ONE = {"liti", "wise_ft", "expo", "nearswap", "arcee_fusion"}
STARTS = [m for m, row in METHODS.items() if row.init == "needed"]


def sources():
  return tuple(llama(x) for x in ("S", "A", "B"))


def roles(data):
  """Labels of the start and of the members."""
  made = plan(data, *sources())
  found = output(made, NAME)
  table = {id(r): k for k, s in made.sources.items() for r in s.tensors.values()}
  start = None if found.base is None else table[id(found.base)]
  return start, [table[id(r)] for r in found.members], made


def recipe(method, models, **keys):
  parameters = {"weight": 1.0} if METHODS[method].coefficients != "none" else {}
  if method == "nearswap":
    parameters["t"] = 0.1
  return {"merge_method": method, "models": models, "parameters": parameters, **keys}


@pytest.mark.parametrize("method", STARTS)
def test_the_base_of_task_vectors_is_no_member_whether_it_is_listed_or_not(method):
  members = ["A"] if method in NEEDS_ONE else ["A", "B"]
  for models in (members, ["S", *members], [*members, "S"]):
    start, found, _ = roles(recipe(method, models, base_model="S"))
    assert (start, found) == ("S", members)


@pytest.mark.parametrize("method", STARTS)
def test_and_must_be_given(method):
  with pytest.raises(
    ConfigError, match="needs the weights that the models started from: give base_model"
  ):
    plan(recipe(method, ["A", "B"]), *sources())


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_a_base_may_be_given(method):
  assert roles(recipe(method, ["A", "B"]))[:2] == (None, ["A", "B"])
  assert roles(recipe(method, ["A", "B"], base_model="S"))[:2] == ("S", ["A", "B"])


def test_the_base_of_slerp_is_the_first_of_two_or_where_task_vectors_start():
  slerp = {"merge_method": "slerp", "parameters": {"t": 0.25}}
  assert roles({**slerp, "models": ["A", "B"], "base_model": "B"})[:2] == (None, ["B", "A"])
  assert roles({**slerp, "models": ["A", "B"]})[:2] == (None, ["A", "B"])
  assert roles({**slerp, "models": ["A", "B"], "base_model": "S"})[:2] == ("S", ["A", "B"])
  assert roles({**slerp, "models": ["A", "S", "B"], "base_model": "S"})[:2] == ("S", ["A", "B"])
  assert roles({**slerp, "models": ["A", "B"], "origin": "S"})[:2] == ("S", ["A", "B"])


def test_the_base_of_linear_is_a_member_where_a_weight_is_there_for_it():
  start, members, made = roles(recipe("linear", ["A", "B"], base_model="S"))
  assert (start, members) == (None, ["A", "B", "S"])
  assert "linear: base_model S is a member like the others, as in mergekit" in made.notes
  weighted = [{"model": m, "parameters": {"weight": 1}} for m in ("A", "B")]
  start, members, made = roles({"merge_method": "linear", "models": weighted, "base_model": "S"})
  assert (start, members) == (None, ["A", "B"])
  assert made.donor.label == "S"
  assert "linear: S gives config and tokenizer only; its weights have no part" in made.notes
  assert roles(recipe("linear", ["S", "A"], base_model="S"))[:2] == (None, ["S", "A"])


def test_the_base_of_karcher_is_a_member_and_the_origin_is_not():
  assert roles(recipe("karcher", ["A", "B"], base_model="S"))[:2] == (None, ["A", "B", "S"])
  assert roles(recipe("karcher", ["A", "B"], origin="S"))[:2] == ("S", ["A", "B"])
  arguments = recipes.from_arguments(method="karcher", models=["A", "B"], base="S")
  assert roles(arguments)[:2] == ("S", ["A", "B"])


@pytest.mark.parametrize("method", ["passthrough", "geometric_median", "lerp"])
def test_elsewhere_it_gives_the_config(method):
  models = ["A"] if method == "passthrough" else ["A", "B"]
  start, members, made = roles(recipe(method, models, base_model="S"))
  assert (start, members) == (None, models)
  assert made.donor.label == "S"


@pytest.mark.parametrize("method", ["linear", "geometric_median", "passthrough"])
def test_an_origin_where_there_are_no_task_vectors(method):
  with pytest.raises(ConfigError, match=f"{method} takes no task vectors: leave 'origin' out"):
    plan(recipe(method, ["A", "B"], origin="S"), *sources())


def test_an_origin_beside_a_base():
  with pytest.raises(ConfigError, match="base_model and origin are the same thing"):
    plan(recipe("ties", ["A", "B"], origin="S", base_model="A"), *sources())


@pytest.mark.parametrize(
  ("method", "models", "message"),
  [
    ("nearswap", ["A", "B"], "nearswap merges 1 member.*, found 2 .*A, B"),
    ("model_stock", ["A"], "model_stock merges 2 or more member.*, found 1"),
    ("passthrough", ["A", "B"], "passthrough merges 1 member"),
    ("nuslerp", ["A"], "nuslerp merges 2 member"),
    ("liti", ["S"], "liti merges 1 member.*, found 0 .*none"),
  ],
)
def test_too_many_or_too_few_models(method, models, message):
  base = {} if method == "passthrough" else {"base_model": "S"}
  with pytest.raises(ConfigError, match=message):
    plan(recipe(method, models, **base), *sources())


def test_slices_must_list_the_base():
  def stack(*models, **keys):
    part = {"sources": [{"model": m, "layer_range": [0, 3]} for m in models], **keys}
    return {"merge_method": "task_arithmetic", "slices": [part], "parameters": {"weight": 1}}

  with pytest.raises(ConfigError, match=r"slices\[0\]: base_model S is not among the sources"):
    plan({**stack("A", "B"), "base_model": "S"}, *sources())
  assert roles({**stack("A", "S"), "base_model": "S"})[:2] == ("S", ["A"])
  start, members, made = roles({**stack("A", "S", base_model="A"), "base_model": "S"})
  assert (start, members) == ("A", ["S"])
  assert made.donor.label == "S"
  linear = {**stack("A"), "merge_method": "linear", "base_model": "S"}
  assert roles(linear)[:2] == (None, ["A"])


def test_the_donor_is_the_base_or_the_first_model():
  made = plan(recipe("linear", ["B", "A"]), *sources())
  assert made.donor is made.sources["B"]
  assert plan(recipe("karcher", ["B", "A"], origin="S"), *sources()).donor.label == "S"


def test_importances():
  data = recipe("fisher", [{"model": m, "importances": f"F{m}"} for m in ("A", "B")])
  importances = [llama("FA"), llama("FB")]
  made = plan(data, *sources(), *importances)
  found = output(made, NAME)
  assert found.importances == tuple(x.tensors[NAME] for x in importances)
  assert list(made.sources) == ["A", "B", "FA", "FB"]
  run(made)
  with pytest.raises(ConfigError, match="fisher needs 'importances' for every model; B has none"):
    plan(recipe("fisher", [{"model": "A", "importances": "FA"}, "B"]), *sources(), *importances)
  with pytest.raises(ConfigError, match="linear takes no importances; A has some"):
    plan({**data, "merge_method": "linear"}, *sources(), *importances)
  short = llama("FB", layers=1)
  with pytest.raises(
    ConfigError, match=r"6 reasons not to merge: FB has no 'model.layers.1.input_layer"
  ):
    plan(data, *sources(), importances[0], short)
