"""Conditional language policies in expectation: sums over all completions of the enumerable policy; and whole runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.algorithms import enumerable
from tests.algorithms.small_test_models import open_run
from wam.algorithms import clp, reinforce
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, UnknownName
from wam.core.names import kind_of
from wam.core.trees import map_named
from wam.generation import scoring
from wam.models.conditioning import KINDS
from wam.training.iterations import load_iteration
from wam.training.mitigations import Mitigation

TEMPERATURE, ALPHA = 0.8, 0.3
REWARDS = np.stack([enumerable.rewards(0), enumerable.rewards(1)], axis=1)
EVERY = enumerable.rollout()
W = np.array([0.3, 0.7])
TABLE = {
  "num_iterations": 3,
  "preferences_per_iteration": 2,
  "prompts_per_preference": 8,
  "samples_per_prompt": 4,
  "updates_per_iteration": 2,
  "sampling": enumerable.SAMPLING,
  "optimizer": {"learning_rate": 0.1, "name": "adam"},
}


def settings(**changes):
  """Settings of an iteration that holds every completion once."""
  keywords = {
    "num_iterations": 1, "preferences_per_iteration": 1, "prompts_per_preference": 40,
    "samples_per_prompt": 1, "baseline": "none", "optimizer": {"learning_rate": 1e-2},
    "sampling": enumerable.SAMPLING | {"temperature": TEMPERATURE}, "kl_weight": ALPHA,
  }  # fmt: skip
  return clp.Settings(**keywords | changes)


def listed(number):
  """One of the two rewards of each of the 40 completions, from a list."""

  def score(prompt_tokens, prompt_mask, completions, completion_mask):
    return REWARDS[enumerable.index_of(completions, completion_mask), number]

  return score


SCORERS = {"first": listed(0), "second": listed(1)}


def run_table(directory, params, scorers=SCORERS, *, model=enumerable.TABLE, **changes):
  """A run on the table; its conditioned weights and its records."""
  with open_run(directory, uneven="replicate") as run:
    found = clp.run(model, params, enumerable.prompts(4), scorers, run=run, **TABLE | changes)
  return jax.device_get(found), [r for r in records.read(directory) if r["kind"] == "metric"]


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def assert_close(found, expected, tolerance=1e-5):
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, atol=tolerance)


def apart(conditioned):
  """Conditioned weights whose copies and learnt tokens differ."""
  draw = np.random.default_rng(3)
  return jax.tree.map(
    lambda x: jnp.asarray(np.asarray(x) + draw.normal(0, 0.2, x.shape).astype(x.dtype)), conditioned
  )


@pytest.mark.parametrize(
  ("kind", "changes"),
  [
    pytest.param("full", {}, marks=pytest.mark.slow),
    pytest.param("attention", {}, marks=pytest.mark.slow),
    ("attention", {"freeze_shared": True}),
    pytest.param("full", {"kl_weight": (0.1, 0.5)}, marks=pytest.mark.slow),
    pytest.param("logit", {}, marks=pytest.mark.slow),
    pytest.param("prompt", {}, marks=pytest.mark.slow),
  ],
)
def test_expectation_is_the_gradient_of_the_objective(kind, changes):
  """Σ_y π_θ(w)(y)·(update of y) = ∇((1 - α)·E[w·R] - α·KL(π_θ(w) ‖ π_θ0)), by S and every θ_i."""
  config = settings(conditioning=kind, **changes)
  how = config.make_conditioning(enumerable.MODEL, 2)
  objective = config.make_objectives(2).make(W, ALPHA)
  params = enumerable.params(1)
  conditioned, reference = apart(how.init(params)), how.reference(enumerable.params(2))
  policy = how.weights(conditioned, objective.steering)
  comparison = scoring.compare(
    how.model, policy, {"init": reference}, EVERY, temperature=TEMPERATURE
  )
  worth = clp.learn_from(EVERY, REWARDS, comparison, objective, config)
  read = functools.partial(enumerable.logprobs, model=how.model, temperature=TEMPERATURE)
  batch = clp.rows(clp.Group(objective, EVERY, comparison, {}, worth))
  batch["weight"] = np.exp(read(policy))
  loss_fn = clp.loss(how, config)
  found = jax.jit(jax.grad(lambda c: -loss_fn(c, batch, jax.random.key(0))[0]))(conditioned)
  log_q, mixed = np.asarray(read(reference)), (1 - ALPHA) * REWARDS @ W

  def exact(c):
    log_p = read(how.weights(c, objective.steering))
    values = jnp.asarray(mixed, jnp.float32)
    return jnp.sum(jnp.exp(log_p) * (values - ALPHA * (log_p - log_q)))

  expected = jax.jit(jax.grad(exact))(conditioned)
  assert float(optax.tree.norm(expected)) > 0.05
  if config.freeze_shared:
    expected = map_named(lambda n, g: g if how.conditions(n) else 0 * g, expected)
  assert_close(found, expected)


def test_members_share_the_gradient_as_the_preference_says():
  """On the table θ(w) is all there is: the gradient into θ_i is w_i times that into θ(w)."""
  config, table = settings(), enumerable.TABLE
  how = config.make_conditioning(table, 2)
  objective = config.make_objectives(2).make(W, ALPHA)
  conditioned = apart(how.init(table.init(1)))
  policy = how.weights(conditioned, objective.steering)
  comparison = scoring.compare(table, policy, {"init": table.init(2)}, EVERY, temperature=TEMPERATURE)  # fmt: skip
  worth = clp.learn_from(EVERY, REWARDS, comparison, objective, config)
  batch = clp.rows(clp.Group(objective, EVERY, comparison, {}, worth))
  loss_fn = clp.loss(how, config)
  slope = jax.grad(lambda c: loss_fn(c, batch, jax.random.key(0))[0])(conditioned)
  first, second = slope["layers"]["0"]["head"]["kernel"]
  assert np.abs(first).max() > 0.1
  np.testing.assert_allclose(first / 0.3, second / 0.7, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fixed_one_hot_preference_is_the_run_of_one_reward(tmp_path, number):
  """θ_i moves as REINFORCE on (1 - α)·R_i moves θ; the other copies stay where they are."""
  start = enumerable.TABLE.init(1)
  changes = {"preferences_per_iteration": 1, "updates_per_iteration": 1, "kl_weight": ALPHA}
  preference = [float(i == number) for i in (0, 1)]
  found, lines = run_table(tmp_path / "clp", start, preference=preference, **changes)
  shared = ("num_iterations", "samples_per_prompt", "sampling", "optimizer")
  with open_run(tmp_path / "reinforce") as run:
    alone = reinforce.run(
      enumerable.TABLE, start, enumerable.prompts(4),
      lambda *a: np.float32(1 - ALPHA) * listed(number)(*a), run=run, stage="clp/0", kl_coef=ALPHA,
      prompts_per_iteration=8, **{name: TABLE[name] for name in shared},
    )  # fmt: skip
  copies = found["layers"]["0"]["head"]["kernel"]
  assert_close(copies[number], alone["layers"]["0"]["head"]["kernel"])
  assert np.abs(copies[number] - copies[1 - number]).max() > 0.1
  assert np.array_equal(copies[1 - number], start["layers"]["0"]["head"]["kernel"])
  other = [r for r in records.read(tmp_path / "reinforce") if r["kind"] == "metric"]
  for line, expected in zip(lines, other, strict=True):
    name = ("reward_first", "reward_second")[number]
    assert line[name] == pytest.approx(expected["reward"] / (1 - ALPHA), rel=1e-5)
    assert line["reward"] == line[name] and line["kl"] == pytest.approx(expected["kl"], abs=1e-5)


@pytest.mark.slow
def test_with_shared_weights_frozen_it_is_a_soup(tmp_path):
  """Attention of a decoder, all else frozen: each one-hot run is REINFORCE that trains attention alone."""
  model, start = enumerable.MODEL, enumerable.params(1)
  how = settings(conditioning="attention").make_conditioning(model, 2)
  attention = {"layers": {"0": {"attention": start["layers"]["0"]["attention"]}}}

  def full(trained, frozen):
    layer = frozen["init"]["layers"]["0"] | trained["layers"]["0"]
    return frozen["init"] | {"layers": {"0": layer}}

  only = Mitigation(
    start=lambda init, key: attention, full=full, freeze=lambda init: {"init": init}
  )
  changes = {"preferences_per_iteration": 1, "updates_per_iteration": 1, "kl_weight": ALPHA}
  shared = ("num_iterations", "samples_per_prompt", "sampling", "optimizer")
  for number in (0, 1):
    found, _ = run_table(
      tmp_path / f"clp {number}", start, model=model, conditioning="attention", freeze_shared=True,
      preference=[float(i == number) for i in (0, 1)], **changes,
    )  # fmt: skip
    with open_run(tmp_path / f"reinforce {number}") as run:
      alone = reinforce.run(
        model, start, enumerable.prompts(4), lambda *a, n=number: np.float32(1 - ALPHA) * listed(n)(*a),
        run=run, stage="clp/0", kl_coef=ALPHA, prompts_per_iteration=8, mitigation=only,
        **{name: TABLE[name] for name in shared},
      )  # fmt: skip
    assert_close(how.member(found, number), alone, 2e-4)
    untouched = map_named(lambda n, x: x if kind_of(n) != "attention" else 0 * x, start)
    assert equal(
      map_named(lambda n, x: x if kind_of(n) != "attention" else 0 * x, how.member(found, number)),
      untouched,
    )


def test_mixed_logits_of_a_linear_model_are_mixed_weights(tmp_path):
  """The table's logits are linear in its weights: the two kinds are one run."""
  start = enumerable.TABLE.init(1)
  full, first = run_table(tmp_path / "full", start)
  logit, second = run_table(tmp_path / "logit", start, conditioning="logit")
  assert_close(full, logit)
  for a, b in zip(first, second, strict=True):
    assert a["reward"] == pytest.approx(b["reward"], abs=1e-6)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
  """A run on the table with many preferences: its weights and its records."""
  return run_table(
    tmp_path_factory.mktemp("long"), enumerable.TABLE.init(1, 0.5), num_iterations=15,
    preferences_per_iteration=8, kl_weight=0.1, optimizer={"learning_rate": 0.2, "name": "adam"},
  )  # fmt: skip


