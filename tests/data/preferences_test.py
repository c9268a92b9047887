import collections
import json

import pytest

from wam.core.errors import BadData, ConfigError, UnknownName
from wam.data.examples import Pair
from wam.data.preferences import ASSISTANT, dialogue_turns, load_pairs, read_pairs, split_dialogue


def write(tmp_path, rows):
  path = tmp_path / "x.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  return str(path)


def dialogue(*turns):
  names = ("Human", "Assistant")
  return "".join(f"\n\n{names[i % 2]}: {turn}" for i, turn in enumerate(turns))


def test_pairs(tmp_path):
  path = write(tmp_path, [{"prompt": "p", "chosen": "c", "rejected": "r", "q": "Q"}] * 3)
  assert load_pairs({"path": path}) == [Pair("p", "c", "r")] * 3
  assert load_pairs({"path": path, "template": "{q}:", "split": "[:1]"}) == [Pair("Q:", "c", "r")]
  swapped = {"chosen": "rejected", "rejected": "chosen"}
  assert load_pairs({"path": path, "fields": swapped})[0] == Pair("p", "r", "c")


def test_dialogues_split_at_the_last_common_turn():
  chosen, rejected = dialogue("a", "b", "c", "Yes."), dialogue("a", "b", "c", "Yes!")
  pair = split_dialogue(chosen, rejected)
  assert pair == Pair(dialogue("a", "b", "c") + ASSISTANT, " Yes.", " Yes!")
  # They part before the second answer of the assistant: what follows belongs to the completions.
  pair = split_dialogue(dialogue("a", "b", "c", "d"), dialogue("a", "B", "c", "d"))
  assert pair.prompt == dialogue("a") + ASSISTANT and pair.chosen == " b" + dialogue("c", "d")
  assert split_dialogue(dialogue("a", "b"), dialogue("z", "b")) is None


def test_dialogue_turns():
  roles = ["user", "assistant", "user"]
  expected = [{"role": role, "content": said} for role, said in zip(roles, "abc", strict=True)]
  assert dialogue_turns(dialogue("a", "b", "c")) == expected
  assert dialogue_turns(dialogue("a", "b", "c") + ASSISTANT) == expected
  for text in ("", "Hello\n\nHuman: a"):
    with pytest.raises(BadData, match="not a dialogue"):
      dialogue_turns(text)


def test_unusable_dialogues_are_named_or_counted(tmp_path, caplog):
  good = {"chosen": dialogue("a", "b"), "rejected": dialogue("a", "c")}
  apart = {"chosen": dialogue("a", "b"), "rejected": dialogue("z", "b")}
  equal = {"chosen": dialogue("a", "b"), "rejected": dialogue("a", "b")}
  path = write(tmp_path, [good, apart, equal])
  with pytest.raises(BadData, match=r"x\.jsonl, line 2: .*share no.*unusable='skip'"):
    load_pairs({"path": path, "format": "hh"})
  pairs, skipped = read_pairs({"path": path, "format": "hh", "unusable": "skip"})
  assert len(pairs) == 1 and len(skipped) == 2
  assert "line 2: chosen and rejected share no" in skipped[0]
  assert "line 3: chosen and rejected are equal" in skipped[1]
  assert load_pairs({"path": path, "format": "hh", "unusable": "skip"}) == pairs
  assert "skipped 2 rows" in caplog.text
  with pytest.raises(BadData, match="none of 2 rows gives a pair"):
    load_pairs({"path": path, "format": "hh", "unusable": "skip", "split": "[1:]"})
  with pytest.raises(BadData, match=r"line 1.*whole dialogues: say format='hh'"):
    load_pairs({"path": path})


def labelled(tmp_path, negative=8, positive=5):
  rows = [{"label": 0, "text": f"n{i}"} for i in range(negative)]
  return write(tmp_path, rows + [{"label": 1, "text": f"p{i}"} for i in range(positive)])


@pytest.mark.parametrize("uses", [1, 3])
def test_labelled_texts(tmp_path, uses):
  path = labelled(tmp_path)
  spec = {"path": path, "format": "labelled", "uses": uses, "prompt": "Review:", "text_prefix": " "}
  pairs = load_pairs(spec)
  assert all(p.chosen[:2] == " p" and p.rejected[:2] == " n" for p in pairs)
  assert {p.prompt for p in pairs} == {"Review:"}
  chosen = collections.Counter(p.chosen for p in pairs)
  rejected = collections.Counter(p.rejected for p in pairs)
  assert len(chosen) == 5 and set(chosen.values()) == {uses}
  assert max(rejected.values()) <= uses
  assert load_pairs(spec) == pairs != load_pairs(spec | {"pair_seed": 1})
  turned = load_pairs(spec | {"preferred": 0, "other": 1})
  assert all(p.chosen[:2] == " n" for p in turned)


def test_labelled_slices_share_no_text(tmp_path):
  spec = {"path": labelled(tmp_path, 40, 40), "format": "labelled", "shuffle_seed": 0}
  parts = [
    {text for p in load_pairs(spec | {"split": split, "uses": 2}) for text in p[1:]}
    for split in ("[:60%]", "[60%:]")
  ]
  assert parts[0].isdisjoint(parts[1])


def test_labelled_refusals(tmp_path):
  path = labelled(tmp_path)
  spec = {"path": path, "format": "labelled"}
  with pytest.raises(BadData, match=r"both labels, found \{1: 0, 0: 5\}.*shuffle_seed"):
    load_pairs(spec | {"split": "[:5]"})
  with pytest.raises(BadData, match="line 9: label 1 is neither preferred='pos' nor other=0"):
    load_pairs(spec | {"preferred": "pos"})
  with pytest.raises(BadData, match=r"line 1: no field 'lable'.*Did you mean 'label'"):
    load_pairs(spec | {"fields": {"label": "lable"}})
  with pytest.raises(ConfigError, match="at least once"):
    load_pairs(spec | {"uses": 0})
  with pytest.raises(UnknownName, match="Did you mean 'labelled'"):
    load_pairs(spec | {"format": "labeled"})
  with pytest.raises(ConfigError, match="unknown key 'unusable'"):
    load_pairs(spec | {"unusable": "skip"})


def test_hh_harmless(data_dir):
  if not (data_dir / "hh-harmless").is_dir():
    pytest.skip("hh-harmless is absent")
  spec = {"path": "hh-harmless/test.jsonl.gz", "format": "hh", "data_dir": str(data_dir)}
  pairs, skipped = read_pairs(spec)
  assert len(pairs) == 2312 and not skipped  # all rows of the file split
  for pair in pairs:
    assert pair.prompt.startswith("\n\nHuman:") and pair.prompt.endswith(ASSISTANT)
    assert "\n\nHuman:" not in pair.chosen + pair.rejected  # the answers are the last turn
  assert sum(not (p.chosen.strip() and p.rejected.strip()) for p in pairs) == 4


def test_sentence_polarity(data_dir):
  if not (data_dir / "sentence-polarity").is_dir():
    pytest.skip("sentence-polarity is absent")
  spec = {"path": "sentence-polarity/sentence_polarity.jsonl.gz", "format": "labelled"}
  spec |= {"data_dir": str(data_dir), "shuffle_seed": 0}
  # 10662 sentences; 5331 of each kind (Pang and Lee 2005).
  assert len(load_pairs(spec)) == 5331
  train, test = (load_pairs(spec | {"split": split}) for split in ("[:80%]", "[80%:]"))
  assert 5331 * 0.95 < len(train) + len(test) <= 5331
