"""Turns the published files of ShareGPT and HH-RLHF into the rows that the configs of 3 B and 7 B models read.

python -m experiments.real_scale.prepare --sharegpt FILE.json --hh DIRECTORY [--out DIRECTORY]

Writes sharegpt/train.jsonl (prompt, completion) and hh-rlhf-pairs/{train,test}.jsonl (prompt, chosen, rejected) under
WAM_DATA, and says how many rows it left out. Fetches nothing.
"""

import argparse
import collections
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from wam.core.errors import BadData, ConfigError, MissingFile, WamError
from wam.data import readers
from wam.data.preferences import split_dialogue

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
# Who speaks, in ShareGPT's writing; conversations with anybody else ("system", "bing") are left out.
SPEAKERS = {"human": HUMAN, "user": HUMAN, "gpt": ASSISTANT, "chatgpt": ASSISTANT}
SPLITS = ("train", "test")


def main(arguments: Sequence[str]) -> int:
  """Writes what was asked for."""
  parser = argparse.ArgumentParser(
    prog="python -m experiments.real_scale.prepare", description=__doc__
  )
  parser.add_argument(
    "--sharegpt", type=pathlib.Path, help="a .json or .jsonl file of conversations"
  )
  parser.add_argument(
    "--hh", type=pathlib.Path, help="a directory of folders with train.jsonl.gz and test.jsonl.gz"
  )
  parser.add_argument("--out", type=pathlib.Path, default=os.environ.get("WAM_DATA"))
  given = parser.parse_args(arguments)
  try:
    if given.out is None:
      raise ConfigError("nothing says where to write: set WAM_DATA, or give --out")
    if given.sharegpt is None and given.hh is None:
      raise ConfigError("nothing to do: give --sharegpt, --hh or both")
    if given.sharegpt is not None:
      left_out: collections.Counter[str] = collections.Counter()
      _write(given.out / "sharegpt" / "train.jsonl", examples(given.sharegpt, left_out), left_out)
    if given.hh is not None:
      for split in SPLITS:
        left_out = collections.Counter()
        _write(
          given.out / "hh-rlhf-pairs" / f"{split}.jsonl", pairs(given.hh, split, left_out), left_out
        )
  except WamError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


def examples(path: pathlib.Path, left_out: collections.Counter[str]) -> Iterator[dict[str, str]]:
  """An example for every answer of the assistant: all that was said before, and the answer.

  So every answer is trained on once. The turns are written as in HH-RLHF, on which the rewards are learnt. Turns before
  the first human one are dropped.

  Args:
    path: rows with "conversations": [{"from", "value"}, ...].
    left_out: counts conversations and answers that were not used, by reason.

  Raises:
    BadData: names the row.
  """
  table = readers.read_rows(path)
  for record in (table[i] for i in range(len(table))):
    turns = record.values.get("conversations")
    if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
      raise BadData(
        f"{record.where}: 'conversations' should be a list of objects with from and value"
      )
    if any(turn["from"] not in SPEAKERS for turn in turns):
      left_out["conversations with other speakers"] += 1
      continue
    spoken = [(SPEAKERS[turn["from"]], turn["value"].strip()) for turn in turns]
    first = next((i for i, (who, _) in enumerate(spoken) if who == HUMAN), len(spoken))
    if first == len(spoken):
      left_out["conversations without a human turn"] += 1
    prompt = ""
    for who, said in spoken[first:]:
      if who == ASSISTANT and said:
        yield {"prompt": prompt + ASSISTANT, "completion": f" {said}"}
      elif who == ASSISTANT:
        left_out["empty answers"] += 1
      prompt += f"{who} {said}"


def pairs(
  directory: pathlib.Path, split: str, left_out: collections.Counter[str]
) -> Iterator[dict[str, str]]:
  """The pairs of all folders of HH-RLHF, in the order of their names.

  Args:
    directory: with folders such as harmless-base, each with {split}.jsonl or {split}.jsonl.gz.
    split: "train" or "test".
    left_out: counts rows that are no pair, by reason.

  Raises:
    MissingFile: there is no such file in any folder.
  """
  files = sorted(directory.glob(f"*/{split}.jsonl*"))
  if not files:
    raise MissingFile(f"{directory}: no folder in it has a file {split}.jsonl or {split}.jsonl.gz")
  for file in files:
    table = readers.read_rows(file)
    for record in (table[i] for i in range(len(table))):
      pair = split_dialogue(record.get("chosen", "string"), record.get("rejected", "string"))
      if pair is None:
        left_out["dialogues that share no turn"] += 1
      elif pair.chosen == pair.rejected:
        left_out["equal completions"] += 1
      else:
        yield pair._asdict()


def _is_turn(turn: Any) -> bool:
  return isinstance(turn, Mapping) and all(isinstance(turn.get(k), str) for k in ("from", "value"))


def _write(
  path: pathlib.Path, rows: Iterable[Mapping[str, str]], left_out: Mapping[str, int]
) -> None:
  """Writes JSON lines, whole or not at all; prints what was written and what was left out."""
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f".{path.name}.draft")
  count = 0
  try:
    with draft.open("w", encoding="utf-8") as file:
      for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
    if not count:
      raise BadData(f"{path}: nothing to write; left out: {dict(left_out) or 'nothing'}")
    draft.replace(path)
  finally:
    draft.unlink(missing_ok=True)
  skipped = ", ".join(f"{number} {reason}" for reason, number in left_out.items()) or "nothing"
  print(f"{path}: {count} rows; left out: {skipped}")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
