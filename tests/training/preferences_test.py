"""Objectives are drawn as the Dirichlet distribution says; a microbatch holds one preference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.core.errors import ConfigError
from wam.training import preferences
from wam.training.preferences import Objectives
from wam.training.state import init
from wam.training.step import make_update


@pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
def test_draws_have_the_moments_of_the_distribution(concentration):
  """Mean 1/N and variance (N - 1)/(N²·(N·a + 1)) of a symmetric Dirichlet distribution."""
  N, count = 3, 4000
  drawn = Objectives(num_rewards=N, kl_weight=0.1, concentration=concentration).draw(count, 0, "clp", 1)  # fmt: skip
  rows = np.stack([objective.preference for objective in drawn])
  assert rows.dtype == np.float32 and (rows >= 0).all()
  np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
  variance = (N - 1) / (N**2 * (N * concentration + 1))
  error = np.sqrt(variance / count)
  assert (np.abs(rows.mean(axis=0) - 1 / N) < 4 * error).all()
  np.testing.assert_allclose(rows.var(axis=0), variance, rtol=0.1)
  assert all(np.array_equal(o.steering, o.preference) and o.kl_weight == 0.1 for o in drawn)


def test_a_stream_for_every_iteration():
  objectives = Objectives(num_rewards=2, kl_weight=0.1)
  first, again, second, other = (
    np.stack([o.preference for o in objectives.draw(3, seed, "clp", i)])
    for seed, i in ((0, 1), (0, 1), (0, 2), (1, 1))
  )
  assert np.array_equal(first, again)
  assert not np.array_equal(first, second) and not np.array_equal(first, other)


def test_a_range_of_kl_weights_is_steered():
  """((1 - α)·w, α): what the objective is linear in; a vector of N + 1 numbers on the simplex."""
  objectives = Objectives(num_rewards=2, kl_weight=(0.2, 0.6))
  assert objectives.size == 3
  for objective in objectives.draw(50, 0, "clp", 1):
    alpha = objective.kl_weight
    assert 0.2 <= alpha <= 0.6
    np.testing.assert_allclose(
      objective.steering, [*(1 - alpha) * objective.preference, alpha], rtol=1e-6
    )
    assert objective.steering.sum() == pytest.approx(1)


def test_one_preference_for_all():
  objectives = Objectives(num_rewards=2, kl_weight=0.0, preference=(0.25, 0.75))
  for objective in objectives.draw(3, 0, "clp", 1):
    assert objective.preference.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kl_weight": -0.1}, "kl_weight: expected a number from 0 to 1"),
    ({"kl_weight": float("nan")}, "kl_weight: expected"),
    ({"kl_weight": (0.5, 0.2)}, "two that rise"),
    ({"kl_weight": (0.1, 0.2, 0.3)}, "two that rise"),
    ({"concentration": 0.0}, "concentration: expected a number above 0"),
    ({"preference": (0.5, 0.6)}, "at least 0 with sum 1"),
    ({"preference": (-0.5, 1.5)}, "at least 0 with sum 1"),
    ({"preference": (1.0,)}, "expected 2 numbers"),
  ],
)
def test_refuses_what_cannot_be(changes, message):
  with pytest.raises(ConfigError, match=message):
    Objectives(**{"num_rewards": 2, "kl_weight": 0.1} | changes)


def test_a_microbatch_holds_one_group():
  """As `make_update` splits a batch: seen by a loss that asks for rows of one group, and sums all."""
  G, R, updates, rows = 3, 8, 2, 2
  groups = [{"group": np.full(R, g), "row": np.arange(R), "x": np.zeros((R, 2))} for g in range(G)]
  order = np.random.default_rng(0).permutation(R)
  found = list(preferences.batches(groups, order, updates, rows))
  steps = G * R // (updates * rows)
  pairs = {(g, r) for batch in found for g, r in zip(batch["group"], batch["row"], strict=True)}
  assert len(found) == updates and pairs == {(g, r) for g in range(G) for r in range(R)}
  assert all(batch["x"].shape == (12, 2) for batch in found)

  def loss_fn(params, batch, key, frozen):
    mixed = jnp.abs(batch["group"] - batch["group"][0]).sum()
    sums = {"mixed": (mixed.astype(jnp.float32), jnp.ones(()))}
    return params["w"] * batch["row"].sum(), jnp.float32(len(batch["row"])), sums

  tx = optax.sgd(1.0)
  update = jax.jit(make_update(loss_fn, tx, accumulate_steps=steps))
  for batch in found:
    _, metrics = update(init({"w": jnp.ones(())}, tx), batch, jax.random.key(0), {})
    assert float(metrics["mixed"][0]) == 0
    assert float(metrics["loss"][0]) == batch["row"].sum() and float(metrics["loss"][1]) == 12
