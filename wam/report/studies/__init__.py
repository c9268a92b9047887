"""One module a recipe: what its records mean, as a page of blocks, `blocks(run) -> Page`."""

from collections.abc import Callable

from wam.report.blocks import Page
from wam.report.records import Run
from wam.report.studies import clp, general, rewarded_soups, warm, warp

_PAGES: dict[str, Callable[[Run], Page]] = {
  "warm": warm.blocks,
  "warp": warp.blocks,
  "rewarded_soups": rewarded_soups.blocks,
  "clp": clp.blocks,
}
# What only the records of these recipes hold; the config of a run may be missing.
_KINDS = {"measurement", "samples", "fit", "cosines"}


def page_of(run: Run) -> Page | None:
  """The page of a run; None for a run that is no such study, whose page is that of the reward-tax front."""
  recipe = run.config.get("recipe")
  if isinstance(recipe, str) and recipe in _PAGES:
    return _PAGES[recipe](run)
  if recipe == "alignment_tax":
    return None
  return general.blocks(run) if _KINDS & {record["kind"] for record in run.records} else None
