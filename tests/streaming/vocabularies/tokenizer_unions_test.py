import gzip
import json
import shutil

import numpy as np
import pytest
import tokenizers
import transformers

from tests.streaming import small_tokenizers as small
from wam.core.errors import BadData, ConfigError
from wam.streaming.vocabularies.tokenizer_files import read_tokenizer
from wam.streaming.vocabularies.tokenizer_unions import with_tokens
from wam.streaming.vocabularies.vocabulary import plan_vocabulary

CHAT = ["<|im_start|>", "<|im_end|>"]
SENTENCES = [
  *small.TEXTS,
  "Streaming under bridges, é 漢!",
  "  two  blanks\n",
  "singsong",
  "<|other|>",
]


def union(tmp_path, first, second, *, rows=None, spec="union", **config):
  """The plan of a union of two saved tokenizers, and the directory that its files were put into."""
  sources = {}
  for label, made in (("a", first), ("b", second)):
    directory = small.save(made, tmp_path / label, **config)
    size = max(made.get_vocab(with_added_tokens=True).values()) + 1
    sources[label] = small.source(label, directory, (rows or {}).get(label, size))
  plan = plan_vocabulary(spec, sources, sources["a"], sources["a"])
  assert plan is not None
  return plan, small.put(plan.files, tmp_path / "out")


def assert_cuts_alike(directory, original, sentences=SENTENCES):
  """The library and transformers both read the output and cut text as the original does."""
  loaded = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  auto = transformers.AutoTokenizer.from_pretrained(directory)
  for sentence in sentences:
    expected = original.encode(sentence, add_special_tokens=False).ids
    assert loaded.encode(sentence, add_special_tokens=False).ids == expected
    assert auto(sentence, add_special_tokens=False).input_ids == expected
    assert auto.decode(expected) == original.decode(expected, skip_special_tokens=False)
  return auto


@pytest.mark.parametrize(
  "tokenizer_class", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer"]
)
@pytest.mark.parametrize("listed", [False, True], ids=["", "added_tokens_decoder"])
def test_control_tokens_of_the_other_are_put_behind(tmp_path, tokenizer_class, listed):
  first = small.byte_level(small.TEXTS, ["<|endoftext|>"])
  second = small.byte_level(small.TEXTS, ["<|endoftext|>", *CHAT])
  config = {
    "eos_token": "<|endoftext|>",
    "bos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
  }
  config |= {"pad_token": "<|endoftext|>", "tokenizer_class": tokenizer_class}
  if listed:
    end = first.token_to_id("<|endoftext|>")
    config["added_tokens_decoder"] = {str(end): {"content": "<|endoftext|>", "special": True}}
  plan, out = union(tmp_path, first, second, **config)
  size = first.get_vocab_size()
  assert plan.size == size + 2 and plan.config == {"vocab_size": size + 2}
  auto = assert_cuts_alike(out, first)
  assert [auto.convert_tokens_to_ids(token) for token in CHAT] == [size, size + 1]
  assert auto.get_vocab() == plan.ids
  text = "<|im_start|>the cat<|im_end|>"
  ids = auto(text).input_ids
  assert ids == [size, *first.encode("the cat").ids, size + 1]
  assert auto.decode(ids) == text
  assert auto.decode(ids, skip_special_tokens=True) == "the cat"
  assert len(auto) == size + 2


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_llama_like(tmp_path, tokenizer_class):
  first, second = small.metaspace(small.TEXTS), small.metaspace(small.TEXTS)
  second.add_special_tokens(CHAT)
  plan, out = union(tmp_path, first, second, tokenizer_class=tokenizer_class, unk_token="<unk>")
  auto = transformers.AutoTokenizer.from_pretrained(out)
  assert auto.get_vocab() == plan.ids == second.get_vocab(with_added_tokens=True)
  ids = auto("the cat sat<|im_end|>", add_special_tokens=False).input_ids
  assert ids[-1] == plan.ids["<|im_end|>"]
  assert ids[:-1] == first.encode("the cat sat", add_special_tokens=False).ids


