"""Pairs sampled from a policy whose completions can be listed."""

import numpy as np
import pytest

from tests.algorithms import enumerable
from tests.algorithms.small_test_models import open_run
from wam.algorithms import sampled_pairs
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, NonFinite, UnknownName

PROMPTS = enumerable.prompts(40)
VALUES = enumerable.rewards(0)
KEYWORDS = {
  "num_prompts": 32,
  "samples_per_prompt": 3,
  "sampling": enumerable.SAMPLING,
  "require_eos": False,
}


def scorer(prompt_tokens, prompt_mask, completions, completion_mask):
  return VALUES[enumerable.index_of(completions, completion_mask)]


@pytest.fixture(scope="module")
def policy():
  return enumerable.TABLE.init(0)


def sample(run, policy, scorer=scorer, **changes):
  return sampled_pairs.run(enumerable.TABLE, policy, PROMPTS, scorer, run=run, **KEYWORDS | changes)


def numbers(rows, side: str) -> np.ndarray:
  """Which of all completions each row's is."""
  tokens, loss_mask = rows[side], rows[f"{side}_loss_mask"]
  assert (tokens[:, :2] == enumerable.PROMPT).all() and not loss_mask[:, :2].any()
  np.testing.assert_array_equal(rows[f"{side}_mask"][:, 2:], loss_mask[:, 2:])
  return enumerable.index_of(tokens[:, 2:5], loss_mask[:, 2:5])


def stage_of(directory) -> dict:
  (line,) = records.read(directory)
  assert line["kind"] == "stage" and line["stage"] == "sampled_pairs"
  return line


def test_the_best_is_preferred_to_the_worst_and_losses_are_counted(policy, tmp_path):
  seen = []

  def noting(*rollout):
    seen.append((rollout[2], rollout[3]))
    return scorer(*rollout)

  with open_run(tmp_path) as run:
    rows = sample(run, policy, noting)
  ((completions, mask),) = seen
  values = VALUES[enumerable.index_of(completions, mask)].reshape(32, 3)
  told = stage_of(tmp_path)
  # Rewards of different completions differ, so a tie is a prompt with one completion three times.
  untied = values.max(axis=1) > values.min(axis=1)
  assert told["equal_rewards"] == np.sum(~untied) and told["equal_completions"] == 0
  assert told["pairs"] == len(rows["chosen"]) == untied.sum() > 0
  np.testing.assert_array_equal(VALUES[numbers(rows, "chosen")], values[untied].max(axis=1))
  np.testing.assert_array_equal(VALUES[numbers(rows, "rejected")], values[untied].min(axis=1))
  assert told["reward"] == pytest.approx(values.mean())
  assert told["reward_chosen"] == pytest.approx(values[untied].max(axis=1).mean())
  assert told["reward_rejected"] == pytest.approx(values[untied].min(axis=1).mean())


def test_equal_completions_of_different_rewards_are_dropped(policy, tmp_path):
  """A judge that is not sure of itself gives the same completion other rewards."""
  with open_run(tmp_path) as run:
    rows = sample(run, policy, lambda *rollout: np.arange(len(rollout[2])))
  told = stage_of(tmp_path)
  assert told["equal_rewards"] == 0 and told["equal_completions"] > 0
  assert told["pairs"] == 32 - told["equal_completions"] == len(rows["chosen"])
  assert (numbers(rows, "chosen") != numbers(rows, "rejected")).all()


def test_only_completions_that_end_and_fit_are_used(policy, tmp_path):
  with open_run(tmp_path) as run:
    rows = sample(run, policy, require_eos=True, length=4, rule="random")
  told = stage_of(tmp_path)
  for side in ("chosen", "rejected"):
    last = rows[f"{side}_loss_mask"].sum(axis=1) + 1
    assert (last <= 3).all()
    assert (rows[side][np.arange(len(last)), last] == enumerable.EOS).all()
  assert told["too_long"] > 0 and told["too_few"] > 0 and told["unfinished_samples"] > 0
  dropped = told["too_long"] + told["too_few"] + told["equal_rewards"]
  assert told["pairs"] == 32 - dropped == len(rows["chosen"]) > 0


def test_called_again_the_pairs_are_loaded(policy, tmp_path):
  with open_run(tmp_path) as run:
    first = sample(run, policy)
    again = sample(run, policy, None)
  assert first.keys() == again.keys()
  for name, x in first.items():
    np.testing.assert_array_equal(x, again[name])
    assert x.dtype == again[name].dtype
  stage_of(tmp_path)


def test_what_cannot_be_paired_is_refused(policy, tmp_path):
  with open_run(tmp_path) as run:
    with pytest.raises(BadData, match=r"no pair is left of the 96 samples .*equal_rewards 32"):
      sample(run, policy, lambda *rollout: np.ones(len(rollout[2])))
    with pytest.raises(NonFinite, match="sampled_pairs: 96 of 96 rewards are not finite"):
      sample(run, policy, lambda *rollout: np.full(len(rollout[2]), np.nan))
    with pytest.raises(ConfigError, match="a pair needs 2, found 1"):
      sample(run, policy, samples_per_prompt=1)
    with pytest.raises(BadData, match="there are no prompts"):
      empty = tuple(x[:0] for x in PROMPTS)
      sampled_pairs.run(enumerable.TABLE, policy, empty, scorer, run=run, **KEYWORDS)
    with pytest.raises(UnknownName, match="unknown pairing rule 'worst'"):
      sample(run, policy, rule="worst")
    with pytest.raises(BadData, match=r"no rows are left of \d+: all are longer"):
      sample(run, policy, length=2)
  assert records.read(tmp_path) == []
