import concurrent.futures
import json

import ml_dtypes
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streaming import small_tokenizers as small
from wam.core.errors import BadCheckpoint, ConfigError, MissingFile, UnknownName
from wam.streaming.vocabularies import vocabulary_alignment, vocabulary_rows
from wam.streaming.vocabularies.vocabulary import plan_vocabulary

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Three vocabularies: tokens of all, of two, of one; ids that moved.
IDS = {
  "base": {"<unk>": 0, "the": 1, "red": 2, "kite": 3},
  "a": {"<unk>": 0, "red": 1, "the": 2, "flies": 3, "high": 4},
  "b": {"<unk>": 0, "the": 1, "high": 2, "kite": 3, "flies": 4, "far": 5},
}


def make(tmp_path, ids=IDS, rows=None, **options):
  """Sources with word-level tokenizers of these ids, by label."""
  rows = rows or {}
  sources = {}
  for label, table in ids.items():
    directory = small.save(small.words(table), tmp_path / label)
    size = rows.get(label, max(table.values()) + 1)
    sources[label] = small.source(label, directory, size, **options)
  return sources


def rows_of(source, name=EMBEDDING):
  return source.tensors[name].array


def twin(sources, plan, *, base, name=EMBEDDING, zero=(), tables=IDS):
  """The slow way: for every source its [V, D] in float64, token by token by the rule in the docstring."""
  names = {row: token for token, row in plan.ids.items()}
  have = {}
  for label, source in sources.items():
    array = source.tensors.get(name, source.tensors[EMBEDDING]).array.astype(np.float64)
    tokens = {row: token for token, row in tables[label].items()}
    have[label] = {tokens.get(i, i): array[i] for i in range(len(array))}
  width = next(iter(next(iter(have.values())).values())).shape
  result = {}
  for label in sources:
    rows, pending = [], []
    for i in range(plan.size):
      token = names.get(i, i)
      owners = [other for other in have if token in have[other]]
      if token in zero:
        rows.append(np.zeros(width))
      elif label in owners:
        rows.append(have[label][token])
      elif base in owners:
        rows.append(have[base][token])
      elif owners:
        rows.append(np.mean([have[other][token] for other in owners], axis=0))
      else:
        rows.append(None)
        pending.append(i)
    known = np.mean([row for row in rows if row is not None], axis=0)
    result[label] = np.stack([known if row is None else row for row in rows])
  return result


def read_all(reader):
  array = reader.read(0, int(np.prod(reader.shape)))
  assert array.dtype == reader.dtype
  return array.reshape(reader.shape)


def check(sources, plan, expected, name=EMBEDDING):
  for label, source in sources.items():
    reader = plan.reader(source, source.tensors.get(name, source.tensors[EMBEDDING]), name=name)
    assert reader.shape == (plan.size, 6)
    np.testing.assert_allclose(read_all(reader), expected[label], rtol=1e-6, atol=1e-7)


def test_nothing_asked_nothing_planned(tmp_path):
  sources = make(tmp_path)
  assert plan_vocabulary(None, sources, sources["base"], None) is None


@pytest.mark.parametrize("spec", ["base", "union", "a", {"source": "union"}, {}])
def test_equal_vocabularies_are_not_touched(tmp_path, spec):
  sources = make(tmp_path, {"base": IDS["base"], "a": IDS["base"]}, {"base": 7, "a": 7}, tied=False)
  plan = plan_vocabulary(spec, sources, sources["base"], sources["base"])
  for source in sources.values():
    for name in (EMBEDDING, HEAD):
      assert plan.reader(source, source.tensors[name]) is source.tensors[name]
  assert (plan.size, plan.config) == (7, {})
  holder = "a" if spec == "a" else "base"
  assert plan.files["tokenizer.json"] == tmp_path / holder / "tokenizer.json"
  assert plan.notes == (
    f"the output has the tokenizer of '{holder}' and 7 rows of embeddings; 3 belong to no token",
  )


