"""DPO: exact on a policy whose completions can be listed, and whole runs on a decoder that learns in seconds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.algorithms import enumerable, small_test_models
from tests.algorithms.small_test_models import open_run, sequences
from wam.algorithms import dpo
from wam.checkpoints import records
from wam.core.errors import BadData, ConfigError, NonFinite, UnknownName
from wam.losses import sequence
from wam.models.decoder import LanguageModel
from wam.training import completions, pairs
from wam.training.interrupts import Interrupted
from wam.training.iterations import load_iteration
from wam.training.mitigations import Mitigation

MODEL = LanguageModel(dataclasses.replace(small_test_models.CONFIG, num_layers=1))
KEY = jax.random.key(0)
BETA = 0.5


def settings(**changes) -> dpo.Settings:
  return dpo.Settings(**{"optimizer": {"learning_rate": 1e-3}, "batch_size": 8, "beta": BETA} | changes)  # fmt: skip


# On the enumerable policy.


def every_pair(judge) -> dict[str, np.ndarray]:
  """Both orders of all pairs of completions, weighted by how often the judge prefers the first: C·(C - 1) rows."""
  every = enumerable.rows()
  count = len(every["tokens"])
  first, second = (x[~np.eye(count, dtype=bool)] for x in np.indices((count, count)))
  batch = {"first": first, "second": second, "weight": judge[first, second].astype(np.float32)}
  for side, index in (("chosen", first), ("rejected", second)):
    batch |= {
      side: every["tokens"][index],
      f"{side}_mask": every["mask"][index],
      f"{side}_loss_mask": every["loss_mask"][index],
    }
  return batch


def with_reference(batch, logprobs):
  scores = np.asarray(logprobs)
  references = {"chosen_reference": "first", "rejected_reference": "second"}
  return batch | {name: scores[batch[index]] for name, index in references.items()}


def table_of(logprobs: np.ndarray):
  """Weights of `TABLE` with these log-probabilities [C] of whole completions."""
  tokens, mask = enumerable.completions()
  share = np.exp(logprobs)
  prefixes = [(), *((a,) for a in (1, 2, 3)), *((a, b) for a in (1, 2, 3) for b in (1, 2, 3))]
  table = np.zeros((13, 4))
  for row, prefix in enumerate(prefixes):
    n = len(prefix)
    behind = (tokens[:, :n] == np.asarray(prefix, np.int32)).all(axis=1) & mask[:, n]
    for token in range(4):
      table[row, token] = share[behind & (tokens[:, n] == token)].sum()
    table[row] /= table[row].sum()
  return {"layers": {"0": {"head": {"kernel": jnp.asarray(np.log(table), jnp.float32)}}}}


@pytest.fixture(scope="module")
def tabular():
  """Reference and optimum of rewards that Bradley and Terry's judge compares, and the loss over all its verdicts."""
  values = enumerable.rewards(0)
  reference = enumerable.TABLE.init(0)
  logprobs = enumerable.logprobs(reference, model=enumerable.TABLE)
  judge = 1 / (1 + np.exp(-(values[:, None] - values[None, :]).astype(np.float64)))
  batch = with_reference(every_pair(judge), logprobs)
  loss_fn = dpo.make_loss(enumerable.TABLE, settings())

  def mean(weights):
    total, weight, _ = loss_fn(weights, batch, KEY, {})
    return total / weight

  return reference, enumerable.optimum(logprobs, values, BETA), jax.jit(jax.value_and_grad(mean))


def test_the_gradient_vanishes_at_the_optimum_of_the_regularised_reward(tabular):
  reference, optimum, mean = tabular
  best = table_of(optimum)
  found = enumerable.logprobs(best, model=enumerable.TABLE)
  np.testing.assert_allclose(found, optimum, atol=1e-5)
  at_best, slope = mean(best)
  at_reference, first_slope = mean(reference)
  assert float(at_reference) == pytest.approx(np.log(2), rel=1e-6)
  assert float(at_best) < float(at_reference) - 0.01
  assert float(optax.tree.norm(slope)) < 1e-5 * float(optax.tree.norm(first_slope))


