"""What a merge from disk to disk is, before anything is read: tensors in, tensors out, and who makes what of them.

`Reader`s come from sources.py, `Output`s are put together by recipes.py, engine.py carries them out and hands the
results to a `Sink`. Nothing here knows formats or YAML.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Reader(Protocol):
  """One tensor of one input, read piece by piece.

  Attributes:
    name: of the tensor in its checkpoint, for messages.
    shape: of the tensor.
    dtype: of what `read` gives.
  """

  @property
  def name(self) -> str: ...  # noqa: D102
  @property
  def shape(self) -> tuple[int, ...]: ...  # noqa: D102
  @property
  def dtype(self) -> np.dtype: ...  # noqa: D102

  def read(self, start: int, stop: int) -> np.ndarray:
    """The entries [start, stop) in C order: a new 1-D array of `dtype`, or one that may be overwritten.

    Called by several threads at once.

    Raises:
      BadCheckpoint: if the file has become shorter since its header was read.
    """
    ...


class Source(Protocol):
  """A checkpoint that can be read from.

  Attributes:
    label: what the user called it, for messages.
    tensors: its readers by name, in the order of the checkpoint.
    files: the files that the readers read, and config and tokenizer files beside them, for the manifest.
    config: the content of config.json; None where there is none.
    directory: where config and tokenizer lie; None where there are none.
  """

  @property
  def label(self) -> str: ...  # noqa: D102
  @property
  def tensors(self) -> Mapping[str, Reader]: ...  # noqa: D102
  @property
  def files(self) -> Sequence[pathlib.Path]: ...  # noqa: D102
  @property
  def config(self) -> Mapping[str, Any] | None: ...  # noqa: D102
  @property
  def directory(self) -> pathlib.Path | None: ...  # noqa: D102

  def close(self) -> None:
    """Closes the files."""
    ...


@dataclasses.dataclass(frozen=True)
class Output:
  """One tensor to be written, and how it is made.

  Attributes:
    name: in the output.
    shape: of the output and of every reader.
    dtype: as stored.
    method: a key of METHODS.
    members: readers of the M members.
    base: reader of the common start, for methods that use one.
    importances: M readers, for methods that take them.
    coefficients: M numbers.
    parameters: the method's, resolved for this tensor; those in `per_member` are tuples of M.
    group: outputs of one group are one vector for sums and thresholds; they share method and parameters. Usually the
      name.
    stream: name of its random streams; usually the name. (A layer that a recipe repeats draws twice the same mask.)
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  method: str
  members: tuple[Reader, ...]
  base: Reader | None = None
  importances: tuple[Reader, ...] = ()
  coefficients: tuple[float, ...] = ()
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  group: str = ""
  stream: str = ""

  @property
  def num_entries(self) -> int:
    """How many numbers it holds."""
    return math.prod(self.shape)

  @property
  def num_bytes(self) -> int:
    """How many bytes it takes in the output."""
    return self.num_entries * self.dtype.itemsize


class Sink(Protocol):
  """Where a merge is written. Appears at its place only by `finish`; see sinks.py."""

  def done(self) -> frozenset[str]:
    """Names of the outputs that an interrupted run has already written."""
    ...

  def write(self, name: str, start: int, values: np.ndarray) -> None:
    """Writes entries of the output `name` from `start` on (C order), in its dtype; called by several threads."""
    ...

  def complete(self, name: str) -> None:
    """All of the output is written: an interrupted run need not make it again."""
    ...


@dataclasses.dataclass(frozen=True)
class Plan:
  """All of a merge.

  Attributes:
    outputs: every tensor of the output, in its order.
    sources: the checkpoints that are read, by label.
    config: config.json of the output; None where no input has one.
    donor: the source whose config, generation config and, unless the recipe says otherwise, tokenizer are kept.
    seed: of masks and stochastic rounding.
    recipe: the recipe in full, as plain data, for the manifest.
    notes: what a user should know and might not expect, one sentence each.
    tokenizer_files: what becomes of the tokenizer: name -> content, or the path of a file to copy.
  """

  outputs: tuple[Output, ...]
  sources: Mapping[str, Source]
  config: Mapping[str, Any] | None
  donor: Source | None
  seed: int
  recipe: Mapping[str, Any]
  notes: tuple[str, ...] = ()
  tokenizer_files: Mapping[str, bytes | pathlib.Path] = dataclasses.field(default_factory=dict)
