"""LoRA adapters of PEFT applied while the base is read: W + scaling · B A, in float32, a few rows at a time.

Names as PEFT saves them: base_model.model.<module>.lora_A.weight [r, in] and lora_B.weight [out, r]; for embeddings
lora_embedding_A [r, vocabulary] and lora_embedding_B [width, r]; other tensors (modules_to_save) replace those of the
base. LoRA: Hu et al. 2021 (https://arxiv.org/abs/2106.09685); scaling by the square root of the rank: Kalajdzievski
2023 (https://arxiv.org/abs/2312.03732).

Leaves out DoRA and every other kind of adapter, biases, and initialisations that change the base (PiSSA, OLoRA, CorDA,
LoftQ): these are refused by name.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from wam.checkpoints.headers import read_header
from wam.checkpoints.untrusted import read_json, shown
from wam.core.errors import BadCheckpoint, MissingFile
from wam.streaming.inputs import files
from wam.streaming.plan import Reader, Source

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
# Settings without which W + scaling · B A is not what the adapter means, if they are on.
_REFUSED = (
  "lora_bias",
  "layer_replication",
  "trainable_token_indices",
  "target_parameters",
  "alora_invocation_tokens",
)
# Initialisations that leave the base as it is.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
_HARMLESS = ("use_rslora", "loftq_config", "eva_config", "runtime_config")
_FLOATS = (np.dtype(ml_dtypes.bfloat16), *map(np.dtype, (np.float16, np.float32, np.float64)))
# No rank and no alpha comes near; a number of many digits is no float.
_MAX_SETTING = 1e9
# Entries of B A that are computed at a time: they stay in a core's cache while they are summed up.
_TILE = 1 << 15
# Adapted tensors whose factors are kept in memory; more than threads work on at a time.
_KEPT = 8


def apply(base: Source, directory: pathlib.Path, *, label: str) -> "AdaptedSource":
  """The base with an adapter applied. Config and tokenizer are the base's.

  Args:
    base: the model that the adapter was trained on; closed with what is returned.
    directory: with adapter_config.json and adapter_model.safetensors.
    label: what to call the result in messages.

  Raises:
    MissingFile: if one of the two files is missing.
    BadCheckpoint: if the adapter is of another kind, or tensors do not fit the base; names every one.
  """
  config = _read_config(directory)
  if not (directory / WEIGHTS).is_file():
    pickle = f"; {_PICKLE} is a pickle and is refused" if (directory / _PICKLE).is_file() else ""
    raise MissingFile(
      f"{directory}: expected {WEIGHTS}{pickle}. PeftModel.save_pretrained of a current PEFT"
      " writes it"
    )
  infos = read_header(directory / WEIGHTS).tensors
  readers = files.readers(infos.values(), origin=os.fspath(directory))
  adapter = _Adapter(directory, config, readers)
  tensors: dict[str, Reader] = dict(base.tensors)
  problems = adapter.apply_to(tensors, label)
  if problems:
    adapter.close()
    raise BadCheckpoint(
      f"{directory / WEIGHTS}: {len(problems)} tensors do not fit {base.label}: "
      + "; ".join(sorted(problems))
      + ". Give the model that the adapter was trained on; where it has more modules or tokens"
      " than that model, merge it with PEFT (merge_and_unload) first"
    )
  return AdaptedSource(label, tensors, base, adapter)


@dataclasses.dataclass(frozen=True)
class AdaptedSource:
  """A checkpoint with an adapter; a `Source`."""

  label: str
  tensors: Mapping[str, Reader]
  base: Source
  adapter: "_Adapter"

  @property
  def files(self) -> Sequence[pathlib.Path]:
    """Those of the base, then those of the adapter."""
    return [*self.base.files, self.adapter.directory / WEIGHTS, self.adapter.directory / CONFIG]

  @property
  def config(self) -> Mapping[str, Any] | None:
    """The base's."""
    return self.base.config

  @property
  def directory(self) -> pathlib.Path | None:
    """The base's."""
    return self.base.directory

  def close(self) -> None:
    """Closes the files of both."""
    self.base.close()
    self.adapter.close()


