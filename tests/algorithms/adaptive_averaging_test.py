"""Searches for ratios on a policy whose completions can all be listed: against grids and exact gradients; resumed."""

import dataclasses
import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithms import enumerable
from tests.algorithms.small_test_models import open_run
from wam.algorithms import adaptive_averaging as ama
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, UnknownName
from wam.generation.rollouts import Rollout
from wam.merging import adaptive, averages, ratio_search, ratios
from wam.models.decoder import LanguageModel
from wam.training.between import Between
from wam.training.interrupts import Interrupted

MODEL = LanguageModel(dataclasses.replace(enumerable.CONFIG, num_layers=3, initializer_range=0.4))
REFERENCE, OTHER = (MODEL.init(jax.random.key(seed), stacked=False) for seed in (0, 1))
TUNED = jax.tree.map(lambda x, y: x + 0.7 * y, REFERENCE, OTHER)
ALPHA = 0.4


@functools.cache
def examples(count=24) -> Rollout:
  """Completions of the tuned policy."""
  p = np.exp(np.float64(enumerable.logprobs(TUNED, model=MODEL)))
  rows = np.random.default_rng(0).choice(len(p), count, p=p / p.sum())
  return Rollout(*(x[rows] for x in enumerable.rollout()))


@functools.cache
def between() -> Between:
  return Between(MODEL, REFERENCE, TUNED, parts={"scope": "linear"}, rows_per_call=40)


def search(directory, **settings):
  keywords = {"alpha": ALPHA, "rows_per_call": 24} | settings
  with open_run(directory) as run:
    return ama.run(MODEL, REFERENCE, TUNED, examples(), run=run, **keywords)


def likelihood(point, alpha=ALPHA) -> float:
  """Equation 8, from exact log-probabilities of the averaged policy."""
  scores = enumerable.logprobs(between().params(point, alpha), model=MODEL)
  return float(np.mean(np.asarray(scores)[enumerable.index_of(*examples()[2:4])]))


def steps_of(directory):
  return [r for r in records.read(directory) if r["kind"] == "metric"]


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("solved")
  # The models are far apart: from equal ratios alone the solver ends on a lower hill.
  return search(directory, num_starts=6), directory


def test_the_solver_finds_the_maximum_of_the_grid(solved):
  found, directory = solved
  best = ratio_search.grid_search(likelihood, ratios.grid(3, ALPHA, step=0.2))
  point = np.array(list(found.ratios.values()))
  assert list(found.ratios) == ["input", "middle", "output"]
  np.testing.assert_allclose(found.objective, likelihood(point), rtol=1e-5)
  np.testing.assert_allclose(found.uniform, likelihood([ALPHA] * 3), rtol=1e-5)
  assert found.objective > found.uniform + 1e-3
  assert found.objective > best.values[best.best] - 1e-5
  assert np.abs(point - best.ratios[best.best]).max() < 0.2
  for record in steps_of(directory):
    assert abs(record["mean_ratio"] - ALPHA) < 1e-6
    assert all(0 <= record[f"ratio/{name}"] <= 1 for name in found.ratios)
  jax.tree.map(np.testing.assert_array_equal, found.params, between().params(point, ALPHA))


def test_a_finished_search_is_not_made_again(solved):
  found, directory = solved
  before = records.read(directory)
  again = search(directory, num_starts=6)
  assert again[1:] == found[1:]
  assert records.read(directory) == before


