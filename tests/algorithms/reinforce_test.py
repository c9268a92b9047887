"""REINFORCE in expectation: sums over all completions of the enumerable policy, against the exact gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.algorithms import enumerable
from wam.algorithms import reinforce
from wam.core.errors import BadData, ConfigError, UnknownName
from wam.generation import scoring
from wam.losses import baselines

TEMPERATURE, BETA = 0.8, 0.3
VALUES = enumerable.rewards(0)
EVERY = enumerable.rollout()


def settings(**changes):
  """Settings of an iteration that holds every completion once."""
  keywords = {
    "num_iterations": 1, "prompts_per_iteration": 40, "samples_per_prompt": 1, "baseline": "none",
    "sampling": enumerable.SAMPLING | {"temperature": TEMPERATURE}, "kl_coef": BETA,
    "optimizer": {"learning_rate": 1e-2},
  }  # fmt: skip
  return reinforce.Settings(**keywords | changes)


def compare(params, reference, model=enumerable.MODEL, rollout=EVERY):
  return scoring.compare(model, params, {"init": reference}, rollout, temperature=TEMPERATURE)


def probabilities(params, model=enumerable.MODEL):
  logprobs = enumerable.logprobs(params, model=model, temperature=TEMPERATURE)
  return np.exp(np.asarray(logprobs, np.float64))


@functools.cache
def compiled_slope(level, clip_ratio):
  """The gradient of Σ weight·loss of a batch, upwards; the loss asks no other settings."""
  loss_fn = reinforce.loss(enumerable.MODEL, settings(level=level, clip_ratio=clip_ratio))
  return jax.jit(jax.grad(lambda p, batch: -loss_fn(p, batch, jax.random.key(0))[0]))


def slope_of_loss(params, comparison, advantages, weight, *, level="sequence", clip_ratio=None):
  """The gradient of Σ weight·loss over all completions, upwards."""
  worth = reinforce.Worth(VALUES, np.asarray(advantages, np.float32), np.ones(40, bool))
  batch = reinforce.rows(EVERY, comparison, worth) | {"weight": np.asarray(weight, np.float32)}
  return compiled_slope(level, clip_ratio)(params, batch)


def assert_close(found, expected, tolerance=1e-5):
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, atol=tolerance)


@pytest.fixture(scope="module")
def policies():
  return enumerable.params(1), enumerable.params(2)


@pytest.fixture(scope="module")
def exact(policies):
  """The gradient of E[r] - β·KL, which is not small."""
  slope = enumerable.gradient(*policies, VALUES, BETA, temperature=TEMPERATURE)
  assert float(optax.tree.norm(slope)) > 0.1
  return slope


@pytest.mark.parametrize(
  ("level", "clip_ratio"), [("sequence", None), ("sequence", 0.2), ("token", None)]
)
def test_expectation_is_the_gradient_of_the_objective(policies, exact, level, clip_ratio):
  """Σ_y π(y)·(update of y) = ∇(E[r] - β·KL(π ‖ π_ref)), for sums over tokens as well, and at a ratio of 1."""
  config = settings(level=level, clip_ratio=clip_ratio)
  comparison = compare(*policies)
  worth = reinforce.learn_from(EVERY, VALUES, comparison, config)
  p = probabilities(policies[0])
  kind = {"level": level, "clip_ratio": clip_ratio}
  assert_close(slope_of_loss(policies[0], comparison, worth.advantages, p, **kind), exact)


def expected_coefficients(params, size, advantages_of):
  """Σ over all batches of `size` completions of probability·advantage/size, for each completion: [40] float64.

  advantages_of: indices of completions [batches, size] -> advantages [batches, size].
  """
  batches = np.asarray(list(itertools.product(range(40), repeat=size)))
  chance = probabilities(params)[batches].prod(axis=1, keepdims=True)
  shares = chance * np.asarray(advantages_of(batches), np.float64) / size
  return np.bincount(batches.reshape(-1), shares.reshape(-1), minlength=40)


def rloo(params, reference):
  """Advantages of prompts with several samples each, by the algorithm's own function."""
  comparison = compare(params, reference)

  def advantages_of(batches):
    P, N = batches.shape
    flat = batches.reshape(-1)
    rollout = jax.tree.map(lambda x: x[flat], EVERY)
    several = scoring.Comparison(comparison.logprobs[flat], {"init": comparison.others["init"][flat]}, {})  # fmt: skip
    config = settings(prompts_per_iteration=P, samples_per_prompt=N, baseline="leave_one_out")
    worth = reinforce.learn_from(rollout, VALUES[flat], several, config)
    return worth.advantages.reshape(P, N)

  return advantages_of


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_leaves_the_expectation(policies, exact, size):
  """Over all pairs and all triples of completions."""
  coefficients = expected_coefficients(policies[0], size, rloo(*policies))
  comparison = compare(*policies)
  found = slope_of_loss(policies[0], comparison, coefficients, np.ones(40))
  assert_close(found, exact)


