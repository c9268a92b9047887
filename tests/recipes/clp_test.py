"""The recipe at toy size: budgets, records of every policy, and runs that are killed."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.toys import TINY
from wam import pretrained
from wam.checkpoints import records
from wam.cli import configs
from wam.core import trees
from wam.core.errors import ConfigError, UnknownName
from wam.recipes import clp_variants, runs
from wam.training import sharding

# Of those, the ones that this recipe has.
SHARED = ("problem", "model", "pretrain", "sft")
TOY = [override for override in TINY if override.split(".")[1] in SHARED] + [
  "--config.problem.num_pairs=0",
  "--config.problem.num_validation_pairs=0",
  "--config.problem.num_prompts=96",
  "--config.problem.num_items=4",
  "--config.reinforce.num_iterations=1",
  "--config.reinforce.prompts_per_iteration=8",
  "--config.reinforce.samples_per_prompt=2",
  "--config.reinforce.batch_size=8",
  "--config.clp.preferences_per_iteration=2",
  "--config.clp.prompts_per_preference=8",
  "--config.clp.samples_per_prompt=2",
  "--config.clp.updates_per_iteration=2",
  "--config.grid.intervals=2",
  "--config.evaluation.num_seeds=2",
]
KINDS = ("full", "attention", "logit", "prompt")
REINFORCE = {
  "num_iterations": 6, "prompts_per_iteration": 16, "samples_per_prompt": 4, "kl_coef": 0.25,
}  # fmt: skip
CLP = {
  "preferences_per_iteration": 4, "prompts_per_preference": 8, "samples_per_prompt": 4,
  "updates_per_iteration": 2, "optimizer": {"learning_rate": 1e-3},
}  # fmt: skip
SAMPLING = {"prompt_length": 9, "max_new_tokens": 14}


def plan(**changes):
  return clp_variants.variants(CLP | changes, ["a", "b", "c"], REINFORCE, SAMPLING)


def test_compute_is_that_of_all_single_runs():
  """6·16·4 completions for each of 3 rewards are 9 iterations of 4·8·4; α/(1 - α) = 0.25 is α = 0.2."""
  found = plan()
  assert [variant.kind for variant in found] == list(KINDS)
  for variant in found:
    assert variant.settings["num_iterations"] == 9
    assert variant.completions == 3 * 6 * 16 * 4
    assert variant.settings["kl_weight"] == pytest.approx(0.2)
  (only,) = plan(kinds=("full",), num_iterations=2, overrides={"full": {"kl_weight": 0.5}})
  assert only.completions == 256 and only.settings["kl_weight"] == 0.5


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"prompts_per_preference": 7}, ConfigError, "112 completions an iteration do not divide"),
    ({"kinds": ("ful",)}, UnknownName, "Did you mean 'full'"),
    ({"overrides": {"logits": {}}}, UnknownName, "Did you mean 'logit'"),
    ({"kl_weight": (0.1, 0.2)}, ConfigError, "measures a single α"),
    ({"preference_per_iteration": 2}, ConfigError, "preferences_per_iteration"),
    ({"overrides": {"full": {"updates_per_iteration": 3}}}, ConfigError, "must divide the 32"),
  ],
)
def test_refuses_sections_that_cannot_work(changes, error, message):
  with pytest.raises(error, match=message):
    plan(**changes)


def test_refuses_what_the_devices_do_not_divide():
  """Before anything is trained; the tests have 8 devices."""
  mesh = sharding.make_mesh()
  clp_variants.check_batches(plan(), mesh)
  with pytest.raises(ConfigError, match="'full', prompts of one preference: a batch of 4 cannot"):
    clp_variants.check_batches(plan(prompts_per_call=4), mesh)
  with pytest.raises(ConfigError, match="completions of one preference: a batch of 4 cannot"):
    clp_variants.check_batches(plan(accumulate_steps=4), mesh)


def toy_config():
  path = REPOSITORY / "configs/clp/tiny.py"
  return configs.parse(["--config", str(path), *TOY], verb="run")[0]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("clp") / "run"
  runs.run(toy_config(), directory, command="wam run", show=False)
  return directory


def test_a_user_named_as_a_reward_is_refused(tmp_path):
  """Its policy would lie where that of the reward alone does."""
  config = json.loads(json.dumps(toy_config()))
  name = next(iter(config["rewards"]))
  config["preferences"] = {name: {name: 1.0}}
  with pytest.raises(ConfigError, match=f"preferences.{name}: a model called {name} is written"):
    runs.run(config, tmp_path / "run", command="wam run", show=False)
  assert not (tmp_path / "run").exists()


def comparable(directory):
  """The records without what depends on the clock, in an order that does not."""
  found = [records.without_times(r) for r in records.read(directory / "records.jsonl")]
  for record in found:
    if record.get("study") == "compute":
      record["values"].pop("seconds")
  return sorted(json.dumps(record, sort_keys=True) for record in found)


@pytest.mark.slow
def test_policies_of_given_preferences_are_plain_models(workdir):
  """Half of each reward lies half-way between one and the other, where all weights are conditioned."""
  left = workdir / "models"
  names = ("warm_words", "topic_words", "balanced")
  assert {d.name for d in left.iterdir()} == {
    f"{k}_{n}" for k in ("full", "attention") for n in names
  }
  first, second, middle = (trees.flatten(pretrained.load(left / f"full_{n}").params) for n in names)
  for leaf, value in middle.items():
    np.testing.assert_allclose(value, (first[leaf] + second[leaf]) / 2, rtol=1e-5, atol=1e-7)
  assert any((first[leaf] != second[leaf]).any() for leaf in first)


@pytest.mark.slow
def test_every_policy_is_measured(workdir):
  found = records.read(workdir / "records.jsonl")
  points = [r for r in found if r.get("study") == "front" and r["kind"] == "measurement"]
  families = ["init", "rewarded soups", *(f"CLP {kind}" for kind in KINDS)]
  assert list(dict.fromkeys(r["family"] for r in points)) == families
  test = [r for r in points if r["split"] == "test"]
  assert len(test) == 1 + 5 * 3 and len(points) == 2 * len(test)
  for point in test:
    assert np.isfinite(list(point["values"].values())).all() and point["values"]["kl"] >= 0
    assert point["seeds"] == 2
    if point["family"] != "init":
      assert sum(point["x"].values()) == pytest.approx(1)
  samples = [r for r in found if r["kind"] == "samples"]
  assert len(samples) == len(test) and all(r["completions"] for r in samples)
  compute = {r["family"]: r["values"] for r in found if r.get("study") == "compute"}
  assert {values["completions"] for values in compute.values()} == {32}
  # Two copies of all, two of attention alone, two of all, 24 more rows of 16 numbers.
  single = compute["rewarded soups"]["numbers"] / 2
  assert compute["CLP full"]["numbers"] == compute["CLP logit"]["numbers"] == 2 * single
  assert compute["CLP attention"]["numbers"] == single + 3 * 4 * 16 * 16
  assert compute["CLP prompt"]["numbers"] == single + 24 * 16
  fronts = [r for r in found if r["kind"] == "front"]
  assert [r["family"] for r in fronts] == families[1:]
  compared = [r for r in found if r.get("study") == "comparison"]
  assert [r["family"] for r in compared] == families[2:]
  for record in compared:
    low, high = record["intervals"]["expected_utility_gain"]
    assert low <= high


@pytest.mark.slow
def test_run_again_and_killed_it_ends_the_same(workdir, tmp_path):
  """Once more, and from what a kill in the middle of the measuring leaves."""
  before = comparable(workdir)
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy)
  runs.run(toy_config(), workdir, command="wam run", show=False)
  assert comparable(workdir) == before
  lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
  ends = [i for i, line in enumerate(lines) if json.loads(line)["kind"] == "samples"]
  cut = ends[len(ends) // 2]
  (copy / "records.jsonl").write_text("".join(lines[: cut + 1]) + lines[cut + 1][:20])
  runs.run(toy_config(), copy, command="wam run", show=False)
  assert comparable(copy) == before
