"""The whole recipe at toy size: records, models, a kill while it measures; and what is refused before it trains."""

import json
import shutil

import numpy as np
import pytest

from tests.recipes import comparisons_test
from wam import pretrained
from wam.checkpoints import records
from wam.core.errors import ConfigError
from wam.recipes import runs, warp_plans

OPTIMIZER = {"learning_rate": 1e-2}


def config(**changes):
  """The toy world with one reward model; two episodes of two members."""
  base = comparisons_test.config()
  kept = ("seed", "problem", "model", "pretrain", "sft", "reward_model", "sampling")
  return {name: base[name] for name in kept} | {
    "recipe": "warp",
    "warp": {"num_episodes": 2, "num_members": 2, "etas": (0.5,)},
    "reinforce": {
      "num_iterations": 2,
      "prompts_per_iteration": 8,
      "samples_per_prompt": 2,
      "anchor": "ema",
      "ema_rate": 0.1,
      "optimizer": OPTIMIZER,
    },
    "comparisons": {
      "merge": {"lerp": {"warp": {"merge": "lerp", "num_episodes": 1}}},
      "static anchor": {
        f"β{10 * beta:g}": {"label": f"β = {beta}", "settings": {"anchor": "init", "ema_rate": None, "kl_coef": beta}}
        for beta in (0.1, 0.5)
      },
    },
    "front": {"measure_every": 1, "kl_limit": 5.0, "budgets": (1.0,)},
    "evaluation": {"num_seeds": 2},
  } | changes  # fmt: skip


def run(directory, **changes):
  runs.run(config(**changes), directory, command="a test", show=False)


def of_kind(directory, kind):
  return [r for r in records.read(directory) if r["kind"] == kind]


def comparable(directory):
  found = [records.without_times(r) for r in records.read(directory)]
  return sorted(json.dumps(r, sort_keys=True) for r in found)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  directory = tmp_path_factory.mktemp("warp") / "run"
  run(directory)
  return directory


@pytest.mark.slow
def test_every_policy_is_measured(done):
  section = config()
  plans = warp_plans.plans(**{k: section[k] for k in ("warp", "reinforce", "comparisons")})
  models = warp_plans.candidates(plans, measure_every=1)
  found = of_kind(done, "measurement")
  test = [r for r in found if r["split"] == "test" and r["study"] == "front"]
  assert [(r["family"], r["label"]) for r in test] == [(m.family, m.label) for m in models]
  by_name = {(r["family"], r["label"]): r for r in test}
  first = by_name["init", "SFT"]
  assert first["values"]["kl"] == first["x"]["kl"] == 0
  for family in ("WARP, episode 1", "WARP, episode 2"):
    at_0, half, whole = (by_name[family, f"η = {eta}"]["values"] for eta in ("0", "0.5", "1"))
    assert at_0 == first["values"]
    assert 0 < half["kl"] < whole["kl"]
    assert whole["kl_per_token"] == pytest.approx(whole["kl"] / whole["length"])
  names = {"reward_proxy", "reward_gold", "kl", "length", "kl_per_token", "skill_facts"}
  assert all(names <= set(r["values"]) and r["seeds"] == 2 for r in test)
  points = [r for r in of_kind(done, "point") if r["split"] == "test"]
  assert len(points) == 2 * len(test)
  for record in test:
    own = [p for p in points if (p["family"], p["label"]) == (record["family"], record["label"])]
    for name in ("reward_gold", "kl", "length"):
      expected = np.mean([p["items"][name] for p in own])
      assert record["values"][name] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_fronts_samples_and_models(done):
  fronts = of_kind(done, "front")
  volumes = {(r["family"], r["x"]): r for r in fronts if r["y"] == "kl"}
  assert ("WARP", "reward_gold") in volumes and ("static anchor", "reward_proxy") in volumes
  assert all(r["reference"][1] == 5.0 for r in volumes.values())
  assert {r["y"] for r in fronts} >= {"kl", "facts"}
  shown = of_kind(done, "samples")
  assert {r["family"] for r in shown} == {"init", "WARP, episode 1", "WARP, episode 2"}
  assert all(0 < len(r["prompts"]) == len(r["completions"]) <= 4 for r in shown)
  assert all(r["prompts"][0].startswith("chat ") for r in shown)
  assert len(of_kind(done, "cosines")) == 3
  (choice,) = of_kind(done, "selection")
  assert choice["family"] == "WARP, episode 2"
  loaded = {n: pretrained.load(done / "models" / n) for n in ("sft", "merged", "selected")}
  kernels = {n: np.asarray(m.params["embed"]["embedding"]) for n, m in loaded.items()}
  assert not np.array_equal(kernels["sft"], kernels["merged"])
  chosen = {"η = 0": "sft", "η = 1": "merged"}.get(choice["label"])
  if chosen:
    np.testing.assert_array_equal(kernels["selected"], kernels[chosen])
  else:
    middle = (kernels["sft"].astype(np.float64) + kernels["merged"]) / 2
    np.testing.assert_allclose(kernels["selected"], middle, atol=1e-6)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(done, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(done, copy)
  path = copy / records.FILE_NAME
  kept = path.read_text().splitlines(keepends=True)
  middle = [i for i, line in enumerate(kept) if json.loads(line)["kind"] == "point"][9]
  path.write_text("".join(kept[: middle + 1]) + kept[middle + 1][:20])
  run(copy)
  assert comparable(copy) == comparable(done)


@pytest.mark.slow
def test_the_proxy_can_be_a_population(tmp_path):
  """The full loop: the average of two reward models, one of them from a checkpoint of fine-tuning."""
  warm = {
    "members": ({"start": 0}, {"start": -1}),
    "probe_steps": 1,
    "num_steps": 2,
    "batch_size": 8,
    "length": 24,
    "optimizer": OPTIMIZER,
  }
  sft = config()["sft"] | {"keep_percents": (50,)}
  small = {"num_episodes": 1, "num_members": 1, "etas": ()}
  keywords = {"warm": warm, "sft": sft, "warp": small, "comparisons": None, "front": None}
  run(tmp_path, reward_model=None, **keywords)
  assert {"warm", "warp-episode_1-member_0"} <= {r["stage"] for r in of_kind(tmp_path, "metric")}
  values = of_kind(tmp_path, "measurement")[-1]["values"]
  assert any(name.startswith("reward_") for name in values)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"warp": {"merge": "slerp", "groupe": "leaf"}}, "warp: unknown key 'groupe'"),
    ({"front": {"kl_limits": 1}}, "front: unknown key 'kl_limits'.*kl_limit"),
    ({"front": {"kl_limit": -1.0}}, "nats of a completion above 0"),
    ({"front": {"measure_every": 0}}, "measure_every"),
    ({"reward_model": None}, "reward_model: give this section, or warm"),
    ({"reinforce": {"num_iterations": 1}}, "missing key"),
    ({"evaluations": {}}, "unknown key 'evaluations'"),
  ],
)
def test_refused_before_anything_is_written(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    run(tmp_path / "run", **changes)
  assert not (tmp_path / "run").exists()