@pytest.mark.parametrize("form", ["projected", "coded"])
def test_gradient_steps(solved, tmp_path, form):
  optimizer = {"name": "adam", "learning_rate": 0.05 if form == "projected" else 0.5}
  found = search(tmp_path, form=form, optimizer=optimizer | {"schedule": "cosine"}, epochs=40)
  every = steps_of(tmp_path)
  assert found.evaluations == len(every) == 40
  assert max(abs(r["mean_ratio"] - ALPHA) for r in every) < 1e-6
  assert every[0]["objective"] == pytest.approx(found.uniform, rel=1e-5)
  if form == "projected":
    # On the hill that equal ratios are on: no way leads up from here.
    point, gain = np.array(list(found.ratios.values())), found.objective - found.uniform
    steps = [0.05 * (a - b) for a in np.eye(3) for b in np.eye(3)]
    near = [likelihood(p) for p in point + steps if p.min() >= 0 and p.max() <= 1]
    assert len(near) > 3
    assert max(near) < found.objective + 0.01 * gain
  assert found.uniform + 0.2 < found.objective < solved[0].objective + 1e-5


def test_a_search_that_is_killed_goes_on(tmp_path):
  settings = {
    "optimizer": {"name": "adam", "learning_rate": 0.05}, "batch_size": 10, "epochs": 2, "penalty": 1e-3,
    "rows_per_call": 10,
  }  # fmt: skip
  whole = search(tmp_path / "whole", **settings)
  assert whole.evaluations == 6  # batches of 10, 10 and 4
  with open_run(tmp_path / "killed") as run:
    log = run.log

    def log_and_kill(fields, **keywords):
      log(fields, **keywords)
      if keywords["step"] == 4:
        run.interrupts.requested = signal.SIGTERM

    run.log = log_and_kill
    with pytest.raises(Interrupted, match="step 4 of adaptive averaging"):
      ama.run(MODEL, REFERENCE, TUNED, examples(), run=run, alpha=ALPHA, **settings)
  again = search(tmp_path / "killed", **settings)
  assert again[1:] == whole[1:]
  kept = [
    [records.without_times(r) for r in records.read(tmp_path / name)]
    for name in ("whole", "killed")
  ]
  assert kept[0] == kept[1]


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_models(tmp_path, alpha):
  found = search(tmp_path, alpha=alpha, parts={})
  assert set(found.ratios.values()) == {alpha}
  jax.tree.map(np.testing.assert_array_equal, found.params, REFERENCE if alpha == 0 else TUNED)


@pytest.mark.slow
def test_one_part_is_vanilla_averaging(tmp_path):
  found = search(tmp_path, num_parts=1, parts={})
  assert found.ratios == {"part 1": np.float32(ALPHA)}
  assert found.objective == found.uniform
  expected = averages.lerp(REFERENCE, TUNED, ALPHA)
  jax.tree.map(np.testing.assert_array_equal, found.params, expected)


def test_the_regulariser_pulls_back(solved, tmp_path):
  found = search(tmp_path, penalty=100.0)
  np.testing.assert_allclose(list(found.ratios.values()), [ALPHA] * 3, atol=1e-3)
  assert found.objective < solved[0].objective


def anchors(count=24):
  """Completions of the policy before RLHF."""
  p = np.exp(np.float64(enumerable.logprobs(REFERENCE, model=MODEL)))
  rows = np.random.default_rng(1).choice(len(p), count, p=p / p.sum())
  return Rollout(*(x[rows] for x in enumerable.rollout()))


def test_with_anchors_both_likelihoods_count(solved, tmp_path):
  def objective(point):
    scores = np.asarray(enumerable.logprobs(between().params(point, ALPHA), model=MODEL))
    likely, anchored = (
      float(np.mean(scores[enumerable.index_of(*texts[2:4])])) for texts in (examples(), anchors())
    )
    return likely + 2.0 * anchored

  with open_run(tmp_path) as run:
    settings = {"alpha": ALPHA, "rows_per_call": 24, "num_starts": 6, "anchor_weight": 2.0}
    found = ama.run(
      MODEL, REFERENCE, TUNED, examples(), anchors=ama.counted(anchors()), run=run, **settings
    )
  best = ratio_search.grid_search(objective, ratios.grid(3, ALPHA, step=0.2))
  point = list(found.ratios.values())
  np.testing.assert_allclose(found.objective, objective(point), rtol=1e-5)
  np.testing.assert_allclose(found.uniform, objective([ALPHA] * 3), rtol=1e-5)
  assert found.objective > best.values[best.best] - 1e-5
  # Another place than without anchors.
  assert np.abs(np.array(point) - list(solved[0].ratios.values())).max() > 0.01


