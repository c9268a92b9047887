import json
import os
import subprocess
import sys

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streaming import small_tokenizers as small
from wam.core.errors import BadCheckpoint, BadData
from wam.streaming.vocabularies import tokenizer_files as files

WORDS = {"<unk>": 0, "the": 1, "red": 2, "kite": 3, "Mia": 4}


def read(directory):
  return files.read_tokenizer(small.source("m", directory, 8))


@pytest.mark.parametrize(
  "made",
  [
    small.words(WORDS, ["<s>", "</s>"]),
    small.byte_level(small.TEXTS, ["<|im_start|>", "<|im_end|>"]),
    small.metaspace(small.TEXTS, "BPE"),
    small.metaspace(small.TEXTS, "Unigram"),
  ],
  ids=["WordLevel", "byte BPE", "BPE", "Unigram"],
)
def test_ids_are_those_of_the_libraries(tmp_path, made):
  small.save(made, tmp_path)
  found = read(tmp_path)
  assert found.ids == made.get_vocab(with_added_tokens=True)
  assert found.ids == transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
  assert set(found.added) == {t.content for t in made.get_added_tokens_decoder().values()}
  assert found.kind == type(made.model).__name__


_TOKENS = st.sampled_from(["the", "red", "<a>", "<b>", "<c>", "<d>"])


@settings(max_examples=60, deadline=None)
@given(
  st.permutations(range(12)),
  st.lists(st.sampled_from(["red", "kite", "Mia", "<b>"]), max_size=4, unique=True),
  st.lists(st.tuples(_TOKENS, st.integers(0, 12)), max_size=5, unique_by=lambda pair: pair[0]),
)
def test_ids_of_added_tokens_are_those_of_the_library_whatever_the_file_claims(free, vocab, added):
  content = json.loads(small.words({"<unk>": 0}).to_str())
  content["model"]["vocab"] = {"<unk>": 20, **dict(zip(vocab, free, strict=False))}
  flags = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
  }
  content["added_tokens"] = [{"id": i, "content": token, **flags} for token, i in added]
  expected = tokenizers.Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)
  ids = dict(content["model"]["vocab"])
  files._assign(ids, content["added_tokens"])
  assert ids == expected


@pytest.mark.parametrize(
  "config",
  [
    {"pad_token": "[PAD]", "eos_token": "kite"},
    {"pad_token": {"content": "[PAD]", "special": True, "__type": "AddedToken"}},
    {"extra_special_tokens": ["<x>", "<y>"], "bos_token": "<y>"},
    {
      "added_tokens_decoder": {
        "10": {"content": "<ten>", "special": False},
        "9": {"content": "<nine>", "special": True},
      },
      "eos_token": "<end>",
    },
  ],
)
def test_tokens_that_transformers_adds_count(tmp_path, config):
  small.save(small.words(WORDS, ["<s>"]), tmp_path, **config)
  assert read(tmp_path).ids == transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()


