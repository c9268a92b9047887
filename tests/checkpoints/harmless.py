"""Watches that what is fed with malformed files neither hangs nor changes anything on the disk."""

import contextlib
import os
import signal
import sys
import time

# Seconds a case may take; most take less than a millisecond.
BOUND = 5.0

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = (
  "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
  "os.utime", "os.system", "os.exec", "os.fork", "subprocess.Popen", "socket.connect",
)  # fmt: skip
_watching: list[list[str]] = []


def _watch(event, arguments):
  """Notes what would change the disk, while somebody asks for it. (An audit hook cannot be taken away again.)"""
  if not _watching:
    return
  if event == "open":
    path, mode, flags = arguments
    if any(x in (mode or "") for x in "wax+") or flags & _WRITING:
      _watching[-1].append(f"open {path!r} {mode} {flags}")
  elif event in _CHANGES:
    _watching[-1].append(f"{event} {arguments!r}")


sys.addaudithook(_watch)


@contextlib.contextmanager
def harmless(bound=BOUND):
  """Fails if what is inside changes anything on the disk or takes longer than a case may."""

  def late(number, frame):
    raise AssertionError(f"still busy after {2 * bound} s")

  before = signal.signal(signal.SIGALRM, late)
  signal.setitimer(signal.ITIMER_REAL, 2 * bound)
  changes, start = [], time.perf_counter()
  _watching.append(changes)
  try:
    yield
  finally:
    _watching.pop()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
  assert not changes
  assert time.perf_counter() - start < bound
