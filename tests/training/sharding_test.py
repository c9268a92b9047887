import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from wam.algorithms import sft
from wam.core import trees
from wam.core.errors import ConfigError, UncoveredLeaves, UnknownName
from wam.data.batching import Batches
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel
from wam.training import optimizers, sharding
from wam.training.state import init
from wam.training.workdir import Run

P = PartitionSpec
CONFIG = DecoderConfig(
  vocab_size=32,
  hidden_size=16,
  intermediate_size=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  attention_bias=True,
  attention_output_bias=True,
  mlp_bias=True,
  qk_norm=True,
)


def test_mesh_fills_the_free_axis():
  assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  mesh = sharding.make_mesh({"data": 2, "fsdp": -1, "tensor": 2})
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert sharding.make_mesh({"data": 1}, devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
  ("axes", "message"),
  [
    ({"data": 3}, "needs 3 devices, found 8"),
    ({"data": -1, "fsdp": 3}, "does not divide 8 devices"),
    ({"data": -1, "fsdp": -1}, "at most one axis"),
    ({"data": 0}, "does not divide"),
  ],
)
def test_wrong_meshes_are_refused(axes, message):
  with pytest.raises(ConfigError, match=message):
    sharding.make_mesh(axes)
  with pytest.raises(UnknownName, match=r"mesh axis 'fdsp'. Did you mean 'fsdp'"):
    sharding.make_mesh({"fdsp": 2})


@pytest.mark.parametrize("stacked", [True, False])
def test_rules_cover_the_decoder_in_both_layouts(stacked):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  model = LanguageModel(CONFIG)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), stacked=stacked))
  found = sharding.shardings(params, params, sharding.DECODER_RULES, mesh)
  layer = found["layers"] if stacked else found["layers"]["1"]
  lead = (None,) if stacked else ()
  assert layer["attention"]["q"]["kernel"].spec == P(*lead, "fsdp", "tensor")
  assert layer["attention"]["o"]["kernel"].spec == P(*lead, "tensor", "fsdp")
  assert layer["mlp"]["down"]["kernel"].spec == P(*lead, "tensor", "fsdp")
  assert layer["mlp"]["up"]["bias"].spec == P(*lead, "tensor")
  assert found["embed"]["embedding"].spec == P("tensor", "fsdp")
  assert found["final_norm"]["scale"].is_fully_replicated


def test_rules_cover_reward_models():
  model = ScalarModel(CONFIG)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  found = sharding.shardings(params, params, sharding.DECODER_RULES, mesh)
  assert found["decoder"]["embed"]["embedding"].spec == P("tensor", "fsdp")
  assert found["head"]["kernel"].is_fully_replicated


def test_first_rule_wins_and_uncovered_leaves_are_named():
  mesh = sharding.make_mesh({"fsdp": 8, "data": 1})
  tree = {"a": {"kernel": np.zeros((8, 8))}, "b": np.zeros(3), "c": np.zeros(4)}
  rules = ((r"a/.*", P("fsdp", None)), (r".*kernel", P(None, "fsdp")))
  with pytest.raises(UncoveredLeaves, match="no sharding rule matches b, c;"):
    sharding.specs(tree, rules, mesh)
  found = sharding.specs(tree, (*rules, (".*", P())), mesh)
  assert found["a"]["kernel"] == P("fsdp", None)


def test_uneven_axes_are_an_error_unless_allowed():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2, "data": 1})
  tree = {"even": np.zeros((8, 6)), "odd": np.zeros((6, 4)), "flat": np.zeros(8)}
  rules = (("even|odd", P("fsdp", "tensor")), ("flat", P("fsdp")))
  with pytest.raises(ConfigError, match=r"'odd': 6 cannot be split into 4 along axis 0; choose"):
    sharding.specs(tree, rules, mesh)
  found = sharding.specs(tree, rules, mesh, uneven="replicate")
  assert found["odd"] == P(None, "tensor")
  assert found["even"] == P("fsdp", "tensor")
  with pytest.raises(ConfigError, match=r"'flat' of shape .* has fewer axes than its rule"):
    sharding.specs({"flat": np.zeros(8)}, (("flat", P("fsdp", "tensor")),), mesh)
  with pytest.raises(UnknownName, match="replicat"):
    sharding.specs(tree, rules, mesh, uneven="replicat")


