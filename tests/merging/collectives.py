"""What a compiled program sends between devices: read from the text of its HLO."""

import math
import re

_OPERATION = re.compile(
  r"= (?P<type>.+?) (?P<name>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
  r"|ragged-all-to-all|collective-broadcast)(?:-start)?\("
)
_SHAPE = re.compile(r"[a-z]+\d*\[([\d,]*)\]")


def sent(compiled) -> list[tuple[str, int]]:
  """(operation, number of entries that one device has of its result) of every collective in a program."""
  found = []
  for match in _OPERATION.finditer(compiled.as_text()):
    sizes = [
      math.prod(int(n) for n in dims.split(",") if n) for dims in _SHAPE.findall(match["type"])
    ]
    found.append((match["name"], sum(sizes)))
  return found
