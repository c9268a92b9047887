"""Plans: dtypes, groups, sources that are opened and closed, and what comes of a plan in files that a library wrote."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.streaming.small_models import EMBEDDING, HEAD, NORM, config, llama, output, plan, run
from wam.core.errors import ConfigError, UnknownName, WamError
from wam.streaming.inputs.sources import open_source
from wam.streaming.recipes import recipes
from wam.streaming.recipes.planning import dtype_of

LINEAR = {"merge_method": "linear", "models": ["A", "B"], "parameters": {"weight": 1.0}}
TIES = {
  "merge_method": "ties",
  "base_model": "S",
  "models": ["A", "B"],
  "parameters": {"weight": 1.0},
}
UP = "model.layers.{}.mlp.up_proj.weight"


def sources(**options):
  return tuple(llama(x, **options) for x in ("S", "A", "B"))


def dtypes(made):
  return {str(x.dtype) for x in made.outputs}


def test_the_stored_dtype():
  half = {"dtype": ml_dtypes.bfloat16}
  assert dtypes(plan(LINEAR, *sources(**half))) == {"bfloat16"}
  made = plan({**LINEAR, "dtype": "float16"}, *sources(**half))
  assert dtypes(made) == {"float16"}
  assert "dtype: float16 is what is stored; the arithmetic is float32 or wider" in made.notes
  made = plan({**LINEAR, "dtype": "float32", "out_dtype": "bfloat16"}, *sources())
  assert dtypes(made) == {"bfloat16"}
  assert made.notes == ()
  assert made.config["dtype"] == "bfloat16"
  assert dtypes(plan({**LINEAR, "dtype": "torch.float64"}, *sources())) == {"float64"}
  assert dtypes(plan({**LINEAR, "out_dtype": "float16"}, *sources(), out_dtype="float32")) == {
    "float32"
  }
  assert plan(LINEAR, *sources()).notes == ()


@pytest.mark.parametrize("name", ["int64", "bf16", "float8_e4m3fn"])
def test_dtypes_that_nothing_is_stored_in(name):
  with pytest.raises(UnknownName, match=f"unknown out_dtype '{name}'"):
    dtype_of(name, "out_dtype")


def test_counters_keep_their_dtype():
  made = plan({**LINEAR, "out_dtype": "bfloat16"}, *sources(position_ids=np.arange(3)))
  assert output(made, "position_ids").dtype == np.int64


def test_groups():
  def groups(data, **keys):
    return {x.name: x.group for x in plan({**data, **keys}, *sources()).outputs}

  assert set(groups(TIES).values()) == set(groups(TIES))
  assert set(groups(TIES, group="global").values()) == {"all"}
  by_layer = groups(TIES, group="layer")
  assert (
    by_layer[UP.format(1)] == by_layer["model.layers.1.input_layernorm.weight"] == "model.layers 1"
  )
  assert by_layer[NORM] == NORM
  with pytest.raises(ConfigError, match="group: linear works entry by entry"):
    groups(LINEAR, group="global")
  with pytest.raises(UnknownName, match="unknown group 'tensor'"):
    groups(TIES, group="tensor")


def test_one_group_needs_one_set_of_parameters():
  data = {
    **TIES,
    "group": "global",
    "parameters": {"weight": 1, "density": {"filter": "mlp", "value": 0.5}},
  }
  with pytest.raises(ConfigError, match="tensors of one group need the same parameters"):
    plan(data, *sources())


def test_nothing_is_opened_for_a_recipe_that_makes_no_sense():
  def never(name):
    raise AssertionError(name)

  for changes in (
    {"parameters": {"x": 1}},
    {"dtype": "x"},
    {"group": "x"},
    {"chat_template": "chatml"},
  ):
    recipe = recipes.from_data({**TIES, **changes})
    with pytest.raises(WamError):
      recipes.build(recipe, open_source=never)


def test_every_checkpoint_is_opened_once_and_closed_if_the_plan_fails():
  opened = []
  table = {s.label: s for s in sources()}

  def open_one(name):
    opened.append(name)
    return table[name]

  made = recipes.build(recipes.from_data(TIES), open_source=open_one)
  assert opened == list(made.sources) == ["S", "A", "B"]
  assert not any(s.closed for s in table.values())
  with pytest.raises(KeyError):
    recipes.build(recipes.from_data({**TIES, "models": ["A", "X"]}), open_source=open_one)
  assert table["S"].closed and table["A"].closed


def test_the_order_of_the_outputs_is_that_of_the_donor():
  a, b = llama("A"), llama("B")
  b.tensors = dict(reversed(b.tensors.items()))
  assert [x.name for x in plan(LINEAR, a, b).outputs] == list(a.tensors)
  assert [x.name for x in plan({**LINEAR, "base_model": "B"}, a, b).outputs] == list(b.tensors)


def test_a_plan_of_files_that_a_library_wrote(tmp_path):
  """What mergekit's users have: directories with config.json and model.safetensors."""
  for source in sources(dtype=ml_dtypes.bfloat16):
    directory = tmp_path / source.label
    directory.mkdir()
    arrays = {n: r.array for n, r in source.tensors.items()}
    safetensors.numpy.save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config(3, dtype="bfloat16")))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
  text = f"""
    merge_method: task_arithmetic
    base_model: {tmp_path}/S
    models:
      - {{model: {tmp_path}/A, parameters: {{weight: 0.5}}}}
      - {{model: {tmp_path}/B, parameters: {{weight: [0, 1]}}}}
    out_dtype: float32
    """
  recipe = recipes.from_data(recipes.parse(text, "recipe.yaml"))
  made = recipes.build(recipe, open_source=open_source)
  assert made.config["dtype"] == "float32"
  assert made.tokenizer_files == {
    "generation_config.json": tmp_path / "S" / "generation_config.json"
  }
  merged = run(made)
  base, a, b = (x for x in sources(dtype=ml_dtypes.bfloat16))
  for name, weight in ((EMBEDDING, 0.0), (UP.format(1), 0.5), (UP.format(2), 1.0), (HEAD, 0.0)):
    x, y, z = (s.array(name).astype(np.float64) for s in (base, a, b))
    np.testing.assert_allclose(merged[name], x + 0.5 * (y - x) + weight * (z - x), atol=1e-6)
  for source in made.sources.values():
    source.close()


def test_the_chat_template_and_the_recipe_are_part_of_the_plan(tmp_path):
  from tests.streaming.small_models import tokenizer_directory

  models = sources()
  for model in models:
    model.directory = tokenizer_directory(tmp_path / model.label, template="{{ old }}", unk=0)
  made = plan({**LINEAR, "chat_template": "{{ new }}", "name": "mine"}, *models, seed=5)
  assert made.tokenizer_files["chat_template.jinja"] == b"{{ new }}"
  assert b"chat_template" not in made.tokenizer_files["tokenizer_config.json"]
  assert made.recipe["chat_template"] == "{{ new }}"
  assert (made.seed, made.recipe["seed"], made.recipe["name"]) == (5, 5, "mine")
