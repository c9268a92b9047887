"""Which runs a Rewarded Soups study trains, and which points are made of them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.recipes import soup_models, tuning
from wam.recipes.soup_models import MOD, MORL, PERSONALISED, SOUPS

NAMES = ["a", "b"]
HALF = soup_models.grid(NAMES, intervals=2)
QUARTERS = soup_models.grid(NAMES, intervals=4)


def runs(mixtures=(), adapters=None, mitigation=None):
  return soup_models.runs(
    NAMES,
    algorithm="reinforce",
    section={"num_iterations": 1},
    mitigation=mitigation or {},
    mixtures=mixtures,
    adapters=adapters,
  )


def test_grids():
  assert HALF == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
  assert soup_models.grid("abc") == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
  # Further points come behind, and none twice.
  also = soup_models.grid(NAMES, intervals=2, also=[{"b": 0.1, "a": 0.9}, {"a": 0.5, "b": 0.5}])
  assert also == [*HALF, (0.9, 0.1)]


@pytest.mark.parametrize(
  ("keywords", "message"),
  [
    ({"also": [{"a": 0.7, "b": 0.7}]}, r"morl.also: \[0.7, 0.7\] is off the simplex"),
    ({"also": [{"a": 1.5, "b": -0.5}]}, "is off the simplex"),
    ({"also": [{"a": 0.5}]}, "found the sum 0.5"),
    ({"also": [(0.5, 0.5)]}, "expected a number by name of a reward"),
    ({"also": [{"a": 0.5, "c": 0.5}]}, "unknown reward in morl.also 'c'"),
    ({"intervals": -1}, "needs 1 reward and 1 interval at least"),
  ],
)
def test_lambdas_off_the_simplex(keywords, message):
  with pytest.raises((ConfigError, UnknownName), match=message):
    soup_models.grid(NAMES, where="morl", **keywords)


def test_a_single_reward_is_not_trained_twice():
  found = runs(QUARTERS, adapters={"rank": 2}, mitigation={"l2": {"coefficient": 0.1}})
  assert [t.plan.stage for t in found.every] == [
    "reinforce-reward-a",
    "reinforce-reward-b",
    "reinforce-MORL-0.75_0.25",
    "reinforce-MORL-0.5_0.5",
    "reinforce-MORL-0.25_0.75",
    "reinforce-LoRA-a",
    "reinforce-LoRA-b",
  ]
  assert [t.preference for t in found.single] == [(1.0, 0.0), (0.0, 1.0)]
  assert found.mixed[0].preference == (0.75, 0.25)
  l2 = {"l2": {"coefficient": 0.1}}
  assert all(t.plan.mitigation == l2 for t in found.single + found.mixed)
  assert found.adapted[0].plan.mitigation == l2 | {"lora": {"rank": 2}}


def test_candidates_in_order_and_their_identities():
  every = runs(HALF, adapters={"rank": 2})
  found = soup_models.candidates(every, soups=QUARTERS, decoded=HALF, mixtures=HALF)
  assert [c.family for c in found] == [
    "init",
    *[SOUPS] * 5,
    *[MORL] * 3,
    *[MOD] * 3,
    *[PERSONALISED] * 5,
  ]
  assert found[0].label == "θ_0" and found[2].label == "λ = 0.75 | 0.25"
  by_name = {(c.family, c.coefficients): c for c in found}
  # The corners of soups, MORL and MOD are one model: the run on that reward.
  for corner in ((1.0, 0.0), (0.0, 1.0)):
    corners = [by_name[family, corner] for family in (SOUPS, MORL, MOD)]
    assert len({c.identity for c in corners}) == 1 and not any(c.decoded for c in corners)
  middle = [by_name[family, (0.5, 0.5)] for family in (SOUPS, MORL, MOD, PERSONALISED)]
  assert len({c.identity for c in middle}) == 4
  assert [c.decoded for c in middle] == [False, False, True, False]
  assert [p.stage for p in middle[1].members] == ["reinforce-MORL-0.5_0.5"]
  # 1 + 5 soups + 1 of MORL + 1 of MOD + 5 with adapters.
  assert len({c.identity for c in found}) == 13


def test_weights(monkeypatch):
  values = {"reinforce-reward-a": 1.0, "reinforce-reward-b": 3.0, "reinforce-MORL-0.5_0.5": 7.0}
  loaded = []

  def load(plan, setting):
    loaded.append(plan.stage)
    kernel = jnp.full((2, 2), values[plan.stage])
    return {"embed": kernel, "layers": {"k": jnp.stack([kernel, kernel])}}

  monkeypatch.setattr(tuning, "load", load)
  weights = soup_models.Weights(types.SimpleNamespace(reference={"embed": jnp.zeros(2)}))
  every = runs(HALF)
  found = soup_models.candidates(every, soups=QUARTERS, decoded=HALF, mixtures=HALF)
  made = {(c.family, c.coefficients): weights(c) for c in found}
  assert np.all(made["init", ()]["embed"] == 0)
  for first, value in ((1.0, 1), (0.75, 1.5), (0.5, 2), (0.25, 2.5), (0.0, 3)):
    jax.tree.map(
      lambda x, value=value: np.testing.assert_array_equal(x, np.full(x.shape, value)),
      made[SOUPS, (first, 1 - first)],
    )
  assert np.all(made[MORL, (0.5, 0.5)]["embed"] == 7)
  mixed = made[MOD, (0.5, 0.5)]
  np.testing.assert_array_equal(mixed["coefficients"], [0.5, 0.5])
  assert np.all(mixed["layers"]["1"]["layers"]["0"]["k"] == 3)
  # Members are held from one soup to the next.
  assert loaded.count("reinforce-reward-a") <= 4
