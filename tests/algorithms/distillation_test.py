"""The samples that RSF keeps, its KL penalty, and fine-tuning on what was kept; on the table of `enumerable`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithms import enumerable
from tests.algorithms.small_test_models import open_run
from wam.algorithms import distillation, rsf
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, MissingFile
from wam.generation import kept_samples
from wam.training.iterations import load_iteration
from wam.training.mitigations import Mitigation

VALUES = enumerable.rewards(0)
START = enumerable.TABLE.init(1)
SETTINGS = {
  "num_iterations": 3,
  "prompts_per_iteration": 16,
  "samples_per_prompt": 4,
  "sampling": enumerable.SAMPLING | {"temperature": 0.8},
  "optimizer": {"learning_rate": 0.1, "name": "adam"},
  "batch_size": 8,
  "require_eos": False,
  "keep_samples": True,
}


def run_rsf(directory, *, scorer=None, on_iteration=None, **changes):
  """A run of RSF on the table; its last parameters, its records and what it sampled, [iterations, 64] indices."""
  drawn = []

  def listed(prompt_tokens, prompt_mask, completions, completion_mask):
    drawn.append(enumerable.index_of(completions, completion_mask))
    return VALUES[drawn[-1]]

  with open_run(directory) as run:
    found = rsf.run(
      enumerable.TABLE, START, enumerable.prompts(4), scorer or listed, run=run,
      on_iteration=on_iteration, **SETTINGS | changes,
    )  # fmt: skip
    policies = [load_iteration(run, i, found, stage="rsf") for i in (1, 2)]
  lines = [r for r in records.read(directory) if r["kind"] == "metric"]
  return jax.device_get(found), lines, np.asarray(drawn), jax.device_get(policies)


def samples_of(directory, iterations=(1, 2, 3)):
  return kept_samples.load(directory / "checkpoints/rsf", iterations)


def indices(rows):
  """Which completions these rows hold."""
  return enumerable.index_of(rows["tokens"][:, 2:], rows["mask"][:, 2:])


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.fixture(scope="module")
def rsf_run(tmp_path_factory):
  directory = tmp_path_factory.mktemp("rsf")
  return directory, *run_rsf(directory)


def best_of(drawn, scores):
  """The best of each prompt, the first of equals, without the prompts whose scores are all equal: indices."""
  kept = []
  for row, score in zip(drawn.reshape(16, 4), scores.reshape(16, 4), strict=True):
    if len(set(score.tolist())) > 1:
      kept.append(row[np.argmax(score)])
  return kept


def test_the_best_samples_are_kept(rsf_run):
  directory, _, lines, drawn, _ = rsf_run
  rows = samples_of(directory)
  assert rows["iteration"].tolist() == [
    line["step"] for line in lines for _ in range(int(line["kept"]))
  ]
  for i in (1, 2, 3):
    mine = rows["iteration"] == i
    one = samples_of(directory, [i])
    assert equal(one, {name: x[mine] for name, x in rows.items()})
    assert indices(one).tolist() == best_of(drawn[i - 1], VALUES[drawn[i - 1]])
    assert one["reward"].mean() == pytest.approx(lines[i - 1]["reward_kept"], abs=1e-6)
  assert (rows["tokens"][:, :2] == enumerable.PROMPT).all() and rows["mask"][:, :2].all()
  assert np.array_equal(rows["loss_mask"][:, 2:], rows["mask"][:, 2:])
  assert not rows["loss_mask"][:, :2].any()
  np.testing.assert_array_equal(rows["reward"], VALUES[indices(rows)])  # fractions


def test_stopped_in_an_iteration_the_same_samples_are_kept(rsf_run, tmp_path):
  """Also when it is stopped after they were written and before the iteration was committed."""

  def failing(i, weights):
    if i == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run_rsf(tmp_path, on_iteration=failing)
  assert len(samples_of(tmp_path, [2])["reward"])
  found, *_ = run_rsf(tmp_path)
  assert equal(found, rsf_run[1])
  assert equal(samples_of(tmp_path), samples_of(rsf_run[0]))


def test_nothing_is_kept_unless_asked_for(tmp_path):
  run_rsf(tmp_path, keep_samples=False, num_iterations=2)
  with pytest.raises(MissingFile, match=r"no Orbax checkpoint at .*samples/1"):
    samples_of(tmp_path)
  with pytest.raises(BadData, match="no iterations were named"):
    samples_of(tmp_path, [])


def test_a_kl_penalty_selects_by_the_reward_less_the_log_ratio(rsf_run, tmp_path):
  beta = 0.5
  _, lines, drawn, policies = run_rsf(tmp_path, kl_coef=beta, rule="best_per_prompt")
  # Nothing has been learnt in the first iteration, so nothing is to be paid.
  assert lines[0]["kl_penalty"] == 0 and np.array_equal(drawn[0], rsf_run[3][0])
  assert indices(samples_of(tmp_path, [1])).tolist() == best_of(drawn[0], VALUES[drawn[0]])
  differs = False
  for i in (2, 3):
    logs, start = (
      np.asarray(enumerable.logprobs(w, model=enumerable.TABLE, temperature=0.8), np.float64)
      for w in (policies[i - 2], START)
    )
    here, log_ratio = drawn[i - 1], (logs - start)[drawn[i - 1]]
    assert lines[i - 1]["kl_penalty"] == pytest.approx(beta * log_ratio.mean(), abs=1e-5)
    # Rounded: the four samples of a prompt may be one completion.
    scores = np.round(VALUES[here] - beta * log_ratio, 4)
    assert indices(samples_of(tmp_path, [i])).tolist() == best_of(here, scores)
    differs |= best_of(here, scores) != best_of(here, VALUES[here])
  assert differs
  for line, own in zip(lines, drawn, strict=True):
    assert line["reward"] == pytest.approx(VALUES[own].mean(), abs=1e-6)


def test_the_other_rule_keeps_the_highest_rewards_of_all(tmp_path):
  _, lines, drawn, _ = run_rsf(tmp_path, rule="top_fraction", fraction=0.125, num_iterations=2)
  rows = samples_of(tmp_path, [1])
  assert len(rows["reward"]) == 8 == lines[0]["kept"]
  assert sorted(rows["reward"]) == sorted(np.sort(VALUES[drawn[0]])[-8:])


def test_rsf_refuses_what_cannot_work(tmp_path):
  with pytest.raises(ConfigError, match="kl_coef: expected 0 or more"):
    run_rsf(tmp_path, kl_coef=-1.0)
  with pytest.raises(ConfigError, match="greedy decoding"):
    run_rsf(tmp_path, kl_coef=1.0, sampling=enumerable.SAMPLING | {"temperature": 0.0})
  with pytest.raises(ConfigError, match="more than the model's context of 2048"):
    run_rsf(tmp_path, sampling=enumerable.SAMPLING | {"max_new_tokens": 2047})
  with open_run(tmp_path) as run, pytest.raises(ConfigError, match="set carry_optimizer=True"):
    rsf.run(
      enumerable.TABLE, START, enumerable.prompts(4), lambda *a: np.zeros(64), run=run,
      mitigation=Mitigation(carries_optimizer=True), carry_optimizer=False, **SETTINGS,
    )  # fmt: skip
  # Equal rewards: every prompt is tied, and nothing can be kept.
  with pytest.raises(
    BadData, match=r"iteration 1 of rsf kept nothing: .* 16 prompts have equal rewards"
  ):
    run_rsf(tmp_path, scorer=lambda *a: np.full(64, 0.1))


DISTILLATION = {"optimizer": {"learning_rate": 0.05}, "batch_size": 8, "epochs": 2}


def distil(directory, rows, **changes):
  with open_run(directory) as run:
    found = distillation.run(enumerable.TABLE, START, rows, run=run, **DISTILLATION | changes)
    kept = [load_iteration(run, i, found, stage="distillation") for i in (1, 2)]
  lines = [r for r in records.read(directory) if r["kind"] == "metric"]
  return jax.device_get(found), lines, jax.device_get(kept)


def test_distillation_ends_at_the_frequencies_of_the_samples(rsf_run, tmp_path):
  """The table can be any distribution, so maximum likelihood is the distribution of what was kept.

  Large batches: with those of 64 the noise of the gradient alone is 0.015.
  """
  rows = samples_of(rsf_run[0])
  many = {name: np.tile(x, (500,) + (1,) * (x.ndim - 1)) for name, x in rows.items()}
  found, lines, _ = distil(
    tmp_path, many, batch_size=480, optimizer={"learning_rate": 0.3, "schedule": "linear"}
  )
  frequencies = np.bincount(indices(rows), minlength=40) / len(indices(rows))
  p = np.exp(np.asarray(enumerable.logprobs(found, model=enumerable.TABLE)))
  np.testing.assert_allclose(p, frequencies, atol=0.01)
  entropy = -(frequencies[frequencies > 0] * np.log(frequencies[frequencies > 0])).sum()
  tokens = rows["loss_mask"].sum(1).mean()
  assert lines[-1]["loss"] == pytest.approx(entropy / tokens, rel=0.02)
  assert [r["epoch"] for r in lines] == [0.5, 1.0, 1.5, 2.0]


def test_distillation_resumes_to_the_same_bits(rsf_run, tmp_path):
  rows = samples_of(rsf_run[0])
  expected, lines, kept = distil(tmp_path / "whole", rows)
  assert not equal(kept[0], kept[1]) and len(lines) == 4

  def failing(i, weights):
    if i == 3:
      raise KeyboardInterrupt

  with open_run(tmp_path / "stopped") as run, pytest.raises(KeyboardInterrupt):
    distillation.run(enumerable.TABLE, START, rows, run=run, on_iteration=failing, **DISTILLATION)
  found, again, _ = distil(tmp_path / "stopped", rows)
  assert equal(found, expected)
  assert [records.without_times(r) for r in again] == [records.without_times(r) for r in lines]


def test_every_sample_comes_once_an_epoch(rsf_run):
  rows = samples_of(rsf_run[0])
  count = len(rows["reward"])
  assert count % 7
  arrays = {name: rows[name] for name in distillation.NAMES} | {"number": np.arange(count)}
  config = distillation.Settings(**DISTILLATION | {"batch_size": 7}, iterations_per_epoch=3)
  orders = []
  for epoch in (0, 1):
    batches = [
      b
      for i in (1, 2, 3)
      for b in distillation._batches(arrays, config, 3 * epoch + i, seed=0, stage="x")
    ]
    assert {len(b["tokens"]) for b in batches} == {7}
    orders.append(np.concatenate([b["number"][b["loss_mask"].any(1)] for b in batches]).tolist())
    assert sorted(orders[-1]) == list(range(count))
  assert orders[0] != orders[1]


def test_distillation_with_a_mitigation(rsf_run, tmp_path):
  """One number for each row of the table is trained, in place of the weights."""

  def full(trained, frozen):
    kernel = frozen["init"]["layers"]["0"]["head"]["kernel"]
    return {"layers": {"0": {"head": {"kernel": kernel + trained["shift"] * jnp.eye(13, 4)}}}}

  mitigation = Mitigation(
    start=lambda init, key: {"shift": jnp.zeros((13, 1))}, full=full, freeze=lambda init: {"init": init}
  )  # fmt: skip
  rows = samples_of(rsf_run[0])
  found, *_ = distil(tmp_path, rows, mitigation=mitigation)
  before, after = (np.asarray(w["layers"]["0"]["head"]["kernel"]) for w in (START, found))
  assert not (after - before)[np.eye(13, 4) == 0].any() and (after != before).any()
  first, last = (
    np.asarray(enumerable.logprobs(w, model=enumerable.TABLE))[indices(rows)].mean()
    for w in (START, found)
  )
  assert last > first + 0.05


def test_distillation_refuses_what_cannot_work(rsf_run, tmp_path):
  rows = samples_of(rsf_run[0])
  with pytest.raises(BadData, match="the 0 samples have no token to train on"):
    distil(tmp_path, {name: x[:0] for name, x in rows.items()})
  with pytest.raises(
    ConfigError, match="an epoch has 1 updates, fewer than iterations_per_epoch=2"
  ):
    distil(tmp_path, rows, batch_size=64)
  with pytest.raises(ConfigError, match="epochs: expected at least 1, found 0"):
    distil(tmp_path, rows, epochs=0)
