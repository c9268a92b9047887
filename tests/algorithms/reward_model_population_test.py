"""Members of WARM: the probe, the three ways to train them, dropout, swapped labels, and what is refused."""

import jax
import numpy as np
import pytest

from tests.algorithms.small_test_models import open_run
from wam.algorithms import reward_model, reward_model_population
from wam.core import trees
from wam.core.errors import ConfigError, UnknownName
from wam.data import corruption
from wam.data.batching import Batches
from wam.merging import averages
from wam.models.config import DecoderConfig
from wam.models.heads import ScalarModel
from wam.training import member_axis, member_runs, pair_objectives
from wam.training.members import SETTINGS

CONFIG = DecoderConfig(
  vocab_size=12, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, head_dim=8
)
MODEL = ScalarModel(CONFIG)
OPTIMIZER = {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 2}
MEMBERS = (
  {"learning_rate": 1e-3, "dropout": 0.05, "seed": 1},
  {"learning_rate": 4e-3, "dropout": 0.3, "seed": 2, "weight_decay": 0.1},
  {"learning_rate": 1e-2, "dropout": 0.0, "seed": 3},
)


def pairs(count=24, length=6):
  draw = np.random.default_rng(0)
  sides = draw.integers(2, 12, (2, count, length)).astype(np.int32)
  masks = np.arange(length) < draw.integers(2, length + 1, (2, count))[..., None]
  return dict(
    zip(("chosen", "rejected", "chosen_mask", "rejected_mask"), (*sides, *masks), strict=True)
  )


def batches(seed, share=0.0):
  rows = pairs()
  swapped = corruption.swapped_rows(24, share, seed=seed)
  return Batches(
    corruption.swap_arrays(rows, swapped), batch_size=8, seed=seed, stream="rm/batches"
  )


def inputs():
  """A member's own order; the labels of the second are noisy."""
  return [batches(1), batches(2, share=0.25), batches(3)]


def start(seed=0):
  return MODEL.init(jax.random.key(seed))


def train(directory, *, mesh=None, params=None, **keywords):
  settings = {"num_steps": 6, "optimizer": OPTIMIZER, "members": MEMBERS, "log_every": 3} | keywords
  with open_run(directory) as run:
    run.mesh = mesh or run.mesh
    stacked = reward_model_population.run(
      MODEL, start() if params is None else params, inputs(), run=run, stage="rm", **settings
    )
  return jax.device_get(stacked)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
  return train(tmp_path_factory.mktemp("sequential"), mode="sequential")


def assert_same_bits(a, b):
  for name, x in trees.flatten(a).items():
    np.testing.assert_array_equal(x, trees.flatten(b)[name], err_msg=name)


@pytest.mark.slow
def test_one_program_gives_the_bits_of_the_members_own_runs(sequential, tmp_path):
  assert_same_bits(train(tmp_path, vectorize=False), sequential)
  assert len({x.tobytes() for x in sequential["head"]["kernel"]}) == 3


@pytest.mark.slow
def test_members_on_devices_of_their_own_have_the_same_bits(sequential, tmp_path):
  mesh = member_axis.make_mesh({"member": 3, "data": 1}, devices=jax.devices()[:3])
  assert_same_bits(train(tmp_path, mesh=mesh), sequential)


@pytest.mark.slow
def test_vmap_is_near(sequential, tmp_path):
  """Six updates of at most 1e-2 (the peak), each a few roundings of the gradient off where Adam's ratio is ±1."""
  found = train(tmp_path, vectorize=True)
  for name, x in trees.flatten(found).items():
    off = np.abs(x - trees.flatten(sequential)[name])
    assert off.max() < 1e-4, name
    assert np.median(off) < 1e-6, name


@pytest.mark.slow
def test_jobs_meet(sequential, tmp_path):
  recipe = reward_model_population.recipe(
    MODEL, stage="rm", num_steps=6, optimizer=OPTIMIZER, members=MEMBERS, log_every=3
  )
  for m in range(3):
    with open_run(tmp_path) as run:
      member_runs.fit_member(recipe, m, start(), inputs()[m], run=run)
  with open_run(tmp_path) as run:
    found = member_runs.gather(recipe, start(), run=run)
  assert_same_bits(jax.device_get(found), sequential)


@pytest.mark.slow
def test_a_probed_head_is_shared_by_all_members(tmp_path):
  """Baklava: trunks of two checkpoints, one head, probed on the last of them; learning rates of 0 show the starts."""
  early = start()
  trunk = jax.tree.map(lambda x: 1.01 * x, early["decoder"])
  late = {"decoder": trunk, "head": start(1)["head"]}
  members = [{"learning_rate": 0.0}] * 3
  probe = {"learning_rate": 0.1}
  found = train(
    tmp_path, params=[early, late, late], members=members, optimizer={}, num_steps=1, probe_steps=4,
    probe_batches=batches(9), probe_optimizer=probe,
  )  # fmt: skip
  assert not np.array_equal(found["head"]["kernel"][0], late["head"]["kernel"])
  for m, start_of_member in enumerate((early, late, late)):
    own = jax.tree.map(lambda x, m=m: x[m], found)
    assert_same_bits(own["head"], jax.tree.map(lambda x: x[0], found["head"]))
    assert_same_bits(own["decoder"], jax.device_get(start_of_member["decoder"]))


