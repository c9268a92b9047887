"""Populations of reward models from a section: members, labels, normalisation, ensembles, and what is refused."""

import jax
import numpy as np
import pytest

from wam.checkpoints import records
from wam.core.errors import ConfigError, UnknownName
from wam.data import corruption
from wam.merging.averages import uniform_mean
from wam.recipes import policies, problems, reward_members, reward_models, reward_populations
from wam.training import sharding
from wam.training.workdir import Run

WORLD = {
  "kind": "world",
  "size": {"num_names": 8, "num_values": 4, "num_pairs": 2},
  "num_corpus": 20,
  "num_demonstrations": 20,
  "num_pairs": 33,
  "num_validation_pairs": 16,
  "num_prompts": 16,
  "num_items": 4,
}
SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}
OPTIMIZER = {"learning_rate": 1e-2}
SAMPLING = {"prompt_length": 9, "max_new_tokens": 6}
SECTION = {
  "members": {"num_members": 3, "learning_rates": (1e-2, 3e-2), "dropouts": (0.0, 0.2)},
  "num_steps": 4,
  "batch_size": 8,
  "length": 24,
  "optimizer": OPTIMIZER,
  "label_noise": 0.25,
  "probe_steps": 2,
  "keep_percents": (50,),
}


def open_run(directory):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return Run(directory, seed=0, mesh=mesh, tensorboard=False, show=False)


def timeless(directory):
  """In one order: a record that is written again stands at the end."""
  return sorted(str(records.without_times(r)) for r in records.read(directory))


def train(directory, references=None, **changes):
  data = problems.make(WORLD)
  policy = policies.load_or_make(data.tokenizer(), seed=0, section=SHAPE)
  section = SECTION | changes
  reward_populations.check(section)
  with open_run(directory) as run:
    found = reward_populations.train(
      policy, references or [policy.params], data, run, section=section, sampling=SAMPLING
    )
    samples = reward_models.reference_samples(policy, policy.params, data, run, SAMPLING, "float32")
  return found, samples


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp("population")
  return (*train(directory), directory)


def test_grids():
  found = reward_members.grid(
    num_members=7, learning_rates=(1, 2, 3), dropouts=(0.0, 0.1), starts=(-1, -2, -3)
  )
  assert [s["learning_rate"] for s in found] == [1, 2, 3, 1, 2, 3, 1]
  assert [s["dropout"] for s in found] == [0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.0]
  assert [s["start"] for s in found] == [-1, -2, -3, -2, -3, -1, -3]
  assert [s["seed"] for s in found] == list(range(7))


def test_every_reward_has_mean_0_and_deviation_1_on_samples_of_the_reference(trained):
  found, samples, _ = trained
  normalised = ["warm", "best single", "run average", "member 0", "member 1", "member 2"]
  for name in normalised:
    rewards = found.scorers[name](**samples).astype(np.float64)
    assert abs(rewards.mean()) < 1e-5 and abs(rewards.std() - 1) < 1e-5, name
  assert set(found.scorers) - set(normalised) == {
    "ensemble mean", "ensemble worst case", "ensemble uncertainty weighted"
  }  # fmt: skip


def test_ensembles_are_those_of_normalised_members(trained):
  found, samples, _ = trained
  every = np.stack([found.scorers[f"member {m}"](**samples) for m in range(3)]).astype(np.float64)
  twins = {
    "ensemble mean": every.mean(0),
    "ensemble worst case": every.min(0),
    "ensemble uncertainty weighted": every.mean(0) - 0.5 * every.var(0),
  }
  for name, expected in twins.items():
    np.testing.assert_allclose(found.scorers[name](**samples), expected, rtol=1e-5, atol=1e-6)


def test_the_average_is_that_of_the_weights_before_normalisation(trained):
  found, *_ = trained
  mean = jax.tree.map(lambda *xs: np.mean(np.stack(xs), 0), *found.raw)
  for part in ("embed", "final_norm"):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
      found.average["decoder"][part],
      mean["decoder"][part],
    )
  kernel = np.asarray(found.average["head"]["kernel"] / mean["head"]["kernel"])
  np.testing.assert_allclose(kernel, kernel[0, 0], rtol=1e-4)


def test_one_member_is_its_own_average(trained):
  found, *_ = trained
  best = found.order[0]
  same = found.of_best(1)
  jax.tree.map(np.testing.assert_array_equal, same, found.members[best])


