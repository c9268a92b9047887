"""The section "rewards": what is made of it, on which scale, and what is refused."""

import numpy as np
import pytest

from tests.algorithms.small_test_models import open_run
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, NonFinite, UnknownName
from wam.data import world_rewards
from wam.recipes import policies, problems, reward_specs

SAMPLING = {"prompt_length": 9, "max_new_tokens": 6}
SIZES = {"num_corpus": 40, "num_demonstrations": 8, "num_pairs": 24, "num_validation_pairs": 8}
MODEL = {
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_layers": 1,
  "num_heads": 2,
  "initializer_range": 0.3,
}
TRAINING = {
  "num_steps": 2,
  "batch_size": 8,
  "length": 24,
  "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
}


@pytest.fixture(scope="module")
def setting():
  data = problems.make({"kind": "world", "num_prompts": 40, "num_items": 4, **SIZES})
  policy = policies.load_or_make(data.tokenizer(), seed=0, section=MODEL)
  return policy, policy.params, data


def made(setting, directory, section):
  with open_run(directory) as run:
    scorers = reward_specs.make(*setting, run, section=section, sampling=SAMPLING)
    found = [r for r in records.read(directory) if r["kind"] == "reward"]
    samples = reward_specs.reward_models.reference_samples(*setting, run, SAMPLING, "float32")
  return scorers, found, samples


def test_rewards_of_every_kind_on_their_scales(setting, tmp_path):
  section = {
    "plain": {"kind": "world", "component": "plain_words"},
    "raw": {"kind": "world", "component": "plain_words", "normalise": "none"},
    "short": {"kind": "rule", "rule": "length", "target": 3},
    "liked": {"kind": "pairs", "reward_model": TRAINING},
  }
  scorers, found, samples = made(setting, tmp_path, section)
  assert list(scorers) == list(section) == [r["name"] for r in found]
  values = {name: scorer(**samples) for name, scorer in scorers.items()}
  for name in ("plain", "short", "liked"):
    np.testing.assert_allclose([values[name].mean(), values[name].std()], [0, 1], atol=1e-5)
  # What is not normalised is the component, read off the texts by another way.
  policy, _, _ = setting
  words = [
    [w for w in policy.tokenizer.decode(row[m].tolist()).split() if not w.startswith("<")]
    for row, m in zip(samples["completions"], samples["completion_mask"], strict=True)
  ]
  prompts = ["chat Mia wants kite and soup :"] * len(words)
  expected = world_rewards.scorer("plain_words")(prompts, [" ".join(w) for w in words])
  np.testing.assert_array_equal(values["raw"], expected)
  by_name = {r["name"]: r for r in found}
  assert by_name["raw"]["normalise"] == "none" and by_name["plain"]["normalise"] == "z-score"
  for name in ("raw", "plain"):
    record = by_name[name]
    assert record["mean"] == pytest.approx(expected.mean(dtype=np.float64))
    assert record["std"] == pytest.approx(expected.std(dtype=np.float64))
    assert record["samples"] == 40 and record["spec"] == section[name]
  # Called again, the reward model is not trained again and nothing is recorded twice.
  again, found_again, _ = made(setting, tmp_path, section)
  assert len(found_again) == 4
  np.testing.assert_array_equal(again["liked"](**samples), values["liked"])


def test_constant_rewards_and_nan_are_refused_by_name(setting, tmp_path, monkeypatch):
  never = {"kind": "rule", "rule": "word_share", "words": ["nowhere"]}
  with pytest.raises(BadData, match=r"rewards.never: all 40 samples .* have the reward 0"):
    made(setting, tmp_path, {"never": never})
  # As it is, it may be constant.
  made(setting, tmp_path, {"never": never | {"normalise": "none"}})
  monkeypatch.setitem(world_rewards.COMPONENTS, "brevity", lambda prompt, words: float("nan"))
  with pytest.raises(NonFinite, match="odd: "):
    made(setting, tmp_path, {"odd": {"kind": "world", "component": "brevity"}})


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"kind": "wrld"}, "unknown kind of rewards.r 'wrld'. Did you mean 'world'"),
    ({"kind": "world", "component": "warmht"}, "rewards.r: .*Did you mean 'warmth'"),
    ({"kind": "world", "componnt": "warmth"}, "rewards.r: unknown key 'componnt'"),
    ({"kind": "rule", "rule": "lenght"}, "rewards.r.rule 'lenght'. Did you mean 'length'"),
    ({"kind": "rule", "rule": "length"}, "rewards.r: missing key 'target'"),
    ({"kind": "rule", "rule": "length", "target": -1}, "rewards.r: length: target"),
    ({"kind": "rule", "rule": "readability", "normalise": "zscore"}, "Did you mean 'z-score'"),
    ({"kind": "pairs", "reward_model": {"batch": 3}}, "unknown key 'batch'"),
    ("warmth", "rewards.r: expected a kind"),
  ],
)
def test_misspelt_specs(spec, message):
  with pytest.raises((ConfigError, UnknownName), match=message):
    reward_specs.check({"r": spec})


def test_what_the_problem_does_not_have(setting):
  *_, data = setting
  pairs = {"kind": "pairs", "pairs": "control", "reward_model": TRAINING}
  with pytest.raises(ConfigError, match=r"rewards.r.pairs: the problem has no control_pairs"):
    reward_specs.check({"r": pairs}, data=data)
  with pytest.raises(ConfigError, match="expected the splits train, validation; found train"):
    reward_specs.check({"r": pairs | {"pairs": {"train": {}}}}, data=data)
  elsewhere = problems.Problem([], [], {}, {}, {})
  with pytest.raises(ConfigError, match=r"problem\.kind='world' only"):
    reward_specs.check({"r": {"kind": "world", "component": "form"}}, data=elsewhere)


def test_names_and_numbers_of_rewards():
  spec = {"kind": "world", "component": "form"}
  with pytest.raises(ConfigError, match="expected 2 at least, by name; found one"):
    reward_specs.check({"one": spec}, least=2)
  with pytest.raises(ConfigError, match=r"rewards.a/b: a name is letters"):
    reward_specs.check({"a/b": spec})
