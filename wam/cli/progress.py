"""What the verbs that move gigabytes share: a bar with bytes and time left, sizes in words, and memory that is kept.

Leaves out the bars of training (wam/training/progress.py).
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# Below this many seconds a bar is not worth loading what draws it.
_PATIENCE = 0.7


@contextlib.contextmanager
def bytes_bar(title: str) -> Iterator[Callable[[int, int], None]]:
  """A function to be called with (bytes done, bytes in all), which draws a bar on a terminal once it takes a while."""
  start = time.monotonic()
  with contextlib.ExitStack() as stack:
    state: dict[str, object] = {}

    def show(done: int, total: int) -> None:
      if not sys.stderr.isatty() or time.monotonic() - start < _PATIENCE:
        return
      if "bar" not in state:
        state["bar"] = stack.enter_context(_bar())
        state["task"] = state["bar"].add_task(title, total=total)  # type: ignore[attr-defined]
      state["bar"].update(state["task"], completed=done)  # type: ignore[attr-defined]

    yield show


def _bar() -> "contextlib.AbstractContextManager[object]":
  from rich.console import Console
  from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
  )

  return Progress(
    TextColumn("{task.description}"),
    BarColumn(),
    DownloadColumn(),
    TransferSpeedColumn(),
    TimeRemainingColumn(),
    console=Console(stderr=True),
    transient=True,
  )


def keep_freed_memory() -> None:
  """Keeps glibc from handing freed blocks back to the system, only to ask for them again at once.

  Arrays of a megabyte come and go for every block; mapped afresh each time, their page faults take longer than the
  arithmetic (measured: a linear merge of two models 1.05 s instead of 2.6 s on a 2-core x86 CPU). For programs that do
  nothing else; without effect on other C libraries.
  """
  import ctypes

  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 1 << 30)