def test_ada_merging_makes_predictions_certain(tmp_path):
  def certainty(point):
    """Minus the entropy of what is predicted for each token of the examples, a sequence."""
    rollout, params = examples(), between().params(point, ALPHA)
    output = MODEL.apply(params, jnp.asarray(rollout.tokens), mask=jnp.asarray(rollout.mask))
    p = jax.nn.softmax(output.logits[:, rollout.prompt_tokens.shape[1] - 1 : -1])
    entropies = -np.sum(np.asarray(p * jnp.log(p)), axis=-1)
    return -float(np.sum(entropies * rollout.completion_mask) / len(entropies))

  optimizer = {"name": "adam", "learning_rate": 0.05, "schedule": "cosine"}
  found = search(
    tmp_path, objective="entropy", form="free", optimizer=optimizer, epochs=40, alpha=ALPHA
  )
  point = np.array(list(found.ratios.values()))
  np.testing.assert_allclose(found.objective, certainty(point), rtol=1e-4)
  np.testing.assert_allclose(found.uniform, certainty([ALPHA] * 3), rtol=1e-4)
  gain = found.objective - found.uniform
  near = [np.clip(point + sign * 0.1 * part, 0, 1) for part in np.eye(3) for sign in (1, -1)]
  assert gain > 0.05
  assert max(certainty(p) for p in near) < found.objective + 0.02 * gain
  assert abs(point.mean() - ALPHA) > 0.05


def test_means_over_sequences_and_tokens():
  lengths = examples().completion_mask.sum(1)
  rows = np.array([0, 3, 5])
  texts = ama.counted(examples())
  by_row = ama.mean_of(texts, rows)
  assert by_row.weights.sum() == pytest.approx(lengths[rows].sum() / 3)
  by_token = ama.mean_of(texts, rows, average="tokens")
  assert by_token.weights.sum() == pytest.approx(1)
  assert ((by_token.weights > 0) == examples().completion_mask[rows]).all()


def exact_reward(point, rewards):
  """E[r] of the average with these ratios, over all completions; to differentiate."""
  layout = adaptive.layout(REFERENCE, 3, scope="linear")
  evaluate = adaptive.value(
    lambda weights: jnp.sum(jnp.exp(enumerable.logprobs(weights, model=MODEL)) * rewards), layout
  )
  return evaluate(point, ALPHA, REFERENCE, TUNED)


def test_the_expected_gradient_by_reward_is_exact():
  """Over all pairs of samples, each with its probability."""
  rewards, point = enumerable.rewards(3), [0.2, 0.7, 0.3]
  expected = jax.jit(jax.grad(exact_reward))(jnp.asarray(point), rewards)
  count = len(rewards)
  pairs = np.array([(i, j) for i in range(count) for j in range(count)])
  rows = pairs.reshape(-1)
  drawn = Rollout(*(x[rows] for x in enumerable.rollout()))
  p = np.exp(np.float64(enumerable.logprobs(between().params(point, ALPHA), model=MODEL)))
  share = (p[pairs[:, 0]] * p[pairs[:, 1]]).repeat(2)[:, None]
  for baseline in ("leave_one_out", "none"):
    weighted = ama.weigh_by_reward(drawn, rewards[rows], 2, baseline)
    # Equal shares are what the estimate takes them for; the true ones are put in their place.
    by_row = weighted.weights * share * len(pairs)
    summed = np.zeros((count, 3))
    np.add.at(summed, rows, by_row)
    every = weighted._replace(
      tokens=enumerable.rollout().tokens,
      mask=enumerable.rollout().mask,
      weights=summed.astype(np.float32),
    )
    _, slopes = between().gradient(point, ALPHA, every)
    np.testing.assert_allclose(slopes, expected, rtol=1e-3, atol=1e-5)
  assert np.abs(expected).max() > 1e-2


