"""What every page says of the run itself: durations of its stages, held-out accuracies, notes."""

import json
from typing import Any

from wam.checkpoints.records import is_time
from wam.report import story
from wam.report.records import Record, Run, finite


def heldout_rows(run: Run) -> list[str]:
  """What reward models got right on pairs that they were not trained on."""
  rows = []
  for record in run.of_kind("heldout"):
    accuracy, pairs = finite(record.get("accuracy")), finite(record.get("pairs"))
    if accuracy is not None:
      among = f" of {pairs:.0f} held-out pairs" if pairs else " of the held-out pairs"
      name = str(record["stage"]).replace("_", " ")
      rows.append(f"The {name} prefers the chosen completion in {accuracy:.1%}{among}.")
  return rows


def stage_rows(run: Run) -> list[dict[str, str]]:
  """Duration and the other plain values of every finished stage."""
  rows = []
  for record in run.of_kind("stage"):
    seconds = finite(record.get("seconds"))
    rest = {k: v for k, v in record.items() if k not in ("kind", "stage") and not is_time(k)}
    rows.append(
      {
        "stage": record["stage"],
        "duration": story.duration(seconds) if seconds is not None else "–",
        "details": ", ".join(f"{name}: {plain_text(value)}" for name, value in rest.items()),
      }
    )
  return rows


def note_text(record: Record) -> str:
  """The text of a note, or all its fields."""
  text = record.get("text", record.get("note", record.get("message")))
  if isinstance(text, str):
    return text
  rest = {k: v for k, v in record.items() if k != "kind"}
  return ", ".join(f"{name}: {plain_text(value)}" for name, value in rest.items())


def plain_text(value: Any) -> str:
  """A value of a record for reading."""
  as_number = finite(value)
  if isinstance(value, int) or as_number is None:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
  return story.number(as_number)
