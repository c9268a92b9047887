"""What a person sees while a stage runs: a live line in a terminal, now and then a plain line elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

LIVE_SECONDS = 0.25
PLAIN_SECONDS = 5.0


class Progress:
  """The progress of one stage: step, a few numbers, time left. Calling `update` every step costs microseconds.

  No thread: an automatic refresh would take time from the computation on small machines.
  """

  def __init__(
    self,
    stage: str,
    total: int,
    *,
    start: int = 0,
    enabled: bool = True,
    file: TextIO | None = None,
  ):
    """Begins at step `start` of `total`."""
    self._stage, self._total, self._start = stage, total, start
    self._enabled = enabled
    self._console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
    self._live = (
      Live(console=self._console, auto_refresh=False, transient=False)
      if enabled and self._console.is_terminal
      else None
    )
    self._interval = LIVE_SECONDS if self._live else PLAIN_SECONDS
    self._began = time.monotonic()
    self._shown = self._began
    self._fields: dict[str, float] = {}
    self._step = start

  def __enter__(self) -> Self:
    if self._live:
      self._live.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self._enabled:
      self._show()
    if self._live:
      self._live.stop()

  def update(self, step: int, fields: Mapping[str, float] | None = None) -> None:
    """Notes the step, and the numbers to show from now on; draws if the last time was long enough ago."""
    self._step = step
    if fields is not None:
      self._fields = dict(fields)
    now = time.monotonic()
    if self._enabled and now - self._shown >= self._interval:
      self._shown = now
      self._show()

  def line(self) -> str:
    """The line as it stands: "pretrain 120/3000  loss 2.31  tokens/s 41000  0:42 left"."""
    parts = [f"{self._stage} {self._step}/{self._total}"]
    parts += [f"{_label(name)} {_number(value)}" for name, value in self._fields.items()]
    elapsed = time.monotonic() - self._began
    done = self._step - self._start
    if self._step >= self._total:
      parts.append(f"{clock(elapsed)} taken")
    elif done:
      parts.append(f"{clock(elapsed / done * (self._total - self._step))} left")
    return "  ".join(parts)

  def _show(self) -> None:
    if self._live:
      self._live.update(Text(self.line()), refresh=True)
    else:
      self._console.print(Text(self.line()))
      self._console.file.flush()


def clock(seconds: float) -> str:
  """Seconds as "m:ss" or "h:mm:ss".

  >>> clock(75.2)
  '1:15'
  """
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _label(name: str) -> str:
  return name.replace("_per_second", "/s").replace("_", " ")


def _number(value: float) -> str:
  return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
