"""Rows of several vocabularies brought into one order, token by token. The rules are those of vocabulary.py.

Leaves out files: what is decided here are numbers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam.core.errors import BadCheckpoint, ConfigError, MissingFile
from wam.streaming.plan import Source
from wam.streaming.vocabularies import tokenizer_unions
from wam.streaming.vocabularies.tokenizer_files import TokenizerFiles, listing, read_tokenizers
from wam.streaming.vocabularies.tokenizer_section import Override, Wish
from wam.streaming.vocabularies.vocabulary_rows import (
  MEAN_OF_OWNERS,
  MEAN_OF_ROWS,
  ZERO,
  Origins,
  num_rows,
)

_SAVE = (
  "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY) of transformers writes one"
)


@dataclasses.dataclass(frozen=True)
class Table:
  """The tokenizers and numbers of rows of all sources, in their order.

  Attributes:
    tokenizers: of every source.
    rows: of every source's embedding.
    holder: index of the source whose tokenizer is kept.
    notes: what was assumed.
  """

  tokenizers: Sequence[TokenizerFiles]
  rows: Sequence[int]
  holder: int
  notes: tuple[str, ...]

  @property
  def labels(self) -> list[str]:
    """Of the sources."""
    return [tokenizer.label for tokenizer in self.tokenizers]

  @property
  def kept(self) -> TokenizerFiles:
    """The tokenizer that is kept."""
    return self.tokenizers[self.holder]

  def ids(self, index: int) -> Mapping[str, int]:
    """Token -> id of one source; empty for slow tokenizers, all of whose rows then count as padding."""
    return self.tokenizers[index].ids or {}


@dataclasses.dataclass(frozen=True)
class Appended:
  """Tokens that the kept tokenizer gets besides its own.

  Attributes:
    ids: token -> id of the new ones.
    added: flags of those, new or old, that are to be cut out of texts before the model sees them.
    pieces: the other new ones -> label of a model that has them.
  """

  ids: Mapping[str, int]
  added: Mapping[str, Mapping[str, Any]]
  pieces: Mapping[str, str]


def read_table(sources: Mapping[str, Source], first: Source, holder: Source) -> Table:
  """Reads the tokenizers of all sources and checks that their tokens can be compared.

  Args:
    sources: all inputs.
    first: the one whose tokenizer those without are taken to have.
    holder: the one whose tokenizer is kept.

  Raises:
    MissingFile, ConfigError, BadData, BadCheckpoint: see vocabulary.plan_vocabulary.
  """
  found, rows = read_tokenizers(sources), {}
  for label, source in sources.items():
    count = num_rows(source)
    if count is None:
      raise BadCheckpoint(
        f"'{label}' has no embedding whose rows could be matched by token; leave tokenizer_source out"
      )
    rows[label] = count
  fallback = next(label for label, source in sources.items() if source is first)
  notes, problems = [], []
  spare = found[fallback]
  for label in [label for label, tokenizer in found.items() if tokenizer is None]:
    if spare is None or rows[label] != rows[fallback]:
      problems.append(f"'{label}'")
    else:
      found[label] = dataclasses.replace(spare, label=label)
      notes.append(f"'{label}' has no tokenizer and is taken to have that of '{fallback}'")
  if problems:
    raise MissingFile(
      f"no tokenizer in {', '.join(problems)}: the vocabulary of the output is made from the tokenizer.json of every"
      " input. Put the file of that model there, or leave tokenizer_source out"
    )
  tokenizers = [tokenizer for tokenizer in found.values() if tokenizer is not None]
  _check_comparable(tokenizers)
  index = next(i for i, source in enumerate(sources.values()) if source is holder)
  return Table(tokenizers, list(rows.values()), index, tuple(notes))


def _check_comparable(tokenizers: Sequence[TokenizerFiles]) -> None:
  slow = [repr(t.label) for t in tokenizers if t.ids is None]
  if slow and len({t.fingerprint for t in tokenizers}) > 1:
    raise ConfigError(
      f"only a slow tokenizer, without tokenizer.json, in {', '.join(slow)}: its tokens cannot be matched with those of"
      f" the others. {_SAVE}"
    )
  spellings = {t.spelling: t.label for t in tokenizers}
  if len(spellings) > 1:
    blanks = {"bytes": "as Ġ", "metaspace": "as ▁", "plain": "not at all"}
    found = ", ".join(f"{blanks[how]} in '{label}'" for how, label in spellings.items())
    raise ConfigError(
      f"the tokenizers write blanks differently ({found}): the tokens of one are not those of the other, and rows"
      " cannot be matched. Only models with related tokenizers can be merged"
    )


def appended(wish: Wish, table: Table) -> Appended:
  """The tokens that are put behind the kept tokenizer: those of the others (union), then those that `tokens` names.

  Models in the order of the recipe, tokens of each in the order of their ids. Tokens without a row in their model are
  passed over.

  Raises:
    ConfigError: the kept tokenizer cannot take them.
  """
  kept = table.ids(table.holder)
  if wish.tokens and table.kept.ids is None:
    raise ConfigError(
      f"tokenizer.tokens needs a tokenizer.json, and '{table.kept.label}' has only a slow tokenizer. {_SAVE}"
    )
  new: dict[str, int] = {}
  added: dict[str, Mapping[str, Any]] = {}
  pieces: dict[str, str] = {}
  after = max(kept.values(), default=-1) + 1
  for tokenizer, rows in zip(table.tokenizers, table.rows, strict=True):
    if wish.source != "union" or tokenizer.fingerprint == table.kept.fingerprint:
      continue
    for token, i in sorted((tokenizer.ids or {}).items(), key=lambda pair: pair[1]):
      if i >= rows:
        continue
      if token not in kept and token not in new:
        new[token] = after + len(new)
        pieces[token] = tokenizer.label
      if token in tokenizer.added and token not in table.kept.added:
        added.setdefault(token, tokenizer.added[token])
  for token in wish.tokens:
    if token not in kept and token not in new:
      new[token] = after + len(new)
      added[token] = {}
  pieces = {token: label for token, label in pieces.items() if token not in added}
  tokenizer_unions.check_pieces(table.kept, pieces)
  return Appended(new, added, pieces)


def output_size(ids: Mapping[str, int], table: Table, wish: Wish) -> int:
  """Rows of the output: the holder's, and those of tokens behind them that some model has a row for."""
  size = table.rows[table.holder]
  for token, i in ids.items():
    if i >= size and (token in wish.tokens or _owned(token, table)):
      size = i + 1
  if wish.multiple:
    size = -(-size // wish.multiple) * wish.multiple
  return size


def _owned(token: str, table: Table) -> bool:
  return any(table.ids(k).get(token, rows) < rows for k, rows in enumerate(table.rows))


def own_rows(ids: Mapping[str, int], size: int, theirs: Mapping[str, int], rows: int) -> np.ndarray:
  """`int64 [size]`: the row of one model that is each row of the output, -1 where it has none.

  Rows without a token are the same row in every model where they have none.

  Args:
    ids: token -> row of the output.
    size: of the output.
    theirs: token -> row of the model.
    rows: of the model.
  """
  positions = np.arange(size)
  if theirs == ids:
    return np.where(positions < rows, positions, -1)
  own = np.full(size, -1)
  free = positions < rows
  for i in theirs.values():
    if i < size:
      free[i] = False
  for token, i in ids.items():
    if i < size:
      free[i] = False
      there = theirs.get(token, rows)
      if there < rows:
        own[i] = there
  own[free] = positions[free]
  return own


def overridden(
  wish: Wish, ids: Mapping[str, int], table: Table
) -> dict[int, tuple[int, int, bool]]:
  """What `tokens` says: row of the output -> (index of a source or ZERO, row there, whether forced).

  Raises:
    ConfigError: a model that is named does not have the row.
  """
  result = {}
  for token, override in wish.tokens.items():
    source, row = (ZERO, 0) if not override.model else _named_row(token, override, table)
    result[ids[token]] = (source, row, override.force)
  return result


def _named_row(token: str, override: Override, table: Table) -> tuple[int, int]:
  source = table.labels.index(override.model)
  if override.token_id is not None:
    row, what = override.token_id, f"row {override.token_id}"
  else:
    name = override.token or token
    row, what = table.ids(source).get(name, table.rows[source]), f"row for {name!r}"
  if row >= table.rows[source]:
    raise ConfigError(
      f"tokenizer.tokens.{token}: '{override.model}', with {table.rows[source]} rows, has no {what}"
    )
  return source, row


def origins(
  own: np.ndarray, base: int | None, overrides: Mapping[int, tuple[int, int, bool]]
) -> list[Origins]:
  """Where each row comes from, for every source.

  Args:
    own: `int64 [S, V]`, see `own_rows`.
    base: index of the base.
    overrides: see `overridden`.
  """
  has = own >= 0
  count, positions = has.sum(axis=0), np.arange(own.shape[1])
  spare = np.where(count == 0, MEAN_OF_ROWS, MEAN_OF_OWNERS)
  spare = np.where(count == 1, has.argmax(axis=0), spare)
  if base is not None:
    spare = np.where(has[base], base, spare)
  spare_rows = np.where(spare >= 0, own[np.maximum(spare, 0), positions], 0)
  forced = np.zeros(own.shape[1], np.bool_)
  for i, (source, row, force) in overrides.items():
    spare[i], spare_rows[i], forced[i] = source, row, force
  result = []
  for k in range(len(own)):
    mine = has[k] & ~forced
    sources = np.where(mine, k, spare).astype(np.int16)
    means = np.flatnonzero(sources == MEAN_OF_OWNERS).tolist()
    owners = {i: [(s, int(own[s, i])) for s in np.flatnonzero(has[:, i]).tolist()] for i in means}
    result.append(Origins(sources, np.where(mine, own[k], spare_rows), owners))
  return result


def notes(table: Table, new: Appended, ids: Mapping[str, int], size: int) -> list[str]:
  """What a user should know of the size, of tokens that were put in and of tokens that were left out."""
  kept, rows = table.kept.label, table.rows[table.holder]
  unused = size - sum(i < size for i in ids.values())
  lines = [
    f"the output has the tokenizer of '{kept}' and {size} rows of embeddings"
    + (f" (it has {rows})" if size != rows else "")
    + (f"; {unused} belong to no token" if unused else "")
  ]
  cut = [token for token in new.added if token in new.ids]
  if cut:
    lines.append(f"{len(cut)} tokens are put behind it: {listing(map(repr, cut))}")
  if new.pieces:
    owners = ", ".join(repr(label) for label in dict.fromkeys(new.pieces.values()))
    lines.append(
      f"{len(new.pieces)} ordinary tokens of {owners} get rows behind it, but texts are cut as '{kept}' cuts them:"
      f" {listing(map(repr, new.pieces))}; to cut them as another model does, name it in tokenizer_source"
    )
  homeless = [token for token, i in ids.items() if i >= size]
  if homeless:
    lines.append(f"no model has a row for {listing(map(repr, homeless))}, nor has the output")
  for k, label in enumerate(table.labels):
    lost = [token for token, i in table.ids(k).items() if token not in ids and i < table.rows[k]]
    if lost:
      lines.append(
        f"{len(lost)} tokens of '{label}' are not in the output: {listing(map(repr, lost))}"
      )
    tail = table.rows[k] - max(size, max(table.ids(k).values(), default=-1) + 1)
    if tail > 0:
      lines.append(f"the last {tail} rows of '{label}', of no token, are left out")
  return lines


def fill_notes(labels: Sequence[str], found: Sequence[Origins]) -> list[str]:
  """How many rows of each model were filled, and with what."""
  lines = []
  for k, (label, origin) in enumerate(zip(labels, found, strict=True)):
    parts = []
    for source in np.unique(origin.sources).tolist():
      if source == k:
        continue
      count = np.count_nonzero(origin.sources == source)
      names = {
        ZERO: "zeros",
        MEAN_OF_OWNERS: "the mean of the models that have them",
        MEAN_OF_ROWS: "the mean of all rows",
      }
      parts.append(f"{count} with {names.get(source) or 'those of ' + repr(labels[source])}")
    if parts:
      lines.append(f"rows of '{label}' are filled: {', '.join(parts)}")
  return lines
