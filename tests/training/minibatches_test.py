import numpy as np

from wam.training import minibatches


def test_every_row_once_an_epoch_in_an_order_of_its_own():
  rows = {"tokens": np.arange(10).reshape(5, 2), "loss_mask": np.ones((5, 2), bool)}
  draw = np.random.default_rng(0)
  batches = list(minibatches.shuffled(rows, draw, batch_size=2, epochs=20))
  assert len(batches) == 60 and {b["tokens"].shape for b in batches} == {(2, 2)}
  orders = set()
  for epoch in range(20):
    real = [b["tokens"][b["loss_mask"].any(1), 0] for b in batches[3 * epoch : 3 * epoch + 3]]
    assert [len(x) for x in real] == [2, 2, 1]
    orders.add(tuple(np.concatenate(real).tolist()))
  assert len(orders) > 10 and all(sorted(order) == [0, 2, 4, 6, 8] for order in orders)


def test_the_filling_has_no_weight():
  rows = {"x": np.asarray([[1.5], [2.5], [3.5]]), "weight": np.asarray([[0.5], [0.25], [2.0]])}
  batches = minibatches.shuffled(
    rows, np.random.default_rng(1), batch_size=4, epochs=1, weight="weight"
  )
  (batch,) = batches
  assert batch["weight"][3] == 0 and sorted(batch["weight"][:3, 0]) == [0.25, 0.5, 2.0]
  assert batch["x"][3] == batch["x"][0] and rows["weight"].tolist() == [[0.5], [0.25], [2.0]]


def test_the_same_generator_gives_the_same_batches():
  rows = {"loss_mask": np.arange(8).reshape(8, 1)}
  once, again = (
    [
      b["loss_mask"].tolist()
      for b in minibatches.shuffled(rows, np.random.default_rng(3), batch_size=3, epochs=2)
    ]
    for _ in range(2)
  )
  assert once == again
