import json

import pytest

from wam.core.errors import BadData, ConfigError
from wam.data.examples import Example
from wam.data.prompts import beginning, load_examples, load_prompts


@pytest.fixture
def rows(tmp_path):
  path = tmp_path / "x.jsonl"
  rows = [{"q": "Why?", "about": "fish", "a": "So."}, {"q": "How?", "about": "cats", "a": "Thus."}]
  path.write_text("\n".join(map(json.dumps, rows)))
  return str(path)


def test_fields_and_templates(rows):
  assert load_prompts({"path": rows, "fields": {"prompt": "q"}}) == ["Why?", "How?"]
  template = "{about} {{}}: {q}"
  assert load_prompts({"path": rows, "template": template}) == ["fish {}: Why?", "cats {}: How?"]
  spec = {"path": rows, "template": "{q}\n", "fields": {"completion": "a"}}
  assert load_examples(spec)[1] == Example("How?\n", "Thus.")
  spec["completion_prefix"] = " "
  assert load_examples(spec)[0] == Example("Why?\n", " So.")


def test_template_refusals(rows):
  with pytest.raises(BadData, match=r"line 1: no field 'abut'.*Did you mean 'about'"):
    load_prompts({"path": rows, "template": "{abut}"})
  with pytest.raises(ConfigError, match="literal brace is written twice"):
    load_prompts({"path": rows, "template": "{q"})
  with pytest.raises(ConfigError, match="first_words belongs to text files"):
    load_examples({"path": rows, "first_words": 2})


def test_text_files(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text("Once upon  a time\n\nThe end\n")
  assert load_prompts({"path": str(path)}) == ["Once upon  a time", "The end"]
  assert load_prompts({"path": str(path), "first_words": 2}) == ["Once upon", "The end"]
  assert load_examples({"path": str(path)})[1] == Example("", "The end")
  expected = [Example("Once upon", "  a time")]
  assert load_examples({"path": str(path), "first_words": 2}) == expected
  with pytest.raises(BadData, match="no text has more than 9 words"):
    load_examples({"path": str(path), "first_words": 9})
  with pytest.raises(ConfigError, match="at least 1"):
    beginning("a b", 0)
