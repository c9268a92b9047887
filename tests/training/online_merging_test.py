"""Online merging: against NumPy, its limits, its expectations, and the same masks in both layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.core import trees
from wam.core.errors import ConfigError, MismatchedTrees, UnknownName
from wam.models import stacking
from wam.training.online_merging import OnlineMerging, largest


def tree(seed, scale=1.0):
  """Two stacked layers, and a matrix beside them."""
  draw = np.random.default_rng(seed)
  shapes = {"layers": {"up": {"kernel": (2, 6, 5)}, "norm": {"scale": (2, 6)}}, "head": (5, 4)}
  return jax.tree.map(
    lambda shape: jnp.asarray(scale * draw.normal(size=shape), jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


INIT, BASE = tree(0), tree(1)
TAU = jax.tree.map(lambda x, y: x - y, INIT, BASE)


def flat(t):
  return {n: np.asarray(x, np.float64) for n, x in trees.flatten(t).items()}


@functools.cache
def compiled(merging):
  """The optimizer that adds merged updates, and what it is given, compiled."""
  tx = merging.optimizer(optax.identity())
  return tx, jax.jit(tx.update), jax.jit(merging.reference)


def reference_of(merging, init=INIT, base=BASE):
  return compiled(merging)[2](init, base)


def once(merging, updates, step=1, reference=None, params=INIT):
  """What an optimizer that would add `updates` adds in its `step`-th update."""
  tx, update, _ = compiled(merging)
  state = tx.init(params)._replace(num_updates=jnp.asarray(step - 1))
  frozen = {"update": reference_of(merging) if reference is None else reference}
  return update(updates, state, params, frozen=frozen)[0]


def test_without_a_share_and_thinning_it_is_adam_exactly():
  adam = optax.adam(0.1)
  for merging in (
    OnlineMerging(alpha=0.0, density=1.0),
    OnlineMerging(alpha=0.0, density=1.0, method="ties", elect="weighted"),
  ):
    tx = merging.optimizer(adam)
    params, other = INIT, INIT
    state, plain = tx.init(params), adam.init(other)
    frozen = {"update": reference_of(merging)}
    for seed in range(3):
      updates, state = jax.jit(tx.update)(tree(seed), state, params, frozen=frozen)
      params = optax.apply_updates(params, updates)
      updates, plain = jax.jit(adam.update)(tree(seed), plain, other)
      other = optax.apply_updates(other, updates)
    for name, x in flat(params).items():
      np.testing.assert_array_equal(x, flat(other)[name], name)
    for x, y in zip(jax.tree.leaves(state.inner), jax.tree.leaves(plain), strict=True):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("method", ["dare", "ties"])
def test_with_all_of_the_share_it_goes_along_the_reference(method):
  merging = OnlineMerging(alpha=1.0, density=1.0, method=method, elect="weighted")
  for name, x in flat(once(merging, tree(5))).items():
    np.testing.assert_allclose(x, flat(TAU)[name], rtol=1e-6)


def test_dare_keeps_a_share_of_both():
  """Every entry is one of four: (1 - α)Δ or 0, plus ατ or 0."""
  merging = OnlineMerging(alpha=0.25, density=0.5)
  updates = tree(5)
  found, delta, tau = flat(once(merging, updates)), flat(updates), flat(TAU)
  counts = np.zeros(4)
  for name, x in found.items():
    choices = np.stack(
      [a * 0.75 * delta[name] + b * 0.25 * tau[name] for a in (0, 1) for b in (0, 1)]
    )
    distances = np.abs(choices - x)
    np.testing.assert_allclose(distances.min(0), 0, atol=1e-6)
    counts += np.bincount(distances.argmin(0).ravel(), minlength=4)
  # 92 entries, a quarter each: a deviation of 4.2.
  assert counts.sum() == 92
  assert np.all(np.abs(counts - 23) < 15)


@pytest.mark.parametrize(("rescale", "factor"), [("none", 0.3), ("inverse", 1.0)])
def test_expectations_of_dare(rescale, factor):
  merging = OnlineMerging(alpha=0.0, density=0.3, rescale=rescale)
  tx = merging.optimizer(optax.identity())
  updates = tree(5)
  frozen = {"update": reference_of(merging)}

  def one(step):
    state = tx.init(INIT)._replace(num_updates=step)
    return tx.update(updates, state, INIT, frozen=frozen)[0]

  mean = jax.tree.map(lambda x: x.mean(0), jax.jit(jax.vmap(one))(jnp.arange(4000)))
  deviation = np.sqrt(0.3 * 0.7 / 4000) / 0.3 * factor
  for name, x in flat(mean).items():
    ratio = x / flat(updates)[name]
    assert np.abs(ratio - factor).max() < 4.5 * deviation
    assert np.abs(ratio - factor).max() > 0  # something was drawn


def test_masks_depend_on_step_leaf_layer_and_seed_but_not_on_the_layout():
  ones = jax.tree.map(jnp.ones_like, INIT)
  merging = OnlineMerging(alpha=0.0, density=0.5, redraw=False)

  def masks(merging=merging, step=1, updates=ones, params=INIT, base=BASE):
    reference = reference_of(merging, params, base)
    return once(merging, updates, step, reference=reference, params=params)

  found = flat(masks())
  kernel = found["layers/up/kernel"]
  assert not np.array_equal(kernel[0], kernel[1])
  for other in (masks(step=2), masks(OnlineMerging(alpha=0.0, density=0.5, seed=1))):
    assert not np.array_equal(flat(other)["layers/up/kernel"], kernel)
  np.testing.assert_array_equal(flat(masks())["head"], found["head"])
  unrolled = [stacking.unstack_layers(t) for t in (ones, INIT, BASE)]
  again = flat(masks(updates=unrolled[0], params=unrolled[1], base=unrolled[2]))
  for name, x in flat(stacking.unstack_layers(masks())).items():
    np.testing.assert_array_equal(again[name], x, name)


def test_the_mask_of_the_reference_is_drawn_once_or_for_every_merge():
  zeros = jax.tree.map(jnp.zeros_like, INIT)

  def kept(redraw, step):
    merging = OnlineMerging(alpha=1.0, density=0.5, redraw=redraw)
    return flat(once(merging, zeros, step))["layers/up/kernel"] != 0

  assert np.array_equal(kept(False, 1), kept(False, 2))
  assert not np.array_equal(kept(True, 1), kept(True, 2))
  assert 20 < kept(False, 1).sum() < 40  # of 60


def ties(delta, tau, alpha, density, weighted):
  """One matrix, in NumPy."""

  def top(x):
    k = max(1, int(density * x.size))
    return np.where(np.abs(x) >= np.sort(np.abs(x).ravel())[-k], x, 0)

  delta, tau = top(delta), top(tau)
  votes = (1 - alpha) * delta + alpha * tau if weighted else delta + tau
  sign = np.where(votes >= 0, 1, -1)
  return sum(c * np.where(np.sign(x) == sign, x, 0) for c, x in ((1 - alpha, delta), (alpha, tau)))


@pytest.mark.parametrize("elect", ["weighted", "unweighted"])
@pytest.mark.parametrize("density", [0.4, 1.0])
def test_ties_is_that_of_numpy_in_both_layouts(elect, density):
  merging = OnlineMerging(alpha=0.3, density=density, method="ties", elect=elect)
  updates = tree(5)
  found, delta, tau = flat(once(merging, updates)), flat(updates), flat(TAU)
  for name, x in found.items():
    matrices = [(delta[name], tau[name], x)]
    if name.startswith("layers"):
      matrices = list(zip(delta[name], tau[name], x, strict=True))
    for d, t, merged in matrices:
      expected = ties(d, t, 0.3, density, elect == "weighted")
      np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)
  unrolled = [stacking.unstack_layers(t) for t in (updates, INIT, BASE)]
  reference = reference_of(merging, *unrolled[1:])
  again = flat(once(merging, unrolled[0], reference=reference, params=unrolled[1]))
  stacked = flat(stacking.unstack_layers(once(merging, updates)))
  assert all(np.array_equal(again[name], x) for name, x in stacked.items())


def test_largest_keeps_exactly_so_many_and_ties():
  x = jnp.asarray(np.random.default_rng(2).normal(size=(40, 25)), jnp.float32)
  for density in (0.001, 0.0372, 0.5):
    assert int(jnp.sum(largest(x, density) != 0)) == max(1, int(density * 1000))
  equal = jnp.asarray([2.0, -2.0, 1.0, 0.0])
  np.testing.assert_array_equal(largest(equal, 0.25), [2, -2, 0, 0])
  np.testing.assert_array_equal(largest(jnp.zeros(4), 0.5), np.zeros(4))


def test_few_entries_leave_almost_no_update():
  for method in ("dare", "ties"):
    merging = OnlineMerging(alpha=0.5, density=1e-6, method=method)
    changed = sum(int((x != 0).sum()) for x in flat(once(merging, tree(5))).values())
    # The largest of Δθ and of τ_r in each of five matrices.
    assert changed <= (10 if method == "ties" else 0)


def test_a_gap_merges_what_was_added_since_the_last_merge():
  """Plain updates for K - 1 steps; at the K-th θ_{t-K} + F(Σ Δθ) ⊕ F(τ)."""
  merging = OnlineMerging(alpha=0.25, density=1.0, every=3)
  tx = merging.optimizer(optax.sgd(1.0))
  frozen = {"update": reference_of(merging)}
  params, state = INIT, tx.init(INIT)
  theta = anchor = flat(INIT)
  for t in range(7):
    updates, state = jax.jit(tx.update)(tree(10 + t), state, params, frozen=frozen)
    params = optax.apply_updates(params, updates)
    gradient = flat(tree(10 + t))
    theta = {n: x - gradient[n] for n, x in theta.items()}
    if t % 3 == 2:
      added = {n: x - anchor[n] for n, x in theta.items()}
      theta = {n: anchor[n] + 0.75 * x + 0.25 * flat(TAU)[n] for n, x in added.items()}
      anchor = theta
    for name, x in flat(params).items():
      np.testing.assert_allclose(x, theta[name], rtol=1e-5, atol=1e-5)


def test_what_makes_no_sense_is_refused():
  for settings, message in (
    ({"alpha": 1.5, "density": 0.5}, r"alpha is 1\.5"),
    ({"alpha": 0.1, "density": 0.0}, r"density is 0\.0"),
    ({"alpha": 0.1, "density": 0.5, "every": 0}, "every is 0"),
    ({"alpha": 0.1, "density": 0.5, "method": "ties", "rescale": "inverse"}, "not ties"),
  ):
    with pytest.raises(ConfigError, match=message):
      OnlineMerging(**settings)
  with pytest.raises(UnknownName, match="Did you mean 'ties'"):
    OnlineMerging(alpha=0.1, density=0.5, method="tie")
  with pytest.raises(MismatchedTrees, match="head"):
    OnlineMerging(alpha=0.1, density=0.5).reference(INIT, BASE | {"head": jnp.ones(3)})
