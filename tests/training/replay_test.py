"""Experience replay: the loss in NumPy, which rows come when, and an iterator that goes on where it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.algorithms.small_test_models import MODEL, sequences
from wam.core.errors import BadData, ConfigError, UnknownName
from wam.data.batching import Batches
from wam.losses import sequence
from wam.training import replay
from wam.training.state import init
from wam.training.step import averages, make_update

KEY = jax.random.key(0)


def constant(params, batch, key, frozen):
  """2 a row, and 10 rows' worth of weight: nothing that counts tokens."""
  assert "replay" not in batch
  rows = jnp.float32(batch["tokens"].shape[0])
  return 2 * rows + 0 * jnp.sum(params["final_norm"]["scale"]), 10 * rows, {"x": (rows, rows)}


def numbered(count, length=4):
  """Rows whose tokens are their number."""
  tokens = np.broadcast_to(np.arange(count, dtype=np.int32)[:, None], (count, length))
  ones = np.ones((count, length), bool)
  return {"tokens": tokens, "mask": ones, "loss_mask": ones}


def taken(rows):
  return rows["tokens"][:, 0].tolist()


def test_the_loss_is_that_of_numpy():
  params = MODEL.init(jax.random.key(0))
  more = sequences(5)
  batch = {**sequences(3), "replay": more}
  logits = jax.jit(MODEL.apply)(params, more["tokens"], mask=more["mask"]).logits
  logprobs = np.asarray(sequence.token_logprobs(logits, more["tokens"]), np.float64)
  total, tokens = -logprobs[more["loss_mask"]].sum(), more["loss_mask"].sum()
  assert tokens == 15
  for normalize, mean in (
    ("separately", 6 / 30 + 0.5 * total / tokens),
    ("together", (6 + 0.5 * total) / (30 + 0.5 * tokens)),
  ):
    loss_fn = replay.loss(MODEL, coefficient=0.5, normalize=normalize)(constant)
    loss, weight, metrics = jax.jit(loss_fn)(params, batch, KEY, {})
    assert float(loss / weight) == pytest.approx(mean, rel=1e-5)
    assert averages(metrics) == pytest.approx({"x": 1.0, "replay_loss": total / tokens}, rel=1e-5)


def per_token(params, batch, key, frozen):
  """A sum over tokens that costs little to compile."""
  weights = batch["loss_mask"].astype(jnp.float32)
  return jnp.sum(weights * params["embed"]["embedding"][batch["tokens"], 0]), jnp.sum(weights), {}


def test_a_proportion_is_a_coefficient():
  """λ times the data counts as λ times their loss, where all losses are sums over tokens."""
  params = MODEL.init(jax.random.key(0))
  one, data = sequences(2), sequences(3)
  four = {n: np.concatenate([x] * 4) for n, x in data.items()}

  def mean(rows, coefficient):
    wrap = replay.loss(MODEL, coefficient=coefficient, normalize="together")
    loss, weight, _ = jax.jit(wrap(per_token))(params, {**one, "replay": rows}, KEY, {})
    return float(loss / weight)

  assert mean(four, 1.0) == pytest.approx(mean(data, 4.0), rel=1e-5)


def test_microbatches_do_not_change_the_update():
  params = MODEL.init(jax.random.key(0))
  rows = sequences(4)
  rows["loss_mask"][0, 3:] = False
  batch = {**rows, "replay": sequences(8)}
  batch["replay"]["loss_mask"][:3, 4:] = False

  loss_fn = replay.loss(MODEL, coefficient=0.7, normalize="together")(per_token)
  found = []
  for steps in (1, 2):
    update = jax.jit(make_update(loss_fn, optax.sgd(1.0), accumulate_steps=steps))
    state, metrics = update(init(params, optax.sgd(1.0)), batch, KEY, {})
    found.append((state.params, averages(metrics)))
  assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
  for x, y in zip(*(jax.tree.leaves(p) for p, _ in found), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_every_row_comes_once_before_one_comes_again():
  rows = replay.Rows(numbered(10), proportion=1.5, seed=3)
  assert rows.count(4) == 6
  draws = [taken(rows.take(6, 1, number)) for number in range(5)]
  joined = [row for draw in draws for row in draw]
  assert sorted(joined[:10]) == sorted(joined[10:20]) == sorted(joined[20:]) == list(range(10))
  assert joined[:10] != joined[10:20]
  # A function of seed, iteration and number; whatever was asked before.
  again = replay.Rows(numbered(10), proportion=1.5, seed=3)
  assert taken(again.take(6, 1, 3)) == draws[3]
  assert taken(again.take(6, 2, 3)) != draws[3]
  assert taken(replay.Rows(numbered(10), seed=4).take(6, 1, 3)) != draws[3]


def test_batches_get_rows_beside_their_own():
  rows = replay.Rows(numbered(10), proportion=0.5)
  batch = {"chosen": np.zeros((4, 3)), "weight": np.ones(4)}
  found = rows.augment(batch, 1, 0)
  assert found.keys() == {"chosen", "weight", "replay"}
  assert found["chosen"] is batch["chosen"]
  assert {n: x.shape for n, x in found["replay"].items()} == dict.fromkeys(replay.NAMES, (2, 4))


def augmented(process_index=0, process_count=1):
  inner = Batches(
    {"x": np.arange(12)}, batch_size=4, seed=0,
    process_index=process_index, process_count=process_count,
  )  # fmt: skip
  rows = replay.Rows(numbered(10), proportion=1.5)
  return replay.AugmentedBatches(
    inner, rows.augment, process_index=process_index, process_count=process_count
  )


def test_an_iterator_goes_on_where_it_was():
  batches = augmented()
  next(batches)
  state = batches.get_state()
  expected = [next(batches) for _ in range(3)]
  other = augmented()
  other.set_state(state)
  for before in expected:
    after = next(other)
    assert after["x"].tolist() == before["x"].tolist()
    assert taken(after["replay"]) == taken(before["replay"])


def test_processes_share_the_rows_of_a_batch():
  alone, first, second = augmented(), augmented(0, 2), augmented(1, 2)
  for _ in range(4):
    batch, one, two = next(alone), next(first), next(second)
    assert one["x"].tolist() + two["x"].tolist() == batch["x"].tolist()
    assert taken(one["replay"]) + taken(two["replay"]) == taken(batch["replay"])


def test_what_makes_no_sense_is_refused():
  with pytest.raises(ConfigError, match=r"coefficient is -1\.0"):
    replay.loss(MODEL, coefficient=-1.0)
  with pytest.raises(UnknownName, match="Did you mean 'together'"):
    replay.loss(MODEL, normalize="togeter")
  with pytest.raises(ConfigError, match="does not put replayed rows"):
    replay.loss(MODEL)(constant)({}, sequences(2), KEY, {})
  with pytest.raises(ConfigError, match=r"proportion is 0\.0"):
    replay.Rows(numbered(3), proportion=0.0)
  with pytest.raises(ConfigError, match=r"0\.3 of a batch of 4 is 1\.2 rows"):
    replay.Rows(numbered(3), proportion=0.3).count(4)
  rows = numbered(3)
  for broken, message in (
    ({"tokens": rows["tokens"]}, "have no mask, loss_mask"),
    (rows | {"mask": rows["mask"][:2]}, "one shape"),
    ({n: x[:0] for n, x in rows.items()}, "at least one row"),
    (rows | {"loss_mask": np.zeros((3, 4), bool)}, "no token of the rows is trained"),
  ):
    with pytest.raises(BadData, match=message):
      replay.Rows(broken)
