"""The report: records of a run in, `report/` out, with one self-contained page, pictures and two tables.

The page here is that of the reward-tax front; recipes that are studies of other kinds have pages made of blocks
(`studies`, `blocks_page`).

The page loads nothing from anywhere: plotly's script, styles, data and pictures are inside it, and its content
security policy forbids the rest. Works for a run in progress; what is missing is said on the page.
"""

import json
from pathlib import Path

from wam.checkpoints.records import write_atomically, writing
from wam.report import blocks_page, figures, fronts, panels, story, studies, tables
from wam.report.assets import asset, data_url, template
from wam.report.points import AVERAGING, EARLY_STOPPING, Points, collect
from wam.report.records import Run, read_run
from wam.report.run_facts import heldout_rows, note_text, plain_text, stage_rows

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
  folder = Path(workdir) / FOLDER
  study = studies.page_of(run)
  return blocks_page.write(run, study, folder) if study else _write(run, folder)


def _write(run: Run, folder: Path) -> Path:
  points = collect(run.records)
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
  from plotly.offline import get_plotlyjs

  front = panels.front_panels(points, run.records)
  reward = panels.reward_panels(points)
  curves = panels.curve_panels(run.records)
  drawn = front + reward + curves
  selection = fronts.select(points, run.records)
  heads, headline = tables.headline_rows(points, run.records)
  return template("page.html.jinja").render(
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
    heldout=heldout_rows(run),
    points=points,
    columns=tables.value_columns(points),
    parts=tables.coefficient_parts(points),
    tables=[(split, tables.point_rows(points, run.records, split)) for split in _splits(points)],
    config=json.dumps(run.config, indent=2, ensure_ascii=False),
    stages=stage_rows(run),
    notes=[note_text(record) for record in run.of_kind("note")],
    seeds=_seeds(run, points),
    pictures={n: data_url(folder / n) for n in (FRONT_PICTURE, CURVES_PICTURE) if (folder / n).is_file()},
    files=[n for n in (POINTS_TABLE, FRONTS_TABLE, FRONT_PICTURE, CURVES_PICTURE) if (folder / n).is_file()],
  )  # fmt: skip


def _splits(points: Points) -> list[str]:
  """The splits that were evaluated, that of the figures first."""
  return list(dict.fromkeys([p.split for p in points.shown] + [p.split for p in points.every]))


def _seeds(run: Run, points: Points) -> str:
  sampling = sorted({seed for p in points.every for seed in p.seeds})
  found = [f"sampling seeds {', '.join(sampling)}"] if sampling else []
  if "seed" in run.config:
    found.insert(0, f"seed of the run {plain_text(run.config['seed'])}")
  return "; ".join(found)