def test_optimizer_state_lies_where_its_parameters_lie():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2, "data": 1})
  params = LanguageModel(CONFIG).init(jax.random.key(0))
  tx = optimizers.make(learning_rate=1.0, total_steps=1, trainable=".*kernel")
  state = jax.eval_shape(lambda p: init(p, tx), params)
  where = sharding.shardings(state, params, sharding.DECODER_RULES, mesh)
  by_name = trees.flatten(jax.tree.map(lambda s: s, where))
  moments = [n for n in by_name if n.endswith(("mu/lm_head/kernel", "nu/lm_head/kernel"))]
  assert len(moments) == 2
  assert all(by_name[n].spec == P("fsdp", "tensor") for n in moments)
  assert all(by_name[n].is_fully_replicated for n in by_name if n.endswith("count"))


def test_batches_are_split_and_must_divide():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  placed = sharding.put_batch({"x": np.arange(16.0).reshape(8, 2)}, mesh)["x"]
  assert placed.sharding == NamedSharding(mesh, P(("data", "fsdp")))
  assert placed.addressable_shards[0].data.shape == (1, 2)
  with pytest.raises(ConfigError, match="batch of 6 cannot be split over 8 devices"):
    sharding.put_batch({"x": np.zeros((6, 2))}, mesh)


def test_put_copies():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  x = jax.device_put(jnp.arange(3.0), NamedSharding(mesh, P()))
  copy = sharding.put(x, NamedSharding(mesh, P()))
  jax.jit(lambda a: a + 1, donate_argnums=0)(copy).block_until_ready()
  np.testing.assert_array_equal(x, [0, 1, 2])


def train(tmp_path, mesh, **keywords):
  draw = np.random.default_rng(0)
  # A quarter of the vocabulary: that much is learnt in four steps.
  tokens = draw.integers(0, 8, (64, 10)).astype(np.int32)
  lengths = draw.integers(3, 11, 64)[:, None]
  mask = np.arange(10)[None, :] < lengths
  rows = {"tokens": tokens, "mask": mask, "loss_mask": mask & (np.arange(10) > 0)}
  model = LanguageModel(CONFIG)
  with Run(tmp_path, seed=0, mesh=mesh, tensorboard=False, show=False) as run:
    lines = []
    run.log = lambda fields, **rest: lines.append(fields)
    params = sft.run(
      model,
      model.init(jax.random.key(1)),
      Batches(rows, batch_size=16, seed=0),
      run=run,
      stage="sft",
      num_steps=4,
      log_every=1,
      # SGD: Adam divides by the second moment, which turns rounding of a zero gradient into a whole step.
      optimizer={"name": "sgd", "momentum": 0.9, "learning_rate": 0.5},
      **keywords,
    )
  return jax.device_get(params), [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
  one = sharding.make_mesh(devices=jax.devices()[:1])
  return train(tmp_path_factory.mktemp("one"), one)


@pytest.mark.parametrize(
  "axes",
  [
    pytest.param({"data": 8}, marks=pytest.mark.slow),
    pytest.param({"data": 1, "fsdp": 8}, marks=pytest.mark.slow),
    {"data": 2, "fsdp": 2, "tensor": 2},
  ],
  ids=str,
)
def test_eight_devices_give_the_numbers_of_one(axes, on_one_device, tmp_path):
  params, losses = train(tmp_path, sharding.make_mesh(axes))
  np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-5)
  assert losses[-1] < losses[0]
  for name, x in trees.flatten(params).items():
    np.testing.assert_allclose(
      x, trees.flatten(on_one_device[0])[name], rtol=1e-5, atol=1e-5, err_msg=name
    )


def test_accumulation_on_a_mesh_gives_the_same_numbers(on_one_device, tmp_path):
  params, losses = train(tmp_path, sharding.make_mesh({"data": 2, "fsdp": 4}), accumulate_steps=2)
  np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-5)
  for name, x in trees.flatten(params).items():
    np.testing.assert_allclose(
      x, trees.flatten(on_one_device[0])[name], rtol=1e-5, atol=1e-5, err_msg=name
    )
