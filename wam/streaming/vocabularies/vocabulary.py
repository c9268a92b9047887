"""Which token a row of the output stands for, and where its embedding comes from in each model.

Inputs whose tokenizers differ are brought into one order of rows before they are merged, token by token. Everything is
decided from tokenizer files, configs and headers; the rows themselves are read later (vocabulary_rows.py). Leaves out
how text is cut: one model's tokenizer is kept for that (tokenizer_unions.py).

The size. Rows that no token uses (a vocabulary of 151665 tokens is often padded to 151936 rows) belong to the
checkpoint as much as those of tokens: the output has the rows of the model whose tokenizer it gets, and more only where
tokens are put behind them, which take padding rows first. mergekit 0.1.5 cuts the matrix to the tokenizer. A row
without a token counts as the same row in every model where it has none either.

The rows. A row that a model lacks is filled so that the merge need not know of it:

1. with what `tokens` says of the token, if it does;
2. else with the base's row, if the base has one;
3. else with the only owner's;
4. else with the mean of the owners', in float32;
5. else, where no model has one (padding to a multiple), with the mean of all other rows of the tensor, which gives such
   a token no more than an average probability (Hewitt 2021, Initializing new word embeddings for pretrained language
   models).

Rules 2 to 4 are mergekit's. For rows of tokens that nobody has it takes zeros, which in an output matrix can win over
real tokens; here, as in its padding, they get the mean.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from wam.core.errors import BadCheckpoint
from wam.streaming.plan import Reader, Source
from wam.streaming.vocabularies import tokenizer_unions, vocabulary_alignment
from wam.streaming.vocabularies.special_ids import config_patch, generation_config
from wam.streaming.vocabularies.tokenizer_files import (
  GENERATION_CONFIG,
  donor_files,
  read_tokenizer,
)
from wam.streaming.vocabularies.tokenizer_section import read_wish
from wam.streaming.vocabularies.vocabulary_rows import (
  Origins,
  VocabularyRows,
  counterpart,
  num_rows,
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The rows of the output.

  Attributes:
    size: how many: the first axis of the embedding and of the output matrix.
    origins: where each comes from, for every source, in the order of `sources`; None where the source's are as the
      output's.
    sources: the models, by label.
    ids: token -> row; empty where only slow tokenizers exist.
    files: tokenizer and generation files of the output: name -> content, or a file to copy.
    config: values to replace in config.json, at the top level.
    text_config: values to replace in its text_config.
    notes: one sentence each.
  """

  size: int
  origins: tuple[Origins | None, ...]
  sources: Mapping[str, Source]
  ids: Mapping[str, int]
  files: Mapping[str, bytes | pathlib.Path]
  config: Mapping[str, Any]
  text_config: Mapping[str, Any]
  notes: tuple[str, ...]

  def patched(self, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of the donor's with the size and the ids of this vocabulary."""
    result = {**config, **self.config}
    if self.text_config:
      result["text_config"] = {**result["text_config"], **self.text_config}
    return result

  def reader(self, source: Source, reader: Reader, *, name: str = "") -> Reader:
    """A vocabulary tensor of one source, with the rows of the output.

    To be called before any cast, so that rows of other models are cast together with its own.

    Args:
      source: one of `sources`.
      reader: of its embedding, output matrix or output bias; see vocabulary_rows.vocabulary_tensors.
      name: of the tensor in the output, where that is another: a tied model's embedding that stands in for its output
        matrix is called lm_head.weight there. Missing rows come from that tensor of the other models, or from their
        embedding where they are tied.

    Returns:
      The reader itself where no row moves.

    Raises:
      BadCheckpoint: the tensor has too few rows, or a model that rows are taken from lacks it.
    """
    index = next(i for i, other in enumerate(self.sources.values()) if other is source)
    origins, name = self.origins[index], name or reader.name
    expected = num_rows(source)
    if not reader.shape or reader.shape[0] != expected:
      raise BadCheckpoint(
        f"'{reader.name}' of '{source.label}' has shape {tuple(reader.shape)}, its vocabulary {expected} rows; where"
        " they differ it is not known which row is which token"
      )
    if origins is None:
      return reader
    others = list(self.sources.values())
    readers = {
      i: reader if i == index else counterpart(others[i], name, reader.shape[1:])
      for i in sorted(origins.needed() | {index})
    }
    return VocabularyRows(reader.name, readers, origins)


def plan_vocabulary(
  spec: str | Mapping[str, Any] | None,
  sources: Mapping[str, Source],
  donor: Source,
  base: Source | None,
) -> Vocabulary | None:
  """Decides on the tokenizer of the output and on the rows of every input.

  Args:
    spec: None; "base"; "union"; a label of `sources`; or mergekit's `tokenizer` section: {source: one of these (default
      union), tokens: {token: {source: a label | {kind: zero} | {kind: model_token, model: a label, token: ... or
      token_id: ...}, force: whether models that have the token take that row too}}, pad_to_multiple_of: a number}. A
      token of `tokens` that is not in the vocabulary is put behind it.
    sources: all inputs by label, the base among them. One without tokenizer files has the base's tokenizer, if it has
      as many rows.
    donor: the input whose config the output gets.
    base: the common start; without one, "base" is the donor.

  Returns:
    None for None: rows are merged as they stand (see tokenizer_files.compare).

  Raises:
    ConfigError: the section is not understood, or asks for what cannot be done.
    UnknownName: a model that it names is not among the inputs.
    MissingFile: a tokenizer is needed that is not there.
    BadData: a tokenizer file is damaged.
    BadCheckpoint: an input has no embedding whose rows could be matched.
  """
  if spec is None:
    return None
  wish = read_wish(spec, sources)
  first = base if base is not None else donor
  holder = first if wish.source in ("base", "union") else sources[wish.source]
  table = vocabulary_alignment.read_table(sources, first, holder)
  new = vocabulary_alignment.appended(wish, table)
  ids = {**table.ids(table.holder), **new.ids}
  size = vocabulary_alignment.output_size(ids, table, wish)
  own = np.stack(
    [
      vocabulary_alignment.own_rows(ids, size, table.ids(k), rows)
      for k, rows in enumerate(table.rows)
    ]
  )
  common = next((k for k, source in enumerate(sources.values()) if source is base), None)
  origins = vocabulary_alignment.origins(
    own, common, vocabulary_alignment.overridden(wish, ids, table)
  )
  files: dict[str, bytes | pathlib.Path] = dict(donor_files(holder))
  if new.ids or new.added:
    files = tokenizer_unions.with_tokens(table.kept, donor_files(holder), new.ids, new.added)
  tokenizer = read_tokenizer(donor)
  old = tokenizer.ids if tokenizer is not None else None
  config, text_config, id_notes = config_patch(donor, holder, size, old, ids)
  moved = generation_config(donor, holder, old, ids)
  if moved is not None:
    files[GENERATION_CONFIG] = moved
  notes = (
    *table.notes,
    *vocabulary_alignment.notes(table, new, ids, size),
    *vocabulary_alignment.fill_notes(table.labels, origins),
    *id_notes,
  )
  unmoved = [
    rows == size and bool((found.sources == k).all() and (found.rows == np.arange(size)).all())
    for k, (rows, found) in enumerate(zip(table.rows, origins, strict=True))
  ]
  kept = tuple(None if same else found for same, found in zip(unmoved, origins, strict=True))
  return Vocabulary(size, kept, sources, ids, files, config, text_config, notes)