def test_the_preference_chooses_what_is_good(long_run):
  """Exact rewards of the policies for unseen w: each reward rises with its share, and above θ_0's."""
  found, lines = long_run
  start = enumerable.TABLE.init(1, 0.5)
  how = clp.Settings(**TABLE).make_conditioning(enumerable.TABLE, 2)

  def worth(weights):
    return np.exp(np.asarray(enumerable.logprobs(weights, model=enumerable.TABLE))) @ REWARDS

  shares = (0.0, 0.25, 0.5, 0.75, 1.0)
  table = np.array([worth(how.weights(found, jnp.asarray([x, 1 - x]))) for x in shares])
  before = worth(start)
  assert (np.diff(table[:, 0]) > 0).all() and (np.diff(table[:, 1]) < 0).all()
  assert table[-1, 0] > before[0] + 0.3 and table[0, 1] > before[1] + 0.3
  assert table[2].sum() > before.sum() + 0.3
  assert lines[0]["kl"] == pytest.approx(0, abs=1e-5) and lines[-1]["kl"] > 0.1


def test_what_is_recorded(long_run):
  lines = long_run[1]
  assert [r["step"] for r in lines] == list(range(1, 16))
  for line in lines:
    assert line["kl_weight"] == pytest.approx(0.1) and line["left_out"] == 0
    assert 0 < line["finished"] <= 1 and line["ratio"] == pytest.approx(1, abs=0.5)
    assert line["reward_shaped"] < line["reward"] or line["kl"] < 0.1


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
  start, calls = enumerable.TABLE.init(1), 0

  def failing(*arguments):
    nonlocal calls
    calls += 1
    if calls == 4:  # in the second iteration, which has two preferences
      raise KeyboardInterrupt
    return listed(0)(*arguments)

  changes = {"kl_weight": (0.1, 0.4), "other_scorers": {"length": lambda *a: a[3].sum(1)}}
  whole, lines = run_table(tmp_path / "whole", start, **changes)
  scorers = SCORERS | {"first": failing}
  with pytest.raises(KeyboardInterrupt):
    run_table(tmp_path / "killed", start, scorers, **changes)
  resumed, again = run_table(tmp_path / "killed", start, scorers, **changes)
  assert calls == 8  # two, two of which the last failed, and four
  assert equal(whole, resumed)
  assert [records.without_times(r) for r in lines] == [records.without_times(r) for r in again]
  assert all(line["reward_length"] == pytest.approx(line["length"]) for line in lines)
  with open_run(tmp_path / "killed") as run:
    assert equal(load_iteration(run, 3, resumed, stage="clp"), resumed)
    # A run that is done asks no scorer.
    done = clp.run(
      enumerable.TABLE, start, enumerable.prompts(4), dict.fromkeys(SCORERS), run=run,
      **TABLE | {"kl_weight": (0.1, 0.4)},
    )  # fmt: skip
  assert equal(done, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_is_trained_with_each_kind(tmp_path, kind):
  found, lines = run_table(
    tmp_path, enumerable.params(1), model=enumerable.MODEL, conditioning=kind, accumulate_steps=2,
    num_iterations=2, optimizer={"learning_rate": 1e-2},
  )  # fmt: skip
  assert np.isfinite([x for line in lines for x in line.values() if isinstance(x, float)]).all()
  how = settings(conditioning=kind).make_conditioning(enumerable.MODEL, 2)
  start = jax.device_get(how.init(enumerable.params(1)))
  assert not equal(found, start)


def test_equal_rewards_teach_nothing(tmp_path):
  flat = {"first": lambda *a: np.full(len(a[0]), 0.1), "second": lambda *a: np.zeros(len(a[0]))}
  start = enumerable.TABLE.init(1)
  found, _ = run_table(tmp_path, start, flat, kl_weight=0.0, num_iterations=1)
  copies = found["layers"]["0"]["head"]["kernel"]
  assert np.array_equal(copies, np.stack([start["layers"]["0"]["head"]["kernel"]] * 2))


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"baseline": "leave_one_out"}, ConfigError, "compares 2 at least, found 1"),
    ({"baseline": "loo"}, UnknownName, "unknown baseline 'loo'"),
    ({"updates_per_iteration": 3}, ConfigError, "must divide the 40 completions"),
    ({"sampling": {"max_new_tokens": 3, "top_k": 5}}, ConfigError, "sampling.top_k is 5"),
    (
      {"freeze_shared": True, "optimizer": {"learning_rate": 1.0, "weight_decay": 0.1}},
      ConfigError,
      "weight_decay would shrink",
    ),
    ({"missing_eos": "penalty"}, ConfigError, "belongs to 'penalty'"),
  ],
)
def test_refuses_settings_that_cannot_work(changes, error, message):
  with pytest.raises(error, match=message):
    settings(**changes)


def test_refuses_what_cannot_be_trained(tmp_path):
  start = enumerable.TABLE.init(1)
  with pytest.raises(UnknownName, match="unknown conditioning 'ful'"):
    run_table(tmp_path, start, conditioning="ful")
  with pytest.raises(ConfigError, match="expected 2 numbers"):
    run_table(tmp_path, start, preference=[1.0])
  endless = enumerable.SAMPLING | {"eos_id": ()}
  scorers = {"first": lambda *a: a[2].sum(1) / 7, "second": lambda *a: a[2].sum(1) / 5}
  with pytest.raises(BadData, match=r"iteration 1 of clp .* 0 of 64 completions end"):
    run_table(tmp_path, start, scorers, sampling=endless, missing_eos="drop")
