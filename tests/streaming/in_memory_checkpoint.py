"""Readers and a sink in memory, for tests of what works on any format."""

import threading

import numpy as np


class ArrayReader:
  """A tensor in memory."""

  origin = "memory"

  def __init__(self, name, array):
    self.name, self.array = name, array
    self.shape, self.dtype = array.shape, array.dtype

  def read(self, start, stop):
    return self.array.reshape(-1)[start:stop].copy()


class MemorySink:
  """Collects the outputs; fails after so many writes, if asked."""

  def __init__(self, outputs, done=(), fail_after=None):
    self.arrays = {x.name: np.zeros(x.num_entries, x.dtype) for x in outputs}
    self.shapes = {x.name: x.shape for x in outputs}
    self.written = {x.name: np.zeros(x.num_entries, int) for x in outputs}
    self.completed, self._done, self._left = [], frozenset(done), fail_after
    self.threads, self._lock = set(), threading.Lock()

  def done(self):
    return self._done

  def write(self, name, start, values):
    with self._lock:
      self.threads.add(threading.get_ident())
      if self._left is not None:
        self._left -= 1
        if self._left < 0:
          raise OSError(28, "no space left on device")
    assert values.ndim == 1
    assert values.dtype == self.arrays[name].dtype
    self.arrays[name][start : start + values.size] = values
    self.written[name][start : start + values.size] += 1

  def complete(self, name):
    assert (self.written[name] == 1).all(), name
    self.completed.append(name)

  def __getitem__(self, name):
    return self.arrays[name].reshape(self.shapes[name])
