"""One colour, marker and dash per line of a figure, the same in the page, the PNG and the table.

Colours are those of Okabe and Ito (2008), told apart with every common colour blindness; markers differ too, so that
colour is never the only sign.
"""

from collections.abc import Iterable
from typing import NamedTuple

INK = "INK"  # stands for the text colour: dark on a light page, light on a dark one


class Style(NamedTuple):
  """How one line is drawn."""

  colour: str
  marker: str  # plotly's name
  matplotlib_marker: str
  glyph: str  # for the legend and the tables

  @property
  def matplotlib_colour(self) -> str:
    """The colour on white paper."""
    return "#222222" if self.colour == INK else self.colour


_KNOWN = {
  "init": Style(INK, "star", "*", "★"),
  "early stopping": Style("#D55E00", "square", "s", "■"),
  "model averaging": Style("#0072B2", "circle", "o", "●"),
}
_OTHERS = (
  Style("#009E73", "triangle-up", "^", "▲"),
  Style("#CC79A7", "triangle-down", "v", "▼"),
  Style("#E69F00", "diamond", "D", "◆"),
  Style("#56B4E9", "cross", "P", "✚"),
  Style("#8C6BB1", "x", "X", "✖"),
  Style("#888888", "pentagon", "p", "⬟"),
  Style("#A6761D", "hexagon", "h", "⬢"),
)


_DASHES = ("solid", "dash", "dot")
_BASELINES = (_KNOWN["early stopping"], *_OTHERS)


def ranked_styles(names: Iterable[str], *, main: str | None = None) -> dict[str, tuple[Style, str]]:
  """A style and a dash for every name: the main one has the blue circle, the next the next colours.

  Where there are more names than colours, the later ones have other dashes.

  >>> found = ranked_styles(["early", "ours"], main="ours")
  >>> found["ours"][0].glyph, found["early"][0].glyph, found["early"][1]
  ('●', '■', 'solid')
  """
  chosen: dict[str, tuple[Style, str]] = {}
  used = 0
  for name in names:
    if name == main or name == "init":
      chosen[name] = (_KNOWN["model averaging" if name == main else "init"], _DASHES[0])
    elif name not in chosen:
      turn, place = divmod(used, len(_BASELINES))
      chosen[name] = (_BASELINES[place], _DASHES[turn % len(_DASHES)])
      used += 1
  return chosen


def styles(series: Iterable[str]) -> dict[str, Style]:
  """Returns a style for every series; the same series in the same order get the same styles.

  >>> styles(["init", "part-wise: input"])["part-wise: input"].colour
  '#009E73'
  """
  chosen: dict[str, Style] = {}
  used = 0
  for name in series:
    if name in _KNOWN:
      chosen[name] = _KNOWN[name]
    elif name not in chosen:
      chosen[name] = _OTHERS[used % len(_OTHERS)]
      used += 1
  return chosen
