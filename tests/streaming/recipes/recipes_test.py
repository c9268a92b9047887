"""Recipes from end to end: mergekit's semantics with numbers worked out by hand, on checkpoints of a few numbers."""

import textwrap

import numpy as np
import pytest

from tests.streaming.small_models import (
  EMBEDDING,
  HEAD,
  NORM,
  coefficients,
  constant,
  llama,
  merge,
  plan,
  run,
)
from wam.core.errors import ConfigError, MissingFile, UnknownName
from wam.streaming.recipes import recipes

Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


def test_linear_divides_by_the_sum_of_the_weights():
  a, b = llama("A"), llama("B")
  merged = merge(
    """
    merge_method: linear
    models:
      - {model: A, parameters: {weight: 1}}
      - {model: B, parameters: {weight: 3}}
    """,
    a,
    b,
  )
  for name in a.tensors:
    expected = 0.25 * a.array(name).astype(float) + 0.75 * b.array(name)
    np.testing.assert_allclose(merged[name], expected, rtol=1e-6, atol=1e-7)


def test_linear_without_normalize_may_take_any_weights():
  merged = merge(
    """
    merge_method: linear
    parameters: {normalize: false}
    models:
      - {model: A, parameters: {weight: 2}}
      - {model: B, parameters: {weight: -0.5}}
    """,
    constant("A", 1.0),
    constant("B", 4.0),
  )
  assert (merged[NORM] == 0.0).all()


def test_slerp_takes_t_from_the_base_and_interpolates_it_over_the_layers():
  """The recipe that everyone has: gradients by filter, a last value for all others."""
  made = plan(
    """
    merge_method: slerp
    base_model: A
    models: [{model: B}, {model: A}]
    parameters:
      t:
        - filter: self_attn
          value: [0, 0.5, 0.3]
        - filter: mlp
          value: [1, 0]
        - value: 0.5
    dtype: float32
    """,
    llama("A"),
    llama("B"),
  )
  c = coefficients(made)
  # Member 0 is the base, wherever it is listed.
  assert made.outputs[0].members[0] is made.sources["A"].tensors[EMBEDDING]
  assert [c[Q.format(i)] for i in range(3)] == [(1.0, 0.0), (0.5, 0.5), (0.7, 0.3)]
  assert [c[UP.format(i)] for i in range(3)] == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
  assert c[NORM] == c[HEAD] == c[EMBEDDING] == (0.5, 0.5)
  assert {x.group for x in made.outputs} == set(c)


def test_slerp_of_orthogonal_vectors_is_on_the_arc():
  a, b = constant("A", 0.0), constant("B", 0.0)
  a.array(NORM)[0], b.array(NORM)[1] = 2.0, 2.0
  merged = merge(
    "{merge_method: slerp, base_model: A, models: [{model: A}, {model: B}], parameters: {t: 0.5}}",
    a,
    b,
  )
  # 2 sin(π/4) of each.
  np.testing.assert_allclose(merged[NORM], [2**0.5, 2**0.5, 0, 0], rtol=1e-6)


def test_task_arithmetic_adds_scaled_task_vectors():
  merged = merge(
    """
    merge_method: task_arithmetic
    base_model: S
    models:
      - {model: A, parameters: {weight: 0.5}}
      - {model: B, parameters: {weight: 1.0}}
    parameters: {lambda: 2.0}
    """,
    constant("S", 1.0),
    constant("A", 3.0),
    constant("B", 0.0),
  )
  # 1 + 2 (0.5 · 2 - 1 · 1)
  assert (merged[NORM] == 1.0).all()


def test_normalize_of_task_arithmetic_divides_by_the_sum_of_the_weights():
  text = """
    merge_method: task_arithmetic
    base_model: S
    models: [{model: A, parameters: {weight: %s}}, {model: B, parameters: {weight: 1}}]
    parameters: {normalize: true}
    """
  sources = lambda: (constant("S", 1.0), constant("A", 3.0), constant("B", 0.0))  # noqa: E731
  # 1 + (3 · 2 - 1 · 1) / 4
  assert (merge(text % 3, *sources())[NORM] == 2.25).all()
  made = plan(text % -1, *sources())
  assert "weights sum to 0" in " ".join(made.notes)
  # 1 + (-1 · 2 - 1 · 1) undivided, as in mergekit
  assert (run(made)[NORM] == -2.0).all()