def _read_config(directory: pathlib.Path) -> dict[str, Any]:
  """The checked config of an adapter."""
  if not (directory / CONFIG).is_file():
    raise MissingFile(f"{directory}: expected {CONFIG}, as an adapter of PEFT has it")
  config = read_json(directory / CONFIG, "config of the adapter")

  def refuse(what: str) -> BadCheckpoint:
    return BadCheckpoint(
      f"{directory / CONFIG}: {what}, which is not supported: only plain LoRA is. Merge the adapter"
      " with PEFT (merge_and_unload) and give the result"
    )

  if config.get("peft_type") != "LORA":
    raise refuse(f"peft_type is {shown(config.get('peft_type'))}")
  if config.get("bias", "none") != "none":
    raise refuse(f"bias is {shown(config['bias'])}")
  if config.get("init_lora_weights") not in _INITIALISATIONS:
    raise refuse(
      f"init_lora_weights is {shown(config['init_lora_weights'])}: the base was changed beforehand"
    )
  variants = [x for x in config if x.startswith("use_") or x.endswith("_config")]
  for key in [*_REFUSED, *sorted(set(variants) - {*_HARMLESS})]:
    if config.get(key):
      raise refuse(f"{key} is {shown(config[key])}")
  for key in ("r", "lora_alpha"):
    if not _is_positive(config.get(key)):
      raise BadCheckpoint(
        f"{directory / CONFIG}: {key} is {shown(config.get(key))}, expected a positive number"
      )
  for key in ("rank_pattern", "alpha_pattern"):
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict) or not all(_is_positive(x) for x in patterns.values()):
      raise BadCheckpoint(
        f"{directory / CONFIG}: {key} is {shown(patterns)}, expected modules and positive numbers"
      )
  return config


def _is_positive(value: Any) -> bool:
  return type(value) in (int, float) and 0 < value < _MAX_SETTING


