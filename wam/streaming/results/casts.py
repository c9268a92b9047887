"""The one cast at the end of a merge: stochastic rounding, and how much of the update the stored dtype kept."""

import dataclasses
import math

import numpy as np

from wam.streaming.blocks import BFLOAT16


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

  def plus(self, other: "Survival") -> "Survival":
    """Of both sets of entries together."""
    total = dataclasses.replace(self)
    total.add(other)
    return total

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


def survival_of(merged: np.ndarray, stored: np.ndarray, origin: np.ndarray) -> Survival:
  """Of arrays of one shape: the exact result, what is stored of it, and what the update is relative to."""
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
