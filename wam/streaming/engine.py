"""The merge from disk to disk: outputs are computed a block at a time and written in place.

Memory is bounded by the size of a block times the inputs and threads, whatever the size of the model. Arithmetic is
float32 (float64 where an input is), with one cast at the end. Neither the order of the tensors nor the number of
threads changes a bit. Formats, recipes and manifests live elsewhere.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from wam.core import counters
from wam.core.errors import ConfigError, NonFinite
from wam.merging import rules
from wam.merging.methods import METHODS, Method, promises
from wam.merging.rules import Block, Group, KthLargest, Sum
from wam.streaming import blocks, workers
from wam.streaming.blocks import BFLOAT16, FLOATS, Place
from wam.streaming.masks import Masks
from wam.streaming.plan import Output, Reader, Sink
from wam.streaming.results.casts import Report, Survival, round_stochastically, survival_of
from wam.streaming.selection import Selection, sample_size
from wam.streaming.sweeps import Job, Pool, Sweep, carry_out
from wam.streaming.workload import (
  Counter,
  affordable_threads,
  bytes_of,
  default_threads,
  groups_of,
  inputs_of,
  room_for_masks,
  source_of_copy,
)

# Below this many bytes of output, processes take longer to begin than to do the work.
_FORK_BYTES = 32 << 20

ROUNDINGS = ("nearest", "stochastic")
# What survives of an update is measured on every block up to this many entries, then on a share of the blocks.
_MEASURED_ENTRIES = 1 << 24


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
    threads=threads,
    memory=memory,
    rounding=rounding,
    check=not allow_non_finite,
  )
  return run.execute(progress)


def check_options(
  outputs: Sequence[Output], *, rounding: str, threads: int | None, memory: int
) -> int:
  """Refuses what `execute` cannot do, before there is a sink; returns the number of threads that will work.

  Raises:
    ConfigError: as `execute`.
  """
  if rounding not in ROUNDINGS:
    raise ConfigError(f"rounding: expected one of {', '.join(ROUNDINGS)}, found {rounding!r}")
  odd = [x.name for x in outputs if x.dtype in FLOATS and x.dtype not in (BFLOAT16, np.float32)]
  if rounding == "stochastic" and odd:
    raise ConfigError(
      f"stochastic rounding is for bfloat16 outputs; {len(odd)} outputs are not:"
      f" {', '.join(odd[:5])}. Give --out-dtype bfloat16"
    )
  return affordable_threads(outputs, threads=threads or default_threads(), memory=memory)


class _Made(NamedTuple):
  """What became of a group."""

  names: list[str]
  survival: dict[str, Survival] = {}  # noqa: RUF012 (never changed)
  copied: list[str] = []  # noqa: RUF012
  read: int = 0  # bytes, where a process of its own made it
  written: int = 0


class _Run:
  """One call of `execute`."""

  def __init__(
    self,
    outputs: Sequence[Output],
    sink: Sink,
    *,
    seed: int,
    threads: int | None,
    memory: int,
    rounding: str,
    check: bool,
  ):
    self.sink, self.seed, self.check = sink, seed, check
    self.stochastic = rounding == "stochastic"
    self.threads = check_options(outputs, rounding=rounding, threads=threads, memory=memory)
    self.masks = Masks(room_for_masks(outputs, threads=self.threads, memory=memory))
    self.seen: set[str] = set()  # outputs all of whose inputs were found to be finite
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
    watch = None if progress is None else functools.partial(self._watch, progress)
    if self._worth_forking():
      workers.run(
        len(self.groups), self._work, self._finished, num_workers=self.threads, watch=watch
      )
    else:
      Pool(map(self._job, self.groups), self.threads, self._finished).run(watch)
    if progress is not None:
      progress(self.total, self.total)
    self.report.seconds = time.perf_counter() - start
    return self.report

  def _worth_forking(self) -> bool:
    """Whether processes can share the work: more than a moment of it, and no group that is most of it."""
    largest = max((sum(x.num_bytes for x in g) for g in self.groups), default=0)
    shared = self.total >= max(_FORK_BYTES, self.threads * largest)
    return self.threads > 1 and shared and workers.can_fork()

  def _watch(self, progress: Progress) -> None:
    progress(max(self.written.value, self.report.bytes_written), self.total)

  def _work(self, number: int) -> "_Made":
    """A group from beginning to end, in this thread."""
    read, written = self.bytes.value, self.written.value
    made = carry_out(self._job(self.groups[number]))
    return made._replace(read=self.bytes.value - read, written=self.written.value - written)

  def _finished(self, made: "_Made") -> None:
    for name in made.names:
      self.sink.complete(name)
    self.report.survival |= made.survival
    self.report.copied += made.copied
    self.report.bytes_read += made.read or self.bytes.take()
    self.report.bytes_written += made.written or self.written.take()

  def _job(self, group: list[Output]) -> Job:
    """All that is done for a group; ends with what was made."""
    names = [x.name for x in group]
    group = [x for x in group if x.num_entries]
    copied = source_of_copy(group[0]) if len(group) == 1 else None
    if copied is not None:
      yield self._copies(group[0], copied)
      return _Made(names, copied=names)
    survivals: dict[str, Survival] = {}
    if group:
      method = METHODS[group[0].method]
      apply = yield from self._rule(group, method)
      for output in group:
        results = yield self._last_sweep(output, method, apply)
        survivals[output.name] = functools.reduce(Survival.plus, results)
        self.masks.forget(output.name)
    return _Made(names, survivals)

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
      # A narrower dtype rounds a last bit of the accumulator away by itself.
      any(x.dtype.itemsize >= 4 for x in group),
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
      self.seen.update(x.name for x in group)
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
        block = self._read(output, place, last=False)
        values: dict[Any, Any] = {}
        for i in open_:
          function = requests[i].function
          if function not in values:
            # Several order statistics of one thing are common.
            values[function] = function(block)
          value = values[function]
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

  def _read(self, output: Output, place: Place, *, last: bool) -> Block:
    """Reads a block; in the `last` sweep nothing is kept for another."""

    def memory(name: str, mask: Callable[[], np.ndarray]) -> np.ndarray:
      return self.masks.get(output.name, place.start, name, mask, shape=place.shape, keep=not last)

    check = self.check and output.name not in self.seen
    block = blocks.read_block(output, place, seed=self.seed, check=check, memory=memory)
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
        block = self._read(output, place, last=True)
        merged = apply(block)
        if exact:
          merged = rules.keep_agreement(block, merged)
        stored = self._cast(output, place, merged)
        if (number + i) % self.stride == 0:
          origin = block.members[0] if block.base is None else block.base
          survival.add(survival_of(merged, stored, origin))
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


def _double(value: Any) -> Any:
  """Sums of one block, wide enough to be added up over a model."""
  if isinstance(value, tuple | list):
    return tuple(_double(v) for v in value)
  return np.asarray(value, np.float64)


def _plus(a: Any, b: Any) -> Any:
  if isinstance(a, tuple):
    return tuple(_plus(x, y) for x, y in zip(a, b, strict=True))
  return a + b
