"""PPO: against exact gradients where completions can be listed, and as a whole.

Most runs train a table of logits with a table as critic, which compile in no time; decoders are in the slow tests, but
for the one that looks at bits.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.algorithms import enumerable
from tests.algorithms.small_test_models import open_run
from wam.algorithms import ppo
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, NonFinite, UnknownName
from wam.generation import rollouts, valuation
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel
from wam.training import clipped_objectives, minibatches, sharding
from wam.training.iterations import load_iteration
from wam.training.mitigations import Mitigation
from wam.training.state import init
from wam.training.step import averages, make_update
from wam.training.workdir import Run

TEMPERATURE = 0.7
SAMPLING = enumerable.SAMPLING | {"temperature": TEMPERATURE}
EVERY = enumerable.rollout()
VALUES = enumerable.rewards(0)
BETA = 0.3
# Nothing but the sum of later rewards in front of the gradient of log π.
PLAIN = {
  "gae_lambda": 1.0, "gamma": 1.0, "whiten_advantages": False, "clip_ratio": None, "kl_coef": BETA,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TableCritic:
  """A value function that looks its "hidden states" up, as `enumerable.TABLE` its logits."""

  config: DecoderConfig = enumerable.CONFIG

  def init(self, key, decoder, *, zeros=False):
    kernel = jax.random.normal(key, (4, 1))
    head = {"kernel": 0 * kernel if zeros else kernel, "bias": jnp.zeros((1,))}
    return {"decoder": decoder, "head": head}

  def values(self, params, tokens, *, mask=None, dtype=jnp.float32, remat=False):
    hidden = enumerable.TABLE.apply(params["decoder"], tokens, mask=mask, dtype=dtype).hidden
    return (hidden @ params["head"]["kernel"])[..., 0] + params["head"]["bias"][0]


# Where runs start: completions of all three lengths are common.
START = enumerable.TABLE.init(1)
CRITIC = TableCritic()
TABLES = {
  "model": enumerable.TABLE,
  "critic": (CRITIC, {"decoder": enumerable.TABLE.init(2)}),
}
DECODERS = {"model": enumerable.MODEL, "critic": None}


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(tmp_path_factory):
  """Runs of one shape are compiled once for the module, as they would be for a command that goes on after a kill."""
  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def settings(**changes):
  defaults = {
    "num_iterations": 1, "prompts_per_iteration": 32, "sampling": SAMPLING, "batch_size": 32,
    "optimizer": {"name": "sgd", "learning_rate": 1.0, "clip_norm": None},
  }  # fmt: skip
  return defaults | changes


def scorer(prompt_tokens, prompt_mask, completions, completion_mask):
  """The fractional rewards of the enumerable completions."""
  return VALUES[enumerable.index_of(completions, completion_mask)]


def train(directory, params=START, *, score=scorer, models=TABLES, **changes):
  """A run on the enumerable prompt; the parameters and the records of its iterations."""
  keywords = {n: changes.pop(n) for n in ("on_iteration", "mitigation") if n in changes}
  arguments = (models["model"], params, enumerable.prompts(), score)
  with open_run(directory) as run:
    found = ppo.run(*arguments, run=run, critic=models["critic"], **keywords, **settings(**changes))
  return found, metrics(directory)


def metrics(directory):
  return [r for r in records.read(directory) if r["kind"] == "metric"]


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def assert_close(found, expected, tolerance=1e-5):
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, atol=tolerance)


def weights_of(name: str):
  """A policy and θ_0, of the decoder or of the table."""
  init = enumerable.params if name == "decoder" else enumerable.TABLE.init
  return init(1), init(2)


@functools.cache
def reading_of(name: str, values: str):
  """All completions as the policy reads them; values 0, or those of a random critic."""
  critic = CRITIC.init(jax.random.key(3), enumerable.TABLE.init(3), zeros=values == "zero")
  readers = valuation.Readers(*weights_of(name), critic)
  model = enumerable.MODEL if name == "decoder" else enumerable.TABLE
  return valuation.read(model, CRITIC, readers, EVERY, rows_per_call=40, temperature=TEMPERATURE)


@functools.cache
def compiled_slope(name: str, clip_ratio: float | None):
  """The gradient of the sum of a batch, upwards; the loss asks no other settings."""
  model = enumerable.MODEL if name == "decoder" else enumerable.TABLE
  loss_fn = ppo.policy_loss(model, ppo.Settings(**settings(clip_ratio=clip_ratio)))
  return jax.jit(jax.grad(lambda p, batch: -loss_fn(p, batch, jax.random.key(0))[0]))


def slopes(name, values="zero", **changes):
  """The expectation of the update, over all completions, and the exact gradient of E[r] - β·KL."""
  config = ppo.Settings(**settings(**PLAIN | changes))
  rows, _ = ppo.learn_from(EVERY, VALUES, reading_of(name, values), config, kl_coef=BETA)
  params, reference = weights_of(name)
  model = enumerable.MODEL if name == "decoder" else enumerable.TABLE
  share = np.exp(enumerable.logprobs(params, model=model, temperature=TEMPERATURE))
  batch = rows | {"loss_mask": rows["loss_mask"] * share[:, None]}
  exact = enumerable.gradient(params, reference, VALUES, BETA, model=model, temperature=TEMPERATURE)
  assert float(optax.tree.norm(exact)) > 0.1
  return compiled_slope(name, config.clip_ratio)(params, batch), exact


@pytest.mark.parametrize(
  ("name", "values", "changes"),
  [
    ("table", "zero", {}),
    # A ratio of 1 is not clipped.
    ("table", "zero", {"clip_ratio": 0.2}),
    # What is expected before a token is chosen is a baseline: it leaves the expectation as it is.
    ("table", "random", {}),
    ("table", "random", {"reward_baseline": 5.5625}),
    pytest.param("decoder", "random", {"clip_ratio": 0.2}, marks=pytest.mark.slow),
  ],
)
def test_expected_update_is_the_gradient_of_the_objective(name, values, changes):
  assert_close(*slopes(name, values, **changes))


def test_a_lambda_below_1_is_biased():
  """The test above can fail: with λ = 0 and values of 0 each token answers for its own reward only."""
  difference = optax.tree.sub(*slopes("table", gae_lambda=0.0))
  assert float(optax.tree.norm(difference)) > 0.05


def test_the_critic_learns_what_the_tokens_earned():
  """The sum of squared distances to the returns, halved, times vf_coef, over the completions' tokens."""
  config = ppo.Settings(**settings(**PLAIN | {"clip_value": None, "vf_coef": 0.3}))
  rows, _ = ppo.learn_from(EVERY, VALUES, reading_of("table", "zero"), config, kl_coef=BETA)
  critic = CRITIC.init(jax.random.key(3), enumerable.TABLE.init(3))
  total, weight, _ = jax.jit(ppo.value_loss(CRITIC, config))(critic, rows, jax.random.key(0))
  values, mask = reading_of("table", "random").values, EVERY.completion_mask
  reading = reading_of("table", "zero")
  k1 = reading.logprobs.astype(np.float64) - reading.reference_logprobs
  to_go = VALUES[:, None] - BETA * np.cumsum(k1[:, ::-1], axis=1)[:, ::-1]
  assert float(total) == pytest.approx(0.15 * np.square(values - to_go)[mask].sum(), rel=1e-4)
  assert int(weight) == mask.sum() == 3 * 36 + 2 * 3 + 1


