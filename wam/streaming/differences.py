"""What a merge will face: norms, cosines and sign conflicts of task vectors, by tensor, layer and part.

Files are streamed. Everything is counted in numbers that add up (`Stats`), so that a layer, a part and the whole model
are sums of tensors.
Leaves out tables and pictures (wam/report/differences.py).
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wam.core.errors import ConfigError, MismatchedTrees
from wam.core.names import kind_of, layer_of
from wam.streaming import blocks
from wam.streaming.blocks import FLOATS, Place
from wam.streaming.plan import Output, Source
from wam.streaming.sweeps import Job, Pool
from wam.streaming.workload import Counter, bytes_of, default_threads, inputs_of

OUTSIDE = "outside layers"


@dataclasses.dataclass
class Stats:
  """Sums over entries, for M models with task vectors δ_m; every field adds up.

  Attributes:
    entries: number of entries.
    base: Σ θ_init².
    gram: [M, M] float64, ⟨δ_i, δ_j⟩.
    unmoved: [M], entries with δ_m = 0.
    conflicts: [M, M], entries in which δ_i and δ_j have opposite signs.
    both: [M, M], entries in which neither is zero.
    contested: entries in which some δ is positive and some is negative.
    largest: [M], max |δ_m|; adds up by the maximum.
  """

  entries: int
  base: float
  gram: np.ndarray
  unmoved: np.ndarray
  conflicts: np.ndarray
  both: np.ndarray
  contested: int
  largest: np.ndarray

  @classmethod
  def empty(cls, num_models: int) -> "Stats":
    """Of no entries."""
    square = (num_models, num_models)
    return cls(
      0,
      0.0,
      np.zeros(square),
      np.zeros(num_models, np.int64),
      np.zeros(square, np.int64),
      np.zeros(square, np.int64),
      0,
      np.zeros(num_models),
    )

  def __add__(self, other: "Stats") -> "Stats":
    """Of both sets of entries together."""
    return Stats(
      self.entries + other.entries,
      self.base + other.base,
      self.gram + other.gram,
      self.unmoved + other.unmoved,
      self.conflicts + other.conflicts,
      self.both + other.both,
      self.contested + other.contested,
      np.maximum(self.largest, other.largest),
    )

  @property
  def norms(self) -> np.ndarray:
    """‖δ_m‖, [M]."""
    return np.sqrt(np.diagonal(self.gram))

  @property
  def relative(self) -> np.ndarray:
    """‖δ_m‖ / ‖θ_init‖, [M]; NaN where the base is zero."""
    return self.norms / math.sqrt(self.base) if self.base else np.full(len(self.gram), np.nan)

  @property
  def cosines(self) -> np.ndarray:
    """[M, M]; NaN where one of the two is zero."""
    lengths = np.outer(self.norms, self.norms)
    return np.where(lengths > 0, self.gram / np.where(lengths > 0, lengths, 1), np.nan)

  @property
  def sign_conflicts(self) -> np.ndarray:
    """Share of opposite signs among the entries that both moved, [M, M]; NaN where there are none."""
    return np.where(self.both > 0, self.conflicts / np.maximum(self.both, 1), np.nan)

  def as_dict(self) -> dict[str, Any]:
    """For JSON; numbers that are not defined are null."""
    return {
      "entries": self.entries,
      "base_norm": math.sqrt(self.base),
      "delta_norms": _plain(self.norms),
      "relative_norms": _plain(self.relative),
      "cosines": _plain(self.cosines),
      "sign_conflicts": _plain(self.sign_conflicts),
      "contested": self.contested / self.entries if self.entries else None,
      "unmoved": _plain(self.unmoved / self.entries) if self.entries else None,
      "largest_delta": _plain(self.largest),
    }


def _plain(values: Any) -> Any:
  """Lists of floats, with None for what is not finite."""
  if isinstance(values, np.ndarray):
    values = values.tolist()
  if isinstance(values, list):
    return [_plain(x) for x in values]
  return values if math.isfinite(values) else None


@dataclasses.dataclass
class Differences:
  """Stats of every tensor, and where it belongs.

  Attributes:
    base: label of the base.
    models: labels of the M models.
    tensors: by name, in the order of the base.
    copied: tensors that are not floating point, which were not compared.
  """

  base: str
  models: list[str]
  tensors: dict[str, Stats]
  copied: list[str]

  def total(self) -> Stats:
    """Of the whole model."""
    return self._sum(self.tensors.values())

  def by_part(self) -> dict[str, Stats]:
    """By the kind of weights: embeddings, attention, mlp, norms, head, or "other"."""
    return self._grouped(lambda name: kind_of(name) or "other")

  def by_layer(self) -> dict[str, Stats]:
    """By layer ("0", "1", ...); tensors outside the layers come last."""
    found = self._grouped(_layer)
    outside = found.pop(OUTSIDE, None)
    ordered = dict(sorted(found.items(), key=lambda item: int(item[0])))
    return ordered | ({OUTSIDE: outside} if outside else {})

  def by_layer_and_part(self) -> dict[tuple[str, str], Stats]:
    """By layer and kind of weights."""
    return self._grouped(lambda name: (_layer(name), kind_of(name) or "other"))

  def _grouped(self, key: Callable[[str], Any]) -> dict[Any, Stats]:
    found: dict[Any, list[Stats]] = {}
    for name, stats in self.tensors.items():
      found.setdefault(key(name), []).append(stats)
    return {k: self._sum(v) for k, v in found.items()}

  def _sum(self, stats: Any) -> Stats:
    return sum(stats, start=Stats.empty(len(self.models)))

  def to_json(self) -> str:
    """All numbers as a JSON object."""
    content = {
      "base": self.base,
      "models": self.models,
      "total": self.total().as_dict(),
      "parts": {k: v.as_dict() for k, v in self.by_part().items()},
      "layers": {k: v.as_dict() for k, v in self.by_layer().items()},
      "tensors": {k: v.as_dict() for k, v in self.tensors.items()},
      "not_compared": self.copied,
    }
    return json.dumps(content, indent=1) + "\n"


def _layer(name: str) -> str:
  found = layer_of(name)
  return str(found[1]) if found else OUTSIDE


def compare(
  base: Source,
  models: Sequence[Source],
  *,
  threads: int | None = None,
  allow_non_finite: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> Differences:
  """Reads every tensor once, a block at a time.

  Args:
    base: what the task vectors are taken from.
    models: M checkpoints of its architecture.
    threads: default one for every core.
    allow_non_finite: whether NaN and infinities may be met; they make the sums meaningless.
    progress: called with the bytes read and the bytes to be read.

  Raises:
    MismatchedTrees: names every tensor that is missing, extra or of another shape.
    NonFinite: names a tensor that holds NaN or infinity.
    ConfigError: if there is no model.
  """
  if not models:
    raise ConfigError("diff needs a base and at least one model to compare with it")
  _check(base, models)
  pairs = [
    Output(
      name,
      reader.shape,
      np.dtype(np.float32),
      "linear",
      tuple(m.tensors[name] for m in models),
      reader,
      coefficients=(0.0,) * len(models),
    )
    for name, reader in base.tensors.items()
    if reader.dtype in FLOATS
  ]
  counter = Counter()
  found: dict[str, Stats] = {}

  def job(output: Output) -> Job:
    portions = blocks.segments(blocks.cut(output.shape))
    parts = yield [
      functools.partial(_measure, output, places, counter, not allow_non_finite)
      for places in portions
    ]
    found[output.name] = sum(parts, start=Stats.empty(len(models)))

  total = sum(bytes_of(inputs_of(x), x.num_entries) for x in pairs)
  largest_first = sorted(pairs, key=lambda x: -x.num_entries)
  pool = Pool((job(x) for x in largest_first), threads or default_threads())
  if progress is None:
    pool.run()
  else:
    watch = progress
    pool.run(lambda: watch(counter.value, total))
    progress(total, total)
  return Differences(
    base.label,
    [m.label for m in models],
    {x.name: found[x.name] for x in pairs},
    [n for n, r in base.tensors.items() if r.dtype not in FLOATS],
  )


def _check(base: Source, models: Sequence[Source]) -> None:
  problems = []
  for model in models:
    problems += [
      f"'{n}' is missing from {model.label}" for n in base.tensors if n not in model.tensors
    ]
    problems += [f"'{n}' is only in {model.label}" for n in model.tensors if n not in base.tensors]
    problems += [
      f"'{n}' has shape {list(model.tensors[n].shape)} in {model.label} but {list(r.shape)} in {base.label}"
      for n, r in base.tensors.items()
      if n in model.tensors and model.tensors[n].shape != r.shape
    ]
  if problems:
    raise MismatchedTrees(f"{len(problems)} tensors do not agree: {'; '.join(problems)}")


def _measure(output: Output, places: Sequence[Place], counter: Counter, check: bool) -> Stats:
  total = Stats.empty(len(output.members))
  for place in places:
    block = blocks.read_block(output, place, seed=0, check=check)
    counter.add(bytes_of(inputs_of(output), place.stop - place.start))
    assert block.base is not None
    total += measure(block.base, block.deltas())
  return total


def measure(base: np.ndarray, deltas: Sequence[np.ndarray]) -> Stats:
  """The stats of arrays in memory: a base and M task vectors, float32, of one shape."""
  count = len(deltas)
  flat = [d.ravel() for d in deltas]
  up, down = [d > 0 for d in flat], [d < 0 for d in flat]
  moved = [u | v for u, v in zip(up, down, strict=True)]
  gram, conflicts, both = np.zeros((count, count)), *np.zeros((2, count, count), np.int64)
  for i in range(count):
    for j in range(i + 1):
      gram[i, j] = gram[j, i] = np.dot(flat[i], flat[j])
      if i == j:
        both[i, i] = np.count_nonzero(moved[i])
        continue
      opposite = np.count_nonzero(up[i] & down[j]) + np.count_nonzero(down[i] & up[j])
      conflicts[i, j] = conflicts[j, i] = opposite
      both[i, j] = both[j, i] = np.count_nonzero(moved[i] & moved[j])
  contested = functools.reduce(np.logical_or, up) & functools.reduce(np.logical_or, down)
  origin = base.ravel()
  return Stats(
    origin.size,
    float(np.dot(origin, origin)),
    gram,
    origin.size - np.diagonal(both),
    conflicts,
    both,
    int(np.count_nonzero(contested)),
    np.array([max(d.max(), -d.min()) if d.size else 0.0 for d in flat]),
  )


Table = tuple[list[str], list[list[str]]]


def tables(stats: Mapping[str, Stats], models: Sequence[str]) -> list[Table]:
  """Header and rows of two tables, one row for every name: how far each model moved, and how each pair agrees."""
  moved = [["", "entries", *(f"‖δ‖/‖base‖ {m}" for m in models), *(f"unmoved {m}" for m in models)]]
  for name, each in stats.items():
    shares = each.unmoved / max(each.entries, 1)
    row = [name, f"{each.entries:,}", *(_number(x, ".2e") for x in each.relative)]
    moved.append([*row, *(_number(x, ".1%") for x in shares)])
  pairs = [(i, j) for i in range(len(models)) for j in range(i)]
  if not pairs:
    return [(moved[0], moved[1:])]
  names = [f"{models[j]}, {models[i]}" for i, j in pairs]
  agree = [["", *(f"cosine {n}" for n in names), *(f"opposite signs {n}" for n in names)]]
  for name, each in stats.items():
    row = [name, *(_number(each.cosines[pair], ".3f") for pair in pairs)]
    agree.append([*row, *(_number(each.sign_conflicts[pair], ".1%") for pair in pairs)])
  return [(moved[0], moved[1:]), (agree[0], agree[1:])]


def _number(value: float, form: str) -> str:
  return format(float(value), form) if math.isfinite(value) else "-"