def test_ordinary_pieces_of_the_other_change_no_cut(tmp_path):
  first, second = (
    small.byte_level(small.TEXTS, ["<s>"]),
    small.byte_level(small.OTHER_TEXTS, ["<s>", *CHAT]),
  )
  extra = (
    second.get_vocab(with_added_tokens=True).keys() - first.get_vocab(with_added_tokens=True).keys()
  )
  assert len(extra) > 10  # the test would be empty otherwise
  plan, out = union(tmp_path, first, second)
  auto = assert_cuts_alike(out, first, [*SENTENCES, *small.OTHER_TEXTS])
  assert plan.ids.keys() == first.get_vocab().keys() | extra
  assert auto.get_vocab() == plan.ids
  size = first.get_vocab_size()
  assert {plan.ids[token] for token in extra} == set(range(size, size + len(extra)))
  # The ids of the others' pieces decode, and their order is that of the other's ids.
  pieces = sorted(extra, key=plan.ids.__getitem__)
  assert pieces == sorted(extra, key=second.get_vocab().__getitem__)
  piece = next(p for p in pieces if p.startswith("Ġ"))
  assert auto.decode([plan.ids[piece]]) == " " + piece[1:]
  assert any("texts are cut as 'a' cuts them" in note for note in plan.notes)


def test_words_become_known(tmp_path):
  first = small.words({"<unk>": 0, "the": 1, "red": 2}, ["<s>"])
  second = small.words({"<unk>": 0, "kite": 1, "the": 2})
  plan, out = union(tmp_path, first, second)
  assert plan.ids == {"<unk>": 0, "the": 1, "red": 2, "<s>": 3, "kite": 4}
  auto = assert_cuts_alike(out, first, ["the red the <s>"])
  assert auto("the red kite").input_ids == [1, 2, 4]


def test_order_is_that_of_the_recipe(tmp_path):
  vocab = {"<unk>": 0, "the": 1}
  sources = {}
  for label, added in (("b", ["<y>", "<z>"]), ("a", ["<a>"]), ("c", ["<z>", "<c>"])):
    directory = small.save(small.words(vocab, added), tmp_path / label)
    sources[label] = small.source(label, directory, 4)
  plan = plan_vocabulary("union", sources, sources["b"], sources["a"])
  assert plan.ids == {**vocab, "<a>": 2, "<y>": 3, "<z>": 4, "<c>": 5}


def test_a_piece_that_another_adds_becomes_an_added_token(tmp_path):
  first = small.words({"<unk>": 0, "the": 1, "<|im_end|>": 2})
  second = small.words({"<unk>": 0, "the": 1}, ["<|im_end|>"])
  plan, out = union(tmp_path, first, second)
  auto = transformers.AutoTokenizer.from_pretrained(out)
  assert plan.size == 3 and auto("the<|im_end|>").input_ids == [1, 2]
  assert first.encode("the<|im_end|>").ids == [0]


def test_unused_rows_are_taken_first(tmp_path):
  """A vocabulary that is padded keeps its size, and new tokens take the first of the rows without one."""
  first = small.byte_level(small.TEXTS, ["<s>"])
  second = small.byte_level(small.TEXTS, ["<s>", *CHAT])
  size = first.get_vocab_size()
  plan, out = union(tmp_path, first, second, rows={"a": size + 10, "b": size + 16})
  assert plan.size == size + 10 and plan.config == {}
  assert plan.ids["<|im_start|>"] == size
  assert_cuts_alike(out, first)


def test_pieces_are_refused_where_they_would_change_how_text_is_cut(tmp_path):
  first, second = (
    small.metaspace(texts, "Unigram", 60) for texts in (small.TEXTS, small.OTHER_TEXTS)
  )
  with pytest.raises(
    ConfigError, match=r"Unigram.*ordinary tokens that only 'b' has.*tokenizer_source: base"
  ):
    union(tmp_path, first, second)