@pytest.mark.parametrize("spec", ["base", "union", "a", "b"])
@pytest.mark.parametrize("base", ["base", None])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_go_by_token(tmp_path, spec, base, tied):
  sources = make(tmp_path, tied=tied)
  plan = plan_vocabulary(spec, sources, sources["base"], sources.get(base))
  tokens = {"base": IDS["base"], "a": IDS["a"], "b": IDS["b"]}
  union = {**IDS["base"], "flies": 4, "high": 5, "far": 6}
  assert plan.ids == (union if spec == "union" else tokens[spec])
  assert plan.size == len(plan.ids)
  for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
    check(sources, plan, twin(sources, plan, base=base, name=name), name)


def test_models_without_a_head_lend_their_embedding(tmp_path):
  """Where only some are tied, the output has a head, and its missing rows come from the embeddings of those."""
  sources = make(tmp_path, tied=False)
  del sources["a"].tensors[HEAD]
  plan = plan_vocabulary("union", sources, sources["base"], None)
  expected = twin(sources, plan, base=None, name=HEAD)
  check(sources, plan, expected, HEAD)
  check(sources, plan, twin(sources, plan, base=None), EMBEDDING)
  # A head beside a config that says tied is not what the model uses.
  sources["a"].config["tie_word_embeddings"] = True
  sources["a"].tensors[HEAD] = small.ArrayReader(HEAD, np.full((5, 6), 9, np.float32))
  for label in ("base", "b"):
    reader = plan.reader(sources[label], sources[label].tensors[HEAD])
    np.testing.assert_allclose(read_all(reader), expected[label], rtol=1e-6, atol=1e-7)


def test_copied_rows_keep_their_bits_and_means_are_float32(tmp_path):
  sources = make(tmp_path, dtype=ml_dtypes.bfloat16)
  plan = plan_vocabulary("a", sources, sources["base"], sources["base"])
  reader = plan.reader(sources["b"], sources["b"].tensors[EMBEDDING])
  assert reader.dtype == ml_dtypes.bfloat16
  own, start = rows_of(sources["b"]), rows_of(sources["base"])
  expected = np.stack([own[0], start[2], own[1], own[4], own[2]])  # <unk> red the flies high
  np.testing.assert_array_equal(read_all(reader).view(np.uint16), expected.view(np.uint16))

  plan = plan_vocabulary("union", sources, sources["base"], None)
  dtypes = {k: plan.reader(s, s.tensors[EMBEDDING]).dtype for k, s in sources.items()}
  # "flies" and "high" are a's and b's, "red" is base's and a's, "kite" is base's and b's.
  assert dtypes == dict.fromkeys(sources, np.dtype(np.float32))
  high = read_all(plan.reader(sources["base"], sources["base"].tensors[EMBEDDING]))[
    plan.ids["high"]
  ]
  pair = rows_of(sources["a"])[4].astype(np.float32), rows_of(sources["b"])[2].astype(np.float32)
  np.testing.assert_array_equal(high, (pair[0] + pair[1]) / 2)


def test_rows_of_several_dtypes_lose_nothing(tmp_path):
  sources = make(tmp_path)
  for label, dtype in (("base", ml_dtypes.bfloat16), ("a", np.float16), ("b", np.float32)):
    reader = sources[label].tensors[EMBEDDING]
    sources[label].tensors[EMBEDDING] = small.ArrayReader(EMBEDDING, reader.array.astype(dtype))
  plan = plan_vocabulary("base", sources, sources["base"], sources["base"])
  readers = {k: plan.reader(s, s.tensors[EMBEDDING]) for k, s in sources.items()}
  assert readers["base"] is sources["base"].tensors[EMBEDDING]
  assert readers["a"].dtype == readers["b"].dtype == np.float32  # with rows of base's: bfloat16
  expected = twin(sources, plan, base="base")
  for label in "ab":
    np.testing.assert_array_equal(read_all(readers[label]), expected[label].astype(np.float32))


