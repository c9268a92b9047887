"""Chat templates where transformers looks for them."""

import json

import pytest
import transformers

from tests.streaming import small_tokenizers as small
from wam.core.errors import ConfigError
from wam.streaming.vocabularies import chat_templates
from wam.streaming.vocabularies.tokenizer_files import donor_files

SHORT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
LONG = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
MESSAGES = [{"role": "user", "content": "the cat"}]


def write(directory, template, where):
  """A tokenizer with its chat template in one of the places that transformers knows."""
  small.save(small.words({"<unk>": 0, "the": 1}), directory)
  path = directory / "tokenizer_config.json"
  config = json.loads(path.read_text())
  if where == "file":
    (directory / "chat_template.jinja").write_text(template)
  elif where == "old file":
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
  elif where == "config":
    path.write_text(json.dumps(config | {"chat_template": template}))
  elif where == "list":
    named = [
      {"name": "tool_use", "template": "{{ tools }}"},
      {"name": "default", "template": template},
    ]
    path.write_text(json.dumps(config | {"chat_template": named}))
  return small.source(directory.name, directory, 2)


@pytest.mark.parametrize("where", ["file", "config", "list", "old file"])
def test_templates_are_found_wherever_they_are(tmp_path, where):
  source = write(tmp_path / "m", SHORT, where)
  assert chat_templates.template_of(source) == SHORT
  if where != "old file":  # that one belongs to processors of images
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert auto.apply_chat_template(MESSAGES, tokenize=False) == "<user>the cat"


def test_the_file_counts_where_there_is_a_key_too(tmp_path):
  source = write(tmp_path / "m", SHORT, "config")
  (tmp_path / "m/chat_template.jinja").write_text(LONG)
  assert chat_templates.template_of(source) == LONG
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == LONG


def test_a_model_s_template_or_a_text(tmp_path):
  sources = {"a": write(tmp_path / "a", LONG, "file"), "b": write(tmp_path / "b", "", "")}
  assert chat_templates.choose("a", sources) == (LONG, [])
  assert chat_templates.choose(SHORT, sources) == (SHORT, [])
  with pytest.raises(ConfigError, match="'b' has none"):
    chat_templates.choose("b", sources)


@pytest.mark.parametrize("where", ["file", "config", "list", "old file", ""])
def test_transformers_uses_the_template_that_was_put(tmp_path, where):
  source = write(tmp_path / "m", LONG, where)
  files = chat_templates.put(SHORT, donor_files(source))
  auto = transformers.AutoTokenizer.from_pretrained(small.put(files, tmp_path / "out"))
  assert auto.chat_template == SHORT
  assert auto.apply_chat_template(MESSAGES, tokenize=False) == "<user>the cat"