def test_starts_get_one_head_and_stay_what_they_are():
  early, late = start(), start(1)
  found = reward_model_population.with_head([early, early, late], late["head"])
  assert found[0] is found[1]  # one tree stays one: it is repeated in the program, not copied
  for m, start_of_member in enumerate((early, early, late)):
    assert found[m]["decoder"] is start_of_member["decoder"]
    assert found[m]["head"] is late["head"]
  assert early["head"] is not late["head"]


@pytest.mark.slow
def test_the_probe_is_that_of_one_reward_model(tmp_path):
  still, probe = {"learning_rate": 0.0}, {"learning_rate": 0.1}
  keywords = {"num_steps": 1, "optimizer": still, "probe_steps": 4, "probe_optimizer": probe}
  found = train(tmp_path, members=[still] * 3, probe_batches=batches(9), **keywords)
  with open_run(tmp_path / "alone") as run:
    alone = reward_model.run(MODEL, start(), batches(9), run=run, stage="rm", **keywords)
  for m in range(3):
    np.testing.assert_allclose(
      found["head"]["kernel"][m], alone["head"]["kernel"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_one_input_twice_gives_one_member_twice(tmp_path):
  """Members with equal settings, seed and data are equal, and so is their average."""
  member = {"dropout": 0.1, "seed": 4}
  with open_run(tmp_path) as run:
    stacked = reward_model_population.run(
      MODEL, start(), [batches(1), batches(1)], run=run, stage="rm", num_steps=3,
      optimizer=OPTIMIZER, members=[member, member],
    )  # fmt: skip
  first, second = trees.unstack(stacked)
  assert_same_bits(first, second)
  assert_same_bits(averages.weighted_mean(stacked), first)


def test_dropout_of_the_features():
  """A share p of the features is 0, the others are divided by 1 - p; a traced p draws what a known one does."""
  model, params = MODEL, start()
  batch = {n: x[:8] for n, x in pairs().items()}
  key = jax.random.key(5)
  alone = pair_objectives.bradley_terry(model, dropout=0.25)
  found = alone(params, batch, key, {})
  traced = jax.jit(
    lambda p: pair_objectives.bradley_terry(model)(params, batch, key, {SETTINGS: {"dropout": p}})
  )(0.25)
  np.testing.assert_allclose(found[0], traced[0], rtol=1e-6)
  kept = np.asarray(jax.random.uniform(key, (16, 16))) >= 0.25
  tokens, mask = (
    np.stack([batch[f"chosen{s}"], batch[f"rejected{s}"]], 1).reshape(16, -1) for s in ("", "_mask")
  )
  hidden = np.asarray(model.hidden(params, tokens, mask=mask))
  features = hidden[np.arange(16), mask.sum(1) - 1] * kept / 0.75
  rewards = features @ np.asarray(params["head"]["kernel"])[:, 0]
  expected = np.logaddexp(0, rewards[1::2] - rewards[0::2]).sum()
  np.testing.assert_allclose(found[0], expected, rtol=1e-5)
  np.testing.assert_allclose(
    pair_objectives.bradley_terry(model)(params, batch, key, {SETTINGS: {"dropout": 0.0}})[0],
    pair_objectives.bradley_terry(model)(params, batch, key, {})[0],
    rtol=0,
  )


@pytest.mark.parametrize(
  ("keywords", "error", "message"),
  [
    ({"members": []}, ConfigError, "M = 0"),
    ({"mode": "sequentially"}, UnknownName, "Did you mean 'sequential'"),
    ({"members": [{"dropout": 1.0}] * 3}, ConfigError, "dropout is 1.0"),
    ({"members": [{"droput": 0.1}] * 3}, ConfigError, r"rm.members\[0\]: unknown key 'droput'"),
    ({"members": [{}, {}, {"optimizer": {"schedule": "cosine"}}]}, ConfigError, "schedule is 'linear' in member 0"),
    (
      {"params": lambda: [start(), start(), start() | {"head": start(1)["head"]}]}, ConfigError,
      "different heads .head/kernel",
    ),
    ({"params": lambda: [start(), start(), start(1)]}, ConfigError, "do not share the init: 2 "),
    ({"probe_steps": 3}, ConfigError, "no probe_batches"),
  ],
)  # fmt: skip
def test_what_is_refused(keywords, error, message, tmp_path):
  made = {n: x() if callable(x) else x for n, x in keywords.items()}
  with pytest.raises(error, match=message):
    train(tmp_path, **made)
  assert not (tmp_path / "checkpoints").exists()
