"""The report: records of a run in, `report/` out, with one self-contained page, two pictures and two tables.

The page loads nothing from anywhere: plotly's script, styles, data and pictures are inside it, and its content
security policy forbids the rest. Works for a run in progress; what is missing is said on the page.
"""

import json
from pathlib import Path
from typing import Any

from wam.checkpoints.records import is_time, write_atomically, writing
from wam.report import figures, fronts, panels, story, tables
from wam.report.assets import asset, data_url
from wam.report.points import AVERAGING, EARLY_STOPPING, Points, collect
from wam.report.records import Record, Run, finite, read_run

FOLDER = "report"
PAGE = "index.html"
POINTS_TABLE, FRONTS_TABLE = "points.csv", "fronts.csv"
FRONT_PICTURE, CURVES_PICTURE = "front.png", "curves.png"


def write_report(workdir: Path | str) -> Path:
  """Writes the report of a run, finished or in progress, into `workdir/report`.

  Args:
    workdir: run directory with `records.jsonl` and, usually, `config.json`.

  Returns:
    The path of the page. It replaces an older one only when it is complete.

  Raises:
    MissingFile: the directory or its records do not exist.
    BadData: there are no records, or a line (named by its number) cannot be used.
    CannotWrite: on a full disk or without permission.
  """
  run = read_run(workdir)
  points = collect(run.records)
  folder = Path(workdir) / FOLDER
  with writing(FOLDER, folder):
    folder.mkdir(exist_ok=True)
  tables.write_points(points, folder / POINTS_TABLE)
  tables.write_fronts(run.records, folder / FRONTS_TABLE)
  for name in (FRONT_PICTURE, CURVES_PICTURE):
    (folder / name).unlink(missing_ok=True)  # no picture of an earlier run may stay
  figures.front_figure(points, run.records, folder / FRONT_PICTURE)
  figures.curves_figure(run.records, folder / CURVES_PICTURE)
  write_atomically(folder / PAGE, _render(run, points, folder))
  return folder / PAGE


def missing(run: Run, points: Points) -> list[str]:
  """Says what the records do not hold (yet), in plain words."""
  families = {p.family for p in points.shown}
  expected = {
    "training curves (no metric was recorded)": bool(run.of_kind("metric")),
    "the model before RLHF": fronts.ends(points.shown).before is not None,
    "the checkpoints of the RLHF run (early stopping)": EARLY_STOPPING in families,
    "averaged models": AVERAGING in families or bool(fronts.averages(points.shown)),
    "hypervolumes of the fronts": bool(run.of_kind("front")),
  }
  return [what for what, there in expected.items() if not there]


def _render(run: Run, points: Points, folder: Path) -> str:
  from jinja2 import Environment, StrictUndefined
  from plotly.offline import get_plotlyjs

  environment = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  template = environment.from_string(asset("page.html.jinja"))
  front = panels.front_panels(points, run.records)
  reward = panels.reward_panels(points)
  curves = panels.curve_panels(run.records)
  drawn = front + reward + curves
  selection = fronts.select(points, run.records)
  heads, headline = tables.headline_rows(points, run.records)
  return template.render(
    run=run,
    style=asset("page.css"),
    script=asset("page.js"),
    plotly=get_plotlyjs() if drawn else "",
    drawn={panel["id"]: panel["figure"] for panel in drawn},
    sentences=story.sentences(points, run.records),
    selection=tables.rule_text(selection) if selection else "",
    missing=missing(run, points),
    heads=heads,
    headline=headline,
    front=front,
    legend=panels.legend(points, run.records),
    hypervolumes=tables.front_rows(run.records),
    hypervolume_verdict=story.hypervolumes(run.records),
    reward=reward,
    overoptimisation=story.overoptimisation(points),
    curves=curves,
    heldout=_heldout_rows(run),
    points=points,
    columns=tables.value_columns(points),
    parts=tables.coefficient_parts(points),
    tables=[(split, tables.point_rows(points, run.records, split)) for split in _splits(points)],
    config=json.dumps(run.config, indent=2, ensure_ascii=False),
    stages=_stage_rows(run),
    notes=[_note(record) for record in run.of_kind("note")],
    seeds=_seeds(run, points),
    pictures={n: data_url(folder / n) for n in (FRONT_PICTURE, CURVES_PICTURE) if (folder / n).is_file()},
    files=[n for n in (POINTS_TABLE, FRONTS_TABLE, FRONT_PICTURE, CURVES_PICTURE) if (folder / n).is_file()],
  )  # fmt: skip


def _splits(points: Points) -> list[str]:
  """The splits that were evaluated, that of the figures first."""
  return list(dict.fromkeys([p.split for p in points.shown] + [p.split for p in points.every]))


def _heldout_rows(run: Run) -> list[str]:
  """What reward models got right on pairs that they were not trained on."""
  rows = []
  for record in run.of_kind("heldout"):
    accuracy, pairs = finite(record.get("accuracy")), finite(record.get("pairs"))
    if accuracy is not None:
      among = f" of {pairs:.0f} held-out pairs" if pairs else " of the held-out pairs"
      name = str(record["stage"]).replace("_", " ")
      rows.append(f"The {name} prefers the chosen completion in {accuracy:.1%}{among}.")
  return rows


def _stage_rows(run: Run) -> list[dict[str, str]]:
  """Duration and the other plain values of every finished stage."""
  rows = []
  for record in run.of_kind("stage"):
    seconds = finite(record.get("seconds"))
    rest = {k: v for k, v in record.items() if k not in ("kind", "stage") and not is_time(k)}
    rows.append(
      {
        "stage": record["stage"],
        "duration": story.duration(seconds) if seconds is not None else "–",
        "details": ", ".join(f"{name}: {_plain(value)}" for name, value in rest.items()),
      }
    )
  return rows


def _note(record: Record) -> str:
  text = record.get("text", record.get("note", record.get("message")))
  if isinstance(text, str):
    return text
  rest = {k: v for k, v in record.items() if k != "kind"}
  return ", ".join(f"{name}: {_plain(value)}" for name, value in rest.items())


def _seeds(run: Run, points: Points) -> str:
  sampling = sorted({seed for p in points.every for seed in p.seeds})
  found = [f"sampling seeds {', '.join(sampling)}"] if sampling else []
  if "seed" in run.config:
    found.insert(0, f"seed of the run {_plain(run.config['seed'])}")
  return "; ".join(found)


def _plain(value: Any) -> str:
  as_number = finite(value)
  if isinstance(value, int) or as_number is None:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
  return story.number(as_number)