def test_pieces_by_many_threads(tmp_path):
  """Any range of entries, cut through rows too, by threads at once; also where a mean of all rows is made first."""
  sources = make(tmp_path)
  spec = {"source": "union", "pad_to_multiple_of": 16}
  plan = plan_vocabulary(spec, sources, sources["base"], None)
  for label, source in sources.items():
    whole = twin(sources, plan, base=None)[label].reshape(-1)
    reader = plan.reader(source, source.tensors[EMBEDDING])
    pieces = [(i, j) for i in range(0, len(whole), 7) for j in (i, i + 1, i + 5, len(whole))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      found = list(pool.map(lambda piece: reader.read(*piece), pieces))  # noqa: B023
    for (i, j), values in zip(pieces, found, strict=True):
      np.testing.assert_allclose(values, whole[i:j], rtol=1e-6, atol=1e-7)
      values[:] = np.nan  # the caller may do so
    np.testing.assert_allclose(reader.read(0, len(whole)), whole, rtol=1e-6, atol=1e-7)


_TOKENS = ["<unk>", *"abcdefgh"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_vocabularies(tmp_path_factory, data):
  """Ids with holes, padding of different lengths, with and without a base."""
  tables, rows = {}, {}
  for label in ("base", "a", "b"):
    tokens = data.draw(st.lists(st.sampled_from(_TOKENS), min_size=1, unique=True))
    places = data.draw(st.permutations(range(12)))
    tables[label] = dict(zip(tokens, places, strict=False)) | {"<unk>": 12}
    rows[label] = data.draw(st.integers(13, 20))
  sources = make(tmp_path_factory.mktemp("v"), tables, rows)
  spec = {
    "source": data.draw(st.sampled_from(["base", "union", "a", "b"])),
    "pad_to_multiple_of": data.draw(st.sampled_from([None, 1, 8])),
  }
  base = data.draw(st.sampled_from(["base", None]))
  plan = plan_vocabulary(spec, sources, sources["base"], sources.get(base))
  holder = "base" if spec["source"] == "union" else spec["source"]
  assert plan.ids.items() >= tables[holder].items()
  assert plan.size >= max(rows[holder], max(plan.ids.values()) + 1)
  assert plan.size % (spec["pad_to_multiple_of"] or 1) == 0
  check(sources, plan, twin(sources, plan, base=base, tables=tables))


def test_padding_is_not_cut(tmp_path):
  """Qwen's way: more rows than tokens. The holder's size stays, whatever the tokenizer needs."""
  rows = {"base": 12, "a": 14, "b": 9}
  sources = make(tmp_path, rows=rows)
  for spec, size in (("base", 12), ("union", 12), ("a", 14), ("b", 9)):
    plan = plan_vocabulary(spec, sources, sources["base"], sources["base"])
    assert plan.size == size
    check(sources, plan, twin(sources, plan, base="base"))
  plan = plan_vocabulary("b", sources, sources["base"], sources["base"])
  assert plan.config == {"vocab_size": 9}
  lost = [note for note in plan.notes if "'base'" in note]
  assert any("the last 3 rows of 'base', of no token, are left out" in note for note in lost)


def test_padding_to_a_multiple_is_the_mean_of_the_rows(tmp_path):
  sources = make(tmp_path, {"base": IDS["base"], "a": IDS["base"]})
  plan = plan_vocabulary(
    {"source": "base", "pad_to_multiple_of": 3}, sources, sources["base"], None
  )
  assert plan.size == 6 and plan.config == {"vocab_size": 6}
  for source in sources.values():
    found = read_all(plan.reader(source, source.tensors[EMBEDDING]))
    np.testing.assert_array_equal(found[:4], rows_of(source))
    mean = rows_of(source).astype(np.float64).mean(axis=0).astype(np.float32)
    np.testing.assert_array_equal(found[4:], [mean, mean])


def test_a_bias_of_the_head_has_rows_too(tmp_path):
  sources = make(tmp_path)
  for source in sources.values():
    source.tensors["lm_head.bias"] = small.ArrayReader("lm_head.bias", rows_of(source)[:, 0].copy())
    assert vocabulary_rows.vocabulary_tensors(source) == (EMBEDDING, "lm_head.bias")
  plan = plan_vocabulary("union", sources, sources["base"], None)
  expected = twin(sources, plan, base=None)
  for label, source in sources.items():
    found = read_all(plan.reader(source, source.tensors["lm_head.bias"]))
    np.testing.assert_allclose(found, expected[label][:, 0], rtol=1e-6)


def test_tokens_beyond_the_rows(tmp_path):
  """A pad token that was added to a tokenizer only gets a row where some model has one, else stays as it was."""
  ids = {"base": IDS["base"] | {"<pad>": 4}, "a": IDS["base"] | {"<pad>": 4}}
  sources = make(tmp_path, ids, {"base": 4, "a": 4})
  plan = plan_vocabulary("base", sources, sources["base"], sources["base"])
  assert plan.size == 4 and plan.origins == (None, None)
  assert "no model has a row for '<pad>', nor has the output" in plan.notes
  sources = make(tmp_path, ids, {"base": 4, "a": 5})
  plan = plan_vocabulary("base", sources, sources["base"], sources["base"])
  assert plan.size == 5
  check(sources, plan, twin(sources, plan, base="base", tables=ids))


def overridden(tmp_path, tokens, spec="base", **options):
  sources = make(tmp_path, **options)
  plan = plan_vocabulary(
    {"source": spec, "tokens": tokens}, sources, sources["base"], sources["base"]
  )
  found = {k: read_all(plan.reader(s, s.tensors[EMBEDDING])) for k, s in sources.items()}
  return sources, plan, found


def test_one_token_from_one_model(tmp_path):
  sources, plan, found = overridden(tmp_path, {"flies": {"source": "b"}}, "union")
  row, theirs = plan.ids["flies"], rows_of(sources["b"])[4]
  np.testing.assert_array_equal(found["base"][row], theirs)
  np.testing.assert_array_equal(found["b"][row], theirs)
  np.testing.assert_array_equal(found["a"][row], rows_of(sources["a"])[3])  # has its own
  _, _, found = overridden(tmp_path, {"flies": {"source": "b", "force": True}}, "union")
  for array in found.values():
    np.testing.assert_array_equal(array[row], theirs)


def test_zeros_and_rows_of_other_tokens(tmp_path):
  tokens = {
    "red": {"source": {"kind": "zero"}},
    "kite": {"source": {"kind": "model_token", "model": "a", "token": "high"}, "force": True},
    "the": {"source": {"kind": "model_token", "model": "b", "token_id": 5}, "force": True},
  }
  sources, plan, found = overridden(tmp_path, tokens)
  ids = plan.ids
  assert not found["b"][ids["red"]].any()
  np.testing.assert_array_equal(found["a"][ids["red"]], rows_of(sources["a"])[1])
  for array in found.values():
    np.testing.assert_array_equal(array[ids["kite"]], rows_of(sources["a"])[4])
    np.testing.assert_array_equal(array[ids["the"]], rows_of(sources["b"])[5])


def test_a_new_token_is_put_behind(tmp_path):
  entry = {"source": {"kind": "model_token", "model": "a", "token": "high"}}
  sources, plan, found = overridden(tmp_path, {"<new>": entry})
  assert plan.ids == {**IDS["base"], "<new>": 4} and plan.size == 5
  for array in found.values():
    np.testing.assert_array_equal(array[4], rows_of(sources["a"])[4])
  auto = transformers.AutoTokenizer.from_pretrained(small.put(plan.files, tmp_path / "out"))
  assert auto("the<new>kite").input_ids == [1, 4, 3]


@pytest.mark.parametrize(
  ("spec", "error", "message"),
  [
    ("bose", UnknownName, "Did you mean 'base'"),
    ({"source": "c"}, UnknownName, "unknown tokenizer source 'c'"),
    ({"sorce": "base"}, ConfigError, "unknown key 'sorce'. Did you mean 'source'"),
    (3, ConfigError, "found 3"),
    ({"pad_to_multiple_of": 0}, ConfigError, "pad_to_multiple_of"),
    ({"pad_to_multiple_of": True}, ConfigError, "pad_to_multiple_of"),
    ({"tokens": ["the"]}, ConfigError, "token -> section"),
    ({"tokens": {"the": "a"}}, ConfigError, "tokens.the: expected"),
    ({"tokens": {"": {"source": "a"}}}, ConfigError, "empty string"),
    ({"tokens": {"the": {"force": True}}}, ConfigError, "tokens.the.source: expected a model"),
    ({"tokens": {"the": {"source": "c"}}}, UnknownName, "unknown model 'c'"),
    ({"tokens": {"the": {"source": "a", "force": 1}}}, ConfigError, "true or false"),
    ({"tokens": {"the": {"source": "a", "fore": True}}}, ConfigError, "unknown key 'fore'"),
    ({"tokens": {"the": {"source": {"kind": "one"}}}}, UnknownName, "unknown kind"),
    ({"tokens": {"the": {"source": {"kind": "zero", "model": "a"}}}}, ConfigError, "'model'"),
    (
      {"tokens": {"the": {"source": {"kind": "model_token", "model": "a"}}}},
      ConfigError,
      "exactly one",
    ),
    (
      {"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token": "far"}}}},
      ConfigError,
      "'a', with 5 rows, has no row for 'far'",
    ),
    (
      {"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token_id": 5}}}},
      ConfigError,
      "'a', with 5 rows, has no row 5",
    ),
    ({"tokens": {"far": {"source": "a"}}}, ConfigError, "has no row for 'far'"),
  ],
)
def test_sections_that_are_refused(tmp_path, spec, error, message):
  sources = make(tmp_path)
  with pytest.raises(error, match=message):
    plan_vocabulary(spec, sources, sources["base"], sources["base"])


