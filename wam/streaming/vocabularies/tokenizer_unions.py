"""Tokens put at the end of a tokenizer, without a change in how it cuts text.

A union of two trained tokenizers does not exist: the merges of a BPE, the scores of a Unigram and the longest match of
a WordPiece each decide how every text is cut, and the pieces of another model take part in that as soon as they can be
reached. So the tokenizer of one model stays as it is and only what cannot disturb it is put behind it:

* **Added tokens** of the others (control tokens, mostly), which are cut out of a text before the model sees it. Text
  changes where one of them stands in it literally, which is what they are for.
* **Ordinary pieces** of the others. BPE: into the vocabulary, without merges, so that the id has a row and decodes, and
  no text of known characters is cut differently. (A single character that was unknown, or spelt in bytes, becomes
  known.) WordLevel: words that were unknown become known. Unigram, WordPiece and a BPE that looks words up whole
  (`ignore_merges`) would cut text differently, and are refused.

mergekit 0.1.5 makes added tokens of ordinary pieces too: each is then cut out of every word that contains it.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from wam.core.errors import BadData, ConfigError
from wam.streaming.vocabularies.tokenizer_files import (
  LEGACY_VOCABULARIES,
  TOKENIZER,
  TOKENIZER_CONFIG,
  TokenizerFiles,
  listing,
  read_json,
)

_FLAGS = {
  "single_word": False,
  "lstrip": False,
  "rstrip": False,
  "normalized": False,
  "special": False,
}


def check_pieces(tokenizer: TokenizerFiles, pieces: Mapping[str, str]) -> None:
  """Checks that ordinary pieces can be put behind this tokenizer.

  Args:
    tokenizer: that is kept.
    pieces: token -> label of a model that it is an ordinary piece of.

  Raises:
    ConfigError: they would change how it cuts text; says what to do instead.
  """
  if not pieces or (tokenizer.kind in ("BPE", "WordLevel") and not tokenizer.whole_words):
    return
  how = tokenizer.kind + (" with ignore_merges" if tokenizer.whole_words else "")
  owners = sorted(set(pieces.values()))
  raise ConfigError(
    f"no union of these tokenizers: that of '{tokenizer.label}' ({how}) would cut text differently with the"
    f" {len(pieces)} ordinary tokens that only {', '.join(repr(o) for o in owners)} has:"
    f" {listing(map(repr, pieces))}. Keep one model's tokenizer: tokenizer_source: base, or the name of a model"
  )


def with_tokens(
  tokenizer: TokenizerFiles,
  files: Mapping[str, pathlib.Path],
  new: Mapping[str, int],
  added: Mapping[str, Mapping[str, Any]],
) -> dict[str, bytes | pathlib.Path]:
  """The files of a tokenizer with tokens put behind it.

  Args:
    tokenizer: that is kept; its tokens keep their ids.
    files: its files by name. Vocabularies in older formats, which would lack the new tokens, are left out.
    new: token -> id of those that it does not have.
    added: flags of those tokens, new or old, that are to be cut out of texts before the model sees them.

  Raises:
    BadData: the tokenizers library does not give the result the ids that it should have.
  """
  content = read_json(files[TOKENIZER])
  ids = {**(tokenizer.ids or {}), **new}
  flags = {
    token: _FLAGS | dict(entry) | {"content": token}
    for token, entry in {**added, **tokenizer.added}.items()
  }
  content["added_tokens"] = [
    {"id": ids[token], **entry} for token, entry in sorted(flags.items(), key=lambda f: ids[f[0]])
  ]
  vocab = content["model"]["vocab"]
  if tokenizer.kind in ("BPE", "WordLevel"):
    # The library gives an added token the next free id unless the vocabulary says otherwise, so it is made to say so.
    vocab.update({token: ids[token] for token in [*new, *tokenizer.added]})
  text = json.dumps(content, ensure_ascii=False, indent=2)
  _check_ids(tokenizer, text, ids)
  result: dict[str, bytes | pathlib.Path] = {
    name: path for name, path in files.items() if name not in LEGACY_VOCABULARIES
  }
  result[TOKENIZER] = text.encode()
  if TOKENIZER_CONFIG in files:
    config = read_json(files[TOKENIZER_CONFIG])
    if isinstance(config.get("added_tokens_decoder"), dict):
      # Where it is there, transformers 5 takes added tokens from here alone for tokenizers that it builds anew.
      config["added_tokens_decoder"] = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in content["added_tokens"]
      }
      result[TOKENIZER_CONFIG] = json.dumps(config, ensure_ascii=False, indent=2).encode()
  return result


def _check_ids(tokenizer: TokenizerFiles, text: str, ids: Mapping[str, int]) -> None:
  import tokenizers

  try:
    loaded = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # the Rust library raises bare Exception
    raise BadData(
      f"{tokenizer.directory / TOKENIZER}: the tokenizers library does not read it: {error}"
    ) from error
  found = loaded.get_vocab(with_added_tokens=True)
  wrong = [f"{token!r} is {found.get(token)}" for token, i in ids.items() if found.get(token) != i]
  if wrong:
    raise BadData(
      f"{tokenizer.directory / TOKENIZER}: tokens cannot be put behind this tokenizer, since the tokenizers library"
      f" would move {len(wrong)} of its tokens ({listing(wrong)}). Keep it as it is: tokenizer_source: base, or the"
      " name of a model"
    )
