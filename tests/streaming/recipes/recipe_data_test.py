"""The keys of recipes: every one that is not supported is refused by name, and recipes survive being written down."""

import contextlib
import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wam.core.errors import ConfigError, UnknownName, WamError
from wam.streaming.recipes.recipe_data import Entry, as_data, from_data, model_name

LINEAR = {"merge_method": "linear", "models": [{"model": "A"}, {"model": "B"}]}
SLICE = {"sources": [{"model": "A", "layer_range": [0, 2]}]}
STACK = {"merge_method": "passthrough", "slices": [SLICE]}


def refused(data, message, kind=ConfigError):
  with pytest.raises(kind) as caught:
    from_data(data)
  assert message in str(caught.value)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"merge_metod": "x"}, "unknown key of the recipe 'merge_metod'. Did you mean 'merge_method'?"),
    ({"experts": []}, "'experts' is not supported: mixtures of experts"),
    ({"genome": {}}, "'genome' is not supported"),
    ({"models": [{"model": "A", "weight": 1}]}, "unknown key of models[0] 'weight'"),
    ({"models": [{"parameters": {}}]}, "models[0]: 'model' is missing"),
    ({"models": []}, "models: expected a list of at least one"),
    ({"models": {"A": 1}}, "models: expected a list"),
    ({"models": [{"model": 3}]}, "models[0]: model: expected a text, found 3"),
    ({"models": [{"model": "A"}, {"model": "A"}]}, "models: A occurs twice; list every model once"),
    ({"models": None}, "exactly one of 'models', 'slices' and 'modules' must be given, found none"),
    ({"slices": [SLICE]}, "found models, slices"),
    ({"merge_method": None}, "'merge_method' is missing"),
    ({"merge_method": 4}, "merge_method: expected a text"),
    ({"parameters": [1]}, "parameters: expected names with values"),
    ({"seed": 1.5}, "seed: expected a whole number"),
    ({"seed": True}, "seed: expected a whole number"),
    ({"dtype": 32}, "dtype: expected a text"),
    ({"tokenizer_source": "base", "tokenizer": {}}, "tokenizer_source or tokenizer, not both"),
    ({"tokenizer": {"sorce": "base"}}, "Did you mean 'source'?"),
    ({"tokenizer": ["union"]}, "tokenizer: expected keys with values"),
    ({"accept_config_differences": "rope_theta"}, "expected a list of keys of config.json"),
    ({"base_model": {"model": {"path": "A", "revision": "x"}}}, "'revision' is not supported"),
    ({"base_model": {"model": "A", "override_architecture": "x"}}, "'override_architecture'"),
  ],
)
def test_refused_keys(changes, message):
  data = {k: v for k, v in (LINEAR | changes).items() if v is not None}
  refused(data, message, WamError)


@pytest.mark.parametrize(
  ("part", "message"),
  [
    (
      {**SLICE, "residual_weight": 0.5},
      "slices[0]: 'residual_weight' is not supported: mergekit reads it",
    ),
    ({"parameters": {}}, "slices[0]: sources: expected a list"),
    ({"sources": [{"model": "A"}]}, "slices[0]: sources[0]: 'layer_range' is missing"),
    (
      {"sources": [{"model": "A", "layer_range": [2, 2]}]},
      "expected [start, stop) with 0 <= start < stop",
    ),
    ({"sources": [{"model": "A", "layer_range": [-1, 2]}]}, "found [-1, 2]"),
    ({"sources": [{"model": "A", "layer_range": [0, 1.0]}]}, "found [0, 1.0]"),
    ({"sources": [{"model": "A", "layer_range": [0, 1, 2]}]}, "found [0, 1, 2]"),
    ({"sources": ["A"]}, "slices[0]: sources[0]: expected keys with values"),
    (
      {"sources": [*SLICE["sources"], {"model": "B", "layer_range": [0, 3]}]},
      "slices[0]: the sources of a slice need as many layers each, found A [0, 2], B [0, 3]",
    ),
    ({"sources": SLICE["sources"] * 2}, "slices[0]: A occurs twice"),
  ],
)
def test_refused_slices(part, message):
  refused({**STACK, "slices": [part]}, message)


