"""Whole runs of REINFORCE: on a small decoder, and on the table whose optimum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithms import enumerable
from tests.algorithms.small_test_models import EOS, MODEL, open_run, sequences
from wam.algorithms import reinforce
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, MissingFile, NonFinite
from wam.training import sharding
from wam.training.iterations import load_iteration
from wam.training.mitigations import Mitigation
from wam.training.workdir import Run

SETTINGS = {
  "num_iterations": 3,
  "prompts_per_iteration": 16,
  "samples_per_prompt": 4,
  "sampling": {"max_new_tokens": 5, "eos_id": EOS, "pad_id": 0, "temperature": 0.9},
  "optimizer": {"learning_rate": 1e-2},
  "batch_size": 32,
  "kl_coef": 0.01,
}
TABLE = {
  "num_iterations": 3,
  "prompts_per_iteration": 8,
  "samples_per_prompt": 4,
  "sampling": enumerable.SAMPLING,
  "optimizer": {"learning_rate": 0.1, "name": "adam"},
  "batch_size": 16,
  "epochs": 2,
}
VALUES = enumerable.rewards(0)


def prompts():
  """Prompts of two tokens, padded on the left."""
  tokens = sequences(100)["tokens"][:, :2]
  return np.pad(tokens, ((0, 0), (1, 0))), np.pad(np.ones_like(tokens, bool), ((0, 0), (1, 0)))


def large_tokens(prompt_tokens, prompt_mask, completions, completion_mask):
  """The share of tokens of at least 7: a fraction."""
  return ((completions >= 7) & completion_mask).sum(1) / 5


def listed(prompt_tokens, prompt_mask, completions, completion_mask):
  """The reward of each of the 40 completions, from a list."""
  return VALUES[enumerable.index_of(completions, completion_mask)]


def run_table(directory, params, scorer=listed, **changes):
  """A run on the table; its parameters and its records."""
  with open_run(directory) as run:
    found = reinforce.run(
      enumerable.TABLE, params, enumerable.prompts(4), scorer, run=run, **TABLE | changes
    )
  return jax.device_get(found), [r for r in records.read(directory) if r["kind"] == "metric"]


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


AVERAGED = {"anchor": "ema", "ema_rate": 0.3, "kl_coef": 0.05}


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
  """A run with a moving average: parameters, records, every iteration, and how often its loss was traced."""
  directory, traces, original = tmp_path_factory.mktemp("table"), 0, reinforce.loss

  def counting(*arguments):
    loss_fn = original(*arguments)

    def counted(*inputs):
      nonlocal traces
      traces += 1
      return loss_fn(*inputs)

    return counted

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reinforce, "loss", counting)
    found, lines = run_table(
      directory, enumerable.TABLE.init(1), on_iteration=lambda i, weights: {"called": float(i)},
      other_scorers={"length": lambda *a: a[3].sum(1)}, **AVERAGED,
    )  # fmt: skip
  with open_run(directory) as run:
    kept = [load_iteration(run, i, found, stage="reinforce") for i in (1, 2, 3)]
  return found, lines, jax.device_get(kept), traces


def test_a_run_raises_the_reward_and_records_it(table_run):
  found, lines, *_ = table_run
  before, after = (
    float(np.exp(enumerable.logprobs(w, model=enumerable.TABLE)) @ VALUES)
    for w in (enumerable.TABLE.init(1), found)
  )
  assert after > before + 0.2
  assert [r["step"] for r in lines] == [1, 2, 3]
  assert lines[0]["kl"] == lines[0]["kl_ema"] == 0
  # The average lags behind the policy, and is ahead of where both started.
  assert 0 < lines[-1]["kl_ema"] < lines[-1]["kl"]
  for line in lines:
    assert line["reward_length"] == pytest.approx(line["length"])
    assert line["called"] == line["step"]
    assert 0 < line["finished"] <= 1 and line["left_out"] == 0
    assert 0 < line["surprise"] < np.log(4) + 0.2
    assert line["ratio"] == pytest.approx(1, abs=0.3)


def test_it_compiles_once_and_keeps_every_iteration(table_run):
  found, _, kept, traces = table_run
  assert traces == 1
  assert equal(kept[2], found) and not equal(kept[1], found)
  assert not equal(kept[0], jax.device_get(enumerable.TABLE.init(1)))


@pytest.mark.slow
def test_a_decoder_learns(tmp_path):
  with open_run(tmp_path) as run:
    reinforce.run(
      MODEL, MODEL.init(jax.random.key(0)), prompts(), large_tokens, run=run, **SETTINGS
    )
  lines = [r for r in records.read(tmp_path) if r["kind"] == "metric"]
  assert lines[-1]["reward"] > lines[0]["reward"] + 0.05
  assert lines[0]["kl"] == 0 < lines[-1]["kl"]


def test_stopped_in_an_iteration_it_ends_with_the_same_bits(table_run, tmp_path):
  """The moving average is part of what is saved."""
  calls = 0

  def failing(*rollout):
    nonlocal calls
    calls += 1
    if calls == 2:
      raise KeyboardInterrupt
    return listed(*rollout)

  keywords = AVERAGED | {
    "on_iteration": lambda i, weights: {"called": float(i)},
    "other_scorers": {"length": lambda *a: a[3].sum(1)},
  }
  with pytest.raises(KeyboardInterrupt):
    run_table(tmp_path, enumerable.TABLE.init(1), failing, **keywords)
  found, lines = run_table(tmp_path, enumerable.TABLE.init(1), failing, **keywords)
  assert calls == 4  # one, the one that failed, and two
  assert equal(found, table_run[0])
  timeless = [[records.without_times(r) for r in each] for each in (lines, table_run[1])]
  assert timeless[0] == timeless[1]


def test_iterations_that_are_not_kept(table_run, tmp_path):
  """The same bits as with every iteration kept; killed, it goes on behind the last one that was."""
  calls, keywords = [], AVERAGED | {"keep_every": 2}

  def failing(i, weights):
    calls.append(i)
    if calls == [1, 2, 3]:
      raise KeyboardInterrupt
    return {"called": float(i)}

  keywords |= {"on_iteration": failing, "other_scorers": {"length": lambda *a: a[3].sum(1)}}
  with pytest.raises(KeyboardInterrupt):
    run_table(tmp_path, enumerable.TABLE.init(1), **keywords)
  found, lines = run_table(tmp_path, enumerable.TABLE.init(1), **keywords)
  assert calls == [1, 2, 3, 3]
  assert equal(found, table_run[0])
  assert [records.without_times(r) for r in lines] == [
    records.without_times(r) for r in table_run[1]
  ]
  with open_run(tmp_path) as run:
    for i in (2, 3):
      assert equal(load_iteration(run, i, found, stage="reinforce"), table_run[2][i - 1])
    with pytest.raises(MissingFile):
      load_iteration(run, 1, found, stage="reinforce")


def test_the_kl_can_be_measured_to_another_policy(table_run, tmp_path):
  """Nothing else changes: the same bits, and the same KL to the anchor."""
  params, other = enumerable.TABLE.init(1), enumerable.TABLE.init(5)
  keywords = AVERAGED | {"on_iteration": lambda i, weights: {"called": float(i)}}
  keywords |= {"other_scorers": {"length": lambda *a: a[3].sum(1)}}
  found, lines = run_table(tmp_path / "ema", params, reference=other, **keywords)
  assert equal(found, table_run[0])
  for line, expected in zip(lines, table_run[1], strict=True):
    assert line["kl"] != expected["kl"] and line["kl_ema"] == expected["kl_ema"]
    assert "kl_init" not in line
  logs = [
    np.asarray(enumerable.logprobs(w, model=enumerable.TABLE), np.float64) for w in (params, other)
  ]
  exact = float(np.exp(logs[0]) @ (logs[0] - logs[1]))
  two = {"num_iterations": 2, "kl_coef": 0.2}
  plain, before = run_table(tmp_path / "plain", params, **two)
  static, lines = run_table(
    tmp_path / "static", params, reference=other, prompts_per_iteration=8, **two
  )
  assert equal(plain, static)
  assert [line["kl_init"] for line in lines] == [line["kl"] for line in before]
  assert lines[0]["kl"] == pytest.approx(exact, rel=0.5)


def test_moving_averages_at_the_ends_of_their_rate(tmp_path):
  """μ = 1: the policy is its own anchor, so the penalty has no effect. μ = 0: the anchor stays θ_0. Bit for bit."""
  params = enumerable.TABLE.init(1)
  two = {"num_iterations": 2}
  free, _ = run_table(tmp_path / "free", params, kl_coef=0.0, **two)
  own, lines = run_table(tmp_path / "own", params, kl_coef=5.0, anchor="ema", ema_rate=1.0, **two)
  assert equal(free, own)
  assert all(line["kl_ema"] == 0 for line in lines) and lines[-1]["kl"] > 0
  fixed, _ = run_table(tmp_path / "fixed", params, kl_coef=0.2, **two)
  still, lines = run_table(
    tmp_path / "still", params, kl_coef=0.2, anchor="ema", ema_rate=0.0, **two
  )
  assert equal(fixed, still) and not equal(fixed, free)
  assert all(line["kl_ema"] == line["kl"] for line in lines)


@pytest.mark.slow
def test_the_table_comes_near_the_optimum(tmp_path):
  """By sampling: E[r] - β·KL climbs nine tenths of the way to β·log Z, which no policy exceeds."""
  table, beta = enumerable.TABLE, 0.3
  start = table.init(1, 0.5)
  found, lines = run_table(
    tmp_path, start, kl_coef=beta, num_iterations=12, prompts_per_iteration=128, batch_size=None,
    epochs=1, optimizer={"learning_rate": 0.3, "name": "adam", "schedule": "linear"},
  )  # fmt: skip
  logs = enumerable.logprobs(start, model=table)
  first, last = (
    enumerable.value_of(enumerable.logprobs(w, model=table), logs, VALUES, beta)
    for w in (start, found)
  )
  best = enumerable.value_of(enumerable.optimum(logs, VALUES, beta), logs, VALUES, beta)
  assert first + 0.9 * (best - first) < last <= best + 1e-6
  p = np.exp(np.asarray(enumerable.logprobs(found, model=table), np.float64))
  exact_kl = float(p @ (np.log(p) - np.asarray(logs, np.float64)))
  assert lines[-1]["kl"] == pytest.approx(exact_kl, rel=0.2)


def test_ratios_are_1_while_nothing_is_learnt(tmp_path):
  _, lines = run_table(
    tmp_path, enumerable.TABLE.init(1), clip_ratio=0.01, optimizer={"learning_rate": 0.0}
  )
  for line in lines:
    assert line["ratio"] == pytest.approx(1, abs=1e-6)
    assert line["clip_fraction"] == 0


def test_equal_rewards_teach_nothing(tmp_path):
  """Rewards that are all equal move no weight, not even through an optimizer that divides by the gradient's size."""
  params = enumerable.TABLE.init(1)
  found, lines = run_table(tmp_path, params, lambda *a: np.full(len(a[0]), 0.1), kl_coef=0.0)
  assert equal(found, jax.device_get(params))
  assert [line["tied_prompts"] for line in lines] == [8, 8, 8]
  assert all(line["reward"] == pytest.approx(0.1) and line["grad_norm"] == 0 for line in lines)


