"""Work on many tensors by a few threads: every group of tensors is a job that asks for sweeps and ends with a last one.

A group's sweeps are cut into segments that any thread takes; their results are put together in the order of the
tensors, so that threads change nothing. Threads finish what is begun before they begin a new group: what was just
read is still in the page cache, and little is held at a time. NumPy releases the interpreter lock in its loops.
"""

import collections
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

# A sweep: functions to be called, in any order and on any thread; their results come back in this order.
Sweep = Sequence[Callable[[], Any]]
# Asks for sweeps by yielding them and is sent their results; returns what came of it.
Job = Generator[Sweep, list[Any], Any]


def carry_out(job: Job) -> Any:
  """A job from beginning to end in this thread."""
  results: list[Any] | None = None
  while True:
    try:
      sweep = next(job) if results is None else job.send(results)
    except StopIteration as stop:
      return stop.value
    results = [function() for function in sweep]


class _Running:
  """A job whose sweep is under way."""

  def __init__(self, job: Job, sweep: Sweep):
    self.job = job
    self.sweep = sweep
    self.results: list[Any] = [None] * len(sweep)
    self.left = len(sweep)


class Pool:
  """Threads that carry out jobs; stops at the first error."""

  def __init__(
    self, jobs: Iterable[Job], num_threads: int, finished: Callable[[Any], None] = lambda _: None
  ):
    """Takes the jobs, which are begun in this order; `finished` is called with what each returns, one at a time."""
    self._finished_job = finished
    self._jobs = iter(jobs)
    self._num_threads = num_threads
    self._lock = threading.Condition()
    self._tasks: collections.deque[tuple[_Running, int]] = collections.deque()
    self._active = 0  # jobs that have begun and not ended, and threads that begin one
    self._exhausted = False
    self._error: BaseException | None = None

  def run(self, watch: Callable[[], None] | None = None, *, interval: float = 0.1) -> None:
    """Carries out all jobs.

    Args:
      watch: called every `interval` seconds on the calling thread, for progress.
      interval: in seconds.

    Raises:
      BaseException: the first error of a job, or of `watch` (an interrupt); no thread is left running.
    """
    threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._num_threads)]
    for thread in threads:
      thread.start()
    try:
      for thread in threads:
        thread.join(interval if watch else None)
        while thread.is_alive():
          if watch:
            watch()
          thread.join(interval)
    except BaseException as error:
      self._stop(error)
      for thread in threads:
        thread.join()
    if self._error is not None:
      raise self._error

  def _stop(self, error: BaseException) -> None:
    with self._lock:
      self._error = self._error or error
      self._lock.notify_all()

  def _work(self) -> None:
    try:
      while True:
        found = self._next()
        if found is None:
          return
        if isinstance(found, tuple):
          running, i = found
          running.results[i] = running.sweep[i]()
          self._finished(running)
        else:
          self._advance(found, None)
    except BaseException as error:  # handed to the caller of `run`
      self._stop(error)

  def _next(self) -> tuple[_Running, int] | Job | None:
    """A task of a sweep, else a new job, else None when all is done."""
    with self._lock:
      while True:
        if self._error is not None:
          return None
        if self._tasks:
          return self._tasks.popleft()
        if not self._exhausted:
          job = next(self._jobs, None)
          if job is not None:
            self._active += 1
            return job
          self._exhausted = True
        if not self._active:
          self._lock.notify_all()
          return None
        self._lock.wait()

  def _finished(self, running: _Running) -> None:
    with self._lock:
      running.left -= 1
      last = running.left == 0
    if last:
      self._advance(running.job, running.results)

  def _advance(self, job: Job, results: list[Any] | None) -> None:
    """Sends a job the results of its sweep, and queues the next one."""
    while True:
      try:
        sweep = next(job) if results is None else job.send(results)
      except StopIteration as stop:
        with self._lock:
          self._finished_job(stop.value)
          self._active -= 1
          self._lock.notify_all()
        return
      if len(sweep) == 1:
        # No other thread could help; and nothing is queued that would have to wait.
        results = [sweep[0]()]
        continue
      running = _Running(job, sweep)
      if not sweep:
        results = []
        continue
      with self._lock:
        self._tasks.extend((running, i) for i in range(len(sweep)))
        self._lock.notify_all()
      return
