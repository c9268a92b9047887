"""What models show on a panel, and the walk over many of them."""

import dataclasses
import types

import numpy as np
import pytest
import scipy.stats

from wam.core.errors import ConfigError, UnknownName
from wam.recipes import panels, policies, problems
from wam.training.interrupts import Interrupted
from wam.training.workdir import Start

SAMPLING = {"prompt_length": 9, "max_new_tokens": 4, "temperature": 1.0}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """Panels of a policy that knows nothing, for itself as the reference: three prompts, two seeds."""
  data = problems.world_problem(
    size={"num_names": 8, "num_values": 4}, num_prompts=3, num_items=2,
    num_corpus=4, num_demonstrations=4, num_pairs=4, num_validation_pairs=4,
  )  # fmt: skip
  shape = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
  policy = policies.load_or_make(data.tokenizer(), seed=0, section=shape)
  scorers = {"first": lambda prompts, mask, ids, said: ids[:, 0].astype(np.float32)}
  start = Start(tmp_path_factory.mktemp("panels") / "run", {}, show=False)
  with start.open(seed=0) as run:
    yield panels.make_panels(
      data=data, evaluation={"num_seeds": 2, "batch_size": 8}, validation_skills=False,
      policy=policy, reference=policy.params, scorers=scorers, run=run, sampling=SAMPLING,
    )  # fmt: skip


def test_what_a_model_shows(both):
  validation, test = both
  assert (len(validation.keys), len(test.keys)) == (1, 2)
  assert not validation.skills and test.skills
  found = test.measure(test.reference)
  count = test.num_prompts
  assert {name: x.shape for name, x in found.rows.items()} == {
    "reward_first": (2, count), "kl": (2, count), "length": (2, count),
  }  # fmt: skip
  # It is its own reference.
  np.testing.assert_allclose(found.rows["kl"], 0, atol=1e-5)
  assert found.retained == pytest.approx(1)
  # The samples are those of the first seed.
  first = found.samples.completions[:, 0]
  np.testing.assert_array_equal(found.rows["reward_first"][0], first)
  np.testing.assert_array_equal(found.rows["length"][0], found.samples.completion_mask.sum(axis=1))
  assert found.values()["length"] == pytest.approx(found.rows["length"].mean())
  assert not np.array_equal(found.rows["reward_first"][0], found.rows["reward_first"][1])
  texts = test.texts(found.samples)
  shown = min(count, panels.NUM_TEXTS)
  assert len(texts["prompts"]) == len(texts["completions"]) == shown
  end = test.policy.tokenizer.eos_token
  assert all(end not in text for text in texts["completions"])


def test_the_same_model_shows_the_same(both):
  first, second = (both[1].measure(both[1].reference) for _ in range(2))
  for name, values in first.rows.items():
    np.testing.assert_array_equal(values, second.rows[name])


def test_half_widths_are_those_of_a_t_interval():
  rows = np.random.default_rng(0).normal(size=(3, 12))
  found = panels.half_width(rows)
  means = rows.mean(axis=0)
  low, high = scipy.stats.t.interval(0.95, 11, loc=means.mean(), scale=scipy.stats.sem(means))
  assert found == pytest.approx((high - low) / 2)


def test_one_prompt_has_no_interval(both):
  found = both[1].measure(both[1].reference)
  alone = dataclasses.replace(found, rows={n: x[:, :1] for n, x in found.rows.items()})
  assert alone.halves() == {}
  assert set(found.halves()) == set(found.rows)


def test_keys_and_tasks_that_do_not_exist(both):
  with pytest.raises(ConfigError, match="num_seed"):
    panels.check({"num_seed": 3})
  panel = both[1]
  data = types.SimpleNamespace(tasks={"test": []}, prompts={"test": ["tell ann about cats"]})
  with pytest.raises(UnknownName, match="nothing"):
    panels.make_panel(
      policy=panel.policy, reference=panel.reference, data=data, split="test", scorers={}, run=None,
      sampling=SAMPLING, mean_of=["nothing"],
    )  # fmt: skip


def test_a_walk_goes_on_where_it_was(tmp_path):
  """Interrupted after the second of four models; the rest is walked later, and each once."""
  walked, stages = [], []
  stop = {"after": 2}

  def check(message):
    if len(walked) == stop["after"]:
      raise Interrupted(message)

  run = types.SimpleNamespace(
    show=False,
    interrupts=types.SimpleNamespace(check=check),
    log=lambda fields, **more: stages.append(more),
  )

  def record(number, model):
    walked.append((number, model))
    return {}

  with pytest.raises(Interrupted, match="after model 2 of 4"):
    panels.walk("abcd", run, "evaluation", done=0, record=record)
  assert not stages
  stop["after"] = None
  panels.walk("abcd", run, "evaluation", done=2, record=record)
  assert walked == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
  assert [s["step"] for s in stages] == [4]
  panels.walk("abcd", run, "evaluation", done=4, record=record)
  assert len(stages) == 1 and len(walked) == 4
