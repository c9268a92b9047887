"""Values of parameters: numbers against NumPy's interpolation and by hand, and malformed ones refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wam.core.errors import ConfigError, UnknownName, WamError
from wam.streaming.recipes import recipe_values
from wam.streaming.recipes.recipe_values import Partitions, Place

SHAPES = {
  "model.embed_tokens.weight": (5, 4),
  "model.layers.0.self_attn.q_proj.weight": (4, 4),
  "model.layers.1.mlp.up_proj.weight": (6, 4),
  "model.norm.weight": (4,),
}
NUMBERS = st.floats(-10, 10)


def value(setting, name="model.layers.0.self_attn.q_proj.weight", t=0.0, kind="number"):
  partitions = Partitions()
  partitions.shapes = SHAPES
  recipe_values.check(setting, kind, "x")
  place = Place(name, t, name)
  return recipe_values.evaluate(setting, place, kind, partitions=partitions, where="x")


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.floats(0, 1))
def test_gradients_are_piecewise_linear(points, t):
  expected = np.interp(t * (len(points) - 1), np.arange(len(points)), points)
  assert value(points, t=t) == pytest.approx(expected, abs=1e-9)


@given(st.lists(NUMBERS, min_size=1, max_size=6))
def test_gradients_start_and_end_at_their_ends(points):
  assert value(points, t=0.0) == points[0]
  assert value(points, t=1.0) == points[-1]


@pytest.mark.parametrize(
  ("t", "expected"), [(0.0, 0.0), (0.2, 0.2), (0.4, 0.4), (0.5, 0.5), (0.8, 0.8), (1.0, 1.0)]
)
def test_a_gradient_by_hand(t, expected):
  assert value([0, 0.5, 1], t=t) == pytest.approx(expected)
  assert value([1, 0, 1], t=t) == pytest.approx(abs(1 - 2 * expected))


def test_the_first_filter_that_is_a_part_of_the_name_counts():
  setting = [
    {"filter": "mlp", "value": 1},
    {"filter": "layers.0.self", "value": [2, 4]},
    {"filter": "self_attn", "value": 9},
    {"value": 3},
  ]
  assert value(setting, t=0.5) == 3.0
  assert value(setting) == 2.0
  assert value(setting, "model.layers.1.mlp.up_proj.weight") == 1.0
  assert value(setting, "model.norm.weight") == 3.0
  assert value([{"filter": "*", "value": 5}], "model.norm.weight") == 5.0
  assert value({"filter": "norm", "value": 5}, "model.norm.weight") == 5.0
  assert value({"filter": "norm", "value": 5}) is None


def test_filters_are_no_patterns():
  assert value([{"filter": "self.attn", "value": 1}, {"value": 2}]) == 2.0


@pytest.mark.parametrize(
  ("setting", "kind", "expected"),
  [
    ("1e-4", "number", 1e-4),
    (3, "number", 3.0),
    ("7", "count", 7),
    (True, "flag", True),
    ("no", "flag", False),
    (1, "flag", True),
    ("unweighted", "name", "unweighted"),
    (True, "rescale", "l1"),
    (False, "rescale", "none"),
    ("probability", "rescale", "probability"),
    (True, "normalize", "weights"),
    ("false", "normalize", "none"),
    ("count", "normalize", "count"),
  ],
)
def test_kinds(setting, kind, expected):
  found = value(setting, kind=kind)
  assert found == expected
  assert type(found) is type(expected)


def test_flags_and_names_have_nothing_in_between():
  assert [value([True, False, True], t=t, kind="flag") for t in (0, 0.49, 0.5, 1)] == [
    True,
    True,
    False,
    True,
  ]
  assert [value(["a", "b"], t=t, kind="name") for t in (0, 0.99, 1)] == ["a", "a", "b"]
  assert value([10, 20], t=0.5, kind="count") == 15


@pytest.mark.parametrize(
  ("setting", "kind", "message"),
  [
    ("much", "number", "x: expected a number, found 'much'"),
    (True, "number", "expected a number, found True"),
    (None, "number", "expected a number, found None"),
    (float("nan"), "number", "expected a finite number"),
    ([1, float("inf")], "number", "expected a finite number"),
    ([], "number", "the gradient is empty"),
    (1.5, "count", "expected a whole number"),
    (2, "flag", "expected true or false"),
    (0.5, "flag", "expected true or false"),
    (1, "name", "expected a name"),
    ([{"value": 1}, 2], "number", "x[1]: expected {filter, value}, found 2"),
    ([{"filter": "a"}], "number", "expected {filter, value}"),
    ({"filter": "a"}, "number", "expected {filter, value}"),
    ([{"filter": 3, "value": 1}], "number", "filter: expected a part of a tensor's name, found 3"),
    ([{"filter": "", "value": 1}], "number", "filter: expected a part"),
    ([{"filter": "a", "valu": 1, "value": 2}], "number", "unknown key of x 'valu'"),
    ([{"filter": "a", "value": [{"value": 1}]}], "number", "filters cannot be nested"),
    ([{"filter": "never there", "value": "much"}], "number", "expected a number, found 'much'"),
    ({"parts": {"by_depth": 2}}, "number", "values: expected a value for every part"),
    ({"parts": "by_dept", "values": {}}, "number", "Did you mean 'by_depth'?"),
    ({"parts": 3, "values": {}}, "number", "parts: expected a partition"),
    ({"parts": {"within": "linear_only"}, "values": {}}, "number", "found none"),
    (
      {"parts": {"by_depth": 2, "by_kind": None}, "values": {}},
      "number",
      "found by_depth, by_kind",
    ),
    ({"parts": {"by_kind": 3}, "values": {}}, "number", "by_kind: expected options by name"),
    ({"parts": "whole", "values": {"all": [0, 1]}}, "number", "part all: expected a number"),
    ({"parts": "whole", "values": {}, "defalt": 1}, "number", "Did you mean 'default'?"),
  ],
)
def test_malformed_values_are_refused_wherever_they_are(setting, kind, message):
  with pytest.raises(WamError) as caught:
    value(setting, kind=kind)
  assert message in str(caught.value)


def test_values_per_part():
  setting = {"parts": {"by_depth": 2}, "values": {"part 1": 0.25, "part 2": 0.75}}
  found = [value(setting, name) for name in SHAPES]
  assert found == [
    0.25,
    0.25,
    0.75,
    0.75,
  ]  # the embedding with the first, the norm with the last layers
  setting = {"parts": "by_kind", "values": {"attention": 1, "mlp": 2}, "default": 0.5}
  assert [value(setting, name) for name in SHAPES] == [0.5, 1.0, 2.0, 0.5]


@pytest.mark.parametrize(
  ("parts", "values", "expected"),
  [
    ({"by_depth": {"num_parts": 2, "embeddings": None}}, {"part 1": 1, "part 2": 2}, [0, 1, 2, 2]),
    ({"linear_only": {"head": True}}, {"linear": 1}, [0, 1, 1, 0]),
    (
      {"by_regex": {"attention": ".*attn.*", "rest": ".*"}},
      {"attention": 1, "rest": 2},
      [2, 1, 2, 2],
    ),
    ({"by_regex": [["a", ".*attn.*"], [None, ".*"]]}, {"a": 1}, [0, 1, 0, 0]),
    ({"layer_ranges": {"low": [0, 1], "high": [1, 2]}}, {"low": 1, "high": 2}, [1, 1, 2, 2]),
    ("by_layer", {"model.layers 0": 1}, [9, 1, 9, 9]),
    ({"by_depth": 2, "within": "linear_only"}, {"part 1": 1, "part 2": 2}, [0, 1, 2, 0]),
    (
      {"by_depth": 2, "times": "linear_only"},
      {"part 1/linear": 1, "part 2/linear": 2},
      [0, 1, 2, 0],
    ),
  ],
)
def test_partitions(parts, values, expected):
  setting = {"parts": parts, "values": values, "default": 9}
  assert [value(setting, name) for name in SHAPES] == expected


def test_values_for_parts_that_are_not_there():
  with pytest.raises(UnknownName, match="unknown part in x 'part 3'"):
    value({"parts": {"by_depth": 2}, "values": {"part 3": 1}, "default": 0})
  with pytest.raises(ConfigError, match="x: no value for the parts part 2"):
    value({"parts": {"by_depth": 2}, "values": {"part 1": 1}})
  with pytest.raises(UnknownName, match="unknown option of by_depth in x 'num_part'"):
    value({"parts": {"by_depth": {"num_part": 2}}, "values": {}})
  assert (
    value({"parts": "linear_only", "values": {"linear": 1}, "untouched": 0.25}, "model.norm.weight")
    == 0.25
  )


def test_arrays_that_hold_all_layers_must_be_in_one_part():
  partitions = Partitions()
  partitions.shapes = {"layers/attention/q/kernel": (4, 2, 2), "embed/kernel": (3, 2)}
  place = Place("layers/attention/q/kernel", 0.0, "layers/attention/q/kernel")
  setting = {"parts": {"by_depth": 2}, "values": {"part 1": 1, "part 2": 2}}
  with pytest.raises(ConfigError, match="holds all layers in one array"):
    recipe_values.evaluate(setting, place, "number", partitions=partitions, where="x")
  setting = {"parts": "linear_only", "values": {"linear": 0.5}}
  assert recipe_values.evaluate(setting, place, "number", partitions=partitions, where="x") == 0.5


def test_gradients_and_filters_can_be_asked_for():
  setting = [{"filter": "mlp", "value": [1, 0]}, {"value": [2, 2]}]
  assert recipe_values.gradient(setting, "a.mlp.b") == [1, 0]
  assert recipe_values.gradient(setting, "norm") is None
  assert list(recipe_values.filters(setting)) == ["mlp"]
  assert list(recipe_values.filters({"parts": "whole", "values": {}})) == []
