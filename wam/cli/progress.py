"""What the verbs that move gigabytes share: a bar with bytes and time left, sizes in words, and memory that is kept.

Leaves out the bars of training (wam/training/progress.py).
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# Below this many seconds a bar is not worth loading what draws it.
_PATIENCE = 0.7


@contextlib.contextmanager
def bytes_bars() -> Iterator[Callable[[str, int, int], None]]:
  """A function to be called with (what, bytes done, bytes in all); it draws bars on a terminal if that takes long."""
  start = time.monotonic()
  with contextlib.ExitStack() as stack:
    bar: Any = None
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
      nonlocal bar
      if not sys.stderr.isatty() or time.monotonic() - start < _PATIENCE:
        return
      if bar is None:
        bar = stack.enter_context(_bar())
      if what not in tasks:
        tasks[what] = bar.add_task(what, total=total)
      bar.update(tasks[what], completed=done)

    yield show


def _bar() -> Any:
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
