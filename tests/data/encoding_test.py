import numpy as np
import pytest
import tokenizers
import transformers

from wam.core.errors import BadData, UnknownName
from wam.data import encoding
from wam.data.examples import Example, Pair
from wam.data.tokenizers import load_tokenizer, word_tokenizer

WORDS = [f"w{i}" for i in range(4, 40)]  # so that word "w7" has id 7
PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def words():
  return word_tokenizer(WORDS)


def say(*ids):
  return " ".join(f"w{i}" for i in ids)


def byte_level(prefix=False):
  """A tokenizer of GPT-2's kind over bytes, with the merges "\\n"+"\\n" and " "+"a"."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {c: i for i, c in enumerate(["<e>", *alphabet, "ĊĊ", "Ġa"])}
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocabulary, [("Ċ", "Ċ"), ("Ġ", "a")], unk_token=None)
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
  inner.decoder = tokenizers.decoders.ByteLevel()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>")


def test_example_rows_by_hand(words):
  rows = encoding.example_rows(
    words, [Example(say(10, 11), say(20)), Example("", say(21, 22))], length=6
  )
  expected = [[BOS, 10, 11, 20, EOS, PAD], [BOS, 21, 22, EOS, PAD, PAD]]
  np.testing.assert_array_equal(rows.arrays["tokens"], expected)
  np.testing.assert_array_equal(rows.arrays["mask"], [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(rows.arrays["loss_mask"], [[0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0]])
  assert rows.arrays["tokens"].dtype == np.int32 and rows.kept.tolist() == [0, 1]


def test_bos_and_eos_policies(words):
  example = [Example("", say(10, 11))]
  rows = encoding.example_rows(words, example, length=4, add_bos=False, add_eos=False)
  assert rows.arrays["tokens"].tolist() == [[10, 11, PAD, PAD]]
  assert rows.arrays["loss_mask"].tolist() == [[False, True, False, False]]  # t = 0 never
  # A chat template that wrote BOS itself gets no second one.
  assert encoding.encode_texts(words, ["<bos> w9"]) == [[BOS, 9]]
  assert encoding.encode_texts(words, ["w9"], add_bos=False, add_eos=True) == [[9, EOS]]


def test_prompt_loss_and_trim(words):
  rows = encoding.example_rows(
    words, [Example(say(*range(4, 12)), say(20))], length=50, prompt_loss=True, trim=True
  )
  assert rows.arrays["tokens"].shape == (1, 16)  # 10 tokens, rounded up to 8
  assert rows.arrays["loss_mask"].sum() == 10  # all but BOS


def test_truncation(words):
  example = [Example(say(*range(10, 20)), say(*range(30, 38)))]  # 11 + 9 tokens
  rows = encoding.example_rows(words, example, length=16)
  # The completion leaves 7, half of the row is 8: the prompt keeps BOS and its last 7, the completion its first 8.
  assert rows.arrays["tokens"].tolist() == [[BOS, *range(13, 20), *range(30, 38)]]
  assert rows.counts == {
    "rows": 1,
    "dropped": 0,
    "truncated_prompts": 1,
    "truncated_completions": 1,
  }
  rows = encoding.example_rows(words, example, length=18, prompt_length=4)
  assert rows.arrays["tokens"].tolist() == [[BOS, 17, 18, 19, *range(30, 38), EOS] + [PAD] * 5]
  short = Example(say(10), say(11))
  rows = encoding.example_rows(words, [*example, short], length=16, too_long="drop")
  assert rows.kept.tolist() == [1] and rows.counts["dropped"] == 1


def test_prompt_rows_are_left_padded(words):
  rows = encoding.prompt_rows(words, [say(10), say(*range(10, 20))], length=4)
  assert rows.arrays["tokens"].tolist() == [[PAD, PAD, BOS, 10], [BOS, 17, 18, 19]]
  assert rows.arrays["mask"].tolist() == [[False, False, True, True], [True] * 4]
  assert rows.counts["truncated_prompts"] == 1
  rows = encoding.prompt_rows(words, [say(10), say(*range(10, 20))], length=4, too_long="drop")
  assert rows.kept.tolist() == [0]


def test_pair_rows(words):
  pairs = [
    Pair(say(10, 11), say(20), say(21, 22)),
    Pair(say(*range(10, 18)), say(20), say(21)),
    Pair("", say(20), say(21)),
  ]
  rows = encoding.pair_rows(words, pairs, length=6)
  assert rows.kept.tolist() == [0, 2] and rows.counts["dropped"] == 1
  expected = [[BOS, 10, 11, 20, EOS, PAD], [BOS, 20, EOS, PAD, PAD, PAD]]
  np.testing.assert_array_equal(rows.arrays["chosen"], expected)
  expected = [[BOS, 10, 11, 21, 22, EOS], [BOS, 21, EOS, PAD, PAD, PAD]]
  np.testing.assert_array_equal(rows.arrays["rejected"], expected)
  assert rows.arrays["rejected_mask"].sum(axis=1).tolist() == [6, 3]
  assert rows.arrays["rejected_loss_mask"].sum(axis=1).tolist() == [3, 2]
  rows = encoding.pair_rows(words, pairs[1:2], length=6, too_long="truncate")
  assert rows.arrays["chosen"].tolist() == [[BOS, 15, 16, 17, 20, EOS]]
  assert rows.arrays["rejected"].tolist() == [[BOS, 15, 16, 17, 21, EOS]]


def test_refusals(words):
  with pytest.raises(BadData, match="no rows are left of 1: all are longer"):
    encoding.pair_rows(words, [Pair(say(4, 5, 6), say(7), say(8))], length=3)
  with pytest.raises(BadData, match="none to begin"):
    encoding.example_rows(words, [], length=3)
  with pytest.raises(UnknownName, match="Did you mean 'truncate'"):
    encoding.example_rows(words, [Example("", "w4")], length=3, too_long="truncat")


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_level_prompt_plus_completion_decodes_to_the_text(prefix):
  tokenizer = byte_level(prefix)
  for prompt, completion in [("x\n", "\ny"), ("x", " a"), ("x", "a"), ("xy", "\n\na")]:
    prompts, completions = encoding.encode_examples(tokenizer, [Example(prompt, completion)])
    assert completions[0][-1] == tokenizer.eos_token_id
    decoded = tokenizer.decode(prompts[0] + completions[0][:-1])
    assert decoded == (" " if prefix else "") + prompt + completion


def test_sentencepiece_completion_has_no_blank_of_its_own(data_dir):
  directory = data_dir / "stories260k" / "hf"
  if not directory.is_dir():
    pytest.skip(f"{directory} is absent")
  tokenizer = load_tokenizer(directory)
  cases = [("Once upon a", " time."), ("Once upon a ti", "me."), ("A\n", "\nB"), ("", "Once upon")]
  examples = [Example(*case) for case in cases]
  prompts, completions = encoding.encode_examples(tokenizer, examples)
  for (prompt, completion), head, tail in zip(cases, prompts, completions, strict=True):
    assert head[0] == tokenizer.bos_token_id and tail[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(head + tail, skip_special_tokens=True) == prompt + completion
  # Where the boundary is also one of whole words, it is what encoding in one go gives.
  assert prompts[0] + completions[0][:-1] == tokenizer("Once upon a time.").input_ids
  assert prompts[3] + completions[3][:-1] == tokenizer("Once upon").input_ids
