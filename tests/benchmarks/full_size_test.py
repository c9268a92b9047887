"""Programs at full size: published shapes, the count of work, and the same code compiled small for virtual devices."""

import math
import sys

import jax
import jax.numpy as jnp
import pytest

from tests.conftest import REPOSITORY
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.families import config_to_hf
from wam.training import sharding

SMALL = DecoderConfig(
  vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, eos_token_id=(2,)
)
TRAINING = {"optimizer": {"learning_rate": 1e-3}, "dtype": "bfloat16", "remat": True}
CONFIG = {
  "problem": {},
  "sft": TRAINING | {"batch_size": 8, "length": 16, "logits_chunk": 8, "accumulate_steps": 2},
  "reward_model": TRAINING | {"batch_size": 4, "length": 16},
  "sampling": {"prompt_length": 8, "max_new_tokens": 4, "temperature": 1.0},
  "rsf": TRAINING
  | {
    "batch_size": 4,
    "prompts_per_iteration": 8,
    "prompts_per_call": 4,
    "samples_per_prompt": 2,
  },
  "evaluation": {"num_prompts": 8},
}


@pytest.fixture(scope="module")
def scripts():
  """The modules of benchmarks/, which is a folder of scripts."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import compile_for_tpu
    import full_size

    yield full_size, compile_for_tpu
    for name in ("full_size", "compile_for_tpu"):
      del sys.modules[name]


@pytest.mark.parametrize(
  ("name", "count", "heads", "kv_heads", "head_dim"),
  [
    ("open_llama_3b_v2", 3_426_473_600, 32, 32, 100),
    ("Mistral-7B-v0.1", 7_241_732_096, 32, 8, 128),
  ],
)
def test_published_shapes(scripts, name, count, heads, kv_heads, head_dim):
  """Sizes as published; the tree that `init` would make has them, layer by layer."""
  config = scripts[0].published(name)
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (heads, kv_heads, head_dim)
  shapes = jax.eval_shape(lambda: LanguageModel(config).init(jax.random.key(0)))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count == config.num_params()
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
  layers = shapes["layers"]
  assert layers["attention"]["k"]["kernel"].shape[-1] == kv_heads * head_dim
  assert layers["mlp"]["up"]["kernel"].shape == (
    config.num_layers,
    config.hidden_size,
    config.intermediate_size,
  )
  # Nothing of what was published is lost on the way.
  written = config_to_hf(config, dtype="float32")
  assert all(written[k] == v for k, v in scripts[0].PUBLISHED[name].items() if k != "rope_theta")


@pytest.mark.parametrize("devices", [8, 16])
@pytest.mark.parametrize("name", ["open_llama_3b_v2", "Mistral-7B-v0.1"])
def test_published_models_split_evenly(scripts, name, devices):
  """Over 8 and 16 devices (a mesh of a size only: nothing is placed)."""
  config = scripts[0].published(name)
  shapes = jax.eval_shape(lambda: LanguageModel(config).init(jax.random.key(0)))
  mesh = jax.sharding.AbstractMesh((1, devices, 1), sharding.AXES)
  specs = sharding.specs(shapes, sharding.DECODER_RULES, mesh)
  assert specs["layers"]["mlp"]["up"]["kernel"] == sharding.P(None, "fsdp", "tensor")


def test_work_is_counted_through_loops(scripts):
  flops = scripts[1].flops
  a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
  product = jax.make_jaxpr(lambda a, b: a @ b)(a, b)
  assert flops(product.jaxpr) == 2 * 3 * 5 * 7

  def looped(a, w):
    body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ w), None))
    return jax.lax.scan(body, a, None, length=4)[0].sum()

  w = jnp.zeros((5, 5))
  once = 2 * 3 * 5 * 5
  assert flops(jax.make_jaxpr(looped)(a, w).jaxpr) == 4 * once
  # Backward: the product again, and one each for the gradients of x and w.
  assert flops(jax.make_jaxpr(jax.grad(looped, argnums=(0, 1)))(a, w).jaxpr) == 4 * 4 * once


SLOW = [
  pytest.param(n, marks=pytest.mark.slow)
  for n in ("reward_model", "reference", "rsf", "evaluation")
]


@pytest.mark.parametrize("name", ["sft", "sample", "score", *SLOW])
def test_programs_compile_on_a_mesh(scripts, name):
  full_size, compile_for_tpu = scripts
  assert set(full_size.PROGRAMS) >= {name}
  model = LanguageModel(SMALL)
  mesh = sharding.make_mesh({"fsdp": 2}, devices=jax.devices()[:2])
  program = full_size.PROGRAMS[name](CONFIG, model, mesh)
  found = compile_for_tpu.measure(program, mesh)
  assert found["chips"] == 2 and found["what"]
  # Bytes of float32 weights on a device: all matrices are halved, norms (2 a layer and the last, of 16) are whole.
  head = 17 if name in ("reward_model", "score") else 32 * 16 / 2
  norms = 5 * 16
  halved = 2 * (4 * 16 * 16 + 3 * 16 * 24) / 2 + 32 * 16 / 2
  weights = 4 * (head + norms + halved)
  # The updates hold two moments beside the weights.
  copies = 3 if name in ("sft", "reward_model", "rsf") else 1
  held = sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    for x in jax.tree.leaves(program.arguments[0])
  )
  assert held == pytest.approx(copies * weights, abs=16)  # counts of steps
  beside = {"reward_model": 1, "sample": 4, "score": 4, "rsf": 2, "evaluation": 3}.get(name, 0)
  assert program.beside == pytest.approx(
    beside * weights, rel=0.01 if name == "reward_model" else 0
  )


def test_memory_arithmetic(scripts):
  """16 bytes a parameter to train, 4 for each model beside: 8 devices of 80 GB."""
  full_size, compile_for_tpu = scripts
  model = LanguageModel(full_size.published("Mistral-7B-v0.1"))
  found = compile_for_tpu.arithmetic(CONFIG, model, 8, 80)
  each = 7_241_732_096 * 4 / 8 / 1e9
  assert found["policy_moments_gradient"] == round(4 * each, 1) == 14.5
  assert found["reference_and_reward_models"] == round(2 * each, 1)
  assert found["left_for_activations"] == round(80 - 6 * each, 1)
  judged = compile_for_tpu.arithmetic(
    CONFIG | {"problem": {"control_pairs": {"train": 1}}}, model, 8, 80
  )
  assert judged["left_for_activations"] == round(80 - 7 * each, 1)
