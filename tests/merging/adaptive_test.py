"""Averages by parts and their derivatives: against closed forms and a backward pass, on a mesh, and what they cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from wam.core import trees
from wam.core.errors import ConfigError, MismatchedTrees, UnknownName
from wam.losses import sequence
from wam.merging import adaptive, averages
from wam.models import stacking
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.training import sharding

NAMES = ("mlp/up/kernel", "mlp/up/bias", "mlp/down/kernel")
SHAPES = ((8, 16), (16,), (16, 8))
OUTER = {"embed/embedding": (32, 8), "final_norm/scale": (8,), "lm_head/kernel": (8, 32)}
TOKENS = jax.random.randint(jax.random.key(5), (8, 12), 0, 32)
RATIOS = {1: [0.3], 2: [0.1, 0.5], 3: [0.1, 0.7, 0.4], 6: [0.1, 0.9, 0.3, 0.0, 1.0, 0.2]}


def block(x, layer):
  """A residual MLP: cheaper to compile than a decoder's layer."""
  up = x @ layer["mlp"]["up"]["kernel"] + layer["mlp"]["up"]["bias"].reshape(1, 1, -1)
  return x + jnp.tanh(up) @ layer["mlp"]["down"]["kernel"]


def log_likelihood(params, tokens):
  x = params["embed"]["embedding"][tokens]
  if "mlp" in params["layers"]:
    x = jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params["layers"])[0]
  else:
    for i in range(len(params["layers"])):
      x = block(x, params["layers"][str(i)])
  logits = x * params["final_norm"]["scale"].reshape(1, 1, -1) @ params["lm_head"]["kernel"]
  return sequence.token_logprobs(logits, tokens).mean()


@functools.cache
def models(*, stacked=False, dtype=jnp.float32):
  """θ_0, and a θ that is not far from it; six layers."""
  shapes = OUTER | {
    f"layers/{i}/{n}": s for i in range(6) for n, s in zip(NAMES, SHAPES, strict=True)
  }
  draw = np.random.default_rng(0)
  drawn = [{n: draw.normal(0, 0.4, s) for n, s in shapes.items()} for _ in range(2)]
  drawn[1] = {n: drawn[0][n] + 0.5 * x for n, x in drawn[1].items()}
  ends = [
    trees.unflatten({n: jnp.asarray(x, dtype) for n, x in leaves.items()}) for leaves in drawn
  ]
  return tuple(map(stacking.stack_layers, ends)) if stacked else tuple(ends)


def layers_of(names):
  """The layers that these leaves lie in; a stacked leaf lies in all."""
  places = {n.split("/")[1] for n in names if n.startswith("layers/")}
  return {layer for p in places for layer in ([int(p)] if p.isdecimal() else range(6))}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
  ("num_parts", "split"), [(3, "paper"), (3, "code"), (6, "paper"), (1, "code")]
)
def test_every_layer_lies_in_one_part(stacked, num_parts, split):
  found = adaptive.layout(models(stacked=stacked)[0], num_parts, split=split)
  layers = found.layers()
  assert list(layers) == list(found.names)
  assert sorted(layer for own in layers.values() for layer in own) == list(range(6))
  for name, own in layers.items():
    assert layers_of(found.parts.members(name)) == set(own)
  assert set(found.parts.members("fixed")) == {
    "embed/embedding", "final_norm/scale", "lm_head/kernel",
  }  # fmt: skip
  assert found.parts.untouched() == []