@pytest.mark.parametrize(
  ("models", "params"),
  [(TABLES, START), pytest.param(DECODERS, enumerable.params(9), marks=pytest.mark.slow)],
)
def test_one_update_of_a_run_is_the_gradient_over_its_samples(tmp_path, models, params):
  """Sampling, scoring, masks (EOS is the id that pads) and the normalisation by tokens, all at once."""
  model, rate = models["model"], 0.5
  optimizer = {"name": "sgd", "learning_rate": rate, "clip_norm": None}
  # Eight rows of filling.
  changes = PLAIN | {"optimizer": optimizer, "epochs": 1, "batch_size": 40}
  found, (record,) = train(tmp_path, params, models=models, **changes)
  drawn = rollouts.draw(
    model, params, enumerable.prompts(), seed=0, stream="ppo", iteration=1, num_prompts=32,
    num_samples=1, sampling=SAMPLING,
  )  # fmt: skip
  which = enumerable.index_of(drawn.completions, drawn.completion_mask)
  assert len(set(which)) > 3 and len(set(drawn.completion_mask.sum(1))) == 3

  # The policy is θ_0: log π - log π_0 is 0, and every token answers for the whole score.
  def objective(p):
    exact = enumerable.logprobs(p, model=model, temperature=TEMPERATURE)
    return jnp.sum(exact[which] * VALUES[which])

  slope = jax.jit(jax.grad(objective))(params)
  tokens = drawn.completion_mask.sum()
  expected = jax.tree.map(lambda x, g: x + rate * g / tokens, params, slope)
  assert float(optax.tree.norm(slope)) / tokens > 0.02
  assert_close(found, expected, 1e-6)
  assert record["reward"] == pytest.approx(VALUES[which].mean(), rel=1e-5)
  assert record["length"] == pytest.approx(tokens / 32)
  assert record["finished"] == drawn.finished.mean()