def test_pieces_are_refused_where_words_are_looked_up_whole(tmp_path):
  made = []
  for texts in (small.TEXTS, small.OTHER_TEXTS):
    content = json.loads(small.byte_level(texts).to_str())
    content["model"]["ignore_merges"] = True
    made.append(tokenizers.Tokenizer.from_str(json.dumps(content)))
  with pytest.raises(ConfigError, match="BPE with ignore_merges"):
    union(tmp_path, *made)


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece"])
def test_added_tokens_can_be_put_behind_any_kind(tmp_path, kind):
  if kind == "Unigram":
    trained = small.metaspace(small.TEXTS, kind, 60)  # once: training draws
  else:
    vocab = {"[UNK]": 0, "sing": 1, "##ing": 2, "##er": 3, "the": 4}
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  first, second = (tokenizers.Tokenizer.from_str(trained.to_str()) for _ in range(2))
  first.add_special_tokens(["<x>"])
  second.add_special_tokens([*CHAT, "<x>"])
  plan, out = union(tmp_path, first, second)
  assert_cuts_alike(out, first, [*small.TEXTS, "the singer", "<x> the"])
  assert plan.size == len(plan.ids) and [plan.ids[t] for t in CHAT] == [
    plan.size - 2,
    plan.size - 1,
  ]


def test_older_files_that_would_lack_the_new_tokens_are_left_out(tmp_path):
  first, second = small.words({"<unk>": 0}), small.words({"<unk>": 0}, CHAT)
  for label in "ab":
    (tmp_path / label).mkdir()
    for name in ("tokenizer.model", "vocab.json", "generation_config.json"):
      (tmp_path / label / name).write_text("{}")
  plan, _ = union(tmp_path, first, second)
  assert set(plan.files) == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
  plan, _ = union(tmp_path, first, second, spec="base")
  assert plan.files["tokenizer.model"] == tmp_path / "a/tokenizer.model"


def test_a_tokenizer_that_cannot_take_tokens_is_refused(tmp_path):
  """A WordPiece with a hole: the library would count on from the number of tokens, on top of an old one."""
  content = json.loads(small.words({"<unk>": 0}).to_str())
  content["model"] = {
    "type": "WordPiece",
    "unk_token": "<unk>",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
    "vocab": {"<unk>": 0, "the": 5},
  }
  small.save(tokenizers.Tokenizer.from_str(json.dumps(content)), tmp_path)
  source = small.source("a", tmp_path, 6)
  tokenizer = read_tokenizer(source)
  files = {"tokenizer.json": tmp_path / "tokenizer.json"}
  with pytest.raises(BadData, match="cannot be put behind this tokenizer"):
    with_tokens(tokenizer, files, {"<x>": 6}, {"<x>": {}})


def test_gpt2(data_dir, tmp_path):
  """The real vocabulary of GPT-2 with its 50257 tokens, and control tokens behind it."""
  for name in ("vocab.json", "merges.txt"):
    with gzip.open(data_dir / f"gpt2-bpe/gpt2_{name}.gz", "rb") as file:
      (tmp_path / name).write_bytes(file.read())
  made = []
  for added in ([], CHAT):
    tokenizer = tokenizers.Tokenizer(
      tokenizers.models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", *added])
    made.append(tokenizer)
  plan, out = union(tmp_path, *made, rows={"a": 50304, "b": 50259}, tokenizer_class="GPT2Tokenizer")
  assert plan.size == 50304 and plan.origins[0] is not None
  # Only the two rows of the new tokens are not GPT-2's own.
  assert np.flatnonzero(plan.origins[0].sources != 0).tolist() == [50257, 50258]
  auto = assert_cuts_alike(out, made[0])
  assert auto("<|im_start|>").input_ids == [50257]


def test_a_real_tokenizer_with_byte_fallback(data_dir, tmp_path):
  directory = data_dir / "stories260k/hf"
  shutil.copytree(directory, tmp_path / "b", ignore=shutil.ignore_patterns("*.safetensors"))
  chat = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  chat.add_special_tokens(CHAT)
  chat.save(str(tmp_path / "b/tokenizer.json"))
  sources = {"a": small.source("a", directory, 512), "b": small.source("b", tmp_path / "b", 514)}
  plan = plan_vocabulary("union", sources, sources["a"], sources["a"])
  assert plan.size == 514
  original = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  auto = assert_cuts_alike(
    small.put(plan.files, tmp_path / "out"),
    original,
    ["Once upon a time, 漢 there was.", "Lily's dog"],
  )
  assert auto("Once upon<|im_end|>").input_ids[-1] == 513
