"""Barriers: closed forms, and a permuted network as the positive control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError, MismatchedTrees, UnknownName
from wam.evaluation import curves

GRID = np.linspace(0, 1, 11)


def test_both_definitions_by_hand():
  errors = np.array([0.0, 3.0, 2.0])
  grid = np.array([0.0, 0.5, 1.0])
  assert curves.barrier(grid, errors, kind="mean") == 3.0 - 1.0
  assert curves.barrier(grid, errors, kind="interpolated") == 3.0 - 1.0
  # End points differ: the mean kind sees half their difference even on a straight line.
  line = np.array([0.0, 1.0, 2.0])
  assert curves.barrier(grid, line, kind="mean") == 1.0
  assert curves.barrier(grid, line, kind="interpolated") == 0.0


@pytest.mark.parametrize("kind", ["mean", "interpolated"])
def test_constant_symmetric_and_signed(kind):
  assert curves.barrier(GRID, np.full(11, 0.7), kind=kind) == 0.0
  errors = np.random.default_rng(0).uniform(size=11)
  assert curves.barrier(GRID, errors, kind=kind) == pytest.approx(
    float(curves.barrier(GRID, errors[::-1], kind=kind))
  )
  assert curves.barrier(GRID, -errors, kind=kind, maximize=True) == curves.barrier(
    GRID, errors, kind=kind
  )
  assert curves.barrier(GRID, np.stack([errors, errors]), kind=kind).shape == (2,)


def test_bad_grids_and_kinds():
  for grid in ([0.0, 0.5], [0.0, 0.7, 0.6, 1.0], [0.0]):
    with pytest.raises(ConfigError, match="rise from 0 to 1"):
      curves.barrier(np.array(grid), np.zeros(len(grid)))
  with pytest.raises(UnknownName, match="interpolated"):
    curves.barrier(GRID, np.zeros(11), kind="interp")  # type: ignore[arg-type]


DATA = np.random.default_rng(1).normal(size=(64, 5)).astype(np.float32)


def mlp(params, x=DATA):
  return jnp.tanh(x @ params["up"]["kernel"]) @ params["down"]["kernel"]


def network(seed, width=16):
  random = np.random.default_rng(seed)
  return {
    "up": {"kernel": random.normal(size=(5, width)).astype(np.float32)},
    "down": {"kernel": random.normal(size=(width, 3)).astype(np.float32)},
  }


def test_permuted_network_has_a_barrier_that_undoing_the_permutation_removes():
  a = jax.tree.map(jnp.asarray, network(0))
  order = np.random.default_rng(2).permutation(16)
  b = {
    "up": {"kernel": a["up"]["kernel"][:, order]},
    "down": {"kernel": a["down"]["kernel"][order]},
  }
  target = np.asarray(mlp(a))
  evaluate = lambda params: np.mean((np.asarray(mlp(params)) - target) ** 2, -1)  # noqa: E731
  found = curves.connectivity(evaluate, a, b)
  assert found.values[0] == 0.0 and found.values[-1] < 1e-10  # the same function
  for interval in (found.mean_barrier, found.interpolated_barrier):
    assert interval.value > 0.5
    assert 0.2 < interval.low < interval.value < interval.high
  assert 0.2 <= found.worst <= 0.8
  back = np.argsort(order)
  undone = {
    "up": {"kernel": b["up"]["kernel"][:, back]},
    "down": {"kernel": b["down"]["kernel"][back]},
  }
  again = curves.connectivity(evaluate, a, undone)
  assert again.mean_barrier[:3] == (0.0, 0.0, 0.0)
  assert again.interpolated_barrier[:3] == (0.0, 0.0, 0.0)


def test_convex_loss_of_a_linear_model_has_no_barrier():
  random = np.random.default_rng(3)
  x, y = random.normal(size=(40, 4)), random.normal(size=40)
  a, b = ({"w": random.normal(size=4).astype(np.float32)} for _ in range(2))
  evaluate = lambda params: (x @ np.float64(params["w"]) - y) ** 2  # noqa: E731
  found = curves.connectivity(evaluate, a, b, grid=21)
  assert found.interpolated_barrier.value == 0.0
  assert found.mean_barrier.value == pytest.approx(abs(found.values[0] - found.values[-1]) / 2)
  swapped = curves.connectivity(evaluate, b, a, grid=21)
  assert swapped.mean_barrier.value == pytest.approx(found.mean_barrier.value)
  # The values along the path are a parabola in lambda.
  middle = evaluate({"w": (np.float64(a["w"]) + b["w"]) / 2}).mean()
  assert found.values[10] == pytest.approx(middle, rel=1e-5)
  assert (found.low <= found.values).all() and (found.values <= found.high).all()


def test_reward_form():
  """A reward that is higher in the middle has no barrier; its negative has one of 1/4."""
  a, b = {"w": np.zeros(1, np.float32)}, {"w": np.ones(1, np.float32)}
  bump = lambda params: np.full(8, float(params["w"][0] * (1 - params["w"][0])))  # noqa: E731
  assert curves.connectivity(bump, a, b, maximize=True).interpolated_barrier.value == 0.0
  found = curves.connectivity(bump, a, b, maximize=False, grid=[0.0, 0.5, 1.0])
  assert found.mean_barrier.value == pytest.approx(0.25) and found.worst == 0.5


def test_bad_metrics_are_refused():
  a, b = {"w": np.zeros(2, np.float32)}, {"w": np.ones(2, np.float32)}
  with pytest.raises(BadData, match=r"lambda \[1\.0\]"):
    curves.connectivity(
      lambda p: np.log(1 - np.minimum(p["w"], 1)) if p["w"][0] < 1 else [np.nan] * 2, a, b
    )
  with pytest.raises(BadData, match="one number an item"):
    curves.connectivity(lambda p: np.float64(1.0), a, b)
  with pytest.raises(MismatchedTrees, match="'w'"):
    curves.connectivity(lambda p: np.ones(2), a, {"w": np.ones(3, np.float32)})
  with pytest.raises(ConfigError, match="rise"):
    curves.connectivity(lambda p: np.ones(2), a, b, grid=1)