LARGER = LanguageModel(
  DecoderConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, head_dim=8,
    initializer_range=0.3,
  )
)  # fmt: skip


@pytest.mark.parametrize(
  "changes",
  [
    {"accumulate_steps": 2},
    pytest.param({"remat": True, "entropy_coef": 0.1}, marks=pytest.mark.slow),
    pytest.param({"dtype": "bfloat16", "sampling": SAMPLING}, marks=pytest.mark.slow),
  ],
)
def test_ratios_of_a_policy_that_does_not_move_are_exactly_1(changes):
  """In every minibatch of every epoch, in whatever order the rows come: the same bits, not merely close."""
  config = ppo.Settings(**settings(**{"batch_size": 16, "prompts_per_iteration": 36} | changes))
  draw = np.random.default_rng(0)
  arrays = {
    n: draw.integers(0, 300, (36, size)).astype(np.int32) for n, size in (("p", 5), ("c", 9))
  }
  real = np.arange(5) >= draw.integers(0, 5, (36, 1)), np.arange(9) < draw.integers(1, 10, (36, 1))
  rollout = rollouts.Rollout(arrays["p"], real[0], arrays["c"], real[1], draw.random(36) < 0.5)
  params = LARGER.init(jax.random.key(0))
  readers = valuation.Readers(params, params, CRITIC.init(jax.random.key(0), START))
  reading = valuation.read(
    LARGER, CRITIC, readers, rollout, rows_per_call=16 // config.accumulate_steps,
    temperature=config.temperature, dtype=config.dtype,
  )  # fmt: skip
  rows, record = ppo.learn_from(rollout, draw.normal(size=36), reading, config, kl_coef=0.1)
  assert record["kl"] == record["non_score_reward"] == 0.0
  loss_fn, tx = ppo.policy_loss(LARGER, config), optax.sgd(0.0)
  update = jax.jit(make_update(loss_fn, tx, accumulate_steps=config.accumulate_steps))
  state = init(params, tx)
  for batch in minibatches.shuffled(rows, draw, batch_size=16, epochs=2):
    state, metrics = update(state, batch, jax.random.key(0), {})
    found = averages(metrics)
    assert found["ratio"] == found["ratio_max"] == 1.0
    assert found["approx_kl"] == found["clip_fraction"] == 0.0
    assert found["entropy"] > 1 and found["grad_norm"] > 0


