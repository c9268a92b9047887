"""Every algorithm, and mitigations, in one run of the recipe at toy size."""

import numpy as np
import pytest

from wam.checkpoints import records
from wam.core.errors import ConfigError, UnknownName
from wam.recipes import runs
from wam.recipes.panels import MEAN

OPTIMIZER = {"learning_rate": 1e-3}
ONLINE = {"num_iterations": 2, "prompts_per_iteration": 8, "samples_per_prompt": 2, "batch_size": 8}


def config(**changes):
  return {
    "recipe": "alignment_tax",
    "seed": 0,
    "problem": {
      "kind": "world",
      "size": {"num_names": 8, "num_values": 4, "num_pairs": 2},
      "num_corpus": 300,
      "num_demonstrations": 40,
      "num_pairs": 32,
      "num_validation_pairs": 16,
      "num_prompts": 16,
      "num_items": 4,
    },
    "model": {
      "hidden_size": 16,
      "intermediate_size": 16,
      "num_layers": 3,
      "num_heads": 2,
      "stacked": False,
    },
    "pretrain": {"num_steps": 3, "batch_size": 8, "length": 24, "optimizer": OPTIMIZER},
    "sft": {"num_steps": 2, "batch_size": 8, "length": 24, "optimizer": OPTIMIZER},
    "reward_model": {"num_steps": 2, "batch_size": 8, "length": 24, "optimizer": OPTIMIZER},
    "sampling": {"prompt_length": 9, "max_new_tokens": 6},
    "rsf": ONLINE | {"optimizer": OPTIMIZER, "keep_samples": True, "require_eos": False},
    "averaging": {"alphas": (0.5,), "part_alphas": (), "extrapolations": (1.5,)},
    "evaluation": {"num_seeds": 1},
    "adaptive": {
      "alphas": (0.4,),
      "num_parts": (3, 1),
      "anchors": ("none", "samples", "corpus"),
      "grid": {"alpha": 0.5, "step": 0.5},
      "examples": {"num_prompts": 16, "pool": 12, "size": 8, "require_eos": False},
    },
    "comparisons": {
      "PPO": {"a": {"algorithm": "ppo", "settings": ONLINE | {"optimizer": OPTIMIZER}}},
      "REINFORCE": {"a": {"algorithm": "reinforce", "settings": ONLINE | {"optimizer": OPTIMIZER}}},
      "DPO": {
        "given": {
          "algorithm": "dpo",
          "settings": {"length": 24, "batch_size": 8, "optimizer": OPTIMIZER},
        },
        "replayed": {
          "algorithm": "dpo",
          "settings": {"length": 24, "batch_size": 8, "optimizer": OPTIMIZER},
          "mitigation": {"replay": {}},
        },
        "drawn": {
          "algorithm": "dpo",
          "settings": {
            "pairs": {"num_prompts": 16, "samples_per_prompt": 2, "require_eos": False},
            "batch_size": 8,
            "optimizer": OPTIMIZER,
          },
        },
      },
      "distilled": {
        name: {
          "algorithm": "distillation",
          "settings": {"batch_size": 8, "optimizer": OPTIMIZER},
          "mitigation": mitigation,
        }
        for name, mitigation in {
          "plain": {},
          "L2": {"l2": {"coefficient": 1.0}},
          "all": {"l1": {"coefficient": 1e-3}, "distillation": {"coefficient": 0.1}, "replay": {}},
        }.items()
      },
      "LoRA": {"rank 2": {"mitigation": {"lora": {"rank": 2}}}},
      "KL": {"0.1": {"settings": {"kl_coef": 0.1}}},
      "online merging": {"a": {"mitigation": {"online_merging": {"alpha": 0.1, "density": 0.5}}}},
    },
  } | changes


def points(directory):
  every = records.read(directory / records.FILE_NAME)
  return {
    (r["family"], r["label"]): r for r in every if r["kind"] == "point" and r["split"] == "test"
  }


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  directory = tmp_path_factory.mktemp("comparisons") / "run"
  runs.run(config(), directory, command="a test", show=False)
  return directory


