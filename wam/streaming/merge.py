"""A checked plan, carried out: weights, config, tokenizer and manifest, which appear together when all is there."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import wam
from wam.core.errors import unknown_name
from wam.streaming import engine
from wam.streaming.plan import Plan
from wam.streaming.results import hashes, manifest
from wam.streaming.results.casts import Report
from wam.streaming.results.sinks import Extra, OrbaxSink, SafetensorsSink
from wam.streaming.workload import default_threads

FORMATS = ("huggingface", "orbax")
SHARD_BYTES = 5 * 10**9

# What is under way, its bytes done and its bytes in all.
Progress = Callable[[str, int, int], None]


def merge_files(
  plan: Plan,
  out: str | os.PathLike[str],
  *,
  form: str = "huggingface",
  shard_bytes: int = SHARD_BYTES,
  threads: int | None = None,
  memory: int = 1 << 30,
  rounding: str = "nearest",
  allow_non_finite: bool = False,
  with_hashes: bool = True,
  overwrite: bool = False,
  flush: bool = False,
  started: Callable[[SafetensorsSink | OrbaxSink], None] | None = None,
  progress: Progress | None = None,
) -> Report:
  """Merges into the new directory `out`. A run that was killed goes on where it was when it is called again.

  Args:
    plan: from `planning.build`.
    out: does not exist or is empty.
    form: "huggingface" (safetensors and what lies beside them), or "orbax".
    shard_bytes: size of a shard, at most.
    threads: as in `engine.execute`, like memory, rounding and allow_non_finite.
    memory: bound in bytes on arrays in memory.
    rounding: of the stored dtype.
    allow_non_finite: whether NaN and infinities pass.
    with_hashes: whether the manifest has the SHA-256 of every input and output file. Hashing takes longer than most
      merges (1.75 GB/s a core were seen); those of inputs are remembered.
    overwrite: whether `out` may hold files, which are replaced at the end.
    flush: whether to wait until the result has reached the disk.
    started: called with the sink before anything is computed; says what is resumed or discarded.
    progress: called about ten times a second.

  Returns:
    What was done and what survived of the update; also in the manifest.

  Raises:
    ConfigError: if `out` is not free, the memory is too little, or the form or rounding is unknown.
    NonFinite: names the tensor.
    CannotWrite: if the disk is full; the same call goes on from there.
  """
  if form not in FORMATS:
    raise unknown_name("format", form, FORMATS)
  engine.check_options(plan.outputs, rounding=rounding, threads=threads, memory=memory)
  options = {"format": form, "rounding": rounding, "allow_non_finite": allow_non_finite}
  mark = fingerprint(plan, options | {"shard_bytes": shard_bytes})
  if form == "orbax":
    sink: SafetensorsSink | OrbaxSink = OrbaxSink(
      out, plan.outputs, fingerprint=mark, overwrite=overwrite
    )
  else:
    sink = SafetensorsSink(
      out, plan.outputs, fingerprint=mark, shard_bytes=shard_bytes, overwrite=overwrite
    )
  with sink:
    if started:
      started(sink)
    report = engine.execute(
      plan.outputs,
      sink,
      seed=plan.seed,
      threads=threads,
      memory=memory,
      rounding=rounding,
      allow_non_finite=allow_non_finite,
      progress=_named(progress, "merging"),
    )

    record = functools.partial(
      _manifest,
      plan,
      report,
      options=options,
      threads=(threads or default_threads()) if with_hashes else 0,
      progress=progress,
    )
    sink.finish(companions(plan) | {manifest.FILE_NAME: record}, flush=flush)
  return report


def _manifest(
  plan: Plan,
  report: Report,
  directory: pathlib.Path,
  *,
  options: Mapping[str, Any],
  threads: int,
  progress: Progress | None,
) -> bytes:
  """The manifest of what lies in the directory; without hashes where no thread is to make them."""
  outputs = [p for p in sorted(directory.rglob("*")) if p.is_file()]
  inputs = [p for source in plan.sources.values() for p in source.files]
  found: dict[pathlib.Path, str | None] = dict.fromkeys(inputs)
  made: dict[pathlib.Path, str | None] = dict.fromkeys(outputs)
  if threads:
    watch = _named(progress, "hashing inputs")
    found |= hashes.hash_files(inputs, threads=threads, progress=watch)
    watch = _named(progress, "hashing outputs")
    made |= hashes.hash_files(outputs, threads=threads, progress=watch, cache=False)
  content = manifest.build(
    plan,
    outputs_directory=directory,
    input_hashes=found,
    output_hashes=made,
    report=report,
    options=options,
  )
  return manifest.text(content).encode()


def companions(plan: Plan) -> dict[str, Extra]:
  """What lies beside the weights: config.json and the files of the tokenizer."""
  found: dict[str, Extra] = dict(plan.tokenizer_files)
  if plan.config is not None:
    found["config.json"] = (json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n").encode()
  return found


def fingerprint(plan: Plan, options: Mapping[str, Any]) -> str:
  """Of all that decides about the bytes of the result, as far as it is known before reading: sizes and times of inputs.

  What an interrupted merge left is gone on with only where this is the same.
  """
  files = []
  for label, source in plan.sources.items():
    for path in source.files:
      status = path.stat()
      files.append([label, str(path.resolve()), status.st_size, status.st_mtime_ns])
  content = {
    "recipe": plan.recipe,
    "seed": plan.seed,
    "options": options,
    "files": files,
    "outputs": [[x.name, list(x.shape), str(x.dtype)] for x in plan.outputs],
    "versions": [wam.__version__, np.__version__],
  }
  return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def _named(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
  if progress is None:
    return None
  return lambda done, total: progress(name, done, total)