LEARNING = {
  "num_iterations": 4, "prompts_per_iteration": 128, "batch_size": 32, "kl_coef": 0.02,
  "optimizer": {"learning_rate": 0.1}, "critic_optimizer": {"learning_rate": 1e-2},
  "kl_target": 0.5, "kl_horizon": 1000.0, "whiten_rewards": True, "reward_clip": 2.0,
}  # fmt: skip


@jax.jit
def table_logprobs(params):
  return enumerable.logprobs(params, model=enumerable.TABLE, temperature=TEMPERATURE)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
  """A run, its records, what on_iteration saw, the parameters that were kept, and how often losses were traced."""
  directory, seen, traces = tmp_path_factory.mktemp("ppo"), [], []
  original = clipped_objectives.surrogate

  def counting(*arguments, **keywords):
    loss_fn = original(*arguments, **keywords)
    return lambda *rest: traces.append(0) or loss_fn(*rest)

  def on_iteration(i, params):
    seen.append(jax.device_get(params))
    return {"called": float(i)}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clipped_objectives, "surrogate", counting)
    params, lines = train(directory, on_iteration=on_iteration, **LEARNING)
  with open_run(directory) as run:
    kept = [jax.device_get(load_iteration(run, i, params, stage="ppo")) for i in (1, 2, 3, 4)]
  return jax.device_get(params), lines, seen, kept, len(traces)


def test_raises_the_reward_and_records_it(learnt):
  params, lines, seen, kept, traces = learnt
  assert [r["step"] for r in lines] == [1, 2, 3, 4] == [r["called"] for r in lines]
  assert lines[-1]["reward"] > lines[0]["reward"] + 0.3
  exact = [float(np.exp(table_logprobs(p)) @ VALUES) for p in kept]
  # Each record is about the policy that the iteration before left.
  for value, line in zip(exact, lines[1:], strict=False):
    assert line["reward"] == pytest.approx(value, abs=0.2)
  assert traces == 1
  assert all(equal(a, b) for a, b in zip(seen, kept, strict=True))
  assert equal(kept[-1], params) and not equal(kept[-2], params)
  assert lines[0]["kl"] == 0.0 == lines[0]["explained_variance"] == lines[0]["values_var"]
  for before, after in itertools.pairwise(lines):
    error = np.clip(before["kl"] / 0.5 - 1, -0.2, 0.2)
    assert after["kl_coef"] == pytest.approx(before["kl_coef"] * (1 + error * 0.128), rel=1e-5)
    assert after["ratio_max"] > 1 and 0 < after["approx_kl"] < 1 and after["kl"] > 0
  names = {
    "reward_std", "score", "non_score_reward", "left_out", "length", "finished", "loss", "grad_norm",
    "entropy", "ratio", "clip_fraction", "returns_mean", "returns_var", "values_mean", "values_var",
    "value_loss", "value_grad_norm", "value_clip_fraction", "sampling_seconds", "seconds",
  }  # fmt: skip
  assert all(names <= line.keys() and np.isfinite([line[n] for n in names]).all() for line in lines)


def test_stopped_in_an_iteration_ends_with_the_same_bits(learnt, tmp_path):
  calls = []

  def failing(*rollout):
    calls.append(0)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return scorer(*rollout)

  note = lambda i, params: {"called": float(i)}  # noqa: E731
  arguments = {"score": failing, "on_iteration": note, **LEARNING}
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, **arguments)
  params, lines = train(tmp_path, **arguments)
  assert len(calls) == 5 and equal(params, learnt[0])
  timeless = [[records.without_times(r) for r in each] for each in (lines, learnt[1])]
  assert timeless[0] == timeless[1]
  # Done: nothing is run again.
  again, _ = train(tmp_path, **arguments)
  assert len(calls) == 5 and equal(again, params)


