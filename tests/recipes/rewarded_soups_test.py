"""The recipe at toy size: from a config to its records, resumed after a kill, and what is refused before training."""

import json
import shutil

import jax
import numpy as np
import pytest

from wam import pretrained
from wam.checkpoints import records
from wam.core.errors import WamError
from wam.merging.averages import weighted_mean
from wam.recipes import runs, soup_models

CONFIG = {
  "recipe": "rewarded_soups",
  "seed": 0,
  "problem": {
    "kind": "world",
    "num_corpus": 8,
    "num_demonstrations": 8,
    "num_pairs": 0,
    "num_validation_pairs": 0,
    "num_prompts": 16,
    "num_items": 8,
  },
  "model": {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "initializer_range": 0.3,
    "stacked": False,
  },
  "rewards": {
    "warm": {"kind": "world", "component": "warm_words"},
    "short": {"kind": "rule", "rule": "length", "target": 2},
  },
  "judges": {"gold": {"kind": "world", "component": "gold", "normalise": "none"}},
  "sampling": {"prompt_length": 9, "max_new_tokens": 5},
  "reinforce": {
    "num_iterations": 1,
    "prompts_per_iteration": 8,
    "samples_per_prompt": 2,
    "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
  },
  "soups": {"intervals": 2, "also": [{"warm": 0.9, "short": 0.1}]},
  "morl": {"intervals": 2},
  "decoding": {"intervals": 2},
  "preferences": {"both": {"warm": 0.5, "short": 0.5}},
  "evaluation": {"num_seeds": 2},
  "fronts": {"num_resamples": 20, "reference": {"warm": -3.0, "short": -3.0}},
}


def run(workdir):
  runs.run(CONFIG, workdir, command="test", show=False)
  return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return run(tmp_path_factory.mktemp("soups") / "run")


def measured(workdir, split="test"):
  found = records.read(workdir)
  chosen = [r for r in found if r["kind"] == "measurement" and r["stage"] == "front"]
  return {(r["family"], r["label"]): r for r in chosen if r["split"] == split}


@pytest.mark.slow
def test_every_point_is_measured_on_both_splits(workdir):
  lambdas = ["1 | 0", "0.5 | 0.5", "0 | 1"]
  expected = [("init", "θ_0")]
  expected += [("rewarded soups", f"λ = {x}") for x in (*lambdas, "0.9 | 0.1")]
  expected += [(family, f"λ = {x}") for family in ("MORL", "MOD") for x in lambdas]
  assert list(measured(workdir)) == list(measured(workdir, "validation")) == expected
  for record in measured(workdir).values():
    values = record["values"]
    names = {
      "reward_warm",
      "reward_short",
      "reward_gold",
      "kl",
      "length",
      "facts",
      "passages",
      "translation",
    }
    assert names <= set(values) and np.isfinite(list(values.values())).all()
    items = record["items"]
    assert np.shape(items["warm"]) == np.shape(items["short"]) == (2, 8) and record["seeds"] == 2
    assert 0 <= np.min(items["gold"]) <= np.max(items["gold"]) <= 1
    assert np.mean(items["short"]) == pytest.approx(values["reward_short"], abs=1e-5)
    assert values["kl"] >= 0 and record["halves"]["reward_short"] > 0
  assert measured(workdir)["init", "θ_0"]["values"]["kl"] == 0
  assert measured(workdir)["MOD", "λ = 0.5 | 0.5"]["values"]["kl"] > 0
  assert "facts" not in measured(workdir, "validation")["init", "θ_0"]["values"]
  x = measured(workdir)["rewarded soups", "λ = 0.9 | 0.1"]["x"]
  assert x == {"lambda_warm": 0.9, "lambda_short": 0.1}


@pytest.mark.slow
def test_a_single_reward_is_one_model_in_all_families(workdir):
  found = measured(workdir)
  for corner in ("λ = 1 | 0", "λ = 0 | 1"):
    values = [found[family, corner]["values"] for family in ("rewarded soups", "MORL", "MOD")]
    assert values[0] == values[1] == values[2]
  stages = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert stages == {"reinforce-reward-warm", "reinforce-reward-short", "reinforce-MORL-0.5_0.5"}
  # And what MORL trains on there is the reward itself.
  scorers = {"warm": object(), "short": object()}
  policy, *_ = [type("Policy", (), {"model": pretrained.load(workdir / "models/both").model})]
  found = soup_models.optimised(scorers, (0.0, 1.0), policy, {})
  assert found.scorers["proxy"] is scorers["short"]


@pytest.mark.slow
def test_samples_of_every_lambda(workdir):
  found = [r for r in records.read(workdir) if r["kind"] == "samples"]
  assert [(r["family"], r["label"]) for r in found] == list(measured(workdir))
  for record in found:
    assert len(record["prompts"]) == len(record["completions"]) == 4
    assert all(prompt.startswith("chat ") for prompt in record["prompts"])