@pytest.mark.parametrize(
  ("num_layers", "split", "sizes"),
  [(26, "paper", [8, 9, 9]), (26, "code", [8, 8, 10]), (32, "code", [11, 10, 11])],
)
def test_the_paper_and_its_code_split_in_three(num_layers, split, sizes):
  tree = trees.unflatten(
    {f"layers/{i}/mlp/up/kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32) for i in range(num_layers)}
  )  # fmt: skip
  found = adaptive.layout(tree, 3, split=split)
  assert [len(layers) for layers in found.layers().values()] == sizes


def test_rules_for_what_is_not_searched_over():
  init, tuned = models()
  found = adaptive.layout(init, 3, embeddings="init", final_norm="last", head="alpha")
  merged = trees.flatten(adaptive.merge(found, init, tuned, [0.0, 0.0, 1.0], alpha=0.25))
  before, after = trees.flatten(init), trees.flatten(tuned)
  assert (merged["embed/embedding"] == before["embed/embedding"]).all()
  assert (merged["final_norm/scale"] == after["final_norm/scale"]).all()
  head = 0.75 * before["lm_head/kernel"] + 0.25 * after["lm_head/kernel"]
  np.testing.assert_allclose(merged["lm_head/kernel"], head, rtol=1e-5, atol=1e-7)
  linear = adaptive.layout(init, 3, scope="linear")
  kept = [n for n in before if "norm" in n or "embed" in n]
  assert set(linear.parts.untouched()) == set(kept)
  merged = trees.flatten(adaptive.merge(linear, init, tuned, [1.0, 1.0, 1.0], alpha=1.0))
  for name, leaf in merged.items():
    assert (leaf == (before if name in kept else after)[name]).all()
  without = adaptive.layout(init, 3, scope="linear", biases=False)
  assert [n for n in without.parts.untouched() if n not in kept] == [
    n for n in before if n.endswith("bias")
  ]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("num_parts", [1, 3, 6])
def test_equal_ratios_are_vanilla_averaging(stacked, num_parts):
  init, tuned = models(stacked=stacked)
  found = adaptive.layout(init, num_parts)
  for alpha in (0.0, 0.2, 0.7, 1.0):
    merged = adaptive.merge(found, init, tuned, [alpha] * num_parts, alpha=alpha)
    expected = averages.lerp(init, tuned, alpha)
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
  jax.tree.map(np.testing.assert_array_equal, expected, tuned)


@pytest.mark.parametrize("stacked", [False, True])
def test_each_part_has_its_ratio(stacked):
  init, tuned = models(stacked=stacked)
  found = adaptive.layout(init, 3)
  merged = adaptive.merge(found, init, tuned, RATIOS[3], alpha=0.4)
  flat = [trees.flatten(stacking.unstack_layers(x)) for x in (init, tuned, merged)]
  for name, before in flat[0].items():
    layer = int(name.split("/")[1]) if name.startswith("layers") else None
    ratio = 0.4 if layer is None else RATIOS[3][layer // 2]
    expected = (1 - ratio) * np.float64(before) + ratio * np.float64(flat[1][name])
    np.testing.assert_allclose(flat[2][name], expected, rtol=1e-5, atol=1e-7)
  beyond = adaptive.merge(found, init, tuned, [1.2, 0.0, 0.0], alpha=0.4, extrapolate=True)
  with pytest.raises(ConfigError, match="t must lie in"):
    adaptive.merge(found, init, tuned, [1.2, 0.0, 0.0], alpha=0.4)
  assert trees.names(beyond) == trees.names(init)


def quadratic(tree, weight):
  """Σ weight·θ³/3 + the step counter, which no ratio moves."""
  return weight * sum(jnp.sum(x**3) for x in jax.tree.leaves(tree)[1:]) / 3 + tree["a"]


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_derivatives_in_closed_form(mode):
  draw = np.random.default_rng(0)
  shapes = {f"layers/{i}/mlp/up/kernel": (3, 2) for i in range(5)} | {"lm_head/kernel": (2, 4)}
  ends = [
    trees.unflatten({"a": np.int32(7)} | {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()})
    for _ in range(2)
  ]  # fmt: skip
  ends[1]["a"] = np.int32(7)
  found = adaptive.layout(ends[0], 2)
  evaluate = jax.jit(adaptive.MODES[mode](quadratic, found))
  value, slopes = evaluate(jnp.array([0.2, 0.6]), jnp.float32(0.4), *ends, 2.0)
  expected_value, expected = 7.0, np.zeros(2)
  init, tuned = (trees.flatten(x) for x in ends)
  for name in shapes:
    layer = int(name.split("/")[1]) if name.startswith("layers") else None
    part = None if layer is None else 0 if layer < 2 else 1  # 2 and 3 layers
    ratio = 0.4 if part is None else (0.2, 0.6)[part]
    x, delta = np.float64(init[name]), np.float64(tuned[name]) - np.float64(init[name])
    merged = x + ratio * delta
    expected_value += 2 * np.sum(merged**3) / 3
    if part is not None:
      expected[part] += 2 * np.sum(merged**2 * delta)
  np.testing.assert_allclose(value, expected_value, rtol=1e-5)
  np.testing.assert_allclose(slopes, expected, rtol=1e-5)


@pytest.mark.parametrize(("num_parts", "stacked"), [(1, False), (6, False), (3, True)])
def test_forward_and_reverse_agree(num_parts, stacked):
  init, tuned = models(stacked=stacked)
  found = adaptive.layout(init, num_parts, embeddings="first", head="last", final_norm="init")
  arguments = (jnp.array(RATIOS[num_parts]), jnp.float32(0.4), init, tuned, TOKENS)
  value, slopes = jax.jit(adaptive.forward(log_likelihood, found))(*arguments)
  other, expected = jax.jit(adaptive.reverse(log_likelihood, found))(*arguments)
  plain = jax.jit(adaptive.value(log_likelihood, found))(*arguments)
  np.testing.assert_allclose([value, other], plain, rtol=1e-6)
  np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(expected).max() > 1e-3


def test_derivatives_by_finite_differences():
  init, tuned = models()
  found = adaptive.layout(init, 3)
  evaluate = jax.jit(adaptive.value(log_likelihood, found))
  at = lambda ratios: np.float64(evaluate(ratios, 0.4, init, tuned, TOKENS))  # noqa: E731
  ratios = np.float32(RATIOS[3])
  _, slopes = jax.jit(adaptive.forward(log_likelihood, found))(ratios, 0.4, init, tuned, TOKENS)
  for k, step in enumerate(np.float32(0.02) * np.eye(3, dtype=np.float32)):
    # Of fourth order: the steps are large, since values have seven digits.
    near, far = at(ratios + step) - at(ratios - step), at(ratios + 2 * step) - at(ratios - 2 * step)
    np.testing.assert_allclose(slopes[k], (8 * near - far) / (12 * 0.02), rtol=2e-3, atol=1e-4)


def test_parts_in_another_order_give_derivatives_in_that_order():
  init, tuned = models()
  found = adaptive.layout(init, 3)
  order = [2, 0, 1]
  shuffled = adaptive.Layout(found.parts, tuple(found.names[k] for k in order))
  ratios = jnp.array(RATIOS[3])
  run = lambda layout, a: adaptive.forward(log_likelihood, layout)(a, 0.4, init, tuned, TOKENS)  # noqa: E731
  _, slopes = jax.jit(functools.partial(run, found))(ratios)
  _, other = jax.jit(functools.partial(run, shuffled))(ratios[np.array(order)])
  np.testing.assert_allclose(other, slopes[np.array(order)], rtol=1e-5)


def test_weights_of_half_precision_keep_their_dtype():
  init, tuned = models(dtype=jnp.bfloat16)
  found = adaptive.layout(init, 3)
  merged = adaptive.merge(found, init, tuned, RATIOS[3], alpha=0.4)
  assert {x.dtype for x in jax.tree.leaves(merged)} == {np.dtype(jnp.bfloat16)}
  arguments = (jnp.array(RATIOS[3]), 0.4, init, tuned, TOKENS)
  value, slopes = jax.jit(adaptive.forward(log_likelihood, found))(*arguments)
  assert value.dtype == slopes.dtype == np.float32
  # Activations are bfloat16 too, with three digits.
  np.testing.assert_allclose(value, log_likelihood(merged, TOKENS), rtol=2e-3)
  wide = [trees.cast(x, jnp.float32) for x in (init, tuned)]
  _, expected = jax.jit(adaptive.forward(log_likelihood, found))(*arguments[:2], *wide, TOKENS)
  np.testing.assert_allclose(slopes, expected, rtol=0.05, atol=0.02)


def test_the_same_on_a_mesh():
  init, tuned = models()
  found = adaptive.layout(init, 3)
  evaluate = jax.jit(adaptive.forward(log_likelihood, found))
  expected = evaluate(jnp.array(RATIOS[3]), 0.4, init, tuned, TOKENS)
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  where = sharding.shardings(init, init, sharding.DECODER_RULES, mesh, uneven="replicate")
  placed = [sharding.put(x, where) for x in (init, tuned)]
  tokens = jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
  with jax.set_mesh(mesh):
    value, slopes = evaluate(jnp.array(RATIOS[3]), 0.4, *placed, tokens)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  np.testing.assert_allclose(slopes, expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_decoder():
  """Numbers, memory and work of a real one, 2 layers in 2 parts."""
  model = LanguageModel(
    DecoderConfig(
      vocab_size=64,
      hidden_size=16,
      intermediate_size=32,
      num_layers=2,
      num_heads=2,
      head_dim=8,
      initializer_range=0.3,
    )
  )
  init = model.init(jax.random.key(0), stacked=False)
  tuned = jax.tree.map(lambda x, y: x + 0.5 * y, init, model.init(jax.random.key(1), stacked=False))
  tokens = jax.random.randint(jax.random.key(2), (8, 64), 0, 64)

  def objective(params, tokens):
    return sequence.token_logprobs(model.apply(params, tokens).logits, tokens).mean()

  found = adaptive.layout(init, 2)
  arguments = (jnp.array([0.2, 0.6]), jnp.float32(0.4), init, tuned, tokens)
  programs = {
    name: jax.jit(make(objective, found)).lower(*arguments).compile()
    for name, make in {"value": adaptive.value, **adaptive.MODES}.items()
  }
  value, slopes = programs["forward"](*arguments)
  other, expected = programs["reverse"](*arguments)
  np.testing.assert_allclose([value, other], programs["value"](*arguments), rtol=1e-6)
  np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(expected).max() > 1e-3
  memory = {name: p.memory_analysis().temp_size_in_bytes for name, p in programs.items()}
  assert memory["forward"] < memory["reverse"]
  # 1 for the value, 2 for what the parts' own layers start, (K - 1)/2 for what passes later parts; the head K times.
  work = {name: p.cost_analysis()["flops"] for name, p in programs.items()}
  assert 3 < work["forward"] / work["value"] < 4


def test_forward_mode_takes_less_memory_than_a_backward_pass():
  """It holds neither activations nor gradients of weights; 64 rows, nine layers of 256 KiB."""

  def temporary(make):
    shapes = {f"layers/{i}/{n}": s for i in range(9) for n, s in zip(NAMES, SHAPES, strict=True)}
    shapes = {n: tuple(16 * size for size in s) for n, s in shapes.items()}
    tree = trees.unflatten({n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()})

    def energy(params, x):
      for i in range(9):
        x = block(x, params["layers"][str(i)])
      return jnp.mean(x * x)

    ratios, x = (
      jax.ShapeDtypeStruct((2,), jnp.float32),
      jax.ShapeDtypeStruct((1, 64, 128), jnp.float32),
    )
    program = jax.jit(make(energy, adaptive.layout(tree, 2))).lower(ratios, 0.4, tree, tree, x)
    return program.compile().memory_analysis().temp_size_in_bytes

  assert temporary(adaptive.forward) < 0.5 * temporary(adaptive.reverse)
  assert temporary(adaptive.value) < 2**20


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda tree: adaptive.layout(tree, 7), ConfigError, "cannot make 7 parts of 6 layers"),
    (lambda tree: adaptive.layout(tree, 3, split="even"), UnknownName, "split 'even'"),
    (lambda tree: adaptive.layout(tree, 3, scope="lin"), UnknownName, "scope 'lin'"),
    (lambda tree: adaptive.layout(tree, 3, head="mean"), UnknownName, "ratio of head 'mean'"),
    (
      lambda tree: adaptive.merge(adaptive.layout(tree, 3), tree, tree, [0.1, 0.2], alpha=0.1),
      ConfigError,
      "expected 3 ratios, one for each of input, middle, output",
    ),
    (
      lambda tree: adaptive.value(log_likelihood, adaptive.layout(tree, 1))([0.1], 0.1, tree, {"a": 1}),
      MismatchedTrees,
      "missing from tuned",
    ),
  ],
)  # fmt: skip
def test_what_is_refused(call, error, message):
  with pytest.raises(error, match=message):
    call(models()[0])