def test_rewards_are_shifted_clipped_and_ruled_before_they_are_learnt_from():
  def scores(rewards, **changes):
    config = ppo.Settings(**settings(**PLAIN | changes))
    rewards = np.asarray(rewards, np.float32)
    rows, record = ppo.learn_from(EVERY, rewards, reading_of("table", "zero"), config, kl_coef=0.0)
    return rows, record

  rows, record = scores(VALUES + 5.5625, reward_baseline=5.5625, reward_clip=0.5)
  last = EVERY.completion_mask.sum(1) - 1
  expected = np.clip(VALUES, -0.5, 0.5)
  np.testing.assert_allclose(rows["returns"][np.arange(40), last], expected, atol=1e-6)
  assert record["score"] == pytest.approx(expected.mean(), abs=1e-6) and record["left_out"] == 0
  lost = ~EVERY.finished
  rows, _ = scores(VALUES, missing_eos="penalty", missing_eos_penalty=2.25)
  np.testing.assert_allclose(rows["returns"][np.arange(40), last], VALUES - 2.25 * lost, atol=1e-6)
  rows, record = scores(VALUES, missing_eos="drop")
  assert record["left_out"] == lost.sum() == 27
  assert (rows["loss_mask"].any(1) == EVERY.finished).all()
  assert not rows["advantages"][lost].any()
  none = EVERY._replace(finished=np.zeros(40, bool))
  config = ppo.Settings(**settings(missing_eos="drop"))
  with pytest.raises(BadData, match="none of 40 completions ends within 3 tokens"):
    ppo.learn_from(none, VALUES, reading_of("table", "zero"), config, kl_coef=0.0)


def test_constant_rewards_leave_the_policy_where_it_is(tmp_path):
  """Bit for bit, under Adam, which would make a full step of what rounding leaves."""
  changes = {
    "num_iterations": 2, "optimizer": {"learning_rate": 0.1}, "gae_lambda": 1.0,
    "critic_optimizer": {"learning_rate": 0.0},
  }  # fmt: skip
  constant = lambda *a: np.full(32, 0.1, np.float32)  # noqa: E731
  found, lines = train(tmp_path, score=constant, **changes)
  assert equal(found, START)
  assert [r["grad_norm"] for r in lines] == [0.0, 0.0]


def adapters():
  """Trains a shift of all rows of the table in place of the table, with rows of its own in every batch."""

  def full(trained, frozen):
    return jax.tree.map(lambda x: x + trained["shift"][None, :], frozen["init"])

  def wrap(loss_fn):
    def placed(params, batch, key, frozen):
      total, weight, metrics = loss_fn(params, batch, key, frozen)
      place = {n: (batch["place"][0, k], 1) for k, n in enumerate(("iteration", "number"))}
      return total, weight, metrics | place

    return placed

  return Mitigation(
    start=lambda init, key: {"shift": 0.1 * jax.random.normal(key, (4,))},
    full=full,
    freeze=lambda init: {"init": init},
    wrap_losses=[wrap],
    augment=lambda batch, i, n: batch | {"place": np.full((32, 2), (i, n))},
  )


RESTART = LEARNING | {
  "optimizer": {"learning_rate": 1e-2},
  "num_iterations": 8,
  "prompts_per_iteration": 32,
  # Of 32 completions the other two vary too much.
  "restart": {"length_drop": None, "truncation_rise": None},
  "kl_target": None,
}


def collapsing(at):
  """The scorer, with a reward that drops while the iterations `at` are scored; the clock is the caller's."""
  clock = {"iteration": 0, "killed": None}

  def score(*rollout):
    clock["iteration"] += 1
    if clock["iteration"] == clock["killed"]:
      clock["iteration"] -= 1
      clock["killed"] = None
      raise KeyboardInterrupt
    return scorer(*rollout) - 9.0 * (clock["iteration"] in at)

  return score, clock


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
  """A policy that seems collapsed in iteration 5, and again in 7."""
  directory = tmp_path_factory.mktemp("restart")
  score, _ = collapsing({5, 7})
  params, lines = train(directory, score=score, **RESTART)
  with open_run(directory) as run:
    kept = [jax.device_get(load_iteration(run, i, params, stage="ppo")) for i in range(1, 9)]
  return params, lines, kept


