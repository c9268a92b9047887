"""Ledgers: what an experiment found about the claims of a paper, as a JSON file that people and programs read.

A ledger is a JSON list of objects with the fields of `Entry`; an entry is known by its `claim`. Standard library only,
so that whatever renders ledgers need not load JAX. Leaves out rendering but for a table in Markdown.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from wam.core.errors import BadData, MissingFile, did_you_mean

FILE_NAME = "ledger.json"
VERDICTS = ("reproduced", "not reproduced", "inconclusive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """One claim and its verdict.

  Attributes:
    claim: what it is called, such as "TAX-7 inequality"; unique within a ledger.
    paper: what the paper says, with its numbers and where it says so.
    measured: what was measured, with intervals.
    verdict: one of `VERDICTS`.
    command: what makes the numbers anew.
    hardware: what they were made on.
    seeds: which seeds; empty for what has no randomness.

  Raises:
    BadData: if a field is empty or of another type, or there is no such verdict.
  """

  claim: str
  paper: str
  measured: str
  verdict: str
  command: str
  hardware: str
  seeds: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    for name in TEXTS:
      value = getattr(self, name)
      if not isinstance(value, str) or not value.strip():
        raise BadData(f"ledger entry {self.claim!r}: '{name}' should be a text, found {value!r}")
    if self.verdict not in VERDICTS:
      raise BadData(
        f"ledger entry '{self.claim}': verdict '{self.verdict}'."
        f"{did_you_mean(self.verdict, VERDICTS)} Choices: {', '.join(VERDICTS)}"
      )
    if not isinstance(self.seeds, list | tuple) or not all(
      type(seed) is int for seed in self.seeds
    ):
      raise BadData(
        f"ledger entry '{self.claim}': 'seeds' should be whole numbers, found {self.seeds!r}"
      )
    # A list becomes a tuple: an entry that was read equals the one that was written.
    object.__setattr__(self, "seeds", tuple(self.seeds))


TEXTS = tuple(field.name for field in dataclasses.fields(Entry) if field.name != "seeds")


def read(path: str | os.PathLike[str]) -> list[Entry]:
  """The entries of a ledger, or of the `ledger.json` of a directory, in the order of the file.

  Raises:
    MissingFile: if there is none.
    BadData: if it is not a ledger; names the entry.
  """
  file = pathlib.Path(path)
  file = file / FILE_NAME if file.is_dir() else file
  if not file.is_file():
    raise MissingFile(f"no ledger at {file}; expected a {FILE_NAME} that an experiment wrote")
  try:
    rows = json.loads(file.read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise BadData(f"{file}: not JSON ({error}); run the experiment again") from error
  if not isinstance(rows, list):
    raise BadData(f"{file}: expected a JSON list of entries, found {type(rows).__name__}")
  entries = [_entry(row, f"{file}, entry {number}") for number, row in enumerate(rows, start=1)]
  _check_unique(entries, str(file))
  return entries


def write(path: str | os.PathLike[str], entries: Iterable[Entry]) -> None:
  """Writes a ledger in place of the one that is there; a reader or a kill sees the old file or the new one.

  Args:
    path: the file, or the directory of its `ledger.json`.
    entries: in the order in which they are shown.

  Raises:
    BadData: if two entries have one claim.
  """
  file = pathlib.Path(path)
  file = file / FILE_NAME if file.is_dir() else file
  listed = list(entries)
  _check_unique(listed, str(file))
  rows = [dataclasses.asdict(entry) for entry in listed]
  draft = file.with_name(f".{file.name}.draft")
  draft.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  draft.replace(file)


def update(path: str | os.PathLike[str], entries: Iterable[Entry]) -> list[Entry]:
  """Puts entries into a ledger: those with a claim that it has replace the old ones, the others go to its end.

  Args:
    path: as for `write`; where no ledger is, one is begun.
    entries: the new ones.

  Returns:
    All entries of the ledger.
  """
  file = pathlib.Path(path)
  file = file / FILE_NAME if file.is_dir() else file
  new = list(entries)
  _check_unique(new, "what is to be written")
  merged = {entry.claim: entry for entry in (read(file) if file.is_file() else [])}
  merged |= {entry.claim: entry for entry in new}
  write(file, merged.values())
  return list(merged.values())


def table(entries: Iterable[Entry]) -> str:
  """The entries as a Markdown table: claim, paper, measured, verdict.

  >>> words = {name: name for name in TEXTS} | {"verdict": "inconclusive"}
  >>> print(table([Entry(**words)]))
  | claim | the paper | measured | verdict |
  |---|---|---|---|
  | claim | paper | measured | inconclusive |
  """
  lines = ["| claim | the paper | measured | verdict |", "|---|---|---|---|"]
  for entry in entries:
    cells = (entry.claim, entry.paper, entry.measured, entry.verdict)
    # What a cell must not hold: column marks and line breaks.
    lines.append("| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |")
  return "\n".join(lines)


def _entry(row: Any, where: str) -> Entry:
  """One object of the file.

  Raises:
    BadData: naming the fields that are missing or unknown.
  """
  if not isinstance(row, Mapping):
    raise BadData(f"{where}: expected a JSON object, found {type(row).__name__}")
  known = {field.name for field in dataclasses.fields(Entry)}
  missing = [name for name in TEXTS if name not in row]
  unknown = [
    f"'{name}'{did_you_mean(name, known).rstrip('?')}" for name in row if name not in known
  ]
  if missing or unknown:
    raise BadData(
      f"{where}: missing {', '.join(missing) or 'nothing'}; unknown {', '.join(unknown) or 'nothing'}"
    )
  try:
    return Entry(**row)
  except BadData as error:
    raise BadData(f"{where}: {error}") from error


def _check_unique(entries: Iterable[Entry], where: str) -> None:
  claims = [entry.claim for entry in entries]
  twice = sorted({claim for claim in claims if claims.count(claim) > 1})
  if twice:
    raise BadData(f"{where}: several entries for {', '.join(twice)}; one claim has one verdict")