def test_ties_by_hand():
  """θ = 0; kept of A: 3, -2; of B: -4, 1. Elected: + - - (0: +); agreeing means: 3, -2, -4."""
  base, a, b = constant("S", 0.0), constant("A", 0.0), constant("B", 0.0)
  a.array(NORM)[:] = [3.0, -2.0, 0.5, 0.1]
  b.array(NORM)[:] = [0.5, 1.0, -4.0, 0.1]
  merged = merge(
    """
    merge_method: ties
    base_model: S
    models: [{model: A}, {model: B}]
    parameters: {weight: 1.0, density: 0.5, int8_mask: true}
    """,
    base,
    a,
    b,
  )
  np.testing.assert_array_equal(merged[NORM], [3.0, -2.0, -4.0, 0.0])


def test_passthrough_stacks_layers():
  a, b = llama("A"), llama("B", layers=4)
  made = plan(
    """
    merge_method: passthrough
    slices:
      - sources: [{model: A, layer_range: [0, 2]}]
      - sources: [{model: B, layer_range: [1, 4]}]
    """,
    a,
    b,
  )
  merged = run(made)
  assert made.config["num_hidden_layers"] == 5
  np.testing.assert_array_equal(merged[EMBEDDING], a.array(EMBEDDING))
  np.testing.assert_array_equal(merged[HEAD], b.array(HEAD))
  np.testing.assert_array_equal(merged[NORM], b.array(NORM))
  for new, (source, old) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2), (b, 3)]):
    np.testing.assert_array_equal(merged[UP.format(new)], source.array(UP.format(old)))
  assert made.outputs[0].name == EMBEDDING
  assert [x.name for x in made.outputs][-2:] == [NORM, HEAD]


def test_passthrough_scales_what_its_model_says():
  """Layers that start as nothing: what they add to the stream is scaled by 0."""
  made = plan(
    """
    merge_method: passthrough
    parameters: {scale: [{filter: norm, value: 3}]}
    slices:
      - sources: [{model: A, layer_range: [0, 1]}]
      - sources:
          - model: A
            layer_range: [1, 2]
            parameters: {scale: [{filter: layers.1.mlp, value: 0}, {filter: q_proj, value: 0.5}]}
    """,
    constant("A", 1.0),
  )
  merged = run(made)
  assert [merged[UP.format(i)][0, 0] for i in range(2)] == [1.0, 0.0]
  assert [merged[Q.format(i)][0, 0] for i in range(2)] == [1.0, 0.5]
  assert merged["model.layers.1.input_layernorm.weight"][0] == 3.0


def test_slices_merge_layers_of_different_number_with_gradients_of_their_own():
  a, b = llama("A"), llama("B")
  made = plan(
    """
    merge_method: linear
    slices:
      - sources:
          - {model: A, layer_range: [0, 2], parameters: {weight: [0, 1]}}
          - {model: B, layer_range: [1, 3], parameters: {weight: [1, 0]}}
      - sources:
          - {model: A, layer_range: [2, 3]}
          - {model: B, layer_range: [0, 1]}
        parameters: {weight: [0.25, 0.75]}
    """,
    a,
    b,
  )
  c = coefficients(made)
  assert [c[UP.format(i)] for i in range(3)] == [(0.0, 1.0), (1.0, 0.0), (0.75, 0.75)]
  assert c[EMBEDDING] == (0.0, 1.0)  # slice 0 at t = 0
  assert c[NORM] == (0.25, 0.25)  # the last slice at t = 0
  merged = run(made)
  np.testing.assert_array_equal(merged[UP.format(0)], b.array(UP.format(1)))
  np.testing.assert_array_equal(merged[UP.format(1)], a.array(UP.format(1)))
  mean = (a.array(UP.format(2)).astype(float) + b.array(UP.format(0))) / 2
  np.testing.assert_allclose(merged[UP.format(2)], mean, rtol=1e-6)