def test_a_model_without_a_tokenizer_has_the_base_s(tmp_path):
  sources = make(tmp_path)
  sources["c"] = small.source("c", None, 4)
  plan = plan_vocabulary("a", sources, sources["base"], sources["base"])
  assert "'c' has no tokenizer and is taken to have that of 'base'" in plan.notes
  check(sources, plan, twin(sources, plan, base="base", tables=IDS | {"c": IDS["base"]}))
  sources["d"] = small.source("d", None, 5)
  with pytest.raises(MissingFile, match="no tokenizer in 'd'"):
    plan_vocabulary("a", sources, sources["base"], sources["base"])


def test_slow_tokenizers_are_refused_unless_equal(tmp_path):
  sources = {}
  for label in ("a", "b"):
    (tmp_path / label).mkdir()
    (tmp_path / label / "tokenizer.model").write_bytes(b"\x0a\x0b")
    sources[label] = small.source(label, tmp_path / label, 8)
  for spec in ("base", "union", "b"):
    plan = plan_vocabulary(spec, sources, sources["a"], None)
    assert plan.size == 8 and plan.origins == (None, None) and plan.ids == {}
    assert plan.files == {
      "tokenizer.model": tmp_path / ("b" if spec == "b" else "a") / "tokenizer.model"
    }
  with pytest.raises(ConfigError, match=r"needs a tokenizer\.json, and 'a' has only a slow"):
    plan_vocabulary({"tokens": {"x": {"source": "a"}}}, sources, sources["a"], None)
  (tmp_path / "b/tokenizer.model").write_bytes(b"\x0a\x0c")
  with pytest.raises(ConfigError, match=r"only a slow tokenizer.*'a', 'b'.*save_pretrained"):
    plan_vocabulary("union", sources, sources["a"], None)


