"""Statistics of task vectors against plain NumPy on whole arrays."""

import json
import types

import ml_dtypes
import numpy as np
import pytest

from tests.streaming.in_memory_checkpoint import ArrayReader
from wam.core.errors import ConfigError, MismatchedTrees, NonFinite
from wam.report.differences import differences_figure
from wam.streaming import blocks, differences

SHAPES = {
  "model.embed_tokens.weight": (50, 8),
  "model.layers.0.mlp.up_proj.weight": (16, 8),
  "model.layers.0.self_attn.q_proj.weight": (8, 8),
  "model.layers.10.mlp.up_proj.weight": (16, 8),
  "model.layers.2.mlp.up_proj.weight": (16, 8),
  "model.norm.weight": (8,),
}


def source(label, tree):
  return types.SimpleNamespace(label=label, tensors={n: ArrayReader(n, x) for n, x in tree.items()})


@pytest.fixture
def models():
  random = np.random.default_rng(0)
  base = {n: random.normal(size=s).astype(ml_dtypes.bfloat16) for n, s in SHAPES.items()}
  found = []
  for _m in range(3):
    moved = {n: x.astype(np.float32) + 0.01 * random.normal(size=x.shape) for n, x in base.items()}
    found.append({n: x.astype(ml_dtypes.bfloat16) for n, x in moved.items()})
  found[1]["model.norm.weight"] = base["model.norm.weight"].copy()
  return base, found


def test_equals_numpy_on_the_whole_arrays(models, monkeypatch):
  base, members = models
  monkeypatch.setattr(blocks, "ENTRIES", 32)
  monkeypatch.setattr(blocks, "SEGMENT", 64)
  found = differences.compare(
    source("base", base), [source(f"m{i}", x) for i, x in enumerate(members)], threads=3
  )
  vector = lambda tree: np.concatenate([tree[n].astype(np.float64).ravel() for n in SHAPES])  # noqa: E731
  origin = vector(base)
  deltas = np.stack([vector(m) - origin for m in members])
  total = found.total()
  assert total.entries == origin.size
  np.testing.assert_allclose(total.norms, np.linalg.norm(deltas, axis=1), rtol=1e-5)
  np.testing.assert_allclose(
    total.relative, np.linalg.norm(deltas, axis=1) / np.linalg.norm(origin), rtol=1e-5
  )
  units = deltas / np.linalg.norm(deltas, axis=1, keepdims=True)
  np.testing.assert_allclose(total.cosines, units @ units.T, atol=1e-5)
  np.testing.assert_array_equal(total.unmoved, (deltas == 0).sum(1))
  np.testing.assert_allclose(total.largest, np.abs(deltas).max(1), rtol=1e-6)
  signs = np.sign(deltas)
  for i in range(3):
    for j in range(3):
      both = (signs[i] != 0) & (signs[j] != 0)
      expected = (signs[i] * signs[j] < 0).sum() / both.sum()
      assert total.sign_conflicts[i, j] == pytest.approx(expected)
  assert total.contested == ((signs > 0).any(0) & (signs < 0).any(0)).sum()


def test_layers_and_parts_are_sums_of_tensors(models):
  base, members = models
  found = differences.compare(source("base", base), [source("a", members[0])])
  assert list(found.by_layer()) == ["0", "2", "10", "outside layers"]
  assert set(found.by_part()) == {"embeddings", "attention", "mlp", "norms"}
  assert found.by_part()["mlp"].entries == 3 * 128
  assert found.by_layer_and_part()["0", "mlp"].entries == 128
  for grouped in (found.by_layer(), found.by_part()):
    assert sum(s.gram[0, 0] for s in grouped.values()) == pytest.approx(found.total().gram[0, 0])


def test_json_table_and_picture(models, tmp_path):
  base, members = models
  members[1] = dict(base)  # a model that did not move at all
  found = differences.compare(
    source("base", base), [source(n, x) for n, x in zip("abc", members, strict=True)]
  )
  content = json.loads(found.to_json())
  assert content["total"]["unmoved"][1] == 1.0
  assert content["total"]["cosines"][0][1] is None
  assert content["tensors"]["model.norm.weight"]["entries"] == 8
  (header, rows), (pairs, agreement) = differences.tables(found.by_part(), found.models)
  assert all(len(row) == len(header) for row in rows)
  assert "100.0%" in rows[0]
  assert all(len(row) == len(pairs) == 7 for row in agreement)
  assert "-" in agreement[0]
  for number, models_ in enumerate((["a", "b", "c"], ["a"])):
    one = differences.compare(
      source("base", base), [source(n, members["abc".index(n)]) for n in models_]
    )
    path = tmp_path / f"{number}.png"
    differences_figure(json.loads(one.to_json()), path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_what_does_not_fit_is_refused_with_names(models):
  base, members = models
  other = dict(members[0]) | {"model.norm.weight": np.zeros(9, np.float32), "extra": np.zeros(2)}
  del other["model.embed_tokens.weight"]
  with pytest.raises(MismatchedTrees) as caught:
    differences.compare(source("base", base), [source("odd", other)])
  for words in (
    "'model.embed_tokens.weight' is missing from odd",
    "'extra' is only in odd",
    "shape [9] in odd but [8]",
  ):
    assert words in str(caught.value)
  with pytest.raises(ConfigError, match="at least one"):
    differences.compare(source("base", base), [])
  members[0]["model.norm.weight"][0] = np.nan
  with pytest.raises(NonFinite, match=r"model\.norm\.weight"):
    differences.compare(source("base", base), [source("nan", members[0])])