@pytest.mark.slow
def test_rewards_are_recorded_while_training(workdir):
  found = records.read(workdir)
  (mixed,) = [r for r in found if r["kind"] == "metric" and r["stage"] == "reinforce-MORL-0.5_0.5"]
  mean = (mixed["reward_warm"] + mixed["reward_short"]) / 2
  assert mixed["reward"] == pytest.approx(mean, abs=1e-5)
  scales = [r for r in found if r["kind"] == "reward"]
  assert [r["name"] for r in scales] == ["warm", "short"] and all(r["std"] > 0 for r in scales)


@pytest.mark.slow
def test_what_follows_is_recorded(workdir):
  found = records.read(workdir)
  fronts = {r["family"] for r in found if r["kind"] == "front"}
  assert fronts == {"rewarded soups", "rewarded soups, λ of MORL", "MORL", "MOD"}
  studies = {r["stage"] for r in found if r["kind"] == "measurement"}
  assert studies == {"front", "fronts", "connectivity", "preferences"}


@pytest.mark.slow
def test_exported_soups_are_averages_of_exported_members(workdir):
  found = [r for r in records.read(workdir) if r.get("study") == "preferences"]
  (chosen,) = [r["values"] for r in found if r["family"] == "best on validation"]
  weights = [chosen["lambda_warm"], chosen["lambda_short"]]
  members = [pretrained.load(workdir / "models" / f"reward_{n}").params for n in ("warm", "short")]
  soup = pretrained.load(workdir / "models" / "both").params
  jax.tree.map(np.testing.assert_array_equal, soup, weighted_mean(members, weights))


def comparable(workdir):
  """The records without what depends on the clock, in an order that does not."""
  found = [records.without_times(r) for r in records.read(workdir / "records.jsonl")]
  return sorted(json.dumps(r, sort_keys=True) for r in found if r["kind"] != "stage")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["rewarded soups", "MOD"])
def test_killed_between_two_records_it_ends_with_the_same_ones(workdir, tmp_path, family):
  """Cut after the first record of a model, and inside the next line."""
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy)
  lines = (copy / "records.jsonl").read_text().splitlines(keepends=True)
  at = next(i for i, line in enumerate(lines) if json.loads(line).get("family") == family)
  (copy / "records.jsonl").write_text("".join(lines[: at + 4]) + lines[at + 4][:20])
  run(copy)
  assert comparable(copy) == comparable(workdir)


def changed(path, value):
  """CONFIG with the value at a path of keys; None removes the key."""
  config = json.loads(json.dumps(CONFIG))
  *folders, last = path.split(".")
  section = config
  for key in folders:
    section = section[key]
  if value is None:
    del section[last]
  else:
    section[last] = value
  return config


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("rewards.short", None, "rewards: expected 2 at least, by name; found warm"),
    ("rewards.warm.component", "warm_word", "rewards.warm: .*Did you mean 'warm_words'"),
    ("rewards.warm.kind", "wrold", "Did you mean 'world'"),
    (
      "judges.warm",
      {"kind": "world", "component": "gold"},
      "judges.warm: another reward is called",
    ),
    ("judges.gold.component", "glod", "judges.gold: .*Did you mean 'gold'"),
    ("judges", ["gold"], "judges: expected 0 at least, by name"),
    ("soups.also", [{"warm": 0.5, "short": 0.6}], r"soups.also: \[0.5, 0.6\] is off the simplex"),
    ("soups.interval", 3, "soups: unknown key 'interval'"),
    ("morl.also", [{"warmth": 1.0}], "morl.also 'warmth'. Did you mean 'warm'"),
    ("decoding.alpha", -1.0, "decoding: alpha is -1.0"),
    ("decoding.alhpa", 1.0, "decoding: unknown key 'alhpa'. Did you mean 'alpha'"),
    ("preferences.both", {"warm": 0.5, "shrt": 0.5}, "preferences.both 'shrt'. Did you mean"),
    ("preferences.both", {"warm": 0.5}, "preferences.both: .* is off the simplex"),
    ("preferences.reward_warm", {"warm": 1.0}, "reward_warm is written already; rename the user"),
    (
      "preferences",
      {"../both": {"warm": 1.0}},
      r"preferences\.\.\./both: a user's name is letters",
    ),
    ("fronts.reference", {"warm": 0.0}, "expected a finite number for short"),
    ("personalised", {"rank": 0}, "lora: rank is 0"),
    ("reinforce.kl_cof", 0.1, "Did you mean 'kl_coef'"),
    ("reinforce", None, "expected the section of one algorithm"),
    ("evaluation.num_sedes", 1, "Did you mean 'num_seeds'"),
  ],
)
def test_refused_before_training(path, value, message, tmp_path):
  with pytest.raises(WamError, match=message):
    runs.run(changed(path, value), tmp_path / "run", command="test", show=False)
  assert not (tmp_path / "run").exists()
