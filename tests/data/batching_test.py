import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError
from wam.data.batching import Batches, pad_left, pad_right


def rows(n: int) -> dict[str, np.ndarray]:
  return {"x": np.arange(n), "y": np.arange(2 * n).reshape(n, 2)}


def take(batches: Batches, n: int) -> np.ndarray:
  return np.concatenate([next(batches)["x"] for _ in range(n)])


def test_padding_by_hand():
  tokens, mask = pad_right([[1, 2, 3], [], [4]], 9)
  np.testing.assert_array_equal(tokens, [[1, 2, 3], [9, 9, 9], [4, 9, 9]])
  np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 0, 0], [1, 0, 0]])
  tokens, mask = pad_left([[1, 2, 3], [], [4]], 9, multiple=2)
  np.testing.assert_array_equal(tokens, [[9, 1, 2, 3], [9, 9, 9, 9], [9, 9, 9, 4]])
  np.testing.assert_array_equal(mask, [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]])
  assert tokens.dtype == np.int32 and mask.dtype == bool
  with pytest.raises(ValueError, match="3 tokens does not fit in length 2"):
    pad_left([[1, 2, 3]], 0, length=2)


@pytest.mark.parametrize(("n", "size"), [(12, 4), (10, 4), (3, 8), (1, 1), (7, 7)])
def test_every_row_once_per_epoch(n, size):
  batches = Batches(rows(n), batch_size=size, seed=1)
  seen = take(batches, 5 * n)[: 5 * n].reshape(5, n)
  np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(n), (5, 1)))


def test_epochs_differ_and_rows_stay_together():
  batches = Batches(rows(50), batch_size=50, seed=1)
  first, second = next(batches), next(batches)
  assert (first["x"] != second["x"]).any() and (first["x"] != np.arange(50)).any()
  np.testing.assert_array_equal(first["y"][:, 0], 2 * first["x"])


def test_deterministic_in_seed_and_stream():
  def order(**changed):
    return take(Batches(rows(40), **{"batch_size": 8, "seed": 3, "stream": "a"} | changed), 12)

  np.testing.assert_array_equal(order(), order())
  assert (order() != order(seed=4)).any()
  assert (order() != order(stream="b")).any()


def test_without_shuffle_is_file_order():
  batches = Batches(rows(5), batch_size=2, seed=0, shuffle=False)
  assert take(batches, 5).tolist() == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 17])
def test_resume_anywhere_gives_the_same_bits(stop):
  batches = Batches(rows(23), batch_size=5, seed=0)
  for _ in range(stop):
    next(batches)
  state = batches.get_state()
  expected = [next(batches) for _ in range(12)]
  again = Batches(rows(23), batch_size=5, seed=0)
  again.set_state(state)
  for batch in expected:
    for name, array in next(again).items():
      assert array.tobytes() == batch[name].tobytes()
  batches.set_state(state)  # also backwards, on the same object
  np.testing.assert_array_equal(next(batches)["x"], expected[0]["x"])


@pytest.mark.parametrize(
  "changed", [{"seed": 1}, {"batch_size": 4}, {"stream": "other"}, {"rows": rows(22)}]
)
def test_resume_on_something_else_is_refused(changed):
  given = {"rows": rows(23), "batch_size": 5, "seed": 0}
  state = Batches(**given).get_state()
  with pytest.raises(ConfigError, match="other data, another seed or another batch size"):
    Batches(**given | changed).set_state(state)


def test_processes_share_the_global_batch():
  whole = Batches(rows(11), batch_size=6, seed=2)
  parts = [
    Batches(rows(11), batch_size=6, seed=2, process_index=i, process_count=3) for i in range(3)
  ]
  for _ in range(7):
    together = np.concatenate([next(part)["y"] for part in parts])
    np.testing.assert_array_equal(together, next(whole)["y"])
  assert parts[0].get_state() == whole.get_state() == parts[2].get_state()


def test_batches_are_fresh_memory():
  data = rows(4)
  batch = next(Batches(data, batch_size=4, seed=0))
  batch["x"][:] = -1
  np.testing.assert_array_equal(data["x"], np.arange(4))


def test_refusals():
  with pytest.raises(BadData, match=r"'sft'.*empty"):
    Batches({"x": np.zeros(0)}, batch_size=1, seed=0, stream="sft")
  with pytest.raises(ConfigError, match="6 cannot be split over 4"):
    Batches(rows(9), batch_size=6, seed=0, process_count=4)
  with pytest.raises(ValueError, match="differ in their number of rows"):
    Batches({"x": np.zeros(3), "y": np.zeros(2)}, batch_size=1, seed=0)