def test_filters_of_a_model_see_its_own_layer_and_shared_ones_that_of_the_output():
  made = plan(
    """
    merge_method: task_arithmetic
    base_model: S
    slices:
      - sources:
          - {model: S, layer_range: [0, 1]}
          - model: A
            layer_range: [2, 3]
            parameters:
              weight: [{filter: layers.2., value: 5}, {value: 1}]
        parameters:
          lambda: [{filter: layers.0., value: 7}, {value: 3}]
    """,
    constant("S", 0.0),
    constant("A", 1.0),
  )
  layer = next(x for x in made.outputs if x.name == UP.format(0))
  assert layer.coefficients == (5.0,)
  assert layer.parameters["scale"] == 7.0
  assert layer.stream == UP.format(0)


def test_liti_with_an_eta_for_every_part():
  """AMA with given ratios: the authors' parts are thirds, of the linear matrices only."""
  base, tuned = constant("SFT", 1.0), constant("RLHF", 3.0)
  merged = merge(
    """
    merge_method: liti
    base_model: SFT
    models: [{model: RLHF}]
    parameters:
      eta:
        parts: {by_depth: 3, within: linear_only}
        values: {input: 0.25, middle: 0.5, output: 1.0}
    """,
    base,
    tuned,
  )
  assert [merged[Q.format(i)][0, 0] for i in range(3)] == [1.5, 2.0, 3.0]
  assert [merged[UP.format(i)][0, 0] for i in range(3)] == [1.5, 2.0, 3.0]
  assert merged[EMBEDDING][0, 0] == merged[NORM][0] == merged[HEAD][0, 0] == 1.0
  assert merged["model.layers.2.input_layernorm.weight"][0] == 1.0


def test_warp_is_slerp_with_a_base_that_is_no_member():
  """Task vectors (2, 0) and (0, 2) of a whole layer: one angle, a right one, for all of its tensors."""
  base, a, b = (constant(x, 0.0, layers=1) for x in ("SFT", "A", "B"))
  a.array(Q.format(0))[0, 0] = 2.0
  b.array(UP.format(0))[0, 0] = 2.0
  made = plan(recipes.from_arguments(method="slerp", models=["A", "B"], base="SFT"), base, a, b)
  assert {x.group for x in made.outputs if "layers" in x.name} == {"model.layers 0"}
  assert made.outputs[0].base is base.tensors[EMBEDDING]
  merged = run(made)
  np.testing.assert_allclose(merged[Q.format(0)][0, 0], 2 * np.sin(np.pi / 4), rtol=1e-6)
  np.testing.assert_allclose(merged[UP.format(0)][0, 0], 2 * np.sin(np.pi / 4), rtol=1e-6)


def test_the_order_of_a_recipe_is_kept_and_its_seed_too():
  text = """
    merge_method: dare_linear
    base_model: S
    models: [{model: A, parameters: {weight: 1, density: 0.5}}]
    seed: %d
    """
  sources = lambda: (llama("S"), llama("A"))  # noqa: E731
  first, second, other = (merge(text % seed, *sources())[EMBEDDING] for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, second)
  assert (first != other).any()
  assert plan(text % 1, *sources(), seed=2).seed == 2


def test_read_recipe(tmp_path):
  path = tmp_path / "r.yaml"
  path.write_text("merge_method: linear\nmodels:\n- model: A\n  parameters: {weight: 1e-4}\n")
  recipe = recipes.read_recipe(path)
  assert recipe.method == "linear"
  assert recipe.models[0].parameters == {
    "weight": "1e-4"
  }  # as YAML 1.1 has it; a number all the same
  (tmp_path / "r.json").write_text('{"merge_method": "linear", "models": [{"model": "A"}]}')
  assert (
    recipes.read_recipe(tmp_path / "r.json").models
    == recipes.from_data({"merge_method": "linear", "models": [{"model": "A"}]}).models
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("merge_method: linear\nmerge_method: ties\n", "'merge_method' occurs twice"),
    ("a: [1\n", "is not YAML"),
    ("a: 1\n---\nb: 2\n", "expected one recipe, found 2"),
    ("- 1\n", "expected keys with values"),
    ("", "expected keys with values"),
    ("? [1, 2]\n: 3\n", "is not YAML"),
    ("!!python/object/apply:os.system [ls]", "is not YAML"),
  ],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
  path = tmp_path / "r.yaml"
  path.write_text(text)
  with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
    recipes.read_recipe(path)


