import json

import pytest

from wam.core.errors import BadData, ConfigError, MissingFile
from wam.data import tokenizers as tok

WORDS = ["the", "Mia", "red", "?", ".", "likes", "kite"]


def test_word_tokenizer_round_trip_also_from_disk(tmp_path):
  text = "Mia likes the red kite . ?"
  made = tok.word_tokenizer(WORDS)
  made.save_pretrained(tmp_path)
  for tokenizer in (made, tok.load_tokenizer(tmp_path)):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == [5, 9, 4, 6, 10, 8, 7]  # 4 specials, then the order given
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *ids, 2, 0], skip_special_tokens=True) == text
    assert tokenizer.decode([*ids, 2]) == text + " <eos>"
    assert tokenizer("Mia unknown <eos>").input_ids == [1, 5, 3, 2]
    assert (tok.padding_id(tokenizer), tok.bos_ids(tokenizer), tok.eos_id(tokenizer)) == (0, [1], 2)
    assert tok.bos_ids(tokenizer, False) == [] and tok.adds_bos(tokenizer)
    assert len(tokenizer) == 11


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""], ["<pad>"], [" a"]])
def test_word_tokenizer_refuses(words):
  with pytest.raises(ConfigError, match=r"twice|cannot be a word"):
    tok.word_tokenizer(words)


def test_loading_what_is_not_there(tmp_path):
  with pytest.raises(MissingFile, match="not a directory"):
    tok.load_tokenizer(tmp_path / "nothing")
  with pytest.raises(MissingFile, match=r"no tokenizer\.json"):
    tok.load_tokenizer(tmp_path)


@pytest.mark.parametrize("damage", [lambda text: text[:100], lambda text: '{"version": "1.0"}'])
def test_loading_a_damaged_tokenizer(tmp_path, damage):
  tok.word_tokenizer(WORDS).save_pretrained(tmp_path)
  path = tmp_path / "tokenizer.json"
  path.write_text(damage(path.read_text()))
  with pytest.raises(BadData, match=str(tmp_path)):
    tok.load_tokenizer(tmp_path)


def test_missing_special_tokens(tmp_path):
  tokenizer = tok.word_tokenizer(WORDS)
  tokenizer.eos_token = None
  with pytest.raises(ConfigError, match="no EOS token"):
    tok.eos_id(tokenizer)
  tokenizer.pad_token = None
  assert tok.padding_id(tokenizer) == 0
  tokenizer.bos_token = None
  assert not tok.adds_bos(tokenizer) and tok.bos_ids(tokenizer) == []
  with pytest.raises(ConfigError, match="no BOS token"):
    tok.bos_ids(tokenizer, True)


def test_chat_template(tmp_path):
  pytest.importorskip("jinja2")
  tokenizer = tok.word_tokenizer(WORDS)
  with pytest.raises(ConfigError, match="has none"):
    tok.chat_prompt(tokenizer, "Mia ?")
  tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
  )
  tokenizer.save_pretrained(tmp_path)
  loaded = tok.load_tokenizer(tmp_path)
  assert tok.chat_prompt(loaded, "Mia ?") == "user: Mia ?\nassistant:"
  turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  expected = "system: s\nuser: a\nassistant: b\nassistant:"
  assert tok.chat_prompt(loaded, turns, system="s") == expected


def test_real_llama_tokenizer(data_dir):
  directory = data_dir / "stories260k" / "hf"
  if not directory.is_dir():
    pytest.skip(f"{directory} is absent")
  tokenizer = tok.load_tokenizer(directory)
  settings = json.loads((directory / "config.json").read_text())
  assert tok.bos_ids(tokenizer) == [settings["bos_token_id"]]
  assert tok.eos_id(tokenizer) == settings["eos_token_id"]