@pytest.mark.slow
def test_all_of_them_are_measured(measured):
  found = points(measured)
  compared = config()["comparisons"]
  before = found["init", "before RLHF"]["scores"]
  # So small a model may have nothing of any skill, so that there is no share of it.
  knows = any(value > 0 for name, value in before.items() if name != MEAN)
  for family, labels in compared.items():
    for label in labels:
      point = found[family, label]
      assert point["kl"] > 0, (family, label)
      scores = dict(point["scores"])
      assert np.isfinite(scores.pop(MEAN)) == knows
      assert np.isfinite([point["reward_gold"], *scores.values()]).all()
  # No two of them are the same model.
  others = [p["kl"] for (family, _), p in found.items() if family in compared]
  assert len(set(others)) == len(others)


@pytest.mark.slow
def test_a_strong_penalty_holds_the_policy_back(measured):
  found = points(measured)
  assert found["distilled", "L2"]["kl"] < found["distilled", "plain"]["kl"]


@pytest.mark.slow
def test_adaptive_ratios_have_the_mean_that_was_asked_for(measured):
  found = points(measured)
  alone = found["adaptive", "K = 1, α = 0.4"]
  assert list(alone["coefficients"].values()) == pytest.approx([0.4])
  thirds = found["adaptive", "K = 3, α = 0.4"]
  ratios = list(thirds["coefficients"].values())
  assert len(ratios) == 3 and np.mean(ratios) == pytest.approx(0.4, abs=1e-6)
  assert min(ratios) >= 0 and max(ratios) <= 1


@pytest.mark.slow
def test_families_have_fronts(measured):
  every = records.read(measured / records.FILE_NAME)
  fronts = {r["family"] for r in every if r["kind"] == "front"}
  assert fronts == {
    "early stopping",
    "model averaging",
    "part-wise",
    "adaptive",
    "adaptive, anchored by samples",
    "adaptive, anchored by corpus",
    "ratio grid",
    "extrapolation",
    *config()["comparisons"],
  }


@pytest.mark.slow
def test_the_grid_is_measured_and_judged(measured):
  every = records.read(measured / records.FILE_NAME)
  on_grid = [
    r["coefficients"] for (family, _), r in points(measured).items() if family == "ratio grid"
  ]
  judged = [r for r in every if r["kind"] == "objective"]
  assert [r["ratios"] for r in judged[:2]] == [[0.0] * 3, [1.0] * 3]
  assert [list(point.values()) for point in on_grid] == [r["ratios"] for r in judged[2:]]
  assert [0.5, 0.5, 0.5] in [r["ratios"] for r in judged]
  for record in judged:
    assert set(record["likelihood"]) == {"examples", "samples", "corpus"}
    assert all(np.isfinite(x) and x < 0 for x in record["likelihood"].values())


@pytest.mark.parametrize(
  ("comparison", "error", "message"),
  [
    ({"algorithm": "pppo"}, UnknownName, "pppo"),
    ({"settings": {"kl_coeff": 1}}, ConfigError, r"rsf-a-a: unknown key 'kl_coeff'.*kl_coef"),
    ({"mitigation": {"l3": {}}}, UnknownName, "l3"),
    ({"mitigation": {"l2": {"strength": 1}}}, ConfigError, "rsf-a-a.mitigation.l2"),
    (
      {"algorithm": "dpo", "settings": {"optimizer": OPTIMIZER, "batch_size": 2}},
      ConfigError,
      "length",
    ),
  ],
)
def test_refused_before_anything_is_written(tmp_path, comparison, error, message):
  with pytest.raises(error, match=message):
    runs.run(config(comparisons={"a": {"a": comparison}}), tmp_path / "run", command="", show=False)
  assert not (tmp_path / "run").exists()


def test_distillation_needs_kept_samples(tmp_path):
  section = config()["rsf"] | {"keep_samples": False}
  with pytest.raises(ConfigError, match="keep_samples"):
    runs.run(config(rsf=section), tmp_path / "run", command="", show=False)
