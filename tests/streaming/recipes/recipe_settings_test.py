"""Which setting counts for a tensor, what is missing, and what of a recipe has no effect."""

import pytest

from tests.streaming.small_models import HEAD, NORM, coefficients, constant, llama, output, plan
from wam.core.errors import ConfigError, UnknownName, WamError
from wam.streaming.recipes.recipe_data import from_data
from wam.streaming.recipes.recipe_settings import Settings
from wam.streaming.recipes.recipe_values import Partitions

UP = "model.layers.0.mlp.up_proj.weight"
MODELS = [{"model": "A", "parameters": {"weight": 1}}, {"model": "B", "parameters": {"weight": 1}}]


def sources():
  return llama("S"), llama("A"), llama("B")


def recipe(method="ties", models=MODELS, **keys):
  return {"merge_method": method, "base_model": "S", "models": models, **keys}


def refused(data, message, kind=WamError):
  with pytest.raises(kind) as caught:
    Settings(from_data(data), Partitions())
  assert message in str(caught.value)


def test_precedence_model_slice_module_recipe():
  def layers(name, **parameters):
    return {"model": name, "layer_range": [0, 3], "parameters": parameters}

  made = plan(
    {
      "merge_method": "ties",
      "base_model": "S",
      "modules": {
        "default": {
          "slices": [
            {
              "sources": [
                layers("S"),
                layers("A", density=0.1),
                layers("B", density=[{"filter": "mlp", "value": 0.2}]),
              ],
              "parameters": {"density": [{"filter": "norm", "value": 0.3}], "lambda": 0.5},
            }
          ],
          "parameters": {"density": [{"filter": "self_attn", "value": 0.4}], "lambda": 0.6},
        }
      },
      "parameters": {"density": 0.5, "lambda": 0.7, "weight": 1.0},
    },
    *sources(),
  )
  found = {x.name: x.parameters["density"] for x in made.outputs}
  # A filter that does not fit passes the question on.
  assert found[UP] == (0.1, 0.2)
  assert found[NORM] == (0.1, 0.3)
  assert found["model.layers.0.self_attn.q_proj.weight"] == (0.1, 0.4)
  assert found[HEAD] == (0.1, 0.5)
  assert {x.parameters["scale"] for x in made.outputs} == {0.5}


def test_defaults_are_mergekits():
  ties = output(plan(recipe(), *sources()), UP)
  assert ties.parameters == {
    "density": (1.0, 1.0),
    "scale": 1.0,
    "normalize": "weights",
    "rescale": "none",
    "elect": "weighted",
    "zero_sign": "positive",
  }
  dare = output(plan(recipe("dare_ties"), *sources()), UP)
  assert (dare.parameters["normalize"], dare.parameters["rescale"]) == ("none", "l1")
  della = output(plan(recipe("della", parameters={"density": 0.5}), *sources()), UP)
  assert (della.parameters["normalize"], della.parameters["rescale"]) == ("weights", "l1")
  assert della.parameters["epsilon"] == (0.15, 0.15)
  crumbs = output(plan(recipe("breadcrumbs"), *sources()), UP)
  assert (crumbs.parameters["gamma"], crumbs.parameters["rescale"]) == ((0.01, 0.01), "none")
  karcher = plan({"merge_method": "karcher", "models": ["A", "B"]}, *sources())
  assert output(karcher, UP).parameters == {"num_steps": 10, "tolerance": 1e-5}
  karcher = plan({"merge_method": "karcher", "origin": "S", "models": ["A", "B"]}, *sources())
  assert output(karcher, UP).parameters == {"num_steps": 20, "tolerance": 0.0}


def test_mergekits_flags_and_the_names_of_the_papers():
  made = plan(recipe("dare_ties", parameters={"rescale": False, "normalize": True}), *sources())
  assert output(made, UP).parameters["rescale"] == "none"
  assert output(made, UP).parameters["normalize"] == "weights"
  paper = {
    "rescale": "probability",
    "normalize": "count",
    "elect": "unweighted",
    "zero_sign": "majority",
  }
  made = plan(recipe("dare_ties", parameters=paper), *sources())
  assert paper.items() <= output(made, UP).parameters.items()


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (
      recipe(parameters={"densty": 0.5}),
      "unknown parameter of ties in parameters 'densty'. Did you mean 'density'?",
    ),
    (recipe(parameters={"densty": 0.5}), "mergekit ignores what a method does not use"),
    (
      recipe("model_stock", parameters={"normalize": True}),
      "parameter of model_stock in parameters 'normalize'",
    ),
    (recipe("model_stock"), "unknown parameter of model_stock in parameters of A 'weight'"),
    (
      recipe(models=[{"model": "A", "parameters": {"lambda": 1}}]),
      "parameters of A: 'lambda' of ties is one for",
    ),
    (recipe(parameters={"lambda": 1, "scale": 1}), "'lambda' and 'scale' are the same; give one"),
    (recipe(parameters={"group": "global"}), "'group' is a key of the recipe itself"),
    (
      recipe(parameters={"density": "much"}),
      "parameters: density: expected a number, found 'much'",
    ),
    (recipe(parameters={"weight": None}), "parameters: weight: expected a number, found None"),
  ],
)
def test_refused_parameters(data, message):
  refused(data, message)


def test_a_weight_is_required_for_every_member_and_named_where_it_is_missing():
  data = recipe(models=[MODELS[0], {"model": "B"}])
  with pytest.raises(
    ConfigError, match=r"ties: weight of B is not given for 12 tensors \(model.embed"
  ):
    plan(data, *sources())
  data = recipe(
    models=[MODELS[0], {"model": "B", "parameters": {"weight": {"filter": "mlp", "value": 1}}}]
  )
  with pytest.raises(ConfigError, match="weight of B is not given for 9 tensors"):
    plan(data, *sources())
  with pytest.raises(ConfigError, match=r"linear: weight of A .*; linear: weight of B"):
    plan({"merge_method": "linear", "models": ["A", "B"]}, *sources())