def test_batch_mean_leaves_the_expectation(policies, exact):
  """Over all batches of two prompts with one sample each."""
  comparison = compare(*policies)
  shaped = VALUES - BETA * comparison.log_ratio("init")

  def advantages_of(batches):
    rewards = jnp.asarray(shaped[batches][:, :, None], jnp.float32)
    alone = lambda r: baselines.advantages("batch_mean", r, jnp.ones_like(r, bool))[0]  # noqa: E731
    return jax.vmap(alone)(rewards)[:, :, 0]

  coefficients = expected_coefficients(policies[0], 2, advantages_of)
  found = slope_of_loss(policies[0], comparison, coefficients, np.ones(40))
  assert_close(found, exact)


def test_kl_coef_to_0(policies):
  """Without a penalty the gradient of E[r], and a penalty of 1e-6 changes it by no more than that allows."""
  comparison, p = compare(*policies), probabilities(policies[0])
  plain = enumerable.gradient(*policies, VALUES, 0.0, temperature=TEMPERATURE)
  for beta, tolerance in ((0.0, 1e-6), (1e-6, 2e-5)):
    config = settings(kl_coef=beta)
    worth = reinforce.learn_from(EVERY, VALUES, comparison, config)
    assert_close(slope_of_loss(policies[0], comparison, worth.advantages, p), plain, tolerance)


def test_a_policy_that_is_its_own_anchor_pays_nothing(policies):
  comparison = compare(policies[0], policies[0])
  assert not comparison.log_ratio("init").any()
  without, dear = (
    reinforce.learn_from(EVERY, VALUES, comparison, settings(kl_coef=beta)) for beta in (0.0, 1e3)
  )
  assert np.array_equal(without.advantages, dear.advantages)
  assert np.array_equal(without.shaped, VALUES)  # fractional rewards stay as they are


