"""The page of Rewarded Soups: one model a reward, their average over the simplex, against MORL and decoding."""

from collections.abc import Sequence

from wam.report.blocks import Page
from wam.report.measurements import Measurement, by_family, named
from wam.report.records import Run
from wam.report.studies import trade_offs, wording

FAMILY = "rewarded soups"


def blocks(run: Run) -> Page:
  """The page of a run, finished or in progress."""
  points = trade_offs.shown(run)
  names = trade_offs.reward_names(run, points)
  main = named(by_family(points), FAMILY, "soup") or FAMILY
  how = (
    "Every position of λ is one model: the weights of the one-reward models, averaged with λ, without any further"
    " training. Other lines show what else reaches such rewards."
  )
  middle = trade_offs.along(points, names)
  return Page(
    title="One model per reward, and every preference between them",
    headline=_headline(run, points, names, main),
    sections=[
      trade_offs.front_section(run, points, names, main=main, how=how),
      *([middle] if middle else []),
      *trade_offs.rest(run, points),
    ],
    missing=trade_offs.absent(run, points, names, main),
    words=wording.terms("rewarded soups", "λ", "MORL", "MOD", "hypervolume", "intervals"),
    main=main,
  )


def _headline(
  run: Run, points: Sequence[Measurement], names: Sequence[str], main: str
) -> list[str]:
  members = [p for p in points if p.family == main]
  if len(members) < 2:
    return ["The averaged models have not been measured yet; the page shows what there is so far."]
  sentences = [
    f"One model was trained for each of {len(names)} rewards ({wording.listed(names)}); averaging"
    f" their weights with {len(members)} different λ gives that many models without training any of them."
  ]
  moved = trade_offs.spread(points, names, main)
  if moved:
    sentences.append(f"Moving λ takes {wording.listed(moved)}.")
  sentences += trade_offs.connected(run, points, names, main)
  sentences += trade_offs.judged(run, main)
  paired = trade_offs.compared(run, trade_offs.SUMMARY, [main], "MORL")
  return sentences + (paired or wording.hypervolumes(run.records, main))