@pytest.mark.slow
def test_the_reward_rises(tmp_path):
  rewards = enumerable.rewards(3)

  def scorer(prompt_tokens, prompt_mask, completions, completion_mask):
    return rewards[enumerable.index_of(completions, completion_mask)]

  with open_run(tmp_path) as run:
    found = ama.run_on_reward(
      MODEL, REFERENCE, TUNED, enumerable.prompts(), scorer, run=run, alpha=ALPHA, num_iterations=12,
      prompts_per_iteration=16, samples_per_prompt=16, sampling=enumerable.SAMPLING,
      optimizer={"name": "adam", "learning_rate": 0.05}, rows_per_call=256,
    )  # fmt: skip
  point = np.array(list(found.ratios.values()), np.float32)
  value = jax.jit(exact_reward)
  uniform = np.full(3, ALPHA, np.float32)
  assert value(point, rewards) > value(uniform, rewards) + 0.01
  assert len(steps_of(tmp_path)) == found.evaluations == 12
  assert found.uniform == steps_of(tmp_path)[0]["objective"]


def test_the_distillation_set(tmp_path):
  rewards = enumerable.rewards(0)

  def scorer(prompt_tokens, prompt_mask, completions, completion_mask):
    return rewards[enumerable.index_of(completions, completion_mask)]

  def draw(**keywords):
    with open_run(tmp_path) as run:
      return ama.distillation_set(
        MODEL, TUNED, enumerable.prompts(), scorer, run=run, num_prompts=64,
        sampling=enumerable.SAMPLING, **keywords,
      )  # fmt: skip

  every = draw(pool=64, size=64, require_eos=False)
  assert len(every.completions) == 64
  found = draw(pool=16, size=10, require_eos=False)
  scores = np.sort(rewards[enumerable.index_of(every.completions, every.completion_mask)])
  kept = rewards[enumerable.index_of(found.completions, found.completion_mask)]
  assert len(kept) == 10 and kept.min() >= scores[-16]
  assert draw(pool=64, size=64).finished.all()


@pytest.mark.parametrize(
  ("settings", "error", "message"),
  [
    ({"alpha": 1.5}, ConfigError, r"alpha must lie in \[0, 1\]"),
    ({"form": "code"}, UnknownName, "form of ratios 'code'"),
    ({"form": "coded"}, ConfigError, "give an optimizer"),
    ({"batch_size": 4}, ConfigError, "give an optimizer"),
    ({"average": "rows"}, UnknownName, "average 'rows'"),
    ({"mode": "backward"}, UnknownName, "mode 'backward'"),
    ({"temperature": 0.0}, ConfigError, "temperature: expected a number above 0"),
    ({"penalty": -1.0}, ConfigError, "a penalty from 0"),
    ({"num_parts": 4}, ConfigError, "cannot make 4 parts of 3 layers"),
  ],
)
def test_settings_that_are_refused(tmp_path, settings, error, message):
  with pytest.raises(error, match=message):
    search(tmp_path, **settings)


def test_what_else_is_refused(tmp_path):
  empty = Rollout(*(x[:0] for x in enumerable.rollout()))
  keywords = {
    "alpha": 0.4, "num_iterations": 1, "prompts_per_iteration": 1, "samples_per_prompt": 1, "optimizer": {},
  }  # fmt: skip
  with open_run(tmp_path) as run:
    with pytest.raises(BadData, match="the 0 examples hold no token"):
      ama.run(MODEL, REFERENCE, TUNED, empty, run=run, alpha=0.4)
    with pytest.raises(ConfigError, match="samples_per_prompt of 2 or more"):
      ama.RewardSettings(sampling=enumerable.SAMPLING, **keywords)
    with pytest.raises(ConfigError, match="top_k"):
      ama.RewardSettings(sampling=enumerable.SAMPLING | {"top_k": 2}, **keywords)
