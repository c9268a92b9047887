"""The merge from disk to disk: outputs are computed a block at a time and written in place.

Memory is bounded by the size of a block times the inputs and threads, whatever the size of the model. Arithmetic is
float32 (float64 where an input is), with one cast at the end. Neither the order of the tensors nor the number of
threads changes a bit. Formats, recipes and manifests live elsewhere.
"""

import dataclasses
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from wam.core import counters
from wam.core.errors import ConfigError, NonFinite
from wam.merging import rules
from wam.merging.methods import METHODS, Method, promises
from wam.merging.rules import Block, Group, KthLargest, Sum
from wam.streaming import blocks
from wam.streaming.blocks import BFLOAT16, FLOATS, Place
from wam.streaming.plan import Output, Reader, Sink
from wam.streaming.selection import Selection, sample_size
from wam.streaming.sweeps import Job, Pool, Sweep

ROUNDINGS = ("nearest", "stochastic")
# Arrays of a block's size, in float32, that a rule holds beside the inputs.
_COMPANIONS = 8
# What survives of an update is measured on every block up to this many entries, then on a share of the blocks.
_MEASURED_ENTRIES = 1 << 24


@dataclasses.dataclass
class Survival:
  """How much of the update of a tensor the stored dtype kept; the update is relative to the base, or the first member.

  Attributes:
    entries: on which this was measured.
    update: Σ (result - origin)².
    error: Σ (stored - result)².
    changed: entries whose result differs from the origin.
    kept: entries among them that differ from the origin as stored, too.
  """

  entries: int = 0
  update: float = 0.0
  error: float = 0.0
  changed: int = 0
  kept: int = 0

  def add(self, other: "Survival") -> None:
    """Adds what was measured elsewhere."""
    for field in dataclasses.fields(self):
      setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

  @property
  def lost(self) -> float:
    """‖stored - result‖ / ‖result - origin‖: the share of the update's norm that rounding took; 0 without an update."""
    return math.sqrt(self.error / self.update) if self.update else 0.0


@dataclasses.dataclass
class Report:
  """What a merge did.

  Attributes:
    seconds: wall time.
    bytes_read: by this run, every sweep counted.
    bytes_written: by this run.
    copied: outputs that are one input, bit for bit.
    resumed: outputs that an interrupted run had written.
    survival: by output name, where something was computed and cast.
  """

  seconds: float = 0.0
  bytes_read: int = 0
  bytes_written: int = 0
  copied: list[str] = dataclasses.field(default_factory=list)
  resumed: list[str] = dataclasses.field(default_factory=list)
  survival: dict[str, Survival] = dataclasses.field(default_factory=dict)

  def total(self) -> Survival:
    """What survived over all outputs; tensors weigh in by their measured entries."""
    total = Survival()
    for each in self.survival.values():
      total.add(each)
    return total


Progress = Callable[[int, int], None]  # bytes written, bytes to be written


