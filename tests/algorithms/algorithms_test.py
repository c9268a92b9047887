"""SFT, reward models and RSF on a decoder small enough to learn in seconds."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wam.algorithms import reward_model, rsf, sft
from wam.checkpoints import orbax, records
from wam.core import trees
from wam.core.errors import BadData, ConfigError, NonFinite
from wam.data.batching import Batches
from wam.losses import sequence
from wam.models.heads import ScalarModel
from wam.training import objectives
from wam.training.iterations import load_iteration

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from small_test_models import CONFIG, EOS, MODEL, open_run, sequences

sys.path.pop(0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
  """A decoder that copies its prompt of two tokens."""
  rows = sequences(256)
  with open_run(tmp_path_factory.mktemp("sft")) as run:
    params = sft.run(
      MODEL,
      MODEL.init(jax.random.key(0)),
      Batches(rows, batch_size=32, seed=0),
      run=run,
      stage="sft",
      num_steps=150,
      optimizer={"learning_rate": 1e-2, "schedule": "cosine"},
    )
    losses = [r["loss"] for r in records.read(run.directory) if r["kind"] == "metric"]
  return params, losses


def test_sft_learns(tuned):
  _, losses = tuned
  # Two of the three trained tokens are one of ten letters each, until the copying is learnt.
  guessing = 2 / 3 * np.log(10)
  assert losses[0] > 0.5 * guessing
  assert losses[-1] < 0.1 * guessing


def test_loss_is_over_the_loss_mask_only(tuned):
  params, _ = tuned
  rows = sequences(4)
  total, weight, _ = objectives.next_token(MODEL)(params, rows, jax.random.key(0))
  logits = MODEL.apply(params, rows["tokens"], mask=rows["mask"]).logits
  logprobs = np.asarray(sequence.token_logprobs(logits, rows["tokens"]))
  assert float(weight) == 12
  assert float(total) == pytest.approx(-logprobs[:, 2:5].sum(), rel=1e-5)
  # What is under the padding does not matter.
  other = rows | {"tokens": np.where(rows["mask"], rows["tokens"], 7)}
  again = objectives.next_token(MODEL)(params, other, jax.random.key(0))
  assert float(again[0]) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.slow
def test_options_of_the_loss_agree():
  params = MODEL.init(jax.random.key(0))
  rows = sequences(4)

  def gradient(**options):
    loss_fn = objectives.next_token(MODEL, **options)
    return jax.jit(jax.value_and_grad(lambda p: loss_fn(p, rows, jax.random.key(0))[0]))(params)

  plain = gradient()
  for options, tolerance in (
    ({"remat": True}, 1e-5),
    ({"logits_chunk": 3}, 1e-5),
    ({"dtype": "bfloat16"}, 0.02),  # a rounding is 2^-9 = 0.002
  ):
    found = gradient(**options)
    assert float(found[0]) == pytest.approx(float(plain[0]), rel=tolerance)
    assert {x.dtype for x in jax.tree.leaves(found[1])} == {jnp.dtype("float32")}
    difference = optax.tree.norm(optax.tree.sub(found[1], plain[1]))
    assert float(difference) < tolerance * float(optax.tree.norm(plain[1]))


def pairs(count):
  """The copy is preferred to a completion with another first token."""
  rows = sequences(count)
  rejected = rows["tokens"].copy()
  rejected[:, 2] = (rejected[:, 2] - 2 + np.random.default_rng(1).integers(1, 10, count)) % 10 + 2
  mask = rows["mask"]
  return {
    "chosen": rows["tokens"], "chosen_mask": mask, "rejected": rejected, "rejected_mask": mask
  }  # fmt: skip


def test_reward_model_learns_from_the_trunk(tuned, tmp_path):
  model = ScalarModel(CONFIG)
  start = model.init(jax.random.key(1), tuned[0])
  with open_run(tmp_path) as run:
    keywords = {
      "run": run, "stage": "rm", "num_steps": 60, "probe_steps": 20,
      "optimizer": {"learning_rate": 3e-3}, "center_rewards_coefficient": 0.01, "log_every": 20,
    }  # fmt: skip
    trained = reward_model.run(model, start, Batches(pairs(256), batch_size=32, seed=0), **keywords)
    probed = orbax.load(tmp_path / "checkpoints/rm_probe/result")
  for name, x in trees.flatten(probed).items():
    same = np.array_equal(x, trees.flatten(start)[name])
    assert same == name.startswith("decoder"), name
  held_out = pairs(200)
  before = reward_model.evaluate(model, start, held_out)
  after = reward_model.evaluate(model, trained, held_out, chunk=64)
  assert after["accuracy"] > 0.9 > before["accuracy"]
  assert after["margin"] > 1
  lines = [r for r in records.read(tmp_path) if r["stage"] == "rm" and r["kind"] == "metric"]
  assert {"loss", "accuracy", "margin", "reward"} <= lines[0].keys()


def test_evaluation_counts_ties_half_and_refuses_nothing():
  model = ScalarModel(CONFIG)
  params = model.init(jax.random.key(0))
  data = pairs(6)
  tied = data | {"rejected": data["chosen"]}
  found = reward_model.evaluate(model, params, tied)
  assert found["accuracy"] == 0.5
  assert found["loss"] == pytest.approx(np.log(2), rel=1e-6)
  with pytest.raises(BadData, match="held-out set is empty"):
    reward_model.evaluate(model, params, {n: x[:0] for n, x in data.items()})


def test_normalised_rewards_have_mean_0_and_deviation_1():
  model = ScalarModel(CONFIG)
  params = model.init(jax.random.key(3))
  params["head"]["bias"] = jnp.asarray([2.5])
  data = sequences(50)
  raw = np.asarray(jax.jit(model.apply)(params, data["tokens"], mask=data["mask"]))
  normal = reward_model.normalise(params, raw)
  found = np.asarray(jax.jit(model.apply)(normal, data["tokens"], mask=data["mask"]))
  np.testing.assert_allclose(found, (raw - raw.mean()) / raw.std(), atol=1e-4)
  assert float(params["head"]["bias"][0]) == 2.5
  with pytest.raises(BadData, match="cannot be normalised"):
    reward_model.normalise(params, np.ones(4))


SETTINGS = {
  "num_iterations": 3,
  "prompts_per_iteration": 32,
  "samples_per_prompt": 4,
  "sampling": {"max_new_tokens": 5, "eos_id": EOS, "pad_id": 0},
  "optimizer": {"learning_rate": 1e-2},
  "batch_size": 16,
  "epochs": 2,
}


def prompts():
  tokens = sequences(100)["tokens"][:, :2]
  return np.pad(tokens, ((0, 0), (1, 0))), np.pad(np.ones_like(tokens, bool), ((0, 0), (1, 0)))


def large_tokens(prompt_tokens, prompt_mask, completions, completion_mask):
  """A fractional reward that the copying policy does not care for: the share of tokens of at least 7."""
  return ((completions >= 7) & completion_mask).sum(1) / 5


@pytest.fixture(scope="module")
def rsf_run(tuned, tmp_path_factory):
  directory = tmp_path_factory.mktemp("rsf")
  seen = []

  def on_iteration(i, params):
    seen.append(jax.device_get(params))
    return {"called": float(i)}

  with open_run(directory) as run:
    params = rsf.run(
      MODEL, tuned[0], prompts(), large_tokens, run=run,
      other_scorers={"length": lambda *a: a[3].sum(1)}, on_iteration=on_iteration, **SETTINGS,
    )  # fmt: skip
    iterations = [load_iteration(run, i, params, stage="rsf") for i in (1, 2, 3)]
  return directory, jax.device_get(params), seen, jax.device_get(iterations)


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_rsf_raises_the_reward_and_records_it(rsf_run):
  lines = [r for r in records.read(rsf_run[0]) if r["kind"] == "metric"]
  assert [r["step"] for r in lines] == [1, 2, 3]
  assert lines[-1]["reward"] > lines[0]["reward"] + 0.05
  for line in lines:
    assert line["reward"] < line["reward_best_of_2"] < line["reward_best_of_4"]
    assert line["reward_best_of_4"] == pytest.approx(line["reward_best"])
    assert line["kl_bound"] == pytest.approx(np.log(4) - 3 / 4)
    assert line["kept"] + line["tied_prompts"] <= 32
    assert line["reward_length"] == pytest.approx(line["length"])
    assert line["called"] == line["step"]
    assert 0 < line["finished"] <= 1


@pytest.mark.slow
def test_rsf_of_a_model_that_does_not_end_its_texts(tuned, tmp_path):
  """No token ends a completion: nothing can be kept, unless the config says that EOS is not needed."""
  settings = SETTINGS | {"num_iterations": 1, "epochs": 1}
  settings["sampling"] = SETTINGS["sampling"] | {"eos_id": ()}
  with (
    open_run(tmp_path / "a") as run,
    pytest.raises(BadData, match=r"128 of 128 .* require_eos=False"),
  ):
    rsf.run(MODEL, tuned[0], prompts(), large_tokens, run=run, **settings)
  with open_run(tmp_path / "b") as run:
    rsf.run(MODEL, tuned[0], prompts(), large_tokens, run=run, require_eos=False, **settings)
  (line,) = (r for r in records.read(tmp_path / "b") if r["kind"] == "metric")
  assert line["kept"] > 0 and line["kept"] + line["tied_prompts"] == 32 and line["finished"] == 0


def test_rsf_keeps_the_parameters_of_every_iteration(rsf_run):
  _, params, seen, iterations = rsf_run
  assert all(equal(a, b) for a, b in zip(seen, iterations, strict=True))
  assert equal(iterations[2], params)
  assert not equal(iterations[1], params)


def test_rsf_stopped_in_an_iteration_ends_with_the_same_bits(tuned, rsf_run, tmp_path):
  calls = 0

  def failing(*rollout):
    nonlocal calls
    calls += 1
    if calls == 2:
      raise KeyboardInterrupt
    return large_tokens(*rollout)

  others = {"length": lambda *a: a[3].sum(1)}
  note = lambda i, params: {"called": float(i)}  # noqa: E731
  with open_run(tmp_path) as run, pytest.raises(KeyboardInterrupt):
    rsf.run(
      MODEL, tuned[0], prompts(), failing, run=run, other_scorers=others, on_iteration=note, **SETTINGS
    )  # fmt: skip
  with open_run(tmp_path) as run:
    params = rsf.run(
      MODEL, tuned[0], prompts(), failing, run=run, other_scorers=others, on_iteration=note, **SETTINGS
    )  # fmt: skip
  assert calls == 4  # one, the one that failed, and two
  assert equal(params, rsf_run[1])
  timeless = [
    [records.without_times(r) for r in records.read(directory)]
    for directory in (tmp_path, rsf_run[0])
  ]
  assert timeless[0] == timeless[1]


def test_rsf_compiles_once_for_all_iterations(tuned, tmp_path, monkeypatch):
  traces = 0
  original = objectives.next_token

  def counting(*arguments, **keywords):
    loss_fn = original(*arguments, **keywords)

    def counted(*arguments):
      nonlocal traces
      traces += 1
      return loss_fn(*arguments)

    return counted

  monkeypatch.setattr(objectives, "next_token", counting)
  with open_run(tmp_path) as run:
    rsf.run(
      MODEL, tuned[0], prompts(), large_tokens, run=run,
      **SETTINGS | {"rule": "top_fraction", "fraction": 0.1, "prompts_per_call": 16, "carry_optimizer": False},
    )  # fmt: skip
  assert traces == 1


def test_padding_of_a_batch_has_no_weight():
  rollout = rsf.Rollout(
    prompt_tokens=np.zeros((6, 2), np.int32),
    prompt_mask=np.ones((6, 2), bool),
    completions=np.arange(18, dtype=np.int32).reshape(6, 3),
    completion_mask=np.ones((6, 3), bool),
    finished=np.ones(6, bool),
  )
  rows = np.asarray([0, 2, 3, 4, 5])
  batches = list(rsf._batches(rollout, rows, np.random.default_rng(0), epochs=2, batch_size=4))
  assert [b["tokens"].shape for b in batches] == [(4, 5)] * 4
  assert [int(b["loss_mask"].sum()) for b in batches] == [12, 3, 12, 3]
  for epoch in (batches[:2], batches[2:]):
    trained = np.concatenate([b["tokens"][b["loss_mask"].any(1)] for b in epoch])
    assert sorted(trained[:, 2].tolist()) == [0, 6, 9, 12, 15]
  assert not any(b["loss_mask"][:, :2].any() for b in batches)


def test_rsf_refuses_what_cannot_work(tuned, tmp_path):
  with open_run(tmp_path) as run:
    empty = tuple(x[:0] for x in prompts())
    with pytest.raises(BadData, match="rsf: there are no prompts"):
      rsf.run(MODEL, tuned[0], empty, large_tokens, run=run, **SETTINGS)
    with pytest.raises(ConfigError, match="prompts_per_call=5 does not divide"):
      rsf.run(
        MODEL, tuned[0], prompts(), large_tokens, run=run, **SETTINGS | {"prompts_per_call": 5}
      )
    with pytest.raises(NonFinite, match="reward: 128 of 128 rewards are not finite"):
      rsf.run(MODEL, tuned[0], prompts(), lambda *a: np.full(128, np.nan), run=run, **SETTINGS)
    with pytest.raises(TypeError, match="num_iteration"):
      rsf.run(MODEL, tuned[0], prompts(), large_tokens, run=run, **SETTINGS, num_iteration=2)