def test_tokenizers_that_spell_differently_are_refused(tmp_path):
  made = {"a": small.byte_level(small.TEXTS), "b": small.metaspace(small.TEXTS)}
  sources = {
    k: small.source(k, small.save(t, tmp_path / k), t.get_vocab_size()) for k, t in made.items()
  }
  with pytest.raises(ConfigError, match="as Ġ in 'a', as ▁ in 'b'"):
    plan_vocabulary("base", sources, sources["a"], None)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
  sources = make(tmp_path)
  plan = plan_vocabulary("union", sources, sources["base"], None)
  short = small.ArrayReader("lm_head.weight", np.zeros((3, 6), np.float32))
  with pytest.raises(BadCheckpoint, match=r"'lm_head.weight' of 'base' has shape \(3, 6\).*4 rows"):
    plan.reader(sources["base"], short)
  sources["a"].tensors[EMBEDDING] = small.ArrayReader(EMBEDDING, np.zeros((5, 4), np.float32))
  with pytest.raises(BadCheckpoint, match=r"each of shape \(6,\), are to come from 'a'"):
    plan.reader(sources["base"], sources["base"].tensors[EMBEDDING])
  del sources["a"].tensors[EMBEDDING]
  sources["a"].config = None
  with pytest.raises(BadCheckpoint, match="'a' has no embedding"):
    plan_vocabulary("union", sources, sources["base"], None)