def test_tokens_in_files_of_old_fine_tunes_count(tmp_path):
  small.save(small.words(WORDS), tmp_path)
  (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": 6, "<a>": 5}))
  (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<c>"}))
  assert read(tmp_path).ids == {**WORDS, "<a>": 5, "<b>": 6, "<c>": 7}
  assert read(tmp_path).ids == transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda text: text[:50], "not JSON"),
    (lambda text: "[]", "expected a JSON object"),
    (lambda text: '{"version": "1.0"}', "model with a vocab"),
    (lambda text: text.replace('"red":2', '"red":-2'), "no usable id for 'red'"),
    (lambda text: text.replace('"red":2', '"red":99999999999'), "no usable id for 'red'"),
    (lambda text: text.replace('"red":2', '"red":true'), "no usable id for 'red'"),
    (lambda text: text.replace('"added_tokens":[]', '"added_tokens":[3]'), "added_tokens must be"),
  ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
  small.save(small.words(WORDS), tmp_path)
  path = tmp_path / "tokenizer.json"
  content = json.dumps(json.loads(path.read_text()), separators=(",", ":"))
  path.write_text(damage(content))
  with pytest.raises(BadData, match=message):
    read(tmp_path)


def test_no_tokenizer_at_all(tmp_path):
  assert read(tmp_path) is None
  assert read(None) is None
  assert files.donor_files(small.source("m", None, 8)) == {}


def test_donor_files_are_those_of_tokenizer_and_generation(tmp_path):
  small.save(small.words(WORDS), tmp_path)
  (tmp_path / "generation_config.json").write_text("{}")
  (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
  (tmp_path / "additional_chat_templates").mkdir()
  (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
  for other in ("model.safetensors", "README.md", "config.json"):
    (tmp_path / other).write_text("")
  found = files.donor_files(small.source("m", tmp_path, 8))
  assert set(found) == {
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
  }
  assert all(path == tmp_path / name for name, path in found.items())


def compared(tmp_path, first, second, rows=(8, 8), **config):
  sources = {
    "a": small.source("a", small.save(first, tmp_path / "a"), rows[0]),
    "b": small.source("b", small.save(second, tmp_path / "b", **config), rows[1]),
  }
  return files.compare(sources, sources["a"])


def test_equal_tokenizers_pass_without_a_word(tmp_path):
  made = small.words(WORDS, ["<s>"])
  assert compared(tmp_path, made, made) == ()
  # Other settings beside the same ids are no difference in rows.
  assert compared(tmp_path, made, made, model_max_length=7, bos_token="<s>") == ()


def test_a_token_that_moved_is_refused_with_its_name(tmp_path):
  moved = {**WORDS, "red": 3, "kite": 2}
  with pytest.raises(
    BadCheckpoint, match=r"'a' and 'b': 'red' is 2 and 3, 'kite' is 3 and 2.*tokenizer_source"
  ):
    compared(tmp_path, small.words(WORDS), small.words(moved))


def test_a_row_that_is_another_token_is_refused(tmp_path):
  with pytest.raises(BadCheckpoint, match="5 is '<pad>' and '<sep>'"):
    compared(tmp_path, small.words(WORDS, ["<pad>"]), small.words(WORDS, ["<sep>"]))


def test_ids_beyond_the_rows_do_not_matter(tmp_path):
  assert (
    compared(tmp_path, small.words(WORDS, ["<pad>"]), small.words(WORDS, ["<sep>"]), (5, 5)) != ()
  )


def test_tokens_of_one_only_are_noted(tmp_path):
  notes = compared(tmp_path, small.words(WORDS), small.words(WORDS, ["<|im_end|>"]))
  assert notes == (
    "tokens of 'b' that 'a' does not have, the output does not know them: '<|im_end|>'",
  )
  notes = compared(tmp_path, small.words(WORDS, ["<|im_end|>"]), small.words(WORDS))
  assert notes == ("tokens of 'a' that 'b' does not have, the output keeps them: '<|im_end|>'",)


def test_slow_tokenizers_are_compared_by_their_bytes(tmp_path):
  sources = {}
  for label, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
    (tmp_path / label).mkdir()
    (tmp_path / label / "tokenizer.model").write_bytes(content)
    sources[label] = small.source(label, tmp_path / label, 8)
  assert files.compare({k: sources[k] for k in "ab"}, sources["a"]) == ()
  (note,) = files.compare(sources, sources["a"])
  assert "'a' and 'c'" in note and "could not be compared" in note


def test_inputs_without_tokenizers_are_not_compared(tmp_path):
  sources = {label: small.source(label, None, 8) for label in "ab"}
  assert files.compare(sources, sources["a"]) == ()


def test_comparing_loads_no_library(tmp_path):
  for label in "ab":
    small.save(small.words(WORDS), tmp_path / label, name=label)
  code = f"""
import pathlib, sys, types
from wam.streaming.vocabularies import vocabulary, tokenizer_files
sources = {{
  label: types.SimpleNamespace(label=label, directory=pathlib.Path({str(tmp_path)!r}, label), tensors={{}}, config=None)
  for label in "ab"
}}
assert tokenizer_files.compare(sources, sources["a"]) == ()
print([name for name in ("jax", "transformers", "tokenizers", "flax", "scipy") if name in sys.modules])
"""
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
  )
  assert result.stdout.strip() == "[]"
