import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core import trees
from wam.core.errors import ConfigError, MismatchedTrees, UnknownName
from wam.models import stacking
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.lora import Lora, average

MODEL = LanguageModel(
  DecoderConfig(
    vocab_size=12, hidden_size=8, intermediate_size=20, num_layers=2, num_heads=2, num_kv_heads=1
  )
)
BOTH = Lora(rank=3, alpha=6.0, targets="mlp+attention")


@functools.cache
def params(stacked=True):
  return MODEL.init(jax.random.key(0), stacked=stacked)


@functools.cache
def fresh(lora, stacked=True, seed=1):
  return jax.jit(lora.init)(params(stacked), jax.random.key(seed))


def random_like(tree, seed, scale=1.0):
  """Adapters somewhere in training: B is no longer zero."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(scale * draw.normal(size=x.shape), jnp.float32), tree)


def products(lora, adapters):
  """alpha/r·A B of every adapted matrix, in float64, a layer at a time."""
  flat = {n: np.asarray(x, np.float64) for n, x in trees.flatten(adapters).items()}
  return {
    name.removesuffix("/lora_a"): lora.alpha
    / lora.rank
    * np.stack([a @ b for a, b in zip(x, flat[name[:-1] + "b"], strict=True)])
    for name, x in flat.items()
    if name.endswith("lora_a")
  }


@pytest.mark.parametrize(
  ("targets", "modules"),
  [
    ("mlp", {"mlp/gate", "mlp/up", "mlp/down"}),
    ("q+v", {"attention/q", "attention/v"}),
    ("mlp+o", {"mlp/gate", "mlp/up", "mlp/down", "attention/o"}),
  ],
)
def test_targets(targets, modules):
  adapters = fresh(Lora(rank=2, targets=targets))
  found = {n.removeprefix("layers/").rsplit("/", 1)[0] for n in trees.names(adapters)}
  assert found == modules


@pytest.mark.parametrize("stacked", [True, False])
def test_the_start_is_the_init_and_a_is_uniform(stacked):
  start = params(stacked)
  lora = Lora(rank=400, targets="mlp+attention")
  adapters = fresh(lora, stacked)
  fused = jax.jit(lora.fuse)(start, adapters)
  for name, x in trees.flatten(fused).items():
    np.testing.assert_array_equal(x, trees.flatten(start)[name], name)
  for name, x in trees.flatten(adapters).items():
    if name.endswith("lora_a"):
      # Inputs of the module; a uniform in ±c has the mean 0 and the deviation c/√3.
      bound = 1 / np.sqrt(20 if "down" in name else 8)
      assert np.abs(x).max() <= bound
      assert np.std(x) == pytest.approx(bound / np.sqrt(3), rel=0.03)
      assert abs(np.mean(x)) < 0.05 * bound


def test_both_layouts_draw_and_fuse_the_same_numbers():
  one, other = fresh(BOTH), fresh(BOTH, stacked=False)
  a = one["layers"]["mlp"]["up"]["lora_a"]
  assert not np.array_equal(a[0], a[1])
  assert not np.array_equal(a[0], one["layers"]["mlp"]["gate"]["lora_a"][0])
  for name, x in trees.flatten(stacking.unstack_layers(one)).items():
    np.testing.assert_array_equal(x, trees.flatten(other)[name], name)
  trained = random_like(one, 0)
  fused = stacking.unstack_layers(jax.jit(BOTH.fuse)(params(), trained))
  again = jax.jit(BOTH.fuse)(params(False), stacking.unstack_layers(trained))
  for name, x in trees.flatten(fused).items():
    np.testing.assert_allclose(x, trees.flatten(again)[name], rtol=1e-6, atol=1e-6)


def test_fused_matrices_are_those_of_numpy_and_the_rest_is_untouched():
  start = params()
  adapters = random_like(fresh(BOTH), 0)
  fused, expected = trees.flatten(BOTH.fuse(start, adapters)), products(BOTH, adapters)
  for name, x in trees.flatten(start).items():
    module = name.removesuffix("/kernel")
    if module in expected:
      np.testing.assert_allclose(fused[name], x + expected.pop(module), rtol=1e-5, atol=1e-5)
    else:
      assert fused[name] is x
  assert not expected
  narrow = BOTH.fuse(trees.cast(start, jnp.bfloat16), adapters)
  assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}


def test_gradients_of_the_factors_are_those_of_finite_differences():
  start = params()
  lora = Lora(rank=2, targets="down")
  adapters = random_like(fresh(lora), 0, scale=0.1)
  direction = random_like(adapters, 1, scale=0.1)
  tokens = np.random.default_rng(0).integers(0, 12, (2, 5)).astype(np.int32)

  @jax.jit
  def loss(trained):
    return jnp.mean(MODEL.apply(lora.fuse(start, trained), tokens).logits ** 2)

  def ahead(step):
    return float(loss(jax.tree.map(lambda x, d: x + step * d, adapters, direction)))

  gradient = jax.jit(jax.grad(loss))(adapters)
  slope = sum(
    float(jnp.sum(g * d))
    for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
  )
  assert slope == pytest.approx((ahead(0.02) - ahead(-0.02)) / 0.04, rel=5e-3)


def test_dropout_leaves_out_inputs_and_keeps_the_mean():
  lora = Lora(rank=2, targets="down", dropout=0.25)
  adapters = random_like(fresh(lora), 0)
  keys = jax.random.split(jax.random.key(2), 400)
  dropped = jax.jit(jax.vmap(lambda key: lora.drop(adapters, key)))(keys)
  before, after = (x["layers"]["mlp"]["down"] for x in (adapters, dropped))
  assert np.all(np.asarray(after["lora_b"]) == np.asarray(before["lora_b"]))
  ratio = np.asarray(after["lora_a"]) / np.asarray(before["lora_a"])  # [400, L, inputs, r]
  kept = ratio > 0
  np.testing.assert_allclose(ratio, kept * 4 / 3, rtol=1e-5)
  assert np.all(kept[..., 0] == kept[..., 1])  # a whole input
  # 16000 draws with p = 3/4 have a standard error of 0.0034, the mean of the 400 of one input 0.022.
  assert kept.mean() == pytest.approx(0.75, abs=0.014)
  np.testing.assert_allclose(kept.mean(axis=0), 0.75, atol=0.1)
  assert Lora(rank=2).drop(adapters, jax.random.key(0)) is adapters


def members(count, lora=BOTH, same_a=False):
  start = fresh(lora)
  found = [random_like(start, seed) for seed in range(count)]
  if same_a:
    found = [
      trees.map_named(lambda n, x, first: first if n.endswith("a") else x, m, found[0])
      for m in found
    ]
  return [(lora, m) for m in found]


def test_average_of_products_is_the_average_of_the_fused_weights():
  every = [*members(2), *members(1, Lora(rank=2, alpha=1.0, targets="mlp+attention"))]
  weights = (0.5, 0.2, 0.3)
  lora, joined = average(every, weights, of="products")
  assert lora.rank == 8
  expected = [products(*m) for m in every]
  for name, x in products(lora, joined).items():
    mean = sum(c * e[name] for c, e in zip(weights, expected, strict=True))
    np.testing.assert_allclose(x, mean, rtol=1e-5, atol=1e-6)


def test_average_of_factors_has_the_cross_terms():
  every = members(2)
  lora, mean = average(every, (0.25, 0.75), of="factors")
  assert lora == BOTH
  (_, one), (_, two) = every
  exact = products(*average(every, (0.25, 0.75)))
  for name, x in products(lora, mean).items():
    a, b = (
      [np.asarray(trees.flatten(t)[f"{name}/lora_{side}"], np.float64) for t in (one, two)]
      for side in "ab"
    )
    weights = (0.25, 0.75)
    expected = sum(
      weights[i] * weights[j] * 2 * a[i] @ b[j] for i in range(2) for j in range(2)
    )  # alpha / r = 2
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(x - exact[name]).max() > 0.1


def test_averages_agree_for_equal_a_equal_members_and_one_member():
  for every, weights in (
    (members(3, same_a=True), None),
    (members(1) * 2, (0.3, 0.7)),
    (members(2), (1.0, 0.0)),
  ):
    factors = products(*average(every, weights, of="factors"))
    for name, x in products(*average(every, weights, of="products")).items():
      np.testing.assert_allclose(x, factors[name], rtol=1e-5, atol=1e-5)


def test_what_makes_no_sense_is_refused():
  for settings, message in (
    ({"rank": 0}, "rank is 0"),
    ({"rank": 2, "alpha": -1.0}, "alpha is -1.0"),
    ({"rank": 2, "dropout": 1.0}, "dropout is 1.0"),
  ):
    with pytest.raises(ConfigError, match=message):
      Lora(**settings)
  with pytest.raises(UnknownName, match="Did you mean 'mlp'"):
    Lora(rank=2, targets="attention+mlpp")
  with pytest.raises(ConfigError, match="have no mlp/gate"):
    Lora(rank=2).init({"kernel": jnp.zeros((2, 2))}, jax.random.key(0))
  adapters = fresh(BOTH)
  with pytest.raises(MismatchedTrees, match=r"layers/attention/q/kernel.*both unrolled"):
    BOTH.fuse(params(stacked=False), adapters)
  with pytest.raises(UnknownName, match="Did you mean 'products'"):
    average(members(2), of="product")
  with pytest.raises(ConfigError, match="sum to 2"):
    average(members(2), (1.0, 1.0), of="factors")
  with pytest.raises(ConfigError, match="0 adapters"):
    average([])
  other = members(1, Lora(rank=2, alpha=6.0, targets="mlp+attention"))
  with pytest.raises(ConfigError, match="different rank or alpha"):
    average([*members(1), *other], of="factors")
  with pytest.raises(MismatchedTrees, match="not adapted in all members: layers/attention/k"):
    average([*members(1), *members(1, Lora(rank=3))])