def test_several_modules_are_refused_with_the_way_out():
  module = {"models": LINEAR["models"]}
  data = {"merge_method": "linear", "modules": {"vision": module, "text": module}}
  refused(data, "one module of one architecture, found vision, text. Models of several modules")
  data["modules"] = {"text": {"parameters": {}}}
  refused(data, "module text: exactly one of 'models' and 'slices'")
  data["modules"] = {"text": {**module, "weight": 1}}
  refused(data, "unknown key of module text 'weight'", UnknownName)


def test_one_module_is_its_content():
  module = {"models": LINEAR["models"], "parameters": {"weight": 1}}
  recipe = from_data({"merge_method": "linear", "modules": {"default": module}})
  assert recipe.models == (Entry("A"), Entry("B"))
  assert recipe.module_parameters == {"weight": 1}


def test_models_may_be_plain_texts_or_mergekits_long_form():
  assert from_data({**LINEAR, "models": ["A", "B"]}) == from_data(LINEAR)
  assert model_name({"model": {"path": "A", "revision": None}, "lora": {"path": "B"}}, "x") == "A+B"
  assert model_name({"lora": "B", "model": "A"}, "x") == "A+B"
  assert model_name({"model": "A", "lora": None}, "x") == "A"


def test_the_tokenizer_has_one_form():
  assert from_data(LINEAR).tokenizer is None
  assert from_data({**LINEAR, "tokenizer_source": "base"}).tokenizer == {"source": "base"}
  assert from_data({**LINEAR, "tokenizer": {"pad_to_multiple_of": 8}}).tokenizer == {
    "source": "union",
    "pad_to_multiple_of": 8,
  }


def test_models_are_referenced_once_bases_first():
  recipe = from_data(
    {
      "merge_method": "ties",
      "base_model": "S",
      "slices": [
        {
          "sources": [{"model": m, "layer_range": [0, 1]} for m in ("A", "S", "T")],
          "base_model": "T",
        }
      ],
    }
  )
  assert recipe.referenced() == ["S", "T", "A"]


EVERYTHING = {
  "merge_method": "ties",
  "name": "mine",
  "base_model": "S",
  "origin": "O",
  "modules": {
    "default": {
      "slices": [
        {
          "sources": [
            {
              "model": "A",
              "layer_range": [0, 2],
              "parameters": {"weight": [0, 1]},
              "importances": "F",
            },
            {"model": "S", "layer_range": [1, 3]},
          ],
          "parameters": {"lambda": [{"filter": "mlp", "value": 0.5}]},
          "base_model": "S",
        }
      ],
      "parameters": {"density": 0.5},
    }
  },
  "parameters": {"normalize": True},
  "group": "global",
  "seed": 3,
  "dtype": "float32",
  "out_dtype": "bfloat16",
  "tokenizer": {"source": "union", "tokens": {"<x>": {"source": "A", "force": True}}},
  "chat_template": "auto",
  "accept_config_differences": ["rope_theta"],
}


def test_what_is_written_into_the_manifest_is_the_recipe():
  recipe = from_data(EVERYTHING)
  assert as_data(recipe) == EVERYTHING
  assert from_data(as_data(recipe)) == recipe
  assert from_data(as_data(from_data(LINEAR))) == from_data(LINEAR)


JUNK = st.recursive(
  st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | st.text(max_size=3),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
  ),
  max_leaves=6,
)


@given(JUNK, st.lists(st.integers(0, 6), max_size=6))
def test_junk_anywhere_in_a_recipe_is_an_error_and_no_crash(junk, path):
  data = copy.deepcopy(EVERYTHING)
  node, key = {"": data}, ""
  for step in path:
    child = node[key]
    if not isinstance(child, dict | list) or not child:
      break
    keys = list(child) if isinstance(child, dict) else list(range(len(child)))
    node, key = child, keys[step % len(keys)]
  node[key] = junk
  with contextlib.suppress(WamError):
    from_data(data if key != "" else junk)