def execute(
  outputs: Sequence[Output],
  sink: Sink,
  *,
  seed: int = 0,
  threads: int | None = None,
  memory: int = 1 << 30,
  rounding: str = "nearest",
  allow_non_finite: bool = False,
  progress: Progress | None = None,
) -> Report:
  """Computes and writes the outputs.

  Args:
    outputs: of a checked plan.
    sink: where they go; what it has `done` already is left out.
    seed: of masks and of stochastic rounding.
    threads: at most; default one for every core this process may use.
    memory: bound in bytes on the arrays held at a time; fewer threads work where there is too little for all.
    rounding: "nearest" (to even), or "stochastic": to one of the two neighbours, so that the mean is the exact value;
      bfloat16 outputs only, seeded by the tensor's name.
    allow_non_finite: whether inputs may hold NaN and infinities, and outputs overflow.
    progress: called with the bytes written and the bytes to be written, about ten times a second.

  Raises:
    NonFinite: names the first tensor that was found to hold NaN or infinity.
    ConfigError: if the memory is too little for one thread, or the rounding is unknown.
  """
  run = _Run(
    outputs,
    sink,
    seed=seed,
    threads=threads or default_threads(),
    memory=memory,
    rounding=rounding,
    check=not allow_non_finite,
  )
  return run.execute(progress)


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
  needed = max((_arrays_of_a_thread(x) for x in outputs), default=0)
  if needed > memory:
    raise ConfigError(
      f"memory: {memory} bytes are too few for the inputs of one block; give at least {needed} bytes"
    )
  return max(1, min(threads, memory // max(needed, 1)))


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


def bytes_of(readers: Iterable[Reader], entries: int) -> int:
  """What reading so many entries of each takes."""
  return sum(r.dtype.itemsize for r in readers) * entries


def inputs_of(output: Output) -> list[Reader]:
  """Every reader of an output."""
  return [*output.members, *([output.base] if output.base else []), *output.importances]


class _Run:
  """One call of `execute`."""

  def __init__(
    self,
    outputs: Sequence[Output],
    sink: Sink,
    *,
    seed: int,
    threads: int,
    memory: int,
    rounding: str,
    check: bool,
  ):
    if rounding not in ROUNDINGS:
      raise ConfigError(f"rounding: expected one of {', '.join(ROUNDINGS)}, found {rounding!r}")
    odd = [x.name for x in outputs if x.dtype in FLOATS and x.dtype not in (BFLOAT16, *FLOATS[:1])]
    if rounding == "stochastic" and odd:
      raise ConfigError(
        f"stochastic rounding is for bfloat16 outputs; {len(odd)} outputs are not:"
        f" {', '.join(odd[:5])}. Give --out-dtype bfloat16"
      )
    self.sink, self.seed, self.check = sink, seed, check
    self.stochastic = rounding == "stochastic"
    self.threads = affordable_threads(outputs, threads=threads, memory=memory)
    self.bytes = Counter()
    self.written = Counter()
    done = sink.done()
    # A group with one output missing is done again: its sums and thresholds are needed.
    self.groups = [g for g in groups_of(outputs) if not all(x.name in done for x in g)]
    self.report = Report(resumed=[x.name for x in outputs if x.name in done])
    self.total = sum(x.num_bytes for g in self.groups for x in g)
    entries = sum(x.num_entries for g in self.groups for x in g)
    self.stride = max(1, round(entries / _MEASURED_ENTRIES))

  def execute(self, progress: Progress | None) -> Report:
    start = time.perf_counter()
    pool = Pool((self._job(group) for group in self.groups), self.threads)
    if progress is None:
      pool.run()
    else:
      watch = progress
      pool.run(lambda: watch(self.written.value, self.total))
      progress(self.total, self.total)
    self.report.seconds = time.perf_counter() - start
    self.report.bytes_read = self.bytes.value
    self.report.bytes_written = self.written.value
    return self.report

  def _job(self, group: list[Output]) -> Job:
    """All that is done for a group."""
    copies = [source_of_copy(x) for x in group]
    if len(group) == 1 and copies[0] is not None:
      yield self._copies(group[0], copies[0])
      self._complete(group[0])
      self.report.copied.append(group[0].name)
      return
    method = METHODS[group[0].method]
    apply = yield from self._rule(group, method)
    for output in group:
      results = yield self._last_sweep(output, method, apply)
      survival = Survival()
      for result in results:
        survival.add(result)
      self.report.survival[output.name] = survival
      self._complete(output)

  def _complete(self, output: Output) -> None:
    self.sink.complete(output.name)

  def _rule(self, group: list[Output], method: Method) -> Any:
    """Runs the rule up to its `apply`, answering its requests by sweeps."""
    first = group[0]
    wide = blocks.accumulator(first)
    same = all(x.coefficients == first.coefficients for x in group)
    known = Group(
      np,
      len(first.members),
      sum(x.num_entries for x in group),
      first.base is not None,
      tuple(wide.type(c) for c in first.coefficients) if same else None,
    )
    generator = method.rule(known, **first.parameters)
    answers = None
    while True:
      try:
        requests = next(generator) if answers is None else generator.send(answers)
      except StopIteration as stop:
        return stop.value
      answers = yield from self._answers(group, requests, whole_rows=method.whole_rows)

  def _answers(self, group: list[Output], requests: Any, *, whole_rows: bool) -> Any:
    """Sweeps over the group until every request is answered."""
    wide = blocks.accumulator(group[0])
    size = sum(x.num_entries for x in group)
    selections = {
      i: Selection(int(r.k), size) for i, r in enumerate(requests) if isinstance(r, KthLargest)
    }
    if selections:
      (samples,) = yield [lambda: self._samples(group, requests, selections, whole_rows)]
      for i, values in samples.items():
        selections[i].bracket(values)
    answers: dict[int, Any] = {}
    while True:
      for i, selection in selections.items():
        if selection.answer is not None:
          answers[i] = wide.type(selection.answer)
      open_ = [i for i in range(len(requests)) if i not in answers]
      if not open_:
        return [answers[i] for i in range(len(requests))]
      parts = yield self._sweep(group, requests, open_, selections, whole_rows=whole_rows)
      for i in open_:
        found = [part[i] for part in parts]
        if i in selections:
          selections[i].absorb([c for counts in found for c in counts])
        else:
          answers[i] = functools.reduce(_plus, found)

  def _samples(
    self, group: list[Output], requests: Any, selections: dict[int, Selection], whole_rows: bool
  ) -> dict[int, np.ndarray]:
    size = sum(x.num_entries for x in group)
    wanted = sample_size(size)
    found: dict[int, list[np.ndarray]] = {i: [] for i in selections}
    for output in group:
      entries = output.num_entries if wanted >= size else wanted * output.num_entries // size + 1
      if not output.num_entries:
        continue
      block = blocks.read_sample(
        output, entries=entries, whole_rows=whole_rows, seed=self.seed, check=self.check
      )
      for i in selections:
        found[i].append(requests[i].function(block).ravel())
    return {i: np.concatenate(values) for i, values in found.items()}

  def _sweep(
    self,
    group: list[Output],
    requests: Sequence[Sum | KthLargest],
    open_: list[int],
    selections: dict[int, Selection],
    *,
    whole_rows: bool,
  ) -> Sweep:
    """One pass over the group for the open requests."""

    def visit(output: Output, places: list[Place]) -> dict[int, Any]:
      found: dict[int, Any] = {}
      for place in places:
        block = self._read(output, place)
        for i in open_:
          value = requests[i].function(block)
          if i in selections:
            found.setdefault(i, []).append(selections[i].count(value))
          else:
            value = _double(value)
            found[i] = value if i not in found else _plus(found[i], value)
      return found

    return [
      functools.partial(visit, output, places)
      for output in group
      for places in self._segments(output, whole_rows)
    ]

  def _segments(self, output: Output, whole_rows: bool) -> Iterator[list[Place]]:
    return blocks.segments(blocks.cut(output.shape, whole_rows=whole_rows))

  def _read(self, output: Output, place: Place) -> Block:
    block = blocks.read_block(output, place, seed=self.seed, check=self.check)
    self.bytes.add(bytes_of(inputs_of(output), place.stop - place.start))
    return block

  def _last_sweep(self, output: Output, method: Method, apply: rules.Apply) -> Sweep:
    """Computes, casts and writes an output."""
    # A narrower dtype rounds a last bit of the accumulator away by itself.
    exact = promises(output.method, output.parameters)[0] and output.dtype.itemsize >= 4
    whole_rows = method.whole_rows

    def make(number: int, places: list[Place]) -> Survival:
      survival = Survival()
      for i, place in enumerate(places):
        block = self._read(output, place)
        merged = apply(block)
        if exact:
          merged = rules.keep_agreement(block, merged)
        stored = self._cast(output, place, merged)
        if (number + i) % self.stride == 0:
          origin = block.members[0] if block.base is None else block.base
          survival.add(_survival(merged, stored, origin))
        self._write(output, place, stored)
      return survival

    numbered, number = [], 0
    for places in self._segments(output, whole_rows):
      numbered.append(functools.partial(make, number, places))
      number += len(places)
    return numbered

  def _cast(self, output: Output, place: Place, merged: np.ndarray) -> np.ndarray:
    if self.stochastic and output.dtype == BFLOAT16:
      key = rules.key_words(self.seed, output.name, "rounding")
      rows = np.arange(place.first_row, place.last_row)
      noise = counters.bits16_run(key, rows, place.first_column, place.last_column)
      return round_stochastically(merged, noise)
    # Overflow is looked for below, and named.
    with np.errstate(over="ignore", invalid="ignore"):
      return merged.astype(output.dtype, copy=False)

  def _write(self, output: Output, place: Place, stored: np.ndarray) -> None:
    if self.check and not blocks.is_finite(stored):
      raise NonFinite(
        f"the merge of '{output.name}' does not fit {output.dtype} (or its coefficients blow it up):"
        " entries become NaN or infinity. Give another --out-dtype, or allow them with"
        " --allow-non-finite"
      )
    self.sink.write(output.name, place.start, stored.reshape(-1))
    self.written.add(stored.nbytes)

  def _copies(self, output: Output, reader: Reader) -> Sweep:
    """Copies an output that is one of the inputs, bit for bit but for its dtype."""

    def copy(places: list[Place]) -> None:
      for place in places:
        values = reader.read(place.start, place.stop)
        self.bytes.add(values.nbytes)
        if self.check and values.dtype in FLOATS and not blocks.is_finite(values):
          raise NonFinite(
            f"{blocks.describe(reader)} holds NaN or infinity; mend the checkpoint, or allow them"
            " with --allow-non-finite"
          )
        if values.dtype != output.dtype:
          values = self._cast(output, place, values.astype(np.float32).reshape(place.shape))
        self._write(output, place, values)

    return [functools.partial(copy, places) for places in self._segments(output, whole_rows=False)]


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


def round_stochastically(values: np.ndarray, noise: np.ndarray) -> np.ndarray:
  """Float32 to bfloat16: up with the probability that makes the mean exact.

  Args:
    values: float32.
    noise: uniform in [0, 65536), uint16, of that shape.
  """
  codes = np.ascontiguousarray(values, np.float32).view(np.uint32)
  # The noise decides whether the sixteen bits that go carry into those that stay.
  rounded = ((codes + noise) >> 16).astype(np.uint16).view(BFLOAT16)
  special = (codes & 0x7F800000) == 0x7F800000
  return np.where(special, values.astype(BFLOAT16), rounded) if special.any() else rounded


def _survival(merged: np.ndarray, stored: np.ndarray, origin: np.ndarray) -> Survival:
  kept = stored.astype(merged.dtype)
  # Infinities that were allowed make NaN here, and so the measure says that it is none.
  with np.errstate(invalid="ignore", over="ignore"):
    update = (merged - origin).ravel()
    error = (kept - merged).ravel()
    squares = float(np.dot(update, update)), float(np.dot(error, error))
  changed = update != 0
  survived = (kept != origin).ravel() & changed
  counts = int(np.count_nonzero(changed)), int(np.count_nonzero(survived))
  return Survival(merged.size, *squares, *counts)


def _double(value: Any) -> Any:
  """Sums of one block, wide enough to be added up over a model."""
  if isinstance(value, tuple | list):
    return tuple(_double(v) for v in value)
  return np.asarray(value, np.float64)


def _plus(a: Any, b: Any) -> Any:
  if isinstance(a, tuple):
    return tuple(_plus(x, y) for x, y in zip(a, b, strict=True))
  return a + b
