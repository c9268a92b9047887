"""Which models are measured, and how their weights come about."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError
from wam.recipes import alignment_tax as recipe
from wam.recipes import tuning


def _params(value):
  layers = {"attention": {"q": {"kernel": jnp.full((6, 2, 2), value)}}}
  return {
    "embed": {"embedding": jnp.full((3, 2), value)},
    "layers": layers,
    "final_norm": {"scale": jnp.full((2,), value)},
  }


def _plans(num_iterations, **comparisons):
  section = {"num_iterations": num_iterations}
  return tuning.plans(algorithms={"rsf": section}, mitigation=None, comparisons=comparisons)


def test_candidates_in_order():
  found = recipe.candidates(
    params=_params(0.0),
    plans=_plans(2, LoRA={"rank 4": {"mitigation": {"lora": {"rank": 4}}}}),
    alphas=(0.5,),
    part_alphas=(0.25,),
  )
  assert [(c.family, c.label, c.iteration) for c in found] == [
    ("init", "before RLHF", 0),
    ("early stopping", "iteration 1", 1),
    ("early stopping", "iteration 2", 2),
    ("model averaging", "α = 0", 0),
    ("model averaging", "α = 0.5", None),
    ("model averaging", "α = 1", 2),
    ("part-wise", "input, α = 0.25", None),
    ("part-wise", "middle, α = 0.25", None),
    ("part-wise", "output, α = 0.25", None),
    ("LoRA", "rank 4", None),
  ]
  # Two names for the ends of the path, and no others.
  assert found[3].identity == found[0].identity and found[5].identity == found[2].identity
  assert len({c.identity for c in found}) == len(found) - 2
  assert found[7].coefficients == {"input": 1.0, "middle": 0.25, "output": 1.0}


def test_without_parts():
  found = recipe.candidates(params=_params(0.0), plans=_plans(1), alphas=(0.5,), num_parts=1)
  assert {c.family for c in found} == {"init", "early stopping", "model averaging"}


def test_patterns():
  found = recipe.candidates(
    params=_params(0.0),
    plans=_plans(1),
    alphas=(),
    part_alphas=(),
    patterns=((0, 0, 0), (0, 0, -0.1), (0, -0.1, -0.1)),
    pattern_alphas=(0.2, 0.3),
  )
  found = [c for c in found if c.family == "patterns"]
  assert [c.label for c in found][:4] == [
    "(0.2|0.2|0.2)",
    "(0.2|0.2|0.1)",
    "(0.2|0.1|0.1)",
    "(0.3|0.3|0.3)",
  ]
  assert found[5].coefficients == {"input": 0.3, "middle": 0.2, "output": 0.2}


def test_extrapolations():
  found = recipe.candidates(
    params=_params(0.0), plans=_plans(1), alphas=(), part_alphas=(), extrapolations=(1.25,)
  )
  (beyond,) = [c for c in found if c.family == "extrapolation"]
  assert set(beyond.coefficients.values()) == {1.25}
  setting = types.SimpleNamespace(reference=_params(1.0))
  made = recipe.weights(beyond, _params(3.0), setting)
  jax.tree.map(lambda x: np.testing.assert_allclose(x, 3.5, rtol=1e-6), made)
  with pytest.raises(ConfigError, match=r"averaging.extrapolations: expected ratios above 1"):
    recipe.candidates(params=_params(0.0), plans=_plans(1), extrapolations=(0.9,))


@pytest.mark.parametrize("pattern", [(0.0, -0.1), (0.0, 0.0, -0.3)])
def test_patterns_that_cannot_be(pattern):
  with pytest.raises(ConfigError, match=r"averaging.patterns: expected"):
    recipe.candidates(
      params=_params(0.0), plans=_plans(1), patterns=[pattern], pattern_alphas=[0.2]
    )


def test_ratios_outside_are_refused():
  with pytest.raises(ConfigError, match=r"averaging.part_alphas: .* found \[-0.1\]"):
    recipe.candidates(params=_params(0.0), plans=_plans(1), part_alphas=(-0.1,))


def test_weights_of_averages():
  """θ_0 = 0 and θ = 1, so that the weights are the ratios."""
  before, after = _params(0.0), _params(1.0)
  found = recipe.candidates(params=after, plans=_plans(1), alphas=(0.5,), part_alphas=(0.25,))
  by_label = {c.label: c for c in found}
  setting = tuning.Setting(None, before, before, None, None, None, {}, _plans(1)[0])
  half = recipe.weights(by_label["α = 0.5"], after, setting)
  assert all(np.all(x == 0.5) for x in jax.tree.leaves(half))
  first = recipe.weights(by_label["input, α = 0.25"], after, setting)
  depth = first["layers"]["attention"]["q"]["kernel"][:, 0, 0]
  np.testing.assert_array_equal(depth, [0.25, 0.25, 1, 1, 1, 1])
  assert np.all(first["embed"]["embedding"] == 0.25)
  assert np.all(first["final_norm"]["scale"] == 1)
