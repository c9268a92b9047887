import gzip

import pytest

from wam.core.errors import BadData, ConfigError, UnknownName
from wam.data.text import load_texts


def test_separator_heading_and_whole_file(tmp_path):
  path = tmp_path / "x.txt.gz"
  with gzip.open(path, "wt") as file:
    file.write("= One =\na\n\n= = sub = =\n<end>\n\n= Two =\nb\n<end>\n")
  spec = {"path": str(path)}
  assert load_texts(spec) == ["= One =\na\n\n= = sub = =\n<end>\n\n= Two =\nb\n<end>"]
  parts = load_texts(spec | {"separator": "<end>"})
  assert parts == ["= One =\na\n\n= = sub = =", "= Two =\nb"]
  parts = load_texts(spec | {"separator": "<end>", "strip": False})
  assert parts == ["= One =\na\n\n= = sub = =\n", "\n\n= Two =\nb\n", "\n"]
  parts = load_texts(spec | {"heading": r"= [^=]"})
  assert parts == ["= One =\na\n\n= = sub = =\n<end>", "= Two =\nb\n<end>"]
  assert load_texts(spec | {"separator": "\n", "split": "[:2]"}) == ["= One =", "a"]


def test_rows(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text('{"text": "a", "story": "b"}\n')
  assert load_texts({"path": str(path)}) == ["a"]
  assert load_texts({"path": str(path), "fields": {"text": "story"}}) == ["b"]
  with pytest.raises(ConfigError, match="belong to format 'text'"):
    load_texts({"path": str(path), "separator": "\n"})
  with pytest.raises(UnknownName, match="Did you mean 'text'"):
    load_texts({"path": str(path), "format": "txt"})
  assert load_texts({"path": str(path), "format": "text"}) == ['{"text": "a", "story": "b"}']


def test_refusals(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text(" \n \n")
  for spec in ({}, {"separator": "\n"}):
    with pytest.raises(BadData, match=r"x\.txt: empty, no documents"):
      load_texts({"path": str(path)} | spec)
  with pytest.raises(ConfigError, match="not both"):
    load_texts({"path": str(path), "separator": "a", "heading": "b"})
  with pytest.raises(ConfigError, match="separator is empty"):
    load_texts({"path": str(path), "separator": ""})
  with pytest.raises(ConfigError, match="no regular expression"):
    load_texts({"path": str(path), "heading": "("})
  with pytest.raises(ConfigError, match="is a directory"):
    load_texts({"path": str(tmp_path), "format": "text"})


def test_tinystories(data_dir):
  if not (data_dir / "tinystories").is_dir():
    pytest.skip("tinystories is absent")
  spec = {"path": "tinystories/stories.txt.gz", "data_dir": str(data_dir)}
  spec |= {"separator": "<|endoftext|>"}
  stories = load_texts(spec)
  with gzip.open(data_dir / "tinystories/stories.txt.gz", "rt", encoding="utf-8") as file:
    markers = sum(line.strip() == "<|endoftext|>" for line in file)
  assert len(stories) in (markers, markers + 1)
  assert stories[0].startswith("One day, a little girl named Lily")
  train, test = (load_texts(spec | {"split": split}) for split in ("[:90%]", "[90%:]"))
  assert train + test == stories


def test_wikitext(data_dir):
  if not (data_dir / "wikitext-2").is_dir():
    pytest.skip("wikitext-2 is absent")
  spec = {"path": "wikitext-2/test.txt.gz", "data_dir": str(data_dir)}
  articles = load_texts(spec | {"heading": r" = [^=]+ = $"})
  assert len(articles) in range(55, 70)  # WikiText-2's card says 60 articles in the test part
  assert articles[0].startswith("= Robert <unk> =")
  assert "".join("".join(articles).split()) == "".join(load_texts(spec)[0].split())