def test_completions_of_nothing_but_eos(tmp_path):
  """A policy that ends at once: completions of one token, which are trained on like any others."""
  params = enumerable.TABLE.init(1)
  kernel = params["layers"]["0"]["head"]["kernel"].at[0, 0].set(9.0)
  params = {"layers": {"0": {"head": {"kernel": kernel}}}}
  found, lines = run_table(tmp_path, params, kl_coef=0.0, num_iterations=1, baseline="none")
  assert lines[0]["length"] < 1.1 and lines[0]["finished"] > 0.9
  # They are the worst of all, and become less likely.
  assert VALUES[0] != 0
  before, after = (
    float(enumerable.logprobs(w, model=enumerable.TABLE)[0]) for w in (params, found)
  )
  assert (after > before) == (VALUES[0] > 0)


def test_completions_that_never_end(tmp_path):
  sampling = enumerable.SAMPLING | {"eos_id": ()}
  endless = lambda *a: a[2].sum(1) / 7  # noqa: E731
  params = enumerable.TABLE.init(1)
  _, lines = run_table(tmp_path / "keep", params, endless, sampling=sampling, num_iterations=1)
  assert lines[0]["finished"] == 0 and lines[0]["length"] == 3 and lines[0]["left_out"] == 0
  with pytest.raises(BadData, match=r"iteration 1 of reinforce .* 0 of 32 completions end"):
    run_table(tmp_path / "drop", params, endless, sampling=sampling, missing_eos="drop")


