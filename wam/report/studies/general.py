"""The page of a run whose recipe has no page of its own, or is not known because the config is missing."""

from wam.report import measurements
from wam.report.blocks import Page, Section
from wam.report.records import Run
from wam.report.studies import sections, wording


def blocks(run: Run) -> Page:
  """A section for every study, with figures and tables, without conclusions."""
  points = measurements.collect(run.records)
  recipe = run.config.get("recipe")
  name = f"the recipe '{recipe}'" if recipe else "a recipe that the run directory does not name"
  parts = sections.others(points, ())
  if (cosines := sections.cosines(run.records)) is not None:
    parts.append(Section("cosines", "Task vectors", [cosines]))
  if run.of_kind("front"):
    parts.append(Section("hypervolumes", "Hypervolume", sections.hypervolumes(run.records)))
  return Page(
    title="What was measured",
    headline=[
      f"This run is of {name}; the page shows its {len(points)} measurements without conclusions."
    ],
    sections=parts,
    missing=[] if points else ["measurements"],
    words=wording.terms("intervals"),
  )
