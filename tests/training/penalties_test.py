"""Penalties against NumPy in float64, their gradients against finite differences, and microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from tests.algorithms.small_test_models import MODEL, sequences
from wam.core import trees
from wam.core.errors import ConfigError, UnknownName
from wam.training import penalties
from wam.training.state import init
from wam.training.step import averages, make_update

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def weights():
  """θ_0 with large enough weights that logits matter, and a policy some way off."""
  start = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, MODEL.init(jax.random.key(0)))
  draw = np.random.default_rng(1)
  moved = jax.tree.map(lambda x: x + 0.02 * draw.normal(size=x.shape).astype(np.float32), start)
  return start, moved


def nothing(params, batch, key, frozen):
  """A loss of 0 with the number of trained tokens as its weight."""
  return jnp.zeros(()), jnp.sum(batch["loss_mask"]).astype(jnp.float32), {}


def linear(params, batch, key, frozen):
  """A loss that costs nothing to compile: the first entries of the embeddings of the trained tokens."""
  weights = batch["loss_mask"].astype(jnp.float32)
  return jnp.sum(weights * params["embed"]["embedding"][batch["tokens"], 0]), jnp.sum(weights), {}


def flat(tree, only=""):
  values = [np.asarray(x, np.float64).ravel() for n, x in trees.flatten(tree).items() if only in n]
  return np.concatenate(values)


@pytest.mark.parametrize(
  ("wrap", "form", "expected"),
  [
    (penalties.l1, "coded", lambda d: np.abs(d).mean() * 1e5),
    (penalties.l1, "printed", lambda d: np.abs(d).sum()),
    (penalties.l2, "coded", lambda d: (d**2).mean() * 1e9),
    (penalties.l2, "printed", lambda d: np.linalg.norm(d)),
    (penalties.l2, "squared", lambda d: (d**2).sum()),
  ],
)
@pytest.mark.parametrize("scope", ["all", "linear"])
def test_weight_penalties_are_those_of_numpy(weights, wrap, form, expected, scope):
  start, moved = weights
  loss_fn = wrap(coefficient=0.3, form=form, scope=scope)(nothing)
  loss, weight, metrics = loss_fn(moved, sequences(4), KEY, {"init": start})
  only = "/kernel" if scope == "linear" else ""
  difference = flat({"layers": moved["layers"]} if only else moved, only) - flat(
    {"layers": start["layers"]} if only else start, only
  )
  assert float(weight) == 12
  assert float(loss) == pytest.approx(0.3 * expected(difference) * 12, rel=1e-5)
  ((name, pair),) = metrics.items()
  assert name == f"penalty_{wrap.__name__}"
  assert averages({"x": pair})["x"] == pytest.approx(0.3 * expected(difference), rel=1e-5)


@pytest.mark.parametrize(("wrap", "form"), [(penalties.l1, "coded"), (penalties.l2, "printed")])
def test_nothing_pulls_at_the_start(weights, wrap, form):
  loss_fn = wrap(coefficient=1.0, form=form)(nothing)
  value, gradient = jax.value_and_grad(lambda p: loss_fn(p, sequences(4), KEY, {"init": p_0})[0])(
    p_0 := weights[0]
  )
  assert float(value) == 0
  assert not np.any(flat(gradient))


DISTANCES = {
  "kl": lambda s, t: scipy.special.rel_entr(*(scipy.special.softmax(x, -1) for x in (t, s))).sum(-1),
  "logits": lambda s, t: ((s - t) ** 2).mean(-1),
  "probabilities": lambda s, t: (
    (scipy.special.softmax(s, -1) - scipy.special.softmax(t, -1)) ** 2
  ).sum(-1),
}  # fmt: skip


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_of_distributions_are_those_of_numpy(distance):
  student, teacher = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
  found = penalties.token_distance(*(jnp.asarray(x, jnp.float32) for x in (student, teacher)), distance)  # fmt: skip
  np.testing.assert_allclose(found, DISTANCES[distance](student, teacher), rtol=1e-4)


@pytest.mark.parametrize("average", ["tokens", "sequences", "batch"])
def test_averages_are_over_the_trained_tokens(average):
  values = np.random.default_rng(0).normal(size=(3, 5))
  values[0, 0] = np.nan  # about token 1, which is padding
  trained = np.asarray([[0, 0, 1, 1, 1], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]], np.float32)
  # Position t speaks of token t + 1; nothing speaks of the first.
  sums = [values[0, 1:4].sum(), values[1, 2:4].sum()]
  expected = {
    "tokens": sum(sums) / 5,
    "sequences": np.mean([sums[0] / 3, sums[1] / 2]),
    "batch": np.mean(sums),
  }[average]
  found = penalties.token_average(jnp.asarray(values, jnp.float32), jnp.asarray(trained), average)
  assert float(found) == pytest.approx(expected, rel=1e-5)
  assert float(penalties.token_average(jnp.ones((2, 3)), jnp.zeros((2, 3)), average)) == 0


def test_distillation_is_that_of_the_models(weights):
  start, moved = weights
  rows = sequences(4)
  apply = jax.jit(lambda p: MODEL.apply(p, rows["tokens"], mask=rows["mask"]).logits)
  values = DISTANCES["kl"](*(np.asarray(apply(p), np.float64) for p in (moved, start)))
  expected = values[:, 1:4].mean()
  loss_fn = penalties.distillation(model=MODEL, coefficient=0.5)(nothing)
  loss, _, metrics = jax.jit(loss_fn)(moved, rows, KEY, {"init": start})
  assert expected > 1e-3
  assert float(loss) == pytest.approx(0.5 * expected * 12, rel=1e-4)
  assert averages(metrics)["penalty_distillation"] == pytest.approx(0.5 * expected, rel=1e-4)


def test_distillation_reads_the_batches_of_all_algorithms(weights):
  """Pairs are both completions; a completion mask is of the last positions; rows of weight 0 do not count."""
  start, moved = weights
  rows = sequences(4)
  reference, _, _ = jax.jit(distilled := penalties.distillation(
    model=MODEL, coefficient=1.0, average="sequences"
  )(lambda *_: (jnp.zeros(()), jnp.float32(1), {})))(moved, rows, KEY, {"init": start})  # fmt: skip
  pairs = {}
  for side, part in (("chosen", slice(0, 2)), ("rejected", slice(2, 4))):
    names = {"tokens": "", "mask": "_mask", "loss_mask": "_loss_mask"}
    pairs |= {f"{side}{n}": rows[ours][part] for ours, n in names.items()}
  completions = {n: rows[n] for n in ("tokens", "mask")} | {
    "completion_mask": rows["loss_mask"][:, 2:]
  }
  doubled = {n: np.concatenate([x, x[::-1]]) for n, x in completions.items()}
  doubled["tokens"][4:, 2] = 7
  doubled["weight"] = np.asarray([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
  for batch in (pairs, completions, doubled):
    found, _, _ = jax.jit(distilled)(moved, batch, KEY, {"init": start})
    assert float(found) == pytest.approx(float(reference), rel=1e-5)
  with pytest.raises(ConfigError, match="cannot read batches of mask, tokens"):
    distilled(moved, {n: rows[n] for n in ("tokens", "mask")}, KEY, {"init": start})


CASES = {
  "l1": penalties.l1(coefficient=0.04),
  "l2": penalties.l2(coefficient=1e-5),
  "l2 printed": penalties.l2(coefficient=1.0, form="printed"),
  "distillation": penalties.distillation(model=MODEL, coefficient=10.0),
}


@pytest.mark.parametrize(
  "name", [*list(CASES)[:-1], pytest.param("distillation", marks=pytest.mark.slow)]
)
def test_gradients_are_those_of_finite_differences(weights, name):
  start, moved = weights
  rows = sequences(4)
  loss_fn = CASES[name](linear)

  @jax.jit
  def mean(params):
    loss, weight, _ = loss_fn(params, rows, KEY, {"init": start})
    return loss / weight

  gradient = jax.jit(jax.grad(mean))(moved)
  # Along the way to θ_0 and a random one; no entry passes θ_0, where |x| has a kink.
  draw = np.random.default_rng(3)
  sizes = jax.tree.map(lambda a, b: (a - b) * draw.uniform(0, 1, a.shape), moved, start)
  direction = jax.tree.map(lambda x: x.astype(np.float32), sizes)
  step = 0.05
  ahead, behind = (
    float(mean(jax.tree.map(lambda x, d: x + s * d, moved, direction)))  # noqa: B023
    for s in (step, -step)
  )
  slope = flat(gradient) @ flat(direction)
  plain = jax.grad(lambda p: linear(p, rows, KEY, {})[0] / 12)(moved)
  assert abs(slope - flat(plain) @ flat(direction)) > 0.3 * abs(slope)  # the penalty is seen
  assert slope == pytest.approx((ahead - behind) / (2 * step), rel=5e-3)


@pytest.mark.parametrize("name", CASES)
def test_microbatches_do_not_change_the_update(weights, name):
  start, moved = weights
  rows = sequences(8)
  rows["loss_mask"][:3, 3:] = False  # microbatches of unequal weight
  tx = optax.sgd(1e-4)
  loss_fn = CASES[name](linear)
  found = []
  for steps in (1, 4):
    update = jax.jit(make_update(loss_fn, tx, accumulate_steps=steps))
    state, metrics = update(init(moved, tx), rows, KEY, {"init": start})
    found.append((state.params, averages(metrics)))
  (one, numbers), (four, others) = found
  assert numbers == pytest.approx(others, rel=1e-4)
  step = flat(one) - flat(moved)
  assert np.linalg.norm(flat(four) - flat(one)) < 1e-3 * np.linalg.norm(step)


def test_what_makes_no_sense_is_refused():
  with pytest.raises(ConfigError, match=r"l1: coefficient is -0.1, expected at least 0"):
    penalties.l1(coefficient=-0.1)
  with pytest.raises(ConfigError, match="distillation: coefficient is nan"):
    penalties.distillation(model=MODEL, coefficient=float("nan"))
  with pytest.raises(UnknownName, match="unknown form of l1 'squared'"):
    penalties.l1(coefficient=1.0, form="squared")
  with pytest.raises(UnknownName, match="Did you mean 'linear'"):
    penalties.l2(coefficient=1.0, scope="linea")
  with pytest.raises(UnknownName, match="distance of distillation"):
    penalties.distillation(model=MODEL, coefficient=1.0, distance="mse")
  with pytest.raises(UnknownName, match="average of distillation"):
    penalties.distillation(model=MODEL, coefficient=1.0, average="token")
  named = penalties.l1(coefficient=1.0, scope="linear")(nothing)
  with pytest.raises(ConfigError, match="no matrices of attention or MLP"):
    named({"a": jnp.ones(2)}, sequences(2), KEY, {"init": {"a": jnp.ones(2)}})