def test_a_mitigation_trains_what_it_says(tmp_path):
  """One number for each row of the table is trained in place of the weights; the average is that of the weights."""

  def full(trained, frozen):
    kernel = frozen["init"]["layers"]["0"]["head"]["kernel"]
    return {"layers": {"0": {"head": {"kernel": kernel + trained["shift"] * jnp.eye(13, 4)}}}}

  mitigation = Mitigation(
    start=lambda init, key: {"shift": jnp.zeros((13, 1))}, full=full, freeze=lambda init: {"init": init}
  )  # fmt: skip
  params = enumerable.TABLE.init(1)
  found, lines = run_table(
    tmp_path, params, mitigation=mitigation, anchor="ema", ema_rate=0.5, kl_coef=0.1
  )
  change = found["layers"]["0"]["head"]["kernel"] - np.asarray(
    params["layers"]["0"]["head"]["kernel"]
  )
  assert np.abs(change[np.eye(13, 4) == 1]).max() > 0.05
  assert not change[np.eye(13, 4) == 0].any()
  assert 0 < lines[-1]["kl_ema"] < lines[-1]["kl"]


@pytest.mark.slow
def test_two_devices_do_what_one_does(tmp_path):
  """Completions, weights and the average split over a mesh; sums over devices round differently."""
  params, changes = (
    enumerable.TABLE.init(1),
    {"anchor": "ema", "ema_rate": 0.3, "num_iterations": 2},
  )
  one, lines = run_table(tmp_path / "one", params, **changes)
  mesh = sharding.make_mesh({"data": 2}, devices=jax.devices()[:2])
  with Run(tmp_path / "two", seed=0, mesh=mesh, tensorboard=False, show=False) as run:
    two = reinforce.run(
      enumerable.TABLE, params, enumerable.prompts(4), listed, run=run, **TABLE | changes
    )
    with pytest.raises(ConfigError, match="a batch of 1 cannot be split over 2 devices"):
      reinforce.run(
        enumerable.TABLE, params, enumerable.prompts(4), listed, run=run, stage="odd",
        **TABLE | {"accumulate_steps": 16},
      )  # fmt: skip
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(jax.device_get(two)), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)
  again = [r for r in records.read(tmp_path / "two") if r["kind"] == "metric"]
  for a, b in zip(lines, again, strict=True):
    assert a["reward"] == b["reward"] and a["kl_ema"] == pytest.approx(b["kl_ema"], abs=1e-5)


