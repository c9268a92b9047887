"""Ids of tokens that configs name (bos_token_id, eos_token_id, ...), where the output's tokenizer is not its config's.

mergekit 0.1.5 leaves them as they are: with another model's tokenizer the output then ends its answers at some other
token. Leaves out ids in files that only processors of images read.
"""

import json
from collections.abc import Mapping
from typing import Any

from wam.streaming.plan import Source
from wam.streaming.vocabularies.tokenizer_files import GENERATION_CONFIG, donor_files, read_json

_ENDS = ("_token_id", "_token_index")
_NESTED = "text_config"


def config_patch(
  donor: Source,
  holder: Source,
  size: int,
  old: Mapping[str, int] | None,
  new: Mapping[str, int] | None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
  """What changes in the donor's config.json with the vocabulary.

  An id is the one that the config of the tokenizer's own model has, where it says; else that of the same token.

  Args:
    donor: whose config the output gets.
    holder: whose tokenizer it gets.
    size: rows of the output.
    old: token -> id of the donor; None where not known.
    new: token -> id of the output; None where not known.

  Returns:
    (values to replace at the top level, values to replace in text_config, notes).
  """
  config, theirs = donor.config or {}, holder.config or {}
  patch, notes = _moved(config, theirs, old, new) if holder is not donor else ({}, [])
  if config.get("vocab_size", size if _NESTED in config else None) != size and config:
    patch["vocab_size"] = size
  inner: dict[str, Any] = {}
  nested, their_nested = config.get(_NESTED), theirs.get(_NESTED)
  if isinstance(nested, Mapping):
    if holder is not donor:
      ids = their_nested if isinstance(their_nested, Mapping) else {}
      inner, inner_notes = _moved(nested, ids, old, new)
      notes += inner_notes
    if nested.get("vocab_size") != size:
      inner["vocab_size"] = size
  return patch, inner, notes


def generation_config(
  donor: Source,
  holder: Source,
  old: Mapping[str, int] | None,
  new: Mapping[str, int] | None,
) -> bytes | None:
  """The donor's generation_config.json in the ids of the output; None where the holder's, or none, is to be kept."""
  if holder is donor or GENERATION_CONFIG in donor_files(holder):
    return None
  path = donor_files(donor).get(GENERATION_CONFIG)
  if path is None:
    return None
  config = read_json(path)
  patch, _ = _moved(config, {}, old, new)
  return json.dumps(config | patch, indent=2, ensure_ascii=False).encode()


def _moved(
  config: Mapping[str, Any],
  theirs: Mapping[str, Any],
  old: Mapping[str, int] | None,
  new: Mapping[str, int] | None,
) -> tuple[dict[str, Any], list[str]]:
  """The ids that change, and a note for each."""
  names = {i: token for token, i in (old or {}).items()}
  patch, notes = {}, []
  for key, value in config.items():
    if not key.endswith(_ENDS):
      continue
    if key in theirs:
      moved = theirs[key]
    elif isinstance(value, list):
      moved = [found for found in (_same_token(i, names, new) for i in value) if found is not None]
    else:
      moved = _same_token(value, names, new)
    if moved != value:
      patch[key] = moved
      notes.append(f"{key} is {moved} in the output, {value} in the config that it was taken from")
  return patch, notes


def _same_token(value: Any, names: Mapping[int, str], new: Mapping[str, int] | None) -> Any:
  """The id of the same token; None where the output does not have it; the value itself where it is no known id."""
  if type(value) is not int or value not in names or new is None:
    return value
  return new.get(names[value])