def test_a_collapse_restores_the_policy_and_warms_up_a_fresh_critic(restarted):
  params, lines, kept = restarted
  by_step = {r["step"]: r for r in lines}
  # In iteration 5 the policy of iteration 4 is judged: back to that of iteration 1, three before.
  assert by_step[5]["collapsed_reward"] == 1.0 and by_step[5]["restored_iteration"] == 1.0
  assert not {"collapsed_length", "collapsed_truncation", "loss"} & by_step[5].keys()
  assert equal(kept[4], kept[0])
  # Iteration 6 trains the critic alone; from then on both.
  assert by_step[6]["critic_warm_up"] == 1.0 and equal(kept[5], kept[4])
  assert "value_loss" in by_step[6] and not {"loss", "ratio"} & by_step[6].keys()
  # Its values before it is trained are those of the very first: zeros.
  assert by_step[1]["values_mean"] == by_step[6]["values_mean"] == 0.0
  assert by_step[4]["values_mean"] != 0.0 and by_step[3]["values_var"] > 0.0
  # In iteration 7 the policy seems collapsed again: it is that of iteration 1, whose only ancestor is the start.
  assert by_step[7]["restored_iteration"] == 0.0 and equal(kept[6], START)
  assert by_step[8]["critic_warm_up"] == 1.0 and equal(kept[7], kept[6]) and equal(params, kept[7])
  assert [r["critic_warm_up"] for r in lines[:4]] == [0.0] * 4


@pytest.mark.parametrize("killed", [5, 6])
def test_killed_at_a_restart_ends_with_the_same_bits(restarted, tmp_path, killed):
  score, clock = collapsing({5, 7})
  clock["killed"] = killed
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, score=score, **RESTART)
  params, lines = train(tmp_path, score=score, **RESTART)
  assert equal(params, restarted[0])
  timeless = [[records.without_times(r) for r in each] for each in (lines, restarted[1])]
  assert timeless[0] == timeless[1]