def test_t_is_required_where_mergekit_requires_it():
  with pytest.raises(ConfigError, match="slerp: t is not given for 12 tensors"):
    plan({"merge_method": "slerp", "base_model": "A", "models": ["A", "B"]}, *sources())
  with pytest.raises(ConfigError, match="nearswap: t is not given for 12 tensors"):
    plan({"merge_method": "nearswap", "base_model": "A", "models": ["A", "B"]}, *sources())
  made = plan(
    {
      "merge_method": "nearswap",
      "base_model": "A",
      "models": ["A", "B"],
      "parameters": {"t": 1e-3},
    },
    *sources(),
  )
  assert output(made, UP).parameters == {"t": 1e-3}


def test_slerp_by_weights_and_by_both():
  data = {"merge_method": "slerp", "base_model": "S", "models": MODELS}
  assert coefficients(plan(data, *sources()))[UP] == (1.0, 1.0)
  with pytest.raises(ConfigError, match="slerp: give t or weights, not both"):
    plan({**data, "parameters": {"t": 0.5}}, *sources())
  with pytest.raises(ConfigError, match="slerp: t is for two models, found 3"):
    models = ["A", "B", "C"]
    plan({**data, "models": models, "parameters": {"t": 0.5}}, *sources(), llama("C"))


def test_notes_say_what_has_no_effect():
  made = plan(recipe("task_arithmetic", parameters={"density": 0.5, "int8_mask": True}), *sources())
  notes = "\n".join(made.notes)
  assert "density of task_arithmetic has no effect: this method drops no entries" in notes
  assert "int8_mask of task_arithmetic has no effect" in notes
  assert output(made, UP).parameters == {"scale": 1.0}
  data = recipe(models=[*MODELS, {"model": "S", "parameters": {"weight": 0.5}}])
  assert "S is not a member; its parameters have no effect" in plan(data, *sources()).notes
  data = recipe(parameters={"density": [{"filter": "q_prj", "value": 0.5}, {"value": 1}]})
  assert "no tensor has 'q_prj' in its name; this filter does nothing" in "\n".join(
    plan(data, *sources()).notes
  )


def test_gradients_that_end_at_the_head_are_noted():
  """mergekit gives final norm and head the first value; so do we, and say so."""
  data = {
    "merge_method": "slerp",
    "base_model": "A",
    "models": ["A", "B"],
    "parameters": {"t": [0, 1]},
  }
  made = plan(data, *sources())
  assert coefficients(made)[HEAD] == coefficients(made)[NORM] == (1.0, 0.0)
  assert coefficients(made)["model.layers.2.mlp.up_proj.weight"] == (0.0, 1.0)
  (note,) = [x for x in made.notes if "gradient" in x]
  assert "t [0, 1]: outside the layers the first value" in note
  assert f"{NORM}, {HEAD}" in note
  even = {
    **data,
    "parameters": {"t": [{"filter": "layers", "value": [0, 1]}, {"value": [1, 0, 1]}]},
  }
  assert not [x for x in plan(even, *sources()).notes if "gradient" in x]


def test_one_layer_is_at_the_end_of_its_gradient():
  data = {
    "merge_method": "slerp",
    "base_model": "A",
    "models": ["A", "B"],
    "parameters": {"t": [0.25, 1]},
  }
  made = plan(data, llama("A", layers=1), llama("B", layers=1))
  assert coefficients(made)[UP] == (0.0, 1.0)
  assert coefficients(made)[HEAD] == (0.75, 0.25)


def test_linear_weights_that_cancel_are_refused_with_the_tensors():
  models = [
    {"model": "A", "parameters": {"weight": 1}},
    {"model": "B", "parameters": {"weight": [-1, 0, 0]}},
  ]
  with pytest.raises(
    ConfigError,
    match=r"sum to zero and cannot .* \(model.embed_tokens.weight, .* and 3 more\)",
  ):
    plan({"merge_method": "linear", "models": models}, constant("A", 1), constant("B", 1))


@pytest.mark.parametrize(
  ("method", "parameters", "message"),
  [
    ("ties", {"density": 1.5}, "density is a share of the entries"),
    ("della", {"density": 0.9}, "epsilon"),
    ("breadcrumbs", {"gamma": -1}, "gamma"),
    ("ties", {"elect": "most"}, "unknown elect 'most'"),
    ("dare_linear", {"rescale": "l2"}, "unknown rescale"),
  ],
)
def test_what_a_rule_does_not_take_is_refused_before_anything_is_read(method, parameters, message):
  with pytest.raises(ConfigError, match=message):
    plan(recipe(method, parameters=parameters), *sources())


@pytest.mark.parametrize("name", ["eta", "weight"])
def test_extrapolation_has_to_be_asked_for(name):
  method = "liti" if name == "eta" else "lerp"
  data = recipe(method, models=["A"], parameters={"eta": 1.5})
  if method == "lerp":
    data = recipe(method, models=["A", "B"], parameters={"t": 1.5})
  with pytest.raises(ConfigError, match="extrapolate: true allows"):
    plan(data, *sources())
  data["parameters"]["extrapolate"] = True
  assert plan(data, *sources()).outputs


def test_unknown_names_are_unknown_names():
  with pytest.raises(UnknownName):
    Settings(from_data(recipe(parameters={"densty": 0.5})), Partitions())
