"""Chat templates: whose, and where they are put."""

import json

import pytest

from tests.streaming.small_models import llama, tokenizer_directory
from wam.core.errors import ConfigError
from wam.streaming.vocabularies import chat_templates


def sources(tmp_path, **templates):
  found = {}
  for name, template in templates.items():
    found[name] = llama(name)
    found[name].directory = tokenizer_directory(tmp_path / name, template=template, unk=0)
  return found


def test_names_are_refused():
  with pytest.raises(ConfigError, match="found 'chatml'; templates by name are not shipped"):
    chat_templates.check("chatml")
  chat_templates.check("auto")
  chat_templates.check("{{ messages }}")


def test_auto_takes_what_most_have_and_the_first_of_several(tmp_path):
  found = sources(tmp_path, A="{{ a }}", B="{{ b }}\n", C="{{ b }}", D=None)
  assert chat_templates.choose("auto", found) == (
    "{{ b }}\n",
    ["chat_template: that of B, as 2 of 4 models have it"],
  )
  found = sources(tmp_path, A="{{ a }}", B="{{ b }}")
  assert chat_templates.choose("auto", found)[0] == "{{ a }}"
  assert chat_templates.choose("auto", sources(tmp_path, D=None))[0] is None
  assert chat_templates.choose("auto", {"x": llama("x")})[0] is None
  assert chat_templates.choose("{{ x }}", found) == ("{{ x }}", [])


def test_where_templates_lie(tmp_path):
  source = sources(tmp_path, A=None)["A"]
  said = {
    "chat_template": [
      {"name": "tools", "template": "t"},
      {"name": "default", "template": "{{ d }}"},
    ]
  }
  (source.directory / "tokenizer_config.json").write_text(json.dumps(said))
  assert chat_templates.template_of(source) == "{{ d }}"
  (source.directory / "chat_template.jinja").write_text("{{ file }}")
  assert chat_templates.template_of(source) == "{{ file }}"


def test_a_template_is_put_in_one_place(tmp_path):
  directory = sources(tmp_path, A="{{ old }}")["A"].directory
  path = directory / "tokenizer_config.json"
  files = {"tokenizer_config.json": path, "chat_template.json": b"{}", "merges.txt": b""}
  changed = chat_templates.put("{{ new }}", files)
  assert changed.keys() == {"tokenizer_config.json", "merges.txt", "chat_template.jinja"}
  assert changed["chat_template.jinja"] == b"{{ new }}"
  assert json.loads(changed["tokenizer_config.json"]) == {
    "tokenizer_class": "PreTrainedTokenizerFast"
  }
  again = chat_templates.put("{{ newer }}", changed)
  assert again["chat_template.jinja"] == b"{{ newer }}"
  assert again["tokenizer_config.json"] == changed["tokenizer_config.json"]
