import numpy as np
import pytest

from wam.core.errors import BadData, ConfigError
from wam.data.packing import pack, pack_examples


def test_pack_by_hand():
  packed = pack([[1, 2, 3], [4], [5, 6, 7, 8]], length=3, pad_id=9)
  np.testing.assert_array_equal(packed["tokens"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
  np.testing.assert_array_equal(packed["mask"], [[1, 1, 1], [1, 1, 1], [1, 1, 0]])
  np.testing.assert_array_equal(packed["loss_mask"], [[0, 1, 1], [0, 1, 1], [0, 1, 0]])
  packed = pack([[1, 2, 3], [4], [5, 6, 7, 8]], length=3, remainder="drop")
  np.testing.assert_array_equal(packed["tokens"], [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("overlap", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 5, 6, 7, 40, 41])
def test_overlap_makes_every_token_a_target_once(overlap, count):
  packed = pack([list(range(100, 100 + count))], length=6, overlap=overlap)
  targets = packed["tokens"][packed["loss_mask"]]
  assert sorted(targets.tolist()) == list(range(101, 100 + count))
  # and has its left neighbour before it
  row, place = np.nonzero(packed["loss_mask"])
  np.testing.assert_array_equal(packed["tokens"][row, place - 1], targets - 1)


def test_pack_examples_splits_nothing():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 12, size=(50, 2))
  prompts = [[100 + i] * a for i, (a, _) in enumerate(sizes)]
  completions = [[200 + i] * b for i, (_, b) in enumerate(sizes)]
  packed = pack_examples(prompts, completions, length=24)
  runs = []
  for tokens, mask in zip(packed["tokens"], packed["mask"], strict=True):
    assert mask[: mask.sum()].all()  # all padding at the end
    runs.append(tokens[mask].tolist())
  for prompt, completion in zip(prompts, completions, strict=True):
    text = str([*prompt, *completion]).strip("[]")
    assert sum(text in str(run) for run in runs) == 1
  assert packed["mask"].sum() == sizes.sum()
  assert packed["loss_mask"].sum() == sizes[:, 1].sum()
  assert (packed["tokens"][packed["loss_mask"]] >= 200).all()
  assert packed["mask"].mean() > 0.9


def test_pack_examples_first_token_is_no_target():
  packed = pack_examples([[], []], [[1, 2], [3, 4]], length=5, prompt_loss=True)
  assert packed["tokens"].tolist() == [[1, 2, 3, 4, 0]]
  assert packed["loss_mask"].tolist() == [[False, True, False, True, False]]


def test_refusals():
  with pytest.raises(BadData, match="too few"):
    pack([[1]], length=4)
  with pytest.raises(BadData, match="too few"):
    pack([], length=4)
  with pytest.raises(BadData, match="too few"):
    pack([[1, 2, 3]], length=4, remainder="drop")
  with pytest.raises(ConfigError, match="overlap"):
    pack([[1, 2, 3]], length=2, overlap=2)
  with pytest.raises(BadData, match="example 1 has 5 tokens"):
    pack_examples([[1], [1, 2]], [[1], [1, 2, 3]], length=4)
  with pytest.raises(BadData, match="no examples"):
    pack_examples([], [], length=4)
