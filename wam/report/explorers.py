"""Explorers from measurements: the positions along a front, with their scores and sample completions.

Also what the page's script needs of them, and where it starts. Leaves out how they look (template and script).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from wam.report.blocks import Explorer, Figures, Path, Position
from wam.report.measurements import (
  LAMBDA,
  Measurement,
  Sample,
  by_family,
  judges,
  reward_value,
  texts,
  title_of,
  x_names,
)

Samples = Mapping[tuple[str, str], Sequence[Sample]]
Places = Sequence[tuple[str, str]]  # what is across and up in every panel
_FEWEST = 2  # positions that make a path


def over_preferences(
  points: Sequence[Measurement],
  rewards: Sequence[str],
  samples: Samples,
  *,
  figures: Figures | None,
  places: Places,
  first: str = "",
) -> Explorer | None:
  """An explorer over λ: a slider between two rewards, a triangle between three; a slider in order for more.

  Args:
    points: of the front; those without a λ for every reward are left out.
    rewards: the corners, at least two.
    samples: completions by (family, label).
    figures: drawn beside it. places: the values across and up in each of its panels.
    first: the family to start with.

  Returns:
    None where no family has two positions.
  """
  names = [LAMBDA + reward for reward in rewards]
  known = [point for point in points if all(name in point.x for name in names)]
  paths = []
  for family, members in by_family(known).items():
    # From all of the first reward to all of the last.
    ordered = sorted(members, key=lambda point: [-point.x[name] for name in names])
    if len(ordered) >= _FEWEST:
      paths.append((family, ordered))
  paths.sort(key=lambda path: path[0] != first)
  scores = [value for r in rewards if (value := reward_value(points, r)) is not None]
  scores += judges(known, rewards)
  scores += [n for n in ("kl", "length") if n not in scores and any(n in p.values for p in known)]
  return _explorer(
    "λ", list(rewards), names, scores, paths, samples=samples, figures=figures, places=places
  )


def over_interpolation(
  points: Sequence[Measurement],
  scores: Sequence[str],
  samples: Samples,
  *,
  corners: tuple[str, str],
  figures: Figures | None,
  places: Places,
  first: str = "",
) -> Explorer | None:
  """An explorer over η, from the initial policy to the merged one; one path a family.

  Args, returns: as `over_preferences`; `scores` are the names of the values, `corners` of the two ends.
  """
  known = [point for point in points if "eta" in point.x]
  paths = [
    (family, sorted(members, key=lambda point: point.x["eta"]))
    for family, members in by_family(known).items()
    if len(members) >= _FEWEST
  ]
  paths.sort(key=lambda path: path[0] != first)
  return _explorer(
    "η", list(corners), ["eta"], scores, paths, samples=samples, figures=figures, places=places
  )


def payload(explorer: Explorer) -> dict[str, Any]:
  """What the page's script needs: texts ready to show, places of values as shares of the range of all positions."""
  positions = [position for path in explorer.paths for position in path.positions]
  ranges = []
  for i in range(len(explorer.scores)):
    found = [p.scores[i] for p in positions]
    known = [e for e in found if e is not None]
    lows = [e.mean if e.low is None else e.low for e in known]
    highs = [e.mean if e.high is None else e.high for e in known]
    ranges.append((min(lows), max(highs)) if known else (0.0, 0.0))
  panels = explorer.figures.panels if explorer.figures else ()
  return {
    "symbol": explorer.symbol,
    "triangle": explorer.is_triangle,
    "figures": [f"{explorer.figures.name}-{i}" for i in range(len(panels))]
    if explorer.figures
    else [],
    "paths": [
      {
        "name": path.name,
        "positions": [_position(position, explorer, ranges) for position in path.positions],
      }
      for path in explorer.paths
    ],
  }


def start(explorer: Explorer) -> Position:
  """Where the page starts: the middle of the first path."""
  positions = explorer.paths[0].positions
  return positions[start_index(explorer)]


def start_index(explorer: Explorer) -> int:
  """The index of `start` in the first path: the most even λ, or the middle η."""
  positions = explorer.paths[0].positions
  if len(explorer.corners) < 3:
    return len(positions) // 2
  return min(range(len(positions)), key=lambda i: max(positions[i].weights))


def score_titles(explorer: Explorer) -> list[str]:
  """What the scores are called."""
  return [title_of(name) for name in explorer.scores]


def _explorer(
  symbol: str,
  corners: list[str],
  weights: Sequence[str],
  scores: Sequence[str],
  paths: Sequence[tuple[str, Sequence[Measurement]]],
  *,
  samples: Samples,
  figures: Figures | None,
  places: Places,
) -> Explorer | None:
  if not paths:
    return None
  made = []
  for family, members in paths:
    positions = [
      Position(
        label=point.label,
        weights=tuple(point.x[name] for name in weights),
        scores=[point.values.get(name) for name in scores],
        samples=samples.get((family, point.label), ()),
        places=[_place(point, x, y) for x, y in places],
      )
      for point in members
    ]
    made.append(Path(family, positions))
  name = "explorer-eta" if symbol == "η" else "explorer-lambda"
  return Explorer(name, symbol, corners, list(scores), made, figures)


def _place(point: Measurement, x: str, y: str) -> tuple[float, float] | None:
  across, up = point.mean(x), point.mean(y)
  return None if across is None or up is None else (across, up)


def _position(
  position: Position, explorer: Explorer, ranges: Sequence[tuple[float, float]]
) -> dict[str, Any]:
  scores: list[dict[str, Any] | None] = []
  for name, found, (low, high) in zip(explorer.scores, position.scores, ranges, strict=True):
    if found is None:
      scores.append(None)
      continue
    text, half = texts(name, found)
    ends = [found.mean if e is None else e for e in (found.low, found.mean, found.high)]
    share = [(e - low) / (high - low) if high > low else 0.5 for e in ends]
    scores.append({"text": text, "half": half, "at": [round(s, 4) for s in share]})
  return {
    "label": position.label,
    "weights": list(position.weights),
    "scores": scores,
    "samples": [list(sample) for sample in position.samples],
    "places": [list(place) if place else None for place in position.places],
  }


def has_lambdas(points: Sequence[Measurement]) -> bool:
  """Whether any point is placed by λ."""
  return any(name.startswith(LAMBDA) for name in x_names(points))