class _Adapter:
  """The tensors of an adapter, and what they make of those of a base."""

  def __init__(
    self, directory: pathlib.Path, config: Mapping[str, Any], readers: Mapping[str, Reader]
  ):
    self.directory = directory
    self._config = config
    self._readers = readers
    self._factors: dict[str, dict[str, Reader]] = {}
    self._whole: dict[str, Reader] = {}
    self._unknown: list[str] = []
    for name, reader in readers.items():
      self._sort_in(name, reader)

  def _sort_in(self, name: str, reader: Reader) -> None:
    inner = name.removeprefix(_PREFIX)
    found = _FACTOR.fullmatch(inner)
    if inner == name or ("lora_" in inner and found is None):
      self._unknown.append(name)
    elif found is not None:
      side = found[2] or f"embedding_{found[3]}"
      self._factors.setdefault(found[1], {})[side] = reader
    else:
      # An embedding that is adapted and was resized is saved as the base layer inside its adapter.
      self._whole[inner.replace(".base_layer.", ".")] = reader

  def apply_to(self, tensors: dict[str, Reader], origin: str) -> list[str]:
    """Replaces what the adapter changes in `tensors`; returns what does not fit."""
    problems = [f"{shown(name)} is of an unknown kind" for name in self._unknown]
    for name, reader in self._whole.items():
      base = tensors.get(name)
      if base is None:
        problems.append(f"{shown(reader.name)} finds no {shown(name)}")
      elif base.shape != reader.shape:
        problems.append(f"{shown(name)} has shape {reader.shape} there and {base.shape} here")
      else:
        stored = stored_dtype(base)
        tensors[name] = _Renamed(name, reader.shape, reader.dtype, origin, reader, stored)
    kept = functools.lru_cache(maxsize=_KEPT)(lambda module, scaling: self._load(module, scaling))
    for module, factors in self._factors.items():
      name = f"{module}.weight"
      problem = self._problem(module, factors, tensors.get(name))
      if problem:
        problems.append(problem)
      else:
        base = tensors[name]
        load = functools.partial(kept, module, self._scaling(module))
        tensors[name] = LowRankReader(name, base.shape, origin, base, load)
    return problems

  def _problem(self, module: str, factors: Mapping[str, Reader], base: Reader | None) -> str | None:
    """Why the factors of a module cannot be applied; None if they can."""
    if factors.keys() not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
      return f"{shown(module)} has {', '.join(sorted(factors))} and not a pair of A and B"
    if base is None:
      return f"{shown(module)} finds no {shown(module + '.weight')}"
    (_, a), (_, b) = sorted(factors.items())
    rank = self._setting(module, "rank_pattern", "r")
    rows, columns = (*base.shape, 0, 0)[:2]
    expected = (rank, rows), (columns, rank)
    if not self._transposed(module):
      expected = (rank, columns), (rows, rank)
    if len(base.shape) != 2 or (a.shape, b.shape) != expected:
      return (
        f"{shown(module)} has A {a.shape} and B {b.shape} on a base of {base.shape} and rank {rank}"
      )
    odd = [x.dtype for x in (a, b, base) if x.dtype not in _FLOATS]
    return f"{shown(module)} has numbers of type {odd[0]}" if odd else None

  def _transposed(self, module: str) -> bool:
    return bool(self._config.get("fan_in_fan_out")) or "embedding_A" in self._factors[module]

  def _setting(self, module: str, patterns: str, default: str) -> float:
    """The value of the first pattern that matches the whole name or an end of it from a dot on, as in PEFT."""
    for pattern, value in (self._config.get(patterns) or {}).items():
      try:
        if re.match(rf"(.*\.)?({pattern})$", module):
          return value
      except (re.error, OverflowError, RecursionError) as error:
        raise BadCheckpoint(
          f"{self.directory / CONFIG}: {patterns}: {shown(pattern)} is no regular expression: {error}"
        ) from error
    return self._config[default]

  def _scaling(self, module: str) -> float:
    rank = self._setting(module, "rank_pattern", "r")
    alpha = self._setting(module, "alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

  def _load(self, module: str, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """Left [rows, r] and right [r, columns], float32, whose product is added to the base. Scaling is in the left."""
    (_, a), (_, b) = sorted(self._factors[module].items())
    left, right = files.read_whole(b), files.read_whole(a)
    if self._transposed(module):
      left, right = right.T, left.T
    scaled = (left.astype(np.float64) * scaling).astype(np.float32, order="C")
    return scaled, right.astype(np.float32, order="C")

  def close(self) -> None:
    """Closes the file."""
    for reader in self._readers.values():
      if isinstance(reader, files.TensorReader):
        reader.file.close()


def stored_dtype(reader: Reader) -> np.dtype:
  """The dtype that a tensor has in the checkpoint of the base, whatever it is read in."""
  return getattr(reader, "stored_dtype", reader.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class _Renamed:
  """A reader under the name that its tensor has in the base."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  origin: str
  reader: Reader
  stored_dtype: np.dtype

  def read(self, start: int, stop: int) -> np.ndarray:
    return self.reader.read(start, stop)


@dataclasses.dataclass(frozen=True, slots=True)
class LowRankReader:
  """A matrix of the base plus a product of two thin ones; a `Reader` of float32.

  Attributes:
    name: of the matrix in the base.
    shape: [rows, columns].
    origin: what the user called the checkpoint.
    base: the matrix without the adapter.
    load: gives left [rows, r] and right [r, columns], float32.
  """

  name: str
  shape: tuple[int, ...]
  origin: str
  base: Reader
  load: Callable[[], tuple[np.ndarray, np.ndarray]]

  @property
  def dtype(self) -> np.dtype:
    """float32 whatever the base is stored in: the sum is rounded once, where it is written."""
    return np.dtype(np.float32)

  @property
  def stored_dtype(self) -> np.dtype:
    """That of the base: what a merge is stored in unless the user says otherwise."""
    return stored_dtype(self.base)

  def read(self, start: int, stop: int) -> np.ndarray:
    """The entries [start, stop) in C order; see `plan.Reader`."""
    values = self.base.read(start, stop).astype(np.float32, copy=False)
    if start == stop:
      return values
    left, right = self.load()
    columns = self.shape[1]
    first, last = start // columns, -(-stop // columns)
    if last - first == 1:
      right = right[:, start - first * columns : stop - first * columns]
      return values + _product(left[first:last], right)
    step = max(1, _TILE // columns)
    for row in range(first, last, step):
      product = _product(left[row : min(row + step, last)], right)
      offset = row * columns
      lower, upper = max(start, offset), min(stop, offset + product.size)
      values[lower - start : upper - start] += product[lower - offset : upper - offset]
    return values


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """left @ right as one row, each entry summed up over the rank from first to last.

  Not by the BLAS behind `@`: the last bits of what that gives depend on how many rows are asked for together and on
  how many threads it has, and its threads would fight with ours.
  """
  return np.einsum("ir,rj->ij", left, right).ravel()