def test_training_on_all_verdicts_ends_at_the_optimum(tabular):
  reference, optimum, mean = tabular
  tx = optax.adam(optax.cosine_decay_schedule(0.1, 400))

  def step(carry, _):
    weights, state = carry
    updates, state = tx.update(mean(weights)[1], state)
    return (optax.apply_updates(weights, updates), state), None

  (weights, _), _ = jax.lax.scan(step, (reference, tx.init(reference)), length=400)
  found = enumerable.logprobs(weights, model=enumerable.TABLE)
  before = enumerable.logprobs(reference, model=enumerable.TABLE)
  assert float(jnp.abs(before - optimum).max()) > 1
  np.testing.assert_allclose(found, optimum, atol=2e-3)


def test_smoothed_labels_and_length_averages_against_a_slow_twin():
  draw = np.random.default_rng(1)
  weights = enumerable.params(1)
  exact = jax.jit(enumerable.logprobs)
  logprobs = np.asarray(exact(weights), np.float64)
  reference_logprobs = np.asarray(exact(enumerable.params(0)), np.float64)
  batch = with_reference(every_pair(draw.uniform(0, 1, (40, 40))), reference_logprobs)
  ratios = logprobs - reference_logprobs
  lengths = enumerable.completions()[1].sum(axis=1)
  a, b = ratios[batch["first"]], ratios[batch["second"]]
  margin = BETA * (a - b)
  averages = a / lengths[batch["first"]] - b / lengths[batch["second"]]
  expected = {
    "sigmoid": 0.9 * np.log1p(np.exp(-margin)) + 0.1 * np.log1p(np.exp(margin)),
    "ipo": (averages - 1 / (2 * BETA)) ** 2,
  }
  metrics = {
    "accuracy": a > b,
    "margin": margin,
    "chosen_reward": BETA * a,
    "rejected_reward": BETA * b,
  }
  weight = batch["weight"].astype(np.float64)
  for name, losses in expected.items():
    config = settings(loss=name, label_smoothing=0.1 if name == "sigmoid" else 0.0)
    loss_fn = jax.jit(dpo.make_loss(enumerable.MODEL, config, positions=4))
    total, count, found = loss_fn(weights, batch, KEY)
    assert float(count) == pytest.approx(weight.sum(), rel=1e-5)
    assert float(total) == pytest.approx(np.sum(weight * losses), rel=1e-4)
    for metric, values in metrics.items():
      assert float(found[metric][0]) == pytest.approx(np.sum(weight * values), rel=1e-3, abs=1e-2)
      assert float(found[metric][1]) == float(count)


# On a decoder.


def preferences(count: int = 64, *, flipped: bool = False) -> dict[str, np.ndarray]:
  """A copy of the prompt is preferred to a completion with another first token."""
  data = sequences(count)
  other = data["tokens"].copy()
  draw = np.random.default_rng(1)
  other[:, 2] = (other[:, 2] - 2 + draw.integers(1, 10, count)) % 10 + 2
  both = (other, data["tokens"]) if flipped else (data["tokens"], other)
  rows = {}
  for side, tokens in zip(pairs.SIDES, both, strict=True):
    rows |= {side: tokens, f"{side}_mask": data["mask"], f"{side}_loss_mask": data["loss_mask"]}
  return rows


@pytest.fixture(scope="module")
def start():
  return MODEL.init(jax.random.key(0), stacked=False)


def summed_logprobs(params, rows, side: str) -> jax.Array:
  """[B], from all logits."""
  return summed(params, *(rows[f"{side}{part}"] for part in pairs.PARTS))


@jax.jit
def summed(params, tokens, mask, loss_mask) -> jax.Array:
  scores = sequence.token_logprobs(MODEL.apply(params, tokens, mask=mask).logits, tokens)
  return jnp.sum(jnp.where(loss_mask, scores, 0.0), axis=1)


def referenced(params, rows):
  return rows | {f"{s}_reference": summed_logprobs(params, rows, s) for s in pairs.SIDES}