def test_members_are_ordered_by_validation_pairs(trained):
  found, _, directory = trained
  rows = [r for r in records.read(directory) if r["kind"] == "measurement"]
  scores = [r["values"]["accuracy"] for r in rows if r["family"] == "members"]
  assert len(scores) == 3 and {r["split"] for r in rows} == {"validation"}
  assert [scores[m] for m in found.order] == sorted(scores, reverse=True)
  assert rows[-1]["family"] == "WARM" and rows[-1]["label"] == "M = 3"


def test_an_exact_share_of_the_labels_is_swapped_and_which_is_recorded(trained, tmp_path):
  found, _, directory = trained
  (record,) = [r for r in records.read(directory) if r["kind"] == "corruption"]
  assert record["share"] == 0.25 and len(record["swapped"]) == 8  # of 33
  expected = corruption.swapped_rows(33, 0.25, seed=0, stream="warm/corruption")
  assert record["swapped"] == expected.tolist()
  assert found.groups["corrupt_train"].tolist() == record["swapped"]
  assert len(found.groups["clean_train"]) == 25
  data = problems.make(WORLD)
  policy = policies.load_or_make(data.tokenizer(), seed=0, section=SHAPE)
  with open_run(tmp_path) as run:
    clean = reward_members.pair_rows(data.pairs, policy, run, length=24, label_noise=0.0)[0][
      "train"
    ]
  noisy = found.rows["train"].arrays
  for row in range(33):
    name = "rejected" if row in record["swapped"] else "chosen"
    np.testing.assert_array_equal(noisy["chosen"][row], clean.arrays[name][row])


def test_a_run_that_is_done_is_loaded(trained):
  found, _, directory = trained
  before = timeless(directory)
  again, _ = train(directory)
  jax.tree.map(np.testing.assert_array_equal, again.average, found.average)
  jax.tree.map(np.testing.assert_array_equal, again.along, found.along)
  assert timeless(directory) == before


def test_the_run_average_is_of_one_members_checkpoints(trained):
  found, *_ = trained
  assert len(found.along) == 2
  jax.tree.map(np.testing.assert_array_equal, found.along[-1], found.raw[0])
  kernels = [np.asarray(p["head"]["kernel"]) for p in found.along]
  assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_baklava_members_share_the_head_that_was_probed_last(tmp_path):
  """Learning rates of 0 show where members start."""
  data = problems.make(WORLD)
  policy = policies.load_or_make(data.tokenizer(), seed=0, section=SHAPE)
  early = jax.tree.map(lambda x: 1.01 * x, policy.params)
  members = [{"start": -1, "learning_rate": 0.0}, {"start": 0, "learning_rate": 0.0}]
  found, _ = train(tmp_path, [early, policy.params], members=members, keep_percents=())
  assert found.along == [] and "run average" not in found.scorers
  for m, start in enumerate((policy.params, early)):
    jax.tree.map(np.testing.assert_array_equal, found.raw[m]["decoder"]["embed"], start["embed"])
  jax.tree.map(np.testing.assert_array_equal, found.raw[0]["head"], found.raw[1]["head"])


@pytest.mark.slow
def test_heads_alone_average_as_predictions_do(tmp_path):
  """Where only heads differ, WARM of the members as they are is the mean of their rewards."""
  frozen = {"learning_rate": 1e-1, "trainable": r"head/.*"}
  found, samples = train(tmp_path, optimizer=frozen, members=[{}, {}, {}], probe_steps=0)
  raw = np.stack([found.scorer(p, "member")(**samples) for p in found.raw]).astype(np.float64)
  assert np.ptp(raw, axis=0).min() > 1e-4
  average = found.scorer(uniform_mean(found.raw), "average")(**samples)
  np.testing.assert_allclose(average, raw.mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"members": []}, ConfigError, "M = 0"),
    ({"members": {"num_members": 0, "learning_rates": (1.0,)}}, ConfigError, "num_members is 0"),
    ({"members": [{"learning_rat": 1.0}]}, ConfigError, r"warm.members\[0\].*learning_rat"),
    ({"members": [{"dropout": 1.0}]}, ConfigError, "dropout is 1.0"),
    ({"members": [{"start": 0.5}]}, ConfigError, "start is 0.5"),
    ({"label_noise": 1.5}, ConfigError, "share of swapped labels"),
    ({"variance_coefficient": -1.0}, ConfigError, "variance_coefficient"),
    ({"batchsize": 1}, ConfigError, "batchsize"),
    ({"keep_percents": (100,)}, ConfigError, "keep_percents"),
    ({"members": [{"start": -2}]}, ConfigError, "there is no start -2 among 1"),
    ({"mode": "at once"}, UnknownName, "at once"),
  ],
)
def test_refused(tmp_path, changes, error, message):
  with pytest.raises(error, match=message):
    train(tmp_path, **changes)
