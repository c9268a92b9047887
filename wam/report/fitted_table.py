"""A table for terminals that leaves out numbers that do not fit, instead of cutting all of them off. Imports rich."""

import copy

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

# Text is wrapped down to this width before a number is left out.
TEXT_WIDTH = 20


class FittedTable(Table):
  """A `rich.table.Table`; columns that the console has no room for are named below it.

  Attributes:
    num_spare: how many of the numbers, the first ones, are left out before any other.
  """

  num_spare: int = 0

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
    """As many columns from the left as fit; those of text, and the first of numbers that is not spare, always."""
    widths = [self._least(console, options, column) for column in self.columns]
    right = [i for i, column in enumerate(self.columns) if column.justify == "right"]
    spare, others = right[: self.num_spare], right[self.num_spare :]
    order = others + spare
    # A border on the left, and of each column two spaces and a border.
    kept = set(range(len(widths)))
    while len(order) > 1 and sum(widths[i] + 3 for i in kept) + 1 > options.max_width:
      kept.remove(order.pop())
    shown = copy.copy(self)
    shown.columns = [self.columns[i] for i in sorted(kept)]
    hidden = [str(column.header) for i, column in enumerate(self.columns) if i not in kept]
    if hidden:
      more = Text(f"no room for: {', '.join(hidden)}")
      caption = Text.from_markup(self.caption) if isinstance(self.caption, str) else self.caption
      shown.caption = Text("\n").join([caption, more]) if caption else more
      shown.caption_justify = "left"
    yield from Table.__rich_console__(shown, console, options)

  def _least(self, console: Console, options: ConsoleOptions, column: Column) -> int:
    """The width below which a column cannot be read: heads are wrapped at spaces, numbers not at all."""
    wide = options.update(max_width=1000)
    head, *cells = [Measurement.get(console, wide, cell) for cell in self._cells(column)]
    full = max((cell.maximum for cell in cells), default=0)
    if column.justify != "right":
      full = min(full, TEXT_WIDTH)
    return max(head.minimum, full)

  @staticmethod
  def _cells(column: Column) -> list[str | Text]:
    return [column.header, *column.cells]  # type: ignore[list-item]