def test_a_table_converges_to_the_optimum():
  """π_ref·exp(r/β)/Z, by expected updates; where it is reached all advantages are equal, so that nothing moves it."""
  table, beta = enumerable.TABLE, 0.5
  params, reference = table.init(1, 0.5), table.init(2, 0.5)
  config = settings(kl_coef=beta)
  loss_fn = reinforce.loss(table, config)
  tx = optax.adam(optax.cosine_decay_schedule(0.1, 400))

  @jax.jit
  def step(params, opt_state, batch):
    slope = jax.grad(lambda p: loss_fn(p, batch, jax.random.key(0))[0])(params)
    updates, opt_state = tx.update(slope, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = tx.init(params)
  for _ in range(400):
    comparison = compare(params, reference, table)
    worth = reinforce.learn_from(EVERY, VALUES, comparison, config)
    p = np.exp(comparison.logprobs.sum(axis=1))
    batch = reinforce.rows(EVERY, comparison, worth) | {"weight": p}
    params, opt_state = step(params, opt_state, batch)
  logs = enumerable.logprobs(reference, model=table, temperature=TEMPERATURE)
  best = np.exp(enumerable.optimum(logs, VALUES, beta))
  np.testing.assert_allclose(probabilities(params, table), best, atol=1e-4)
  left = best @ abs(rloo_of_table(params, reference, beta))
  assert left < 1e-3 < 0.1 < best @ abs(rloo_of_table(reference, reference, beta))


def rloo_of_table(params, reference, beta):
  comparison = compare(params, reference, enumerable.TABLE)
  config = settings(
    kl_coef=beta, baseline="leave_one_out", prompts_per_iteration=1, samples_per_prompt=40
  )
  return reinforce.learn_from(EVERY, VALUES, comparison, config).advantages


def test_ratios_at_the_policy_that_sampled_are_1(policies):
  """At the temperature of the sampling; at another they would not be."""
  comparison = compare(*policies)
  for level, temperature in (("sequence", TEMPERATURE), ("token", TEMPERATURE), ("sequence", 1.0)):
    sampling = enumerable.SAMPLING | {"temperature": temperature}
    config = settings(level=level, clip_ratio=0.1, sampling=sampling)
    worth = reinforce.learn_from(EVERY, VALUES, comparison, config)
    batch = reinforce.rows(EVERY, comparison, worth)
    loss_fn = jax.jit(reinforce.loss(enumerable.MODEL, config))
    metrics = loss_fn(policies[0], batch, jax.random.key(0))[2]
    ratio, outside = (float(metrics[n][0] / metrics[n][1]) for n in ("ratio", "clip_fraction"))
    assert (abs(ratio - 1) < 1e-6 and outside == 0) == (temperature == TEMPERATURE)


def test_completions_without_eos(policies):
  """13 of the 40 end: what each rule does to the reward, the baseline and the loss."""
  comparison = compare(policies[0], policies[0])
  ended = EVERY.finished
  group = {"prompts_per_iteration": 1, "samples_per_prompt": 40, "baseline": "leave_one_out"}

  def learn(**changes):
    return reinforce.learn_from(EVERY, VALUES, comparison, settings(**group | changes))

  assert learn().counted.all() and np.array_equal(learn().shaped, VALUES)
  fined = learn(missing_eos="penalty", missing_eos_penalty=0.5)
  np.testing.assert_allclose(fined.shaped, np.where(ended, VALUES, VALUES - 0.5), atol=1e-6)
  assert fined.counted.all()
  dropped = learn(missing_eos="drop")
  assert np.array_equal(dropped.counted, ended) and not dropped.advantages[~ended].any()
  for i in np.flatnonzero(ended):
    others = VALUES[ended & (np.arange(40) != i)].mean()
    assert dropped.advantages[i] == pytest.approx(VALUES[i] - others, abs=1e-6)
  # What is dropped has no weight: the loss does not know its reward.
  config = settings(**group, missing_eos="drop")
  loss_fn = jax.jit(reinforce.loss(enumerable.MODEL, config))
  batch = reinforce.rows(EVERY, comparison, dropped)
  total, weight, _ = loss_fn(policies[0], batch, jax.random.key(0))
  assert float(weight) == 13
  logs = np.asarray(enumerable.logprobs(policies[0], temperature=TEMPERATURE))
  assert float(total) == pytest.approx(-(dropped.advantages * logs)[ended].sum(), rel=1e-5)
  cut = EVERY._replace(finished=np.zeros(40, bool))
  with pytest.raises(BadData, match="it 3 leaves nothing to learn from: 0 of 40 completions end"):
    reinforce.learn_from(cut, VALUES, comparison, config, where="it 3")


def test_equal_rewards_leave_a_gradient_of_exactly_0(policies):
  comparison = compare(policies[0], policies[0])
  config = settings(prompts_per_iteration=10, samples_per_prompt=4, baseline="leave_one_out")
  worth = reinforce.learn_from(EVERY, np.full(40, 0.1, np.float32), comparison, config)
  slope = slope_of_loss(policies[0], comparison, worth.advantages, np.ones(40))
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(slope))


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"baseline": "leave_one_out"}, ConfigError, "compares 2 at least, found 1"),
    ({"baseline": "loo"}, UnknownName, "unknown baseline 'loo'"),
    ({"anchor": "emaa"}, UnknownName, "Did you mean 'ema'"),
    ({"level": "word"}, UnknownName, "Choices: sequence, token"),
    ({"anchor": "ema"}, ConfigError, "belongs to anchor='ema'"),
    ({"ema_rate": 0.1}, ConfigError, "belongs to anchor='ema'"),
    ({"anchor": "ema", "ema_rate": 1.5}, ConfigError, "ema_rate: expected 0 to 1, found 1.5"),
    ({"kl_coef": -0.1}, ConfigError, "kl_coef: expected 0"),
    ({"kl_coef": float("nan")}, ConfigError, "kl_coef: expected 0"),
    ({"clip_ratio": 2.0}, ConfigError, "clip_ratio: expected 0 to 1"),
    ({"missing_eos": "penalty"}, ConfigError, "belongs to 'penalty'"),
    ({"batch_size": 7}, ConfigError, "must divide the 40 completions"),
    ({"batch_size": 10, "accumulate_steps": 4}, ConfigError, "accumulate_steps=4"),
    ({"sampling": {"max_new_tokens": 3, "temperature": 0}}, ConfigError, "needs samples"),
    ({"sampling": {"max_new_tokens": 3, "top_k": 5}}, ConfigError, "sampling.top_k is 5"),
    ({"sampling": {"max_new_tokens": 3, "top_p": 0.9}}, ConfigError, "sampling.top_p is 0.9"),
  ],
)
def test_refuses_settings_that_cannot_work(changes, error, message):
  with pytest.raises(error, match=message):
    settings(**changes)