def test_at_the_reference_the_gradient_is_half_beta_times_that_of_the_margin(start):
  rows = preferences(8)
  batch = referenced(start, rows)
  loss_fn = dpo.make_loss(MODEL, settings(), positions=8)

  def total(params):
    loss, weight, metrics = loss_fn(params, batch, KEY)
    return loss / weight, metrics

  def margin(params):
    chosen, rejected = (summed_logprobs(params, rows, side) for side in pairs.SIDES)
    return jnp.mean(chosen - rejected)

  (value, metrics), found = jax.jit(jax.value_and_grad(total, has_aux=True))(start)
  assert float(value) == pytest.approx(np.log(2), rel=1e-6)
  assert float(metrics["margin"][0]) == pytest.approx(0, abs=1e-4)
  expected = jax.tree.map(lambda g: -0.5 * BETA * g, jax.jit(jax.grad(margin))(start))
  difference = optax.tree.norm(optax.tree.sub(found, expected))
  assert float(difference) < 1e-5 * float(optax.tree.norm(expected))


def test_terms_of_the_prompt_alone_change_nothing(start):
  """Prompts that are trained on too add the same number to both sides of a pair."""
  rows = preferences(8)
  policy = jax.tree.map(lambda x: 1.5 * x, start)
  whole = rows | {
    f"{s}_loss_mask": rows[f"{s}_mask"] & (np.arange(8) > 0)[None, :] for s in pairs.SIDES
  }
  loss_fn = jax.jit(dpo.make_loss(MODEL, settings()))
  alone = loss_fn(policy, referenced(start, rows), KEY)
  together = loss_fn(policy, referenced(start, whole), KEY)
  terms = summed_logprobs(start, whole, "chosen") - summed_logprobs(start, rows, "chosen")
  assert float(terms.max()) < -1
  assert float(together[0]) == pytest.approx(float(alone[0]), rel=1e-5)
  assert float(together[2]["margin"][0]) == pytest.approx(float(alone[2]["margin"][0]), rel=1e-4)


RUN = {
  "optimizer": {"learning_rate": 1e-2},
  "batch_size": 16,
  "num_epochs": 3.0,
  "beta": 0.5,
}


def train(run, start, **changes):
  data = {"rows": preferences(88), "evaluation_rows": preferences(20)}
  keywords = {n: changes.pop(n) for n in ("mitigation",) if n in changes}
  given = data | {n: changes.pop(n) for n in ("rows", "evaluation_rows") if n in changes}
  rows = given.pop("rows")
  return dpo.run(MODEL, start, rows, run=run, **given, **keywords, **RUN | changes)


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
  directory = tmp_path_factory.mktemp("dpo")
  traces = 0
  original = completions.logprobs

  def counting(*arguments, **keywords):
    nonlocal traces
    traces += 1
    return original(*arguments, **keywords)

  with pytest.MonkeyPatch.context() as patch, open_run(directory, save_every_seconds=None) as run:
    patch.setattr(completions, "logprobs", counting)
    params = jax.device_get(train(run, start))
    kept = [jax.device_get(load_iteration(run, i, params, stage="dpo")) for i in range(1, 7)]
  return directory, params, kept, traces


def metric_lines(directory):
  return [r for r in records.read(directory) if r["kind"] == "metric"]


def equal(a, b) -> bool:
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_a_run_learns_the_preference_and_records_it(undisturbed):
  directory, params, kept, _ = undisturbed
  lines = metric_lines(directory)
  assert [r["step"] for r in lines] == [1, 2, 3, 4, 5, 6]
  # 88 pairs in batches of 16 are 5.5 updates an epoch.
  assert [r["updates"] for r in lines] == [3, 6, 8, 11, 14, 17]
  assert lines[0]["accuracy"] < 0.7 < 0.85 < lines[-1]["accuracy"]
  assert lines[-1]["evaluation_accuracy"] > 0.9
  assert lines[-1]["evaluation_loss"] < lines[0]["evaluation_loss"] < np.log(2)
  for line in lines:
    margin = line["chosen_reward"] - line["rejected_reward"]
    assert line["margin"] == pytest.approx(margin, abs=1e-5)
  assert equal(kept[-1], params) and not equal(kept[-2], params)
  (stage,) = (r for r in records.read(directory) if r["kind"] == "stage")
  assert (stage["pairs"], stage["equal_pairs"], stage["selected_iteration"]) == (88, 0, 6)


