"""Mitigations from config sections: what is refused, what they mean, and runs of RSF with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.algorithms.small_test_models import EOS, MODEL, open_run, sequences
from wam.algorithms import rsf
from wam.checkpoints import orbax, records
from wam.core import trees
from wam.core.errors import ConfigError, UnknownName
from wam.models.lora import Lora
from wam.training import mitigations, penalties, sharding
from wam.training.mitigations import NONE, Mitigation
from wam.training.state import init
from wam.training.step import make_update

KEY = jax.random.key(0)
LORA = {"lora": {"rank": 2, "alpha": 4.0, "targets": "mlp+attention"}}
ALL = {
  "l1": {"coefficient": 0.001},
  "l2": {"coefficient": 0.001},
  "distillation": {"coefficient": 0.1},
  "replay": {"proportion": 0.5, "coefficient": 0.5},
  "elastic_reset": {"every": 2, "decay": 0.5},
}
MERGING = {"online_merging": {"alpha": 0.01, "density": 0.5}}


@pytest.fixture(scope="module")
def start():
  return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, MODEL.init(jax.random.key(0)))


def make(section, **data):
  return mitigations.make(MODEL, section, **data)


def test_nothing_is_nothing():
  assert make(None) is make({}) is NONE
  assert NONE.trains_weights
  assert make({"l2": {"coefficient": 1.0}}).trains_weights
  assert not make(LORA).trains_weights
  tx = optax.sgd(1.0)
  assert NONE.optimizer(tx) is tx
  batch = {"x": np.zeros(2)}
  assert NONE.augment(batch, 1, 0) is batch


REFUSED = [
  ({"lorra": {}}, UnknownName, "unknown mitigation 'lorra'. Did you mean 'lora'"),
  ({"l2": {"coeficient": 1.0}}, ConfigError, "m.l2: unknown key 'coeficient'. Did you mean"),
  ({"l2": {}}, ConfigError, "m.l2: missing key 'coefficient'"),
  ({"l1": 0.1}, ConfigError, "m.l1: expected a section"),
  ({"lora": {"rank": 0}}, ConfigError, "rank is 0"),
  ({"distillation": {"coefficient": 1.0, "model": 3}}, ConfigError, "unknown key 'model'"),
  ({"elastic_reset": {"every": 0}}, ConfigError, "every is 0"),
  ({"elastic_reset": {"every": 2, "keep_start": True}}, ConfigError, "unknown key 'keep_start'"),
  ({"replay": {"proportion": -1.0}}, ConfigError, "proportion is -1.0"),
  ({"online_merging": {"alpha": 2.0, "density": 0.5}}, ConfigError, "alpha is 2.0"),
  ({"online_merging": {"alpha": 0.1, "density": 0.5, "seed": 1}}, ConfigError, "key 'seed'"),
  (LORA | MERGING, ConfigError, "Drop one of them"),
  ([("l2", {})], ConfigError, "expected names and their sections"),
]


@pytest.mark.parametrize(("section", "kind", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(section, kind, message):
  for function in (mitigations.check, mitigations.make):
    with pytest.raises(kind, match=message.replace(".", r"\.")):
      function(MODEL, section, name="m")


def test_what_is_needed_is_said_and_asked_for(start):
  assert mitigations.check(MODEL, LORA | {"l2": {"coefficient": 1.0}}) == frozenset()
  assert mitigations.check(MODEL, ALL | MERGING) == {"base", "replayed"}
  with pytest.raises(ConfigError, match="needs the model that θ_0 was fine-tuned from"):
    make(MERGING)
  with pytest.raises(ConfigError, match="needs rows of the pre-training data"):
    make({"replay": {}})


def test_only_what_is_looked_at_is_held(start):
  base = MODEL.init(jax.random.key(5))
  rows = sequences(4)
  assert make(None).freeze(start) == {}
  assert make({"replay": {}}, replayed=rows).freeze(start) == {}
  for name in ("l1", "l2", "distillation"):
    assert make({name: {"coefficient": 1.0}}).freeze(start) == {"init": start}
  merging = make(MERGING, base=base).freeze(start)
  assert merging.keys() == {"update"}
  for name, x in trees.flatten(merging["update"]).items():
    np.testing.assert_allclose(
      x, trees.flatten(start)[name] - trees.flatten(base)[name], atol=1e-6, err_msg=name
    )
  assert make(MERGING, base=base).carries_optimizer
  assert make({"elastic_reset": {"every": 2}}).carries_optimizer
  assert not make(LORA).carries_optimizer


def cheap(params, batch, key, frozen):
  """A loss that looks at every weight and costs little to compile: its mean is Σ sin."""
  weight = jnp.sum(batch["loss_mask"]).astype(jnp.float32)
  return weight * sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(params)), weight, {}


def loss_and_slope(mitigation, trained, rows, frozen):
  loss_fn = mitigation.loss(cheap)

  def mean(trained):
    loss, weight, metrics = loss_fn(trained, rows, KEY, frozen)
    return loss / weight, metrics

  return jax.jit(jax.value_and_grad(mean, has_aux=True))(trained)


def test_a_penalty_of_adapters_is_that_of_the_fused_weights(start):
  """Loss and gradient with l2 and LoRA, from those of the weights and the chain rule."""
  rows = sequences(4)
  mitigation = make({"l2": {"coefficient": 1e-6}} | LORA)
  lora = Lora(**LORA["lora"])
  frozen = mitigation.freeze(start)
  trained = jax.jit(mitigation.start)(start, KEY)
  for name, x in trees.flatten(jax.jit(mitigation.full)(trained, frozen)).items():
    np.testing.assert_array_equal(x, trees.flatten(start)[name], name)
  draw = np.random.default_rng(0)
  trained = jax.tree.map(lambda x: x + 0.1 * draw.normal(size=x.shape).astype(np.float32), trained)
  (found, metrics), gradient = loss_and_slope(mitigation, trained, rows, frozen)
  fused = lora.fuse(start, trained)
  direct = penalties.l2(coefficient=1e-6)(cheap)
  (expected, _), slopes = loss_and_slope(
    Mitigation(wrap_losses=[lambda _: direct]), fused, rows, frozen
  )
  assert float(found) == pytest.approx(float(expected), rel=1e-5)
  assert float(metrics["penalty_l2"][0]) > 0.1
  slopes, factors = trees.flatten(slopes), trees.flatten(trained)
  for name, x in trees.flatten(gradient).items():
    module, side = name.rsplit("/", 1)
    slope = np.asarray(slopes[f"{module}/kernel"], np.float64)
    a, b = (np.asarray(factors[f"{module}/lora_{s}"], np.float64) for s in "ab")
    chain = slope @ b.swapaxes(1, 2) if side == "lora_a" else a.swapaxes(1, 2) @ slope
    np.testing.assert_allclose(x, 2.0 * chain, rtol=1e-3, atol=1e-5)  # alpha / r = 2


def test_dropout_is_in_the_loss_and_not_in_the_policy(start):
  rows = sequences(4)
  section = {"lora": LORA["lora"] | {"dropout": 0.5}}
  noisy, plain = make(section), make(LORA)
  frozen = noisy.freeze(start)
  trained = jax.tree.map(lambda x: x + 0.3, jax.jit(plain.start)(start, KEY))
  losses = [
    float(m.loss(cheap)(trained, rows, key, frozen)[0])
    for m in (plain, noisy)
    for key in jax.random.split(KEY)
  ]
  assert losses[0] == losses[1]
  assert len({*losses[1:]}) == 3
  same = jax.tree.map(np.array_equal, noisy.full(trained, frozen), plain.full(trained, frozen))
  assert all(jax.tree.leaves(same))


SETTINGS = {
  "num_iterations": 2,
  "prompts_per_iteration": 16,
  "samples_per_prompt": 2,
  "sampling": {"max_new_tokens": 5, "eos_id": EOS, "pad_id": 0},
  "optimizer": {"learning_rate": 1e-2},
  "batch_size": 16,
  "require_eos": False,
  "epochs": 2,
}


def train(start, mitigation, directory, *, fail_at=None, mesh=None):
  """A run of RSF towards large tokens; killed while the `fail_at`-th rollout is scored."""
  calls = 0

  def scorer(prompt_tokens, prompt_mask, completions, completion_mask):
    nonlocal calls
    calls += 1
    if calls == fail_at:
      raise KeyboardInterrupt
    return ((completions >= 7) & completion_mask).sum(1) / 5

  tokens = sequences(40)["tokens"][:, :2]
  prompts = (tokens, np.ones_like(tokens, bool))
  with open_run(directory) as run:
    if mesh is not None:
      run.mesh = mesh
    result = rsf.run(MODEL, start, prompts, scorer, run=run, mitigation=mitigation, **SETTINGS)
    return jax.device_get(result)


def same_bits(a, b):
  flat = trees.flatten(b)
  return all(np.array_equal(x, flat[name]) for name, x in trees.flatten(a).items())


def interrupted(start, mitigation, directory):
  """The result of a run that is killed in its second iteration and begun again; and what was saved in between."""
  with pytest.raises(KeyboardInterrupt):
    train(start, mitigation, directory, fail_at=2)
  saved = orbax.load(directory / "checkpoints/rsf/steps/1")
  return train(start, mitigation, directory), saved


@pytest.mark.slow
@pytest.mark.parametrize(("more", "copies"), [({}, 3), (ALL, 5)])
def test_rsf_with_adapters_resumes_to_the_same_bits_and_leaves_the_rest_alone(
  start, tmp_path, more, copies
):
  section = more | {"lora": LORA["lora"] | {"targets": "mlp", "dropout": 0.1}}
  mitigation = make(section, replayed=sequences(30) if more else None)
  whole = train(start, mitigation, tmp_path / "whole")
  resumed, saved = interrupted(start, mitigation, tmp_path / "part")
  assert same_bits(whole, resumed)
  for name, x in trees.flatten(whole).items():
    touched = "mlp/" in name and name.endswith("kernel")
    assert np.array_equal(x, trees.flatten(start)[name]) != touched, name
  # What is saved of a step: adapters and two moments (Elastic Reset: their average and start), and counts.
  state = trees.flatten(saved)
  assert {n.rsplit("/", 1)[1] for n, x in state.items() if np.ndim(x)} == {"lora_a", "lora_b"}
  size = trees.num_params(jax.eval_shape(Lora(**section["lora"]).init, start, KEY))
  assert sum(x.size for x in state.values() if np.ndim(x)) == copies * size


@pytest.mark.slow
def test_rsf_with_all_that_changes_an_update_resumes_to_the_same_bits(start, tmp_path):
  merging = {"online_merging": MERGING["online_merging"] | {"every": 3}}
  base = jax.tree.map(lambda x: 0.9 * x, start)
  mitigation = make(ALL | merging, base=base, replayed=sequences(30))
  whole = train(start, mitigation, tmp_path / "whole")
  resumed, _ = interrupted(start, mitigation, tmp_path / "part")
  assert same_bits(whole, resumed)
  assert not same_bits(whole, start)
  lines = [r for r in records.read(tmp_path / "whole") if r["kind"] == "metric"]
  names = {"penalty_l1", "penalty_l2", "penalty_distillation", "replay_loss"}
  assert len(lines) == 2 and all(names <= line.keys() for line in lines)
  assert lines[0]["penalty_l2"] > 0


@pytest.mark.slow
def test_a_strong_penalty_holds_the_policy(start, tmp_path):
  """The greater λ, the nearer to θ_0; without a penalty the policy is the furthest."""

  def distance(coefficient):
    section = {"l2": {"coefficient": coefficient, "form": "squared"}} if coefficient else {}
    found = train(start, make(section), tmp_path / str(coefficient))
    return float(optax.tree.norm(optax.tree.sub(found, start)))

  plain, weak, strong = map(distance, (0.0, 1.0, 100.0))
  assert strong < weak < plain


def test_adapters_on_a_mesh_lie_as_their_rules_say(start):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  mitigation = make(LORA | {"elastic_reset": {"every": 2}})
  tx = mitigation.optimizer(optax.adam(1e-2))
  state = jax.eval_shape(lambda p: init(mitigation.start(p, KEY), tx), start)
  where = trees.flatten(sharding.shardings(state, start, sharding.DECODER_RULES, mesh))
  spec = {
    "gate/lora_a": (None, "fsdp", None), "gate/lora_b": (None, None, "tensor"),
    "down/lora_a": (None, "tensor", None), "down/lora_b": (None, None, "fsdp"),
    "q/lora_a": (None, "fsdp", None), "o/lora_b": (None, None, "fsdp"),
  }  # fmt: skip
  for suffix, expected in spec.items():
    # The factor, two moments, the average and the start.
    found = [s.spec for name, s in where.items() if name.endswith(suffix)]
    assert len(found) == 5 and {tuple(s) for s in found} == {expected}
  # Where a rank or a layer says nothing of a rule, every device has all.
  replicated = sharding.shardings(state, start, sharding.REPLICATED, mesh)
  assert all(s.is_fully_replicated for s in jax.tree.leaves(replicated))


def test_an_update_on_a_mesh_is_that_of_one_device(start):
  mitigation = make(LORA | {"l2": {"coefficient": 1e-4}, "elastic_reset": {"every": 1}})
  tx = mitigation.optimizer(optax.sgd(0.1))
  update = make_update(mitigation.loss(cheap), tx)
  trained = jax.tree.map(lambda x: x + 0.1, jax.jit(mitigation.start)(start, KEY))
  state, frozen, rows = init(trained, tx), mitigation.freeze(start), sequences(8)
  expected, _ = jax.jit(update)(state, rows, KEY, frozen)
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  with jax.set_mesh(mesh):
    rules = sharding.DECODER_RULES
    placed = sharding.put(state, sharding.shardings(state, start, rules, mesh))
    held = sharding.put(frozen, sharding.shardings(frozen, frozen, rules, mesh))
    found, _ = jax.jit(update)(placed, sharding.put_batch(rows, mesh), KEY, held)
  for name, x in trees.flatten(jax.device_get(found)).items():
    np.testing.assert_allclose(x, trees.flatten(expected)[name], rtol=1e-4, atol=1e-5, err_msg=name)