def test_adapters_are_restored(tmp_path):
  """What a mitigation trains is no weights of the policy: it is kept beside them, until the run is done."""
  score, _ = collapsing({5})
  changes = RESTART | {"num_iterations": 7, "mitigation": adapters()}
  seen = []
  note = lambda i, p: seen.append(jax.device_get(p))  # noqa: E731
  _, lines = train(tmp_path, score=score, on_iteration=note, **changes)
  # Two epochs of one batch; the policy is not updated in iterations 5 and 6.
  assert [(r.get("iteration"), r.get("number")) for r in lines] == [
    (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (None, None), (None, None), (7, 0.5)
  ]  # fmt: skip
  shifts = [np.asarray(jax.tree.leaves(p)[0] - jax.tree.leaves(START)[0]) for p in seen]
  for shift in shifts:
    np.testing.assert_allclose(shift, np.tile(shift[:1], (13, 1)), atol=1e-6)
  assert not np.array_equal(shifts[3], shifts[0])
  assert np.array_equal(shifts[4], shifts[0]) and np.array_equal(shifts[5], shifts[0])
  assert not np.array_equal(shifts[6], shifts[0])
  assert not (tmp_path / "checkpoints/ppo/trained").exists()


def test_refuses_what_cannot_be_learnt_from(tmp_path):
  with pytest.raises(NonFinite, match="reward: 32 of 32 rewards are not finite"):
    train(tmp_path / "a", score=lambda *a: np.full(32, np.nan))
  with pytest.raises(ValueError, match="expected 32 rewards"):
    train(tmp_path / "b", score=lambda *a: np.ones(31))
  other = ScalarModel(
    DecoderConfig(
      vocab_size=5, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, head_dim=4
    )
  )
  critic = (other, other.init(jax.random.key(0)))
  with pytest.raises(ConfigError, match="the critic's vocabulary has 5 tokens, the policy's 4"):
    train(tmp_path / "c", models=TABLES | {"critic": critic})
  optimizer = {"learning_rate": 1e30, "clip_norm": None, "name": "sgd"}
  with pytest.raises(NonFinite, match=r"ppo: .*iteration 1"):
    train(tmp_path / "d", optimizer=optimizer, epochs=3)
  assert not (tmp_path / "d/checkpoints/ppo/iterations").exists()
  with open_run(tmp_path / "e") as run:
    none = tuple(x[:0] for x in enumerable.prompts())
    with pytest.raises(BadData, match="ppo: there are no prompts"):
      ppo.run(enumerable.TABLE, START, none, scorer, run=run, **settings())


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"sampling": SAMPLING | {"temperature": 0.0}}, ConfigError, "ppo: sampling.temperature is 0"),
    ({"sampling": SAMPLING | {"top_p": 0.9}}, ConfigError, "ppo: sampling.top_p is 0.9"),
    ({"missing_eos": "penalti"}, UnknownName, "Did you mean 'penalty'"),
    ({"missing_eos": "penalty"}, ConfigError, "missing_eos_penalty=None"),
    ({"kl_coef": -1.0}, ConfigError, "kl_coef: expected 0 or more"),
    ({"kl_target": 6.0, "kl_horizon": 6.0}, ConfigError, "kl_horizon=6.0 is too short"),
    ({"gae_lambda": 1.1}, ConfigError, "gae_lambda: expected 0 to 1"),
    ({"gamma": float("nan")}, ConfigError, "gamma: expected 0 to 1, found nan"),
    ({"clip_ratio": -0.2}, ConfigError, "clip_ratio: expected 0 to"),
    ({"epochs": 0}, ConfigError, "epochs: expected 1 to inf, found 0"),
    ({"accumulate_steps": 3}, ConfigError, "accumulate_steps=3 does not divide batch_size=32"),
    ({"restart": {"back": 0}}, ConfigError, "restart: back: expected at least 1"),
    ({"kl_coeff": 0.1}, TypeError, "kl_coeff"),
  ],
)
def test_refuses_settings_that_cannot_work(changes, error, message):
  with pytest.raises(error, match=message):
    ppo.Settings(**settings(**changes))


@pytest.mark.slow
def test_a_table_comes_near_the_optimum(tmp_path):
  """π_0·exp(r/β)/Z is what there is to gain; most of it is gained, with samples, clipping and a critic."""
  beta = 0.5
  settings_of_run = {
    "num_iterations": 60, "prompts_per_iteration": 256, "batch_size": 64, "kl_coef": beta,
    "optimizer": {"learning_rate": 0.05, "schedule": "linear"},
    "critic_optimizer": {"learning_rate": 0.05},
  }  # fmt: skip
  found, _ = train(tmp_path, **settings_of_run)
  start, end = (np.asarray(table_logprobs(p), np.float64) for p in (START, found))
  best = enumerable.value_of(enumerable.optimum(start, VALUES, beta), start, VALUES, beta)
  before, after = (enumerable.value_of(p, start, VALUES, beta) for p in (start, end))
  assert best - after < 0.05 * (best - before)


@pytest.mark.slow
def test_eight_devices_do_what_one_does(tmp_path):
  """Statistics are over the whole batch, wherever its rows lie."""
  one, lines = train(tmp_path / "one", **LEARNING)
  mesh = sharding.make_mesh({"data": 8})
  with Run(tmp_path / "eight", seed=0, mesh=mesh, tensorboard=False, show=False) as run:
    eight = ppo.run(
      enumerable.TABLE, START, enumerable.prompts(), scorer, run=run, critic=TABLES["critic"],
      prompts_per_call=128, **settings(**LEARNING),
    )  # fmt: skip
  assert_close(one, eight, 1e-4)
  for line, other in zip(lines, metrics(tmp_path / "eight"), strict=True):
    for name in ("reward", "kl", "values_mean", "explained_variance", "loss", "value_loss"):
      assert line[name] == pytest.approx(other[name], abs=1e-4)
