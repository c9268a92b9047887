"""What a merge was made of, beside its result: `build` puts it together, `write` stores it, `verify` checks it later.

The manifest says which bytes went in and which came out (SHA-256), by which recipe, method and parameters, with which
versions. It is no signature: who can change an output can change the manifest with it.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

import wam
from wam.checkpoints.records import write_atomically
from wam.checkpoints.untrusted import read_json, shown
from wam.core.errors import BadCheckpoint, MissingFile
from wam.streaming.plan import Plan
from wam.streaming.results.hashes import SHA256, Progress, hash_files
from wam.streaming.results.provenance import fold, merges, plain

FILE_NAME = "merge_manifest.json"
_KIND = "wam merge"
_VERSION = 1


def build(
  plan: Plan,
  *,
  outputs_directory: pathlib.Path,
  input_hashes: Mapping[pathlib.Path, str | None],
  output_hashes: Mapping[pathlib.Path, str | None],
  report: Any = None,
  options: Mapping[str, Any] | None = None,
  finished: datetime.datetime | None = None,
) -> dict[str, Any]:
  """All that is worth knowing about a merge, as plain data.

  Equal merges have equal manifests but for what stands under "run" (when and how fast) and the paths of the inputs.

  Args:
    plan: of the merge.
    outputs_directory: where the outputs lie now.
    input_hashes: SHA-256 of every file of every source, by the paths that the source gives; None was not computed.
    output_hashes: the same of every file in `outputs_directory` but the manifest.
    report: what the engine's `execute` gave; None where nothing was computed.
    options: how the merge was done beside the recipe: rounding and the like.
    finished: when; now by default.

  Raises:
    MissingFile: if an input or output does not exist any more.
  """
  finished = finished or datetime.datetime.now(datetime.UTC)
  outputs = {_inside(outputs_directory, p): _entry(p, h) for p, h in output_hashes.items()}
  manifest: dict[str, Any] = {
    "kind": _KIND,
    "version": _VERSION,
    "recipe": plain(plan.recipe),
    "seed": plan.seed,
    "options": plain(options or {}),
    "notes": list(plan.notes),
    "inputs": _inputs(plan, input_hashes),
    "outputs": dict(sorted(outputs.items())),
    "merges": merges(plan),
    "versions": _versions(),
    "run": {"finished": finished.isoformat(timespec="seconds")},
  }
  files = [path for source in plan.sources.values() for path in source.files]
  if not all(path.is_absolute() for path in files):
    manifest["working_directory"] = os.getcwd()
  if report is not None:
    total = report.total()
    manifest["survival"] = {
      "lost": plain(total.lost),
      "measured_entries": total.entries,
      "changed_entries": total.changed,
      "kept_entries": total.kept,
      "copied_bit_for_bit": fold(report.copied),
      "lost_by_tensor": {name: plain(x.lost) for name, x in sorted(report.survival.items())},
    }
    manifest["run"] |= {
      "seconds": round(report.seconds, 3),
      "bytes_read": report.bytes_read,
      "bytes_written": report.bytes_written,
      "resumed": len(report.resumed),
    }
  return manifest


def write(directory: pathlib.Path, manifest: Mapping[str, Any]) -> pathlib.Path:
  """Writes it into a directory, whole or not at all.

  Raises:
    CannotWrite: on a full disk.
  """
  path = directory / FILE_NAME
  write_atomically(path, text(manifest))
  return path


def text(manifest: Mapping[str, Any]) -> str:
  """The manifest as it is stored."""
  return json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _versions() -> dict[str, str]:
  return {
    "wam": wam.__version__,
    "numpy": np.__version__,
    "ml_dtypes": ml_dtypes.__version__,
    "python": ".".join(map(str, sys.version_info[:3])),
    "platform": f"{sys.platform} {8 * struct.calcsize('P')}-bit {sys.byteorder}-endian",
  }


def _entry(path: pathlib.Path, digest: str | None) -> dict[str, Any]:
  try:
    return {"bytes": path.stat().st_size, "sha256": digest}
  except OSError as error:
    raise MissingFile(f"{path}: does not exist any more; it belongs to this merge") from error


def _inside(directory: pathlib.Path, path: pathlib.Path) -> str:
  return path.relative_to(directory).as_posix()


def _inputs(plan: Plan, hashes: Mapping[pathlib.Path, str | None]) -> list[dict[str, Any]]:
  return [
    {
      "label": label,
      "path": None if source.directory is None else str(source.directory),
      "files": [{"path": str(path), **_entry(path, hashes[path])} for path in source.files],
    }
    for label, source in plan.sources.items()
  ]


@dataclasses.dataclass(frozen=True)
class VerifyResult:
  """What `verify` found.

  Attributes:
    directory: that was looked at.
    num_outputs: files of the merge according to the manifest.
    missing: outputs that are not there.
    changed: outputs with other bytes than the merge wrote.
    extra: files that the merge did not write.
    num_inputs: files that were read according to the manifest; 0 if not asked for.
    missing_inputs: inputs that are no longer where they were.
    changed_inputs: inputs that are no longer what they were.
    unhashed: outputs and inputs of the right size whose hash the merge did not write down.
  """

  directory: pathlib.Path
  num_outputs: int
  missing: tuple[str, ...] = ()
  changed: tuple[str, ...] = ()
  extra: tuple[str, ...] = ()
  num_inputs: int = 0
  missing_inputs: tuple[str, ...] = ()
  changed_inputs: tuple[str, ...] = ()
  unhashed: tuple[str, ...] = ()

  @property
  def ok(self) -> bool:
    """Whether the outputs are exactly what the merge wrote, as far as hashes tell; inputs may have gone or gone on."""
    return not (self.missing or self.changed or self.extra or self.unhashed)

  def lines(self) -> list[str]:
    """What to print: every file that is not as it should be, then one line for outputs and one for inputs."""
    findings = {
      "missing": self.missing,
      "changed since the merge": self.changed,
      "not written by the merge": self.extra,
      "input is no longer there": self.missing_inputs,
      "input has changed since the merge": self.changed_inputs,
      "has the right size, but the merge left hashes out (--no-hashes)": self.unhashed,
    }
    lines = [f"{what}: {shown_path(x)}" for what, files in findings.items() for x in files]
    outputs = [x for x in self.unhashed if not os.path.isabs(x)]
    bad = len(self.missing) + len(self.changed) + len(outputs)
    lines.append(f"{self.directory}: {self.num_outputs - bad} of {self.num_outputs} files verified")
    if self.num_inputs:
      bad = len(self.missing_inputs) + len(self.changed_inputs) + len(self.unhashed) - len(outputs)
      lines.append(f"inputs: {self.num_inputs - bad} of {self.num_inputs} files verified")
    return lines


def shown_path(path: str) -> str:
  """A path for a message: as it is, or escaped where it holds what does not print."""
  return path if path.isprintable() else shown(path)


def read(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """The manifest of a merged model, its inputs and outputs checked for form.

  Raises:
    MissingFile: if the directory or its manifest does not exist.
    BadCheckpoint: if the manifest is malformed, or names a file that does not lie in the directory.
  """
  path = pathlib.Path(directory) / FILE_NAME
  if not os.path.lexists(path):
    raise MissingFile(f"{path}: no such file; only what wam merge wrote can be verified")
  data = read_json(path, "manifest")
  if data.get("kind") != _KIND or data.get("version") != _VERSION:
    raise BadCheckpoint(
      f"{path}: expected kind {_KIND!r} and version {_VERSION}, found {shown(data.get('kind'))} and"
      f" {shown(data.get('version'))}; written by a later wam?"
    )
  outputs, inputs = data.get("outputs"), data.get("inputs")
  if not isinstance(outputs, dict) or not outputs:
    raise BadCheckpoint(f"{path}: expected a non-empty object outputs")
  for name, entry in outputs.items():
    if not _is_plain_name(name):
      raise BadCheckpoint(f"{path}: output {shown(name)} is not the name of a file beside it")
    _check_entry(path, name, entry)
  if not isinstance(inputs, list) or not all(_is_input(each) for each in inputs):
    raise BadCheckpoint(f"{path}: expected a list of objects inputs, each with a list of files")
  for each in inputs:
    for file in each["files"]:
      _check_entry(path, "of an input", file)
      if not isinstance(file.get("path"), str):
        raise BadCheckpoint(f"{path}: a file of an input has the path {shown(file.get('path'))}")
  return data


def _is_input(value: Any) -> bool:
  return isinstance(value, dict) and isinstance(value.get("files"), list)


def _is_plain_name(name: str) -> bool:
  """Whether it stays in the directory, spelt in one way: `a` or `a/b`, not the manifest."""
  parts = name.split("/")
  inside = all(part not in ("", ".", "..") for part in parts)
  return inside and "\\" not in name and ":" not in parts[0] and name != FILE_NAME


def _check_entry(path: pathlib.Path, name: str, entry: Any) -> None:
  match entry:
    case {"bytes": int(size), "sha256": str() | None as digest} if (
      digest is None or SHA256.fullmatch(digest)
    ):
      if type(size) is int and size >= 0:
        return
  raise BadCheckpoint(
    f"{path}: file {shown(name)}: expected bytes and sha256, found {shown(entry)}"
  )


def verify(
  directory: str | os.PathLike[str],
  *,
  inputs: bool = True,
  threads: int = 2,
  progress: Progress | None = None,
) -> VerifyResult:
  """Hashes the files of a merged model, and those it was made of, and compares them with its manifest.

  Nothing is taken from the cache of hashes and nothing is written. The manifest may come from elsewhere: an output
  that is a link out of the directory counts as changed, and is not read.

  Args:
    directory: that `wam merge` wrote.
    inputs: whether to look at the inputs too, where they still lie where they lay.
    threads: how many files are read at a time.
    progress: called with the bytes hashed and the bytes to be hashed.

  Raises:
    MissingFile: if there is no manifest.
    BadCheckpoint: if it is malformed, or a file cannot be read.
  """
  directory = pathlib.Path(directory)
  manifest = read(directory)
  root = os.path.realpath(directory)
  outputs = {os.path.join(root, name): entry for name, entry in manifest["outputs"].items()}
  sources = _input_files(manifest) if inputs else {}
  missing, suspects, same_size = _sort_out(outputs, root)
  lost, replaced, unchanged_size = _sort_out(sources, None)
  unhashed = [os.path.relpath(p, root) for p in same_size if outputs[p]["sha256"] is None]
  unhashed += [os.path.abspath(p) for p in unchanged_size if sources[p]["sha256"] is None]
  same_size = [p for p in same_size if outputs[p]["sha256"] is not None]
  unchanged_size = [p for p in unchanged_size if sources[p]["sha256"] is not None]
  hashes = hash_files(
    dict.fromkeys([*same_size, *unchanged_size]), threads=threads, progress=progress, cache=False
  )
  suspects += [p for p in same_size if hashes[pathlib.Path(p)] != outputs[p]["sha256"]]
  replaced += [p for p in unchanged_size if hashes[pathlib.Path(p)] != sources[p]["sha256"]]
  return VerifyResult(
    directory,
    len(outputs),
    tuple(sorted(os.path.relpath(path, root) for path in missing)),
    tuple(sorted(os.path.relpath(path, root) for path in suspects)),
    tuple(sorted(set(_files(root)) - manifest["outputs"].keys() - {FILE_NAME})),
    len(sources),
    tuple(sorted(lost)),
    tuple(sorted(replaced)),
    tuple(sorted(unhashed)),
  )


def _input_files(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The inputs by path; relative ones are relative to where the merge was started."""
  start = manifest.get("working_directory")
  start = start if isinstance(start, str) else ""
  return {
    os.path.join(start, file["path"]): file for each in manifest["inputs"] for file in each["files"]
  }


def _sort_out(
  files: Mapping[str, Mapping[str, Any]], root: str | None
) -> tuple[list[str], list[str], list[str]]:
  """(missing, changed for certain, to be hashed), from sizes and kinds alone; all must lie under `root`, if given."""
  missing, changed, same_size = [], [], []
  for path, entry in files.items():
    size = _size(path)
    if size is None:
      missing.append(path)
    elif size != entry["bytes"] or not (root is None or _leads_to(path, root)):
      changed.append(path)
    else:
      same_size.append(path)
  return missing, changed, same_size


def _size(path: str) -> int | None:
  """Of a regular file; -1 for anything else that is there, None for nothing."""
  try:
    status = os.stat(path)
  except (OSError, ValueError):
    return None
  return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _leads_to(path: str, root: str) -> bool:
  return os.path.commonpath([root, os.path.realpath(path)]) == root


def _files(root: str) -> Iterator[str]:
  """Everything under `root` that is no directory; links are not followed."""
  for folder, folders, files in os.walk(root):
    links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
    for name in [*files, *links]:
      yield os.path.relpath(os.path.join(folder, name), root)
