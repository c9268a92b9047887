"""Errors name what was found; all are WamErrors and the built-in that they are a case of."""

import builtins
import subprocess
import sys

import jax
import numpy as np
import pytest

from wam.core import errors

BUILT_IN = {
  "ConfigError": ValueError,
  "MissingFile": FileNotFoundError,
  "BadData": ValueError,
  "BadCheckpoint": ValueError,
  "MismatchedTrees": ValueError,
  "UncoveredLeaves": ValueError,
  "NonFinite": ValueError,
  "UnknownName": ValueError,
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_hierarchy(name):
  error = getattr(errors, name)
  assert issubclass(error, errors.WamError) and issubclass(error, BUILT_IN[name])


def test_every_error_of_the_module_is_listed_here():
  own = {
    n
    for n, x in vars(errors).items()
    if isinstance(x, type) and issubclass(x, Exception) and not hasattr(builtins, n)
  }
  assert own - {"WamError"} == set(BUILT_IN)


def test_did_you_mean():
  assert (
    errors.did_you_mean("lerning_rate", ["learning_rate", "name"])
    == " Did you mean 'learning_rate'?"
  )
  assert errors.did_you_mean("xyz", ["learning_rate"]) == ""
  message = str(errors.unknown_name("stage", "pretrian", {"sft": 1, "pretrain": 2}))
  assert message == "unknown stage 'pretrian'. Did you mean 'pretrain'? Choices: pretrain, sft"


def test_shape_checks():
  errors.check_rank("x", np.zeros((2, 3)), 2)
  with pytest.raises(ValueError, match=r"x: expected 1 axes, found shape \(2, 3\)"):
    errors.check_rank("x", np.zeros((2, 3)), 1)
  errors.check_same_shape(a=np.zeros(2), b=np.ones(2))
  with pytest.raises(ValueError, match=r"a \(2,\), b \(3,\)"):
    errors.check_same_shape(a=np.zeros(2), b=np.ones(3))


def test_check_same_trees_names_every_difference():
  a = {"w": np.zeros((2, 3)), "deep": {"x": np.zeros(1)}, "only_a": np.zeros(1)}
  b = {"w": np.zeros((3, 2)), "deep": {"x": np.zeros(1)}, "only_b": np.zeros(1)}
  errors.check_same_trees(a, a, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), a))
  with pytest.raises(errors.MismatchedTrees) as found:
    errors.check_same_trees(a, a, b, names=["base", "first", "second"])
  message = str(found.value)
  assert message.startswith("3 leaves do not agree")
  for part in (
    "'only_a' is missing from second",
    "'only_b' is only in second",
    "'w' has shape (3, 2) in second but (2, 3) in base",
  ):
    assert part in message
  assert "first" not in message


def test_errors_load_without_jax():
  code = "import sys; import wam.core.errors; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