def test_recorded_evaluation_is_that_of_the_parameters_kept(undisturbed, start):
  directory, _, kept, _ = undisturbed
  rows = preferences(20)
  ratios = [
    np.asarray(summed_logprobs(kept[2], rows, s) - summed_logprobs(start, rows, s), np.float64)
    for s in pairs.SIDES
  ]
  margin = 0.5 * (ratios[0] - ratios[1])
  line = metric_lines(directory)[2]
  assert line["evaluation_loss"] == pytest.approx(np.mean(np.log1p(np.exp(-margin))), rel=1e-4)
  assert line["evaluation_margin"] == pytest.approx(margin.mean(), rel=1e-4)
  assert line["evaluation_accuracy"] == pytest.approx(np.mean(margin > 0), abs=1e-6)


def test_nothing_is_compiled_again_in_a_later_iteration(undisturbed):
  # The reference of both sets of rows, the metrics' names (asked twice), the step, the evaluation.
  assert undisturbed[3] == 6


@pytest.mark.parametrize("when", ["within", pytest.param("between", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_ends_with_the_same_bits(start, undisturbed, tmp_path, when):
  """In the second iteration, one step after one that was saved; or between its record and its commit."""
  every = 4 if when == "within" else None
  with (
    open_run(tmp_path, save_every_seconds=None, save_every_steps=every) as run,
    pytest.MonkeyPatch.context() as patch,
  ):
    if when == "within":
      monkeypatch_batches(patch, fail_at=6)
    else:
      patch.setattr(dpo._Trainer, "commit", failing(dpo._Trainer.commit, at=2))
    with pytest.raises(KeyboardInterrupt):
      train(run, start)
  stage = tmp_path / "checkpoints/dpo"
  assert [path.name for path in (stage / "steps").iterdir()] == ["1"]
  assert (stage / "within/4").is_dir() == (when == "within")
  with (
    open_run(tmp_path, save_every_seconds=None, save_every_steps=every) as run,
    pytest.MonkeyPatch.context() as patch,
  ):
    # The reference is not looked at again.
    patch.setattr(completions, "chunks", evaluations_only)
    params = train(run, start)
  assert equal(jax.device_get(params), undisturbed[1])
  timeless = [
    [records.without_times(r) for r in records.read(directory)]
    for directory in (tmp_path, undisturbed[0])
  ]
  assert timeless[0] == timeless[1]
  assert {path.name for path in stage.iterdir()} == {"iterations", "reference", "result"}


def monkeypatch_batches(patch, *, fail_at: int):
  """The input fails before the update of that number."""
  original = dpo.sharding.put_whole_batch
  calls = 0

  def put(batch, mesh):
    nonlocal calls
    calls += "chosen_reference" in batch and len(batch["chosen"]) == 16 and "weight" not in batch
    if calls == fail_at + 1:  # the first is the example
      raise KeyboardInterrupt
    return original(batch, mesh)

  patch.setattr(dpo.sharding, "put_whole_batch", put)


def failing(method, *, at: int):
  """The method, which is interrupted at this call."""
  calls = 0

  def called(*arguments):
    nonlocal calls
    calls += 1
    if calls == at:
      raise KeyboardInterrupt
    return method(*arguments)

  return called


chunks = completions.chunks


def evaluations_only(arrays, size):
  """`completions.chunks`, but not of rows without log-probabilities of the reference."""
  assert "chosen_reference" in arrays
  return chunks(arrays, size)


@pytest.mark.slow
def test_a_signal_within_an_iteration_saves_and_leaves(start, tmp_path, monkeypatch):
  iterate = dpo._Trainer.iterate

  def signalled(trainer, bar):
    trainer._run.interrupts.requested = 15
    return iterate(trainer, bar)

  monkeypatch.setattr(dpo._Trainer, "iterate", signalled)
  with (
    open_run(tmp_path, save_every_seconds=None) as run,
    pytest.raises(Interrupted, match=r"during iteration 1 of dpo; step 1 is saved"),
  ):
    train(run, start, evaluation_rows=None)
  assert (tmp_path / "checkpoints/dpo/within/1").is_dir()


def test_selection_by_the_evaluation_loss(start, tmp_path):
  """Judged by the opposite labels, every step makes it worse: the first iteration is the best."""
  rows = preferences(48)
  rows["rejected"] = np.where(np.arange(48)[:, None] < 12, rows["chosen"], rows["rejected"])
  changes = {"selection": "best", "num_epochs": 1.0, "rows": rows}
  changes["evaluation_rows"] = preferences(20, flipped=True)
  with open_run(tmp_path) as run:
    params = train(run, start, **changes)
    first, last = (load_iteration(run, i, params, stage="dpo") for i in (1, 2))
    # A stage that is done is loaded.
    again = train(run, start, **changes)
  losses = [r["evaluation_loss"] for r in metric_lines(tmp_path)]
  assert len(losses) == 2 and np.log(2) < losses[0] < losses[1]
  assert equal(params, first) and not equal(params, last)
  assert equal(again, params)
  (stage,) = (r for r in records.read(tmp_path) if r["kind"] == "stage")
  assert (stage["selected_iteration"], stage["pairs"], stage["equal_pairs"]) == (1, 36, 12)


def test_a_mitigation_trains_and_sees_what_it_asks_for(start, undisturbed, tmp_path):
  """What is trained is a difference to θ_0: the same steps as on the weights, up to rounding."""

  def measuring(loss_fn):
    def loss(params, batch, key, frozen):
      total, weight, metrics = loss_fn(params, batch, key, frozen)
      far = optax.tree.norm(optax.tree.sub(params, frozen["init"]), squared=True)
      return total, weight, metrics | {"far": (far, jnp.ones(()))}

    return loss

  difference = Mitigation(
    start=lambda init, key: jax.tree.map(jnp.zeros_like, init),
    full=lambda trained, frozen: jax.tree.map(jnp.add, frozen["init"], trained),
    wrap_losses=[measuring],
    freeze=lambda init: {"init": init},
  )
  changes = {"evaluation_rows": None, "num_epochs": 0.5}
  with open_run(tmp_path) as run:
    full = train(run, start, mitigation=difference, **changes)
  for a, b in zip(jax.tree.leaves(undisturbed[2][0]), jax.tree.leaves(full), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  # Far from nothing: three steps of 0.01 in nearly every entry.
  assert metric_lines(tmp_path)[0]["far"] > 1e-3


def test_boundaries_are_half_epochs_to_the_nearest_step():
  found = settings(num_epochs=2.0).boundaries
  assert found(96) == [0, 6, 12, 18, 24]
  assert found(100) == [0, 6, 13, 19, 25]
  # Never an iteration without a step.
  assert found(3) == [0, 1, 2, 3, 4]


def test_the_optimizer_can_be_checked_before_the_pairs_are_known():
  config = settings(optimizer={"learning_rate": 1e-3, "warmup_steps": 50, "schedule": "linear"})
  config.make_optimizer()
  with pytest.raises(ConfigError, match="warm-up of 50 steps"):
    config.make_optimizer(40)


def test_what_cannot_work_is_refused_before_training(start, tmp_path):
  rows = preferences()
  with open_run(tmp_path) as run:
    for changes, error, message in (
      ({"num_epochs": 0.75}, ConfigError, "num_epochs: expected a multiple of 0.5, found 0.75"),
      ({"num_epochs": 0}, ConfigError, "num_epochs"),
      ({"selection": "bets"}, UnknownName, "Did you mean 'best'"),
      ({"loss": "hinge"}, UnknownName, "unknown preference loss 'hinge'"),
      ({"beta": -1.0}, ConfigError, "beta"),
      ({"selection": "best", "evaluation_rows": None}, ConfigError, "needs evaluation_rows"),
      ({"rows": rows | {"rejected": rows["chosen"]}}, BadData, "dpo: rows: no pairs are left of 64"),
      ({"evaluation_rows": {"chosen": 0}}, BadData, "dpo: evaluation_rows: expected columns"),
      ({"betta": 1.0}, TypeError, "betta"),
    ):  # fmt: skip
      with pytest.raises(error, match=message):
        train(run, start, **changes)
  assert records.read(tmp_path) == []


@pytest.mark.slow
def test_weights_that_explode_are_named(start, tmp_path):
  steps = {"learning_rate": 1e30, "name": "sgd", "clip_norm": None}
  changes = {"rows": preferences(32), "evaluation_rows": None, "optimizer": steps}
  with (
    open_run(tmp_path) as run,
    pytest.raises(NonFinite, match="dpo: a loss of iteration 2 is not finite"),
  ):
    train(run, start, **changes)
