"""The page of CLP: one model conditioned on λ while it is trained, against Rewarded Soups at equal compute."""

from collections.abc import Sequence

from wam.report.blocks import Page
from wam.report.measurements import Measurement, by_family, named
from wam.report.records import Run
from wam.report.studies import trade_offs, wording

FAMILY = "CLP"
COMPARISON = "comparison"


def blocks(run: Run) -> Page:
  """The page of a run, finished or in progress."""
  points = trade_offs.shown(run)
  names = trade_offs.reward_names(run, points)
  main = _main(run, points)
  how = (
    "Every position of λ is the conditioned model told to follow that preference. Other lines are other ways of"
    " conditioning, and Rewarded Soups, which mix models that were never trained to be mixed."
  )
  middle = trade_offs.along(points, names)
  return Page(
    title="One model that is told what to prefer",
    headline=_headline(run, points, names, main),
    sections=[
      trade_offs.front_section(run, points, names, main=main, how=how),
      *([middle] if middle else []),
      *trade_offs.rest(run, points),
    ],
    missing=trade_offs.absent(run, points, names, main),
    words=wording.terms("CLP", "rewarded soups", "λ", "MORL", "MOD", "hypervolume", "intervals"),
    main=main,
  )


def _main(run: Run, points: Sequence[Measurement]) -> str:
  """The way of conditioning with the largest hypervolume; without any, the first that is CLP's."""
  ours = [family for family in by_family(points) if "clp" in family.lower()]
  volumes = {r["family"]: r["hypervolume"] for r in run.of_kind("front") if r["family"] in ours}
  if volumes:
    return max(volumes, key=lambda family: volumes[family])
  return named(ours, "full") or (ours[0] if ours else FAMILY)


def _headline(
  run: Run, points: Sequence[Measurement], names: Sequence[str], main: str
) -> list[str]:
  members = [p for p in points if p.family == main]
  if len(members) < 2:
    return [
      "The conditioned model has not been measured at several λ yet; the page shows what there is so far."
    ]
  ways = [family for family in by_family(points) if "clp" in family.lower()]
  sentences = [
    f"One model was trained on preferences between {wording.listed(names)} drawn at random"
    + (f", in {len(ways)} ways: {wording.listed(ways)}." if len(ways) > 1 else f": {main}.")
  ]
  moved = trade_offs.spread(points, names, main)
  if moved:
    sentences.append(f"With {main}, moving λ takes {wording.listed(moved)}.")
  paired = trade_offs.compared(run, COMPARISON, ways, "rewarded soups")
  if paired:
    return sentences + paired
  chosen = (
    " (the way with the largest hypervolume, chosen by looking at it)" if len(ways) > 1 else ""
  )
  volumes = wording.hypervolumes(run.records, main)
  if volumes and chosen:
    volumes[0] = volumes[0].replace(main, main + chosen, 1)
  return sentences + volumes
