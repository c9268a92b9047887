"""What a study found, as records: one "measurement" a point, written once however often a run is killed.

Leaves out what is measured, and how it is drawn (report).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wam.checkpoints import records
from wam.training.workdir import Run

MEASUREMENT, FIT, SAMPLES = "measurement", "fit", "samples"


def point(
  study: str,
  family: str,
  label: str,
  values: Mapping[str, float],
  *,
  split: str | None = None,
  x: Mapping[str, float] | None = None,
  halves: Mapping[str, float] | None = None,
  **more: Any,
) -> dict[str, Any]:
  """The fields of a measurement.

  Args:
    study: "accuracy", "best_of_n", ...
    family: the line or group it belongs to.
    label: its name in the family.
    values: what was measured, by name.
    split: of the data.
    x: numbers that place it, such as {"n": 64, "kl": 3.2}.
    halves: half-widths of 95 % intervals of some of the values.
    **more: other fields.
  """
  found: dict[str, Any] = {"study": study, "family": family, "label": label, "split": split}
  found |= {"x": dict(x or {}), "values": {n: float(v) for n, v in values.items()}}
  return found | {"halves": {n: float(v) for n, v in (halves or {}).items()}} | more


def once(run: Run, stage: str, make: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
  """Writes the records of a study, unless it is done; one that was killed on the way is made again, whole.

  Args:
    run: the open workdir.
    stage: names the study among the records.
    make: the records' fields, in order; "kind" is "measurement" where they have none.
  """
  every = [r for r in _all(run) if r["stage"] == stage]
  if any(r["kind"] == "stage" for r in every):
    return
  began = time.monotonic()
  found = make()
  kinds = {MEASUREMENT, FIT, SAMPLES, *(fields.get("kind", "") for fields in found)}
  run.records.drop(lambda record: record["stage"] == stage and record["kind"] in kinds)
  for step, fields in enumerate(found):
    keywords = {"kind": MEASUREMENT, **fields}
    run.records.append(stage=stage, step=step, **keywords)
  run.log({"seconds": time.monotonic() - began}, kind="stage", stage=stage, step=len(found))
  run.records.sync()


def read(run: Run, stage: str, kind: str = MEASUREMENT) -> list[dict[str, Any]]:
  """The records of a study that was written."""
  return [r for r in _all(run) if r["stage"] == stage and r["kind"] == kind]


def _all(run: Run) -> list[dict[str, Any]]:
  return records.read(run.directory / records.FILE_NAME)