def test_a_missing_and_a_binary_recipe(tmp_path):
  with pytest.raises(MissingFile, match="no such recipe"):
    recipes.read_recipe(tmp_path / "r.yaml")
  (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(ConfigError, match="is not a text file"):
    recipes.read_recipe(tmp_path / "r.yaml")
  (tmp_path / "r.json").write_text('{"a": 1, "a": 2}')
  with pytest.raises(ConfigError, match="'a' occurs twice"):
    recipes.read_recipe(tmp_path / "r.json")


def example(number: int) -> str:
  """An indented block of the module's documentation."""
  blocks, block = [], []
  for line in recipes.__doc__.splitlines():
    if line.startswith("    ") and line.strip():
      block.append(line)
    elif block:
      blocks.append(textwrap.dedent("\n".join(block)))
      block = []
  return blocks[number]


def test_the_examples_of_the_documentation_are_recipes():
  first = recipes.from_data(recipes.parse(example(0), "example"))
  assert first.base == "models/sft"
  assert first.tokenizer == {"source": "union"}
  sources = [llama(f"models/{x}") for x in ("sft", "helpful", "harmless")]
  plain = {k: v for k, v in recipes.as_data(first).items() if k != "tokenizer"}
  made = plan(plain, *sources)
  assert coefficients(made)[Q.format(2)] == (0.8, 0.2)
  assert coefficients(made)[UP.format(2)] == (0.8, 0.5)
  assert made.outputs[0].parameters["density"] == (0.5, 0.3)
  second = plan(example(1), llama("models/sft"), llama("models/rlhf"))
  assert second.outputs[0].parameters["eta"] == 0.0  # the embedding stays that of SFT


def test_arguments_are_recipes():
  recipe = recipes.from_arguments(
    method="ties",
    models=["A", "B"],
    base="S",
    parameters={"density": "0.5", "lambda": "[0.1, 0.9]"},
  )
  assert recipes.from_data(recipes.as_data(recipe)) == recipe
  made = plan(recipe, llama("S"), llama("A"), llama("B"))
  assert coefficients(made)[Q.format(0)] == (1.0, 1.0)
  assert [x.parameters["scale"] for x in made.outputs if x.name == Q.format(1)] == [0.5]


@pytest.mark.parametrize(
  ("method", "base", "expected"),
  [
    ("linear", None, (0.5, 0.5)),
    ("slerp", None, (0.5, 0.5)),
    ("nuslerp", "S", (0.5, 0.5)),
    ("task_arithmetic", "S", (1.0, 1.0)),
    ("karcher", "S", (0.5, 0.5)),
    ("geometric_median", "S", (0.5, 0.5)),
  ],
)
def test_arguments_without_weights_take_those_of_the_method(method, base, expected):
  made = plan(
    recipes.from_arguments(method=method, models=["A", "B"], base=base),
    *(llama(x) for x in ("S", "A", "B")),
  )
  assert set(coefficients(made).values()) == {expected}
  uses_base = method not in ("linear", "slerp", "geometric_median")
  assert (made.outputs[0].base is not None) == uses_base


def test_arguments_that_do_not_fit():
  with pytest.raises(ConfigError, match="weights: found 1 for 2 models"):
    recipes.from_arguments(method="linear", models=["A", "B"], weights=[1.0])
  with pytest.raises(ConfigError, match="importances: found 3 for 1 models"):
    recipes.from_arguments(method="fisher", models=["A"], importances=["a", "b", "c"])
  with pytest.raises(UnknownName, match="Did you mean 'slerp'"):
    recipes.from_arguments(method="slrp", models=["A", "B"])
  with pytest.raises(ConfigError, match="A occurs twice"):
    recipes.from_arguments(method="linear", models=["A", "A"])
