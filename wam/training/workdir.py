"""A run is a directory: its config, its records, its checkpoints, and the `Run` that the stages are handed.

Leaves out what a stage is (loop.py, algorithms) and the report.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import jax
from jax.sharding import Mesh

from wam.checkpoints.records import FILE_NAME, CannotWrite, Records, write_atomically
from wam.core import sections
from wam.core.errors import BadData, ConfigError
from wam.training import sharding
from wam.training.interrupts import Interrupts

CONFIG_FILE = "config.json"
PACKAGES = ("wam", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def open_workdir(
  workdir: str | os.PathLike[str], *, config: Mapping[str, Any], command: str
) -> pathlib.Path:
  """Creates the workdir of a run, or checks that the one that is there belongs to the same config.

  Writes `config.json` with {"config", "command", "versions"}, whole or not at all.

  Args:
    workdir: the directory.
    config: nested plain data (what JSON can hold).
    command: how to run it again.

  Returns:
    The directory.

  Raises:
    ConfigError: if the workdir holds a run of another config that has begun; names the keys that differ. Or if the path
      is a file.
    BadData: if its config.json cannot be read.
    CannotWrite: on a full disk or without permission.
  """
  directory = pathlib.Path(workdir)
  wanted = json.loads(json.dumps(config))
  path = directory / CONFIG_FILE
  if directory.exists() and not directory.is_dir():
    raise ConfigError(f"workdir {directory} is a file; expected a directory")
  if path.exists():
    found = _read_config(path)
    differences = _differences(found, wanted)
    if differences and _has_begun(directory):
      raise ConfigError(
        f"workdir {directory} holds a run of another config: " + "; ".join(differences) + ". Choose"
        " another workdir, or give the config it was made with"
      )
    if not differences:
      return directory
  if jax.process_index() == 0:
    try:
      directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise CannotWrite(f"cannot make the workdir {directory}: {error.strerror}") from error
    content = {"config": wanted, "command": command, "versions": versions()}
    write_atomically(path, json.dumps(content, indent=2) + "\n")
  return directory


def _has_begun(directory: pathlib.Path) -> bool:
  """Whether a run left anything but its config: one that was refused before its first step did not."""
  records = directory / FILE_NAME
  begun = records.exists() and records.stat().st_size > 0
  return begun or any((directory / "checkpoints").glob("*"))


def versions() -> dict[str, str]:
  """Versions of what the numbers depend on."""
  found = {}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


class Run:
  """An open workdir: what every stage needs beside its own arguments. A context manager.

  Attributes:
    directory: the workdir.
    seed: of the run; streams are named after stages.
    mesh: where the training lives.
    rules: sharding rules for the parameters.
    records: `records.jsonl`, written by the first process only.
    interrupts: SIGTERM and Ctrl-C, caught while the run is open.
    show: whether progress is shown.
    save_every_seconds, save_every_steps: when a stage saves; whichever comes first, None for never.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    seed: int,
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.DECODER_RULES,
    uneven: str = "error",
    show: bool = True,
    tensorboard: bool = True,
    save_every_seconds: float | None = 60.0,
    save_every_steps: int | None = None,
  ):
    """Opens the records. `mesh` defaults to all devices along `data`; `uneven` is that of `sharding.specs`."""
    first = jax.process_index() == 0
    self.directory = pathlib.Path(directory)
    self.seed = seed
    self.mesh = mesh if mesh is not None else sharding.make_mesh()
    self.rules = rules
    self.uneven = uneven
    self.records = Records(self.directory, active=first)
    self.interrupts = Interrupts()
    self.show = show and first
    self.save_every_seconds = save_every_seconds
    self.save_every_steps = save_every_steps
    self._tensorboard = tensorboard and first
    self._writer: Any = None

  def __enter__(self) -> Self:
    self.interrupts.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.interrupts.__exit__(kind, error, traceback)
    self.close()

  def close(self) -> None:
    """Closes the files."""
    self.records.close()
    if self._writer is not None:
      self._writer.close()
      self._writer = None

  def stage_directory(self, stage: str) -> pathlib.Path:
    """Where a stage keeps its checkpoints."""
    return self.directory / "checkpoints" / stage

  def log(self, fields: Mapping[str, Any], *, stage: str, step: int, kind: str = "metric") -> None:
    """Appends a record; the numbers of a "metric" go to TensorBoard as `stage/name` too."""
    self.records.append(kind=kind, stage=stage, step=step, **fields)
    if kind == "metric" and self._tensorboard:
      for name, value in fields.items():
        if isinstance(value, int | float):
          self._events().add_scalar(f"{stage}/{name}", value, step)

  def _events(self) -> Any:
    """The event file, opened when the first number comes."""
    if self._writer is None:
      from tensorboardX import SummaryWriter

      self._writer = SummaryWriter(str(self.directory / "tensorboard"), flush_secs=10)
    return self._writer


@dataclasses.dataclass(frozen=True)
class Start:
  """How a recipe was started: what it needs beside the sections of its config.

  Attributes:
    directory: the workdir; need not exist.
    config: nested plain data (what JSON can hold).
    command: how to run it again, for the report.
    show: whether to show progress.
  """

  directory: pathlib.Path
  config: Mapping[str, Any]
  command: str = ""
  show: bool = True

  def open(
    self, *, seed: int, mesh: Mesh | None = None, checkpoints: Mapping[str, Any] | None = None
  ) -> Run:
    """`open_workdir`, and the run in it. A recipe calls it after all its checks: nothing is written before.

    Args:
      seed: of the run.
      mesh: where the training lives; default all devices along `data`.
      checkpoints: the section "checkpoints" of the config: keywords of `Run`.

    Raises:
      ConfigError, BadData, CannotWrite: see `open_workdir`; ConfigError for keys that `Run` does not have, too.
    """
    section = dict(checkpoints or {})
    given: dict[str, Any] = {
      "directory": self.directory,
      "seed": seed,
      "mesh": mesh,
      "show": self.show,
    }
    sections.check(Run, section, "checkpoints", given=given)
    open_workdir(self.directory, config=self.config, command=self.command)
    return Run(**section, **given)


def _read_config(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding="utf-8"))["config"]
  except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
    raise BadData(
      f"{path}: not the config of a run; remove the workdir or choose another"
    ) from error


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, Mapping) or not tree:
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
  return flat


def _differences(found: Any, wanted: Any) -> list[str]:
  """One text for every key whose values differ: "sft.num_steps is 100 there and 200 here"."""
  there, here = _flat(found), _flat(wanted)
  absent = "absent"
  texts = []
  for key in sorted(there.keys() | here.keys()):
    before = json.dumps(there[key]) if key in there else absent
    now = json.dumps(here[key]) if key in here else absent
    if before != now:
      texts.append(f"{key} is {before} there and {now} here")
  return texts
