"""A plan in words: what is read, how it is merged, what is written, how long that takes, and what to look at."""

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wam.streaming.plan import Output, Plan, Source
from wam.streaming.recipes.rule_checks import needs_sums
from wam.streaming.results.casts import Report
from wam.streaming.workload import groups_of, inputs_of, source_of_copy


class Traffic(NamedTuple):
  """What a merge moves, in bytes; `read` counts every pass, `repeated` those after the first."""

  read: int
  written: int
  repeated: int


def traffic(plan: Plan) -> Traffic:
  """How much a merge reads and writes, at least: thresholds may take another pass than the one that is counted here."""
  read = repeated = 0
  for group in groups_of(plan.outputs):
    for output in group:
      copied = source_of_copy(output)
      readers = inputs_of(output) if copied is None else [copied]
      once = sum(r.dtype.itemsize for r in readers) * output.num_entries
      read += once
      if copied is None and needs_sums(output, sum(x.num_entries for x in group)):
        repeated += once
  return Traffic(read + repeated, sum(x.num_bytes for x in plan.outputs), repeated)


def describe(plan: Plan, *, bytes_per_second: float | None = None) -> str:
  """The plan as lines of text.

  Args:
    plan: checked.
    bytes_per_second: at which reading and writing together go, for the expected time; None leaves it out.
  """
  moved = traffic(plan)
  merged = [x for x in plan.outputs if source_of_copy(x) is None]
  lines = [_headline(plan)]
  lines += _block("reads", [_source(label, s) for label, s in plan.sources.items()])
  passes = f", {size(moved.repeated)} of it again for sums or thresholds" if moved.repeated else ""
  lines += _block("", [f"{size(moved.read)} in all{passes}"])
  how = _how(merged or plan.outputs)
  copies = len(plan.outputs) - len(merged)
  if copies:
    how.append(f"{copies} of {len(plan.outputs)} tensors are copies of one input")
  lines += _block("merges", how)
  lines += _block("writes", [_written(plan, moved)])
  if bytes_per_second is not None:
    seconds = (moved.read + moved.written) / bytes_per_second
    lines += _block("time", [f"about {duration(seconds)} at {size(bytes_per_second)}/s"])
  lines += _block("notes", plan.notes)
  return "\n".join(lines)


def describe_report(report: Report, plan: Plan, out: str | os.PathLike[str]) -> str:
  """What was done, and how much of the update the stored dtype kept."""
  moved = report.bytes_read + report.bytes_written
  rate = f", {size(moved / report.seconds)}/s" if report.seconds > 0 else ""
  lines = [f"merged {size(moved)} read and written in {duration(report.seconds)}{rate}: {out}"]
  total = report.total()
  if total.update:
    changed = total.changed or 1
    share = (
      "" if total.entries == _computed(plan, report) else " (measured on a part of the entries)"
    )
    origin = "the base" if any(x.base for x in plan.outputs) else "the first member"
    lines.append(
      f"rounding to the stored dtype lost {total.lost:.1%} of the norm of the update from {origin};"
      f" {total.kept / changed:.1%} of the entries that it changes are changed as stored{share}"
    )
    worst = max(report.survival.items(), key=lambda item: item[1].lost)
    lines.append(f"most in '{worst[0]}': {worst[1].lost:.1%}")
  return "\n".join(lines)


def _computed(plan: Plan, report: Report) -> int:
  return sum(x.num_entries for x in plan.outputs if x.name in report.survival)


def probe(plan: Plan, *, num_bytes: int = 64 << 20, at_most: float = 4e9) -> float:
  """Bytes a second to expect: those at which the largest input file is read now, from the disk or the page cache.

  Args:
    plan: whose inputs are read.
    num_bytes: to read, from the middle of the file.
    at_most: what two cores get through in most methods when nothing waits for a disk.
  """
  files = [path for source in plan.sources.values() for path in source.files]
  path = max(files, key=lambda p: p.stat().st_size)
  middle = max(0, path.stat().st_size - num_bytes) // 2
  start, done = time.perf_counter(), 0
  buffer = bytearray(1 << 20)
  with path.open("rb", buffering=0) as file:
    file.seek(middle)
    while done < num_bytes and (count_ := file.readinto(buffer)):
      done += count_
  if done < 8 << 20:
    return at_most  # too little to tell
  return min(at_most, done / (time.perf_counter() - start))


def _block(title: str, texts: Sequence[str]) -> list[str]:
  return [f"  {title if i == 0 else '':<7} {text}" for i, text in enumerate(texts)]


