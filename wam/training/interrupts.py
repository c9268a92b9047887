"""SIGTERM and Ctrl-C: noted when they come, acted on between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(Exception):  # noqa: N818 (it is a way to leave, not an error)
  """The run was asked to stop and has saved what it needs; `exit_status` is 128 + the signal's number."""

  def __init__(self, message: str, *, signal_number: int = signal.SIGTERM):
    super().__init__(message)
    self.exit_status = 128 + signal_number


class Interrupts:
  """A context in which SIGTERM and SIGINT set `requested`; a second SIGINT interrupts at once.

  Outside the main thread Python allows no handlers: then `requested` stays None.
  """

  def __init__(self) -> None:
    self.requested: int | None = None
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous.clear()

  def check(self, what: str) -> None:
    """Raises Interrupted if a signal came. For work that is simply done again, so that nothing needs saving."""
    if self.requested is not None:
      raise Interrupted(
        f"stopped by {signal.Signals(self.requested).name} during {what}; the same command goes on from there",
        signal_number=self.requested,
      )

  def _handle(self, number: int, frame: FrameType | None) -> None:
    if self.requested is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.requested = number
