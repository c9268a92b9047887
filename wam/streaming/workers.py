"""Jobs in forked processes: threads of one interpreter wait for its lock between any two array operations.

Forking is safe only where nothing else runs in this process: no threads, no JAX; elsewhere sweeps.py does the same work
in threads. Workers hold the files that their parent opened, and end with it.
"""

import contextlib
import ctypes
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from wam.core.errors import WamError

_LENGTH = struct.Struct("<q")
_NO_MORE = -1
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def can_fork() -> bool:
  """Whether this process may be forked: Linux, one thread, and no library with threads of its own."""
  threaded = {"jaxlib", "tensorstore", "torch"} & set(sys.modules)
  return sys.platform == "linux" and threading.active_count() == 1 and not threaded


def run(
  num_jobs: int,
  work: Callable[[int], Any],
  finished: Callable[[Any], None],
  *,
  num_workers: int,
  watch: Callable[[], None] | None = None,
  interval: float = 0.1,
) -> None:
  """Carries out jobs 0, 1, ... in forked processes, each by the first that is free.

  Args:
    num_jobs: how many.
    work: does one, in a worker; its result must be picklable.
    finished: called in this process with every result, in the order in which they come.
    num_workers: processes.
    watch: called every `interval` seconds.
    interval: in seconds.

  Raises:
    BaseException: the first error of a job, of `finished` or of `watch`; no worker is left.
    WamError: if a worker was killed.
  """
  workers = [_Worker(work) for _ in range(min(num_workers, num_jobs))]
  by_pipe = {worker.results: worker for worker in workers}
  try:
    jobs = iter(range(num_jobs))
    for worker in workers:
      worker.give(next(jobs))
    while by_pipe:
      ready, _, _ = select.select(list(by_pipe), [], [], interval)
      for pipe in ready:
        worker = by_pipe[pipe]
        finished(worker.result())
        following = next(jobs, None)
        if following is None:
          worker.end()
          del by_pipe[pipe]
        else:
          worker.give(following)
      if watch:
        watch()
  finally:
    for worker in workers:
      worker.end(now=True)


class _Worker:
  """A forked process that is given numbers of jobs and sends results."""

  def __init__(self, work: Callable[[int], Any]):
    jobs, self._jobs = os.pipe()
    self.results, results = os.pipe()
    self.pid = os.fork()
    if self.pid == 0:
      os.close(self._jobs)
      os.close(self.results)
      _serve(work, jobs, results)
    os.close(jobs)
    os.close(results)

  def give(self, job: int) -> None:
    """Starts a job."""
    os.write(self._jobs, _LENGTH.pack(job))

  def result(self) -> Any:
    """Waits for the result of the job, or raises its error."""
    header = _read(self.results, _LENGTH.size)
    content = _read(self.results, _LENGTH.unpack(header)[0]) if header else None
    if not content:
      raise WamError(
        "a worker process was killed (out of memory?); the same command goes on where it was, with"
        " --threads 1 in less memory"
      )
    succeeded, value = pickle.loads(content)
    if not succeeded:
      raise value
    return value

  def end(self, *, now: bool = False) -> None:
    """Waits until it has ended, after its job or `now`; does nothing the second time."""
    if not self.pid:
      return
    if now:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self.pid, signal.SIGKILL)
    else:
      # To close the pipe is not enough: workers that were forked later hold its end, too.
      self.give(_NO_MORE)
    os.close(self._jobs)
    os.waitpid(self.pid, 0)
    os.close(self.results)
    self.pid = 0


def _serve(work: Callable[[int], Any], jobs: int, results: int) -> None:
  """The life of a worker. Never returns: what the parent wants done at its end is not ours to do."""
  try:
    with contextlib.suppress(OSError, AttributeError):
      ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (job := _LENGTH.unpack(_read(jobs, _LENGTH.size))[0]) != _NO_MORE:
      try:
        content = pickle.dumps((True, work(job)))
      except BaseException as error:
        content = _failure(error)
      _write(results, _LENGTH.pack(len(content)) + content)
  finally:
    os._exit(0)


def _failure(error: BaseException) -> bytes:
  """An error as it is sent; as text where it cannot be pickled."""
  if not isinstance(error, WamError):
    error.add_note(traceback.format_exc())
  try:
    content = pickle.dumps((False, error))
    pickle.loads(content)
  except Exception:  # whatever a foreign class does when it is pickled
    return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
  return content


def _read(pipe: int, size: int) -> bytes:
  """So many bytes; none at the end of the pipe."""
  content = b""
  while len(content) < size:
    more = os.read(pipe, size - len(content))
    if not more:
      return b""
    content += more
  return content


def _write(pipe: int, content: bytes) -> None:
  view = memoryview(content)
  while view:
    view = view[os.write(pipe, view) :]
