"""What there is to do and with what: groups of outputs, what they read, what is merely copied, threads and memory."""

import os
import threading
from collections.abc import Iterable, Sequence

from wam.core.errors import ConfigError
from wam.merging.methods import METHODS, promises
from wam.streaming import blocks
from wam.streaming.blocks import FLOATS
from wam.streaming.plan import Output, Reader

# Arrays of a block's size, in float32, that a rule holds beside the inputs.
_COMPANIONS = 8
# Enough for three masks of 180 M entries.
_MASK_BYTES = 64 << 20


def default_threads() -> int:
  """The cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def affordable_threads(outputs: Iterable[Output], *, threads: int, memory: int) -> int:
  """How many of the threads have room in `memory`. Blocks do not shrink with it: the last bits of sums would change.

  Raises:
    ConfigError: if there is no room for one; says how much is needed.
  """
  needed = _largest(outputs)
  if needed > memory:
    raise ConfigError(
      f"memory: {memory} bytes are too few for the inputs of one block; give at least {needed} bytes"
    )
  return max(1, min(threads, memory // max(needed, 1)))


def room_for_masks(outputs: Iterable[Output], *, threads: int, memory: int) -> int:
  """Bytes for the masks that each of the threads keeps between sweeps: what blocks leave of `memory`, to a limit."""
  return max(0, min(_MASK_BYTES, memory // threads - _largest(outputs)))


def _largest(outputs: Iterable[Output]) -> int:
  return max((_arrays_of_a_thread(x) for x in outputs), default=0)


def _arrays_of_a_thread(output: Output) -> int:
  """Bytes that a thread needs at a time: the inputs as read and as computed with, and what the rule makes of them."""
  entries = min(blocks.ENTRIES, output.num_entries)
  if METHODS[output.method].whole_rows:
    entries = max(entries, blocks.as_matrix(output.shape)[1])
  width = blocks.accumulator(output).itemsize
  return entries * width * (2 * len(inputs_of(output)) + _COMPANIONS)


def groups_of(outputs: Sequence[Output]) -> list[list[Output]]:
  """The outputs by group, large groups first so that no thread is left with one at the end."""
  found: dict[str, list[Output]] = {}
  for output in outputs:
    found.setdefault(output.group or output.name, []).append(output)
  size = lambda group: sum(x.num_entries for x in group)  # noqa: E731
  return sorted(found.values(), key=size, reverse=True)


class Counter:
  """Bytes that went by, counted by several threads."""

  def __init__(self) -> None:
    """Starts at 0."""
    self._lock = threading.Lock()
    self.value = 0

  def add(self, amount: int) -> None:
    """Adds to the count."""
    with self._lock:
      self.value += amount

  def take(self) -> int:
    """The count, which starts at 0 again."""
    with self._lock:
      value, self.value = self.value, 0
      return value


def bytes_of(readers: Iterable[Reader], entries: int) -> int:
  """What reading so many entries of each takes."""
  return sum(r.dtype.itemsize for r in readers) * entries


def inputs_of(output: Output) -> list[Reader]:
  """Every reader of an output."""
  return [*output.members, *([output.base] if output.base else []), *output.importances]


def source_of_copy(output: Output) -> Reader | None:
  """The reader that an output equals bit for bit whatever it holds, if there is one."""
  first = output.members[0] if output.members else output.base
  assert first is not None
  if first.dtype not in FLOATS:
    # Counters and masks cannot be averaged; the plan has seen to it that they may be copied.
    return output.base or first
  c = output.coefficients
  one_hot = c and sorted(c) == [0.0] * (len(c) - 1) + [1.0]
  if one_hot and promises(output.method, output.parameters)[1]:
    return output.members[c.index(1.0)]
  return None