def test_refuses_what_cannot_work(tmp_path):
  params = enumerable.TABLE.init(1)
  tokens, mask = enumerable.prompts(4)
  with open_run(tmp_path) as run:

    def attempt(scorer=listed, given=(tokens, mask), **changes):
      reinforce.run(enumerable.TABLE, params, given, scorer, run=run, **TABLE | changes)

    with pytest.raises(
      NonFinite, match="reward: 1 of 32 rewards are not finite, the first is number 3"
    ):
      attempt(lambda *a: np.where(np.arange(32) == 3, np.nan, 0.5))
    with pytest.raises(NonFinite, match="reward_gold: 32 of 32"):
      attempt(other_scorers={"gold": lambda *a: np.full(32, np.inf)})
    with pytest.raises(BadData, match="there are no prompts"):
      attempt(given=(tokens[:0], mask[:0]))
    with pytest.raises(BadData, match="1 of 4 prompts have no token, the first is number 2"):
      attempt(given=(tokens, mask & (np.arange(4) != 2)[:, None]))
    long = np.zeros((4, 2046), np.int32)
    with pytest.raises(
      ConfigError, match=r"longest prompt \(2046 tokens\) .* context of 2048 tokens"
    ):
      attempt(given=(long, np.ones_like(long, bool)))
    with pytest.raises(TypeError, match="num_iteration"):
      attempt(num_iteration=2)