def _headline(plan: Plan) -> str:
  method = plan.recipe.get("merge_method", "merge")
  name = plan.recipe.get("name")
  entries = sum(x.num_entries for x in plan.outputs)
  return (
    f"{f'{name}: ' if name else ''}{method} of {len(plan.sources)} checkpoints into"
    f" {len(plan.outputs)} tensors of {count(entries)} numbers"
  )


def _source(label: str, source: Source) -> str:
  total = sum(math.prod(r.shape) * r.dtype.itemsize for r in source.tensors.values())
  dtypes = ", ".join(sorted({str(r.dtype) for r in source.tensors.values()}))
  files = [path for path in source.files if path.suffix == ".safetensors"] or source.files
  return (
    f"{label}: {len(source.tensors)} tensors, {size(total)} of {dtypes or 'nothing'} in"
    f" {len(files)} file{'' if len(files) == 1 else 's'}"
  )


def _written(plan: Plan, moved: Traffic) -> str:
  dtypes: dict[str, int] = {}
  for output in plan.outputs:
    dtypes[str(output.dtype)] = dtypes.get(str(output.dtype), 0) + output.num_bytes
  parts = ", ".join(f"{size(n)} {dtype}" for dtype, n in dtypes.items())
  donor = next((k for k, s in plan.sources.items() if s is plan.donor), None)
  config = f"; config of {donor}" if plan.config is not None and donor else "; no config.json"
  beside = len(plan.tokenizer_files)
  files = f"; {beside} other file{'' if beside == 1 else 's'} beside it" if beside else ""
  return f"{parts or size(moved.written)}{config}{files}"


def _how(outputs: Sequence[Output]) -> list[str]:
  """Methods with the range of their coefficients and parameters."""
  lines = []
  for method in dict.fromkeys(x.method for x in outputs):
    own = [x for x in outputs if x.method == method]
    members = max(len(x.members) for x in own)
    base = " from a common start" if own[0].base is not None else ""
    lines.append(f"{method} of {members} member{'' if members == 1 else 's'}{base}")
    names = {m: getattr(r, "origin", f"member {m + 1}") for m, r in enumerate(own[0].members)}
    if len(set(names.values())) < members:
      names = {m: f"member {m + 1}" for m in range(members)}
    for m in range(members):
      found = [x.coefficients[m] for x in own if m < len(x.coefficients)]
      parameters = {k: v[m] for k, v in own[0].parameters.items() if isinstance(v, tuple)}
      each = [f"weight {_range(found)}"] if members > 1 or set(found) != {1.0} else []
      each += [f"{k} {_range(x.parameters[k][m] for x in own)}" for k in parameters]
      if each:
        lines.append(f"  {names[m]}: {', '.join(each)}")
    shared = _shared(own)
    if shared:
      lines.append(f"  {shared}")
    if len({x.group for x in own}) < len(own):
      lines.append(f"  {len({x.group for x in own})} groups of tensors, each taken as one vector")
  return lines


def _shared(outputs: Sequence[Output]) -> str:
  names = [k for k, v in outputs[0].parameters.items() if not isinstance(v, tuple)]
  values: Mapping[str, list[Any]] = {k: [x.parameters[k] for x in outputs] for k in names}
  return ", ".join(f"{k} {_range(v)}" for k, v in values.items() if any(x is not None for x in v))


def _range(values: Iterable[Any]) -> str:
  """One value, or where they differ the smallest and the largest."""
  distinct = list(dict.fromkeys(values))
  if len(distinct) == 1:
    (value,) = distinct
    return str(value).lower() if isinstance(value, bool) else _plain(value)
  if all(isinstance(x, int | float) and not isinstance(x, bool) for x in distinct):
    return f"{_plain(min(distinct))} to {_plain(max(distinct))}"
  return " or ".join(map(str, distinct))


def _plain(value: Any) -> str:
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def size(num_bytes: float) -> str:
  """Bytes as people write them.

  >>> size(2_200_000_000), size(512)
  ('2.20 GB', '512 B')
  """
  for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if num_bytes >= factor:
      value = num_bytes / factor
      return f"{value:.2f} {unit}" if value < 10 else f"{value:.0f} {unit}"
  return f"{num_bytes:.0f} B"


def count(number: int) -> str:
  """A number of parameters.

  >>> count(1_100_000_000), count(260_032)
  ('1.10 B', '260 K')
  """
  for unit, factor in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
    if number >= factor:
      value = number / factor
      return f"{value:.2f} {unit}" if value < 10 else f"{value:.0f} {unit}"
  return str(number)


def duration(seconds: float) -> str:
  """Seconds as people say them.

  >>> duration(0.4), duration(75), duration(4000)
  ('0.4 s', '1 min 15 s', '1 h 7 min')
  """
  if seconds < 60:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
  hours, minutes = divmod(round(minutes + rest / 60), 60)
  return f"{hours} h {minutes} min"