def test_ids_in_configs_follow_the_tokenizer(tmp_path):
  """The config is the donor's, the tokenizer another's: ids are that model's own, or those of the same tokens."""
  sources = make(tmp_path)
  base, chat = sources["base"], sources["b"]
  base.config = {
    "vocab_size": 4,
    "bos_token_id": 1,
    "eos_token_id": [3, 2],
    "pad_token_id": None,
    "image_token_index": 3,
  }
  chat.config = {"vocab_size": 6, "eos_token_id": 5, "pad_token_id": 0}
  (tmp_path / "base/generation_config.json").write_text(
    json.dumps({"eos_token_id": [3, 2], "top_k": 5})
  )
  plan = plan_vocabulary("b", sources, base, base)
  # bos is "the", 1 in both; "image" is "kite", 3 in both; the rest is b's own.
  assert plan.config == {"vocab_size": 6, "eos_token_id": 5, "pad_token_id": 0}
  # "kite" is 3 there too, "red" is unknown to b.
  assert json.loads(plan.files["generation_config.json"]) == {"eos_token_id": [3], "top_k": 5}
  assert any(note.startswith("eos_token_id is 5 in the output") for note in plan.notes)
  plan = plan_vocabulary("a", sources, base, base)
  # <unk> the red kite -> the: 2, red: 1, kite unknown.
  assert plan.config == {
    "vocab_size": 5,
    "bos_token_id": 2,
    "eos_token_id": [1],
    "image_token_index": None,
  }
  plan = plan_vocabulary("union", sources, base, base)
  assert plan.config == {"vocab_size": 7}
  assert plan.files["generation_config.json"] == tmp_path / "base/generation_config.json"


def test_configs_with_a_part_for_text(tmp_path):
  sources = make(tmp_path)
  config = {"model_type": "x", "text_config": {"vocab_size": 4, "eos_token_id": 1, "layers": 2}}
  sources["base"].config = config
  plan = plan_vocabulary("a", sources, sources["base"], sources["base"])
  assert (plan.config, plan.text_config) == ({}, {"vocab_size": 5, "eos_token_id": 2})
  assert plan.patched(config | {"dtype": "float32"}) == {
    "model_type": "x",
    "text_config": {"vocab_size": 5, "eos_token_id": 2, "layers": 2},
    "dtype": "float32",
  }
  sources["base"].config = None
  assert plan_vocabulary("a", sources, sources["base"], sources["base"]).config == {}


def test_large_vocabularies_are_aligned_quickly(tmp_path):
  """Not a benchmark: quadratic work would take minutes here."""
  size = 60_000
  ids = {f"t{i}": i for i in range(size)}
  moved = {f"t{i + 7}": (i * 7919) % size for i in range(size)}
  own = vocabulary_alignment.own_rows(ids, size, moved, size)
  assert own[7] == 0 and own[8] == 7919 and (own[:7] == -1).all()
