"""The words of recipes: every method of METHODS can be named, and mergekit's names lead to our parameters."""

import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.merging.table import METHODS
from wam.streaming.recipes.recipe_methods import dialect, method_name

# Names of parameters of mergekit 0.1.5, from its table of methods and the signatures of its functions.
FAMILY = {"int8_mask", "normalize", "rescale", "lambda", "weight", "density"}
MERGEKIT = {
  "linear": {"weight", "normalize"},
  "slerp": {"t"},
  "nuslerp": {"weight", "nuslerp_row_wise", "nuslerp_flatten"},
  "multislerp": {"weight", "normalize_weights", "eps"},
  "karcher": {"max_iter", "tol"},
  "task_arithmetic": FAMILY,
  "ties": FAMILY,
  "dare_linear": FAMILY,
  "dare_ties": FAMILY,
  "breadcrumbs": FAMILY | {"gamma"},
  "breadcrumbs_ties": FAMILY | {"gamma"},
  "della": FAMILY | {"epsilon"},
  "della_linear": FAMILY | {"epsilon"},
  "model_stock": {"filter_wise"},
  "sce": {"int8_mask", "select_topk"},
  "nearswap": {"t"},
  "arcee_fusion": set(),
  "passthrough": {"scale"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_spoken_of(method):
  assert method_name(method) == method
  words = dialect(method)
  row = METHODS[method]
  targets = {p.target for p in words.parameters.values()}
  assert targets >= set(row.defaults) - {"group"}
  # Nothing is named that the rule would not take.
  assert targets <= {*row.defaults, "coefficients", "t", "share", ""}
  assert ("coefficients" in targets) == (row.coefficients != "none")
  for name in row.per_member:
    assert words.parameters[name].per_model


@pytest.mark.parametrize("method", MERGEKIT)
def test_mergekits_parameters_are_known(method):
  assert dialect(method).parameters.keys() >= MERGEKIT[method]


@pytest.mark.parametrize(
  ("method", "name", "target"),
  [
    ("ties", "lambda", "scale"),
    ("ties", "normalize", "normalize"),
    ("task_arithmetic", "normalize", "share"),
    ("task_arithmetic", "density", ""),
    ("slerp", "t", "t"),
    ("nearswap", "t", "t"),
    ("nuslerp", "nuslerp_flatten", "flatten"),
    ("multislerp", "normalize_weights", "normalize"),
    ("karcher", "max_iter", "num_steps"),
    ("linear", "weight", "coefficients"),
    ("sce", "int8_mask", ""),
  ],
)
def test_what_they_lead_to(method, name, target):
  assert dialect(method).parameters[name].target == target


def test_what_a_base_is_follows_mergekits_contracts():
  bases = {method: dialect(method).base for method in METHODS}
  assert {m for m, b in bases.items() if b == "start"} == {
    *("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"),
    *("della", "della_linear", "model_stock", "sce", "nearswap", "arcee_fusion"),
    *("liti", "wise_ft", "expo"),
  }
  assert {m for m, b in bases.items() if b == "given"} == {"nuslerp", "multislerp"}
  assert {m for m, b in bases.items() if b == "first"} == {"slerp", "lerp"}
  assert {m for m, b in bases.items() if b == "member"} == {"linear", "karcher"}
  assert {m for m, b in bases.items() if b == "donor"} == {
    "passthrough",
    "geometric_median",
    "fisher",
  }


def test_methods_that_do_not_exist():
  with pytest.raises(UnknownName, match=r"unknown merge_method 'tie'. Did you mean 'ties'"):
    method_name("tie")
  with pytest.raises(ConfigError, match="merge_method 'ram': RAM is not built here"):
    method_name("ram")
