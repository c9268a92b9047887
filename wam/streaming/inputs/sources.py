"""What a user may name as a checkpoint, and how it is opened: only headers are read, and all of them are checked.

A directory as Hugging Face lays it out, one .safetensors file, an Orbax checkpoint, or `BASE+ADAPTER` with a LoRA
adapter of PEFT. Leaves out pickles and downloads, which are refused with the way out.
"""

import os
import pathlib
import re

from wam.checkpoints import safetensors
from wam.checkpoints.headers import read_header
from wam.core.errors import BadCheckpoint, MissingFile, WamError
from wam.streaming.inputs import files
from wam.streaming.plan import Source

ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# One of them lies in whatever Orbax has written, of any version.
_ORBAX_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "orbax.checkpoint", "manifest.ocdbt")


def open_source(text: str | os.PathLike[str], *, label: str | None = None) -> Source:
  """Opens a checkpoint for reading; close it when done.

  Tensors keep the order of their files, those of an Orbax checkpoint the order of its tree, with names joined by "/".

  Args:
    text: a path, or BASE+ADAPTER (several adapters are applied one after the other). A path that exists is meant as it
      stands, whatever plus signs are in it.
    label: what to call it in messages; default `text`.

  Raises:
    MissingFile: if something that was named does not exist.
    BadCheckpoint: if it is no checkpoint, or a damaged one, or of a kind that is not supported; says what to do.
  """
  path = pathlib.Path(text)
  label = os.fspath(text) if label is None else label
  if not os.path.lexists(path) and "+" in os.fspath(text):
    return _open_adapted(os.fspath(text), label)
  # Those of os.path: pathlib raises where a name is too long.
  if os.path.isdir(path):
    return _open_directory(path, label)
  if path.name.endswith(_PICKLES) and os.path.exists(path):
    raise BadCheckpoint(
      f"{path}: a pickle can run any code when it is opened and is refused. Convert it where you"
      " trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW) of transformers"
      " writes safetensors"
    )
  if not os.path.exists(path):
    raise _missing(path)
  header = read_header(path)
  tensors = files.readers(header.tensors.values(), origin=label)
  return files.FileSource(label, tensors, [path], None, None)


def _missing(path: pathlib.Path) -> WamError:
  if _HUB_ID.fullmatch(str(path)):
    return MissingFile(
      f"{path}: no such file or directory. If it is the name of a model on the Hugging Face Hub,"
      f" fetch it first: hf download {path} --local-dir DIRECTORY"
    )
  return MissingFile(
    f"{path}: no such file or directory; expected a Hugging Face directory, a .safetensors file, an"
    " Orbax checkpoint, or BASE+ADAPTER"
  )


def _open_adapted(text: str, label: str) -> Source:
  """BASE+ADAPTER: cut at the last plus sign behind which something exists, or may have been meant to."""
  from wam.streaming.inputs import adapters

  cuts = [i for i, character in enumerate(text) if character == "+" and text[i + 1 :]]
  cuts = [i for i in cuts if os.path.exists(text[i + 1 :])] or cuts
  if not cuts or not text[: cuts[-1]]:
    raise _missing(pathlib.Path(text))
  directory = pathlib.Path(text[cuts[-1] + 1 :])
  if not os.path.exists(directory):
    raise MissingFile(f"{text}: no such file, nor is there an adapter at {directory}")
  base = open_source(text[: cuts[-1]])
  try:
    return adapters.apply(base, directory, label=label)
  except BaseException:
    base.close()
    raise


def _open_directory(path: pathlib.Path, label: str) -> Source:
  try:
    entries = sorted(os.listdir(path))
  except OSError as error:
    raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error
  has_weights = safetensors.SINGLE in entries or safetensors.INDEX in entries
  is_orbax = any((path / entry).exists() for entry in _ORBAX_MARKS) or any(
    (path / entry / "_METADATA").is_file() for entry in entries
  )
  if is_orbax and has_weights:
    raise BadCheckpoint(
      f"{path}: holds an Orbax checkpoint and safetensors; which of them is the model? Move one away"
    )
  if is_orbax:
    from wam.streaming.inputs import orbax_source

    return orbax_source.open_checkpoint(path, label)
  if not has_weights:
    _refuse_directory(path, entries)
  tensors = files.readers(safetensors.read_directory(path).values(), origin=label)
  paths = {r.file.path: None for r in tensors.values() if isinstance(r, files.TensorReader)}
  index = [path / safetensors.INDEX] if safetensors.INDEX in entries else []
  return files.FileSource(label, tensors, [*paths, *index], files.read_config(path), path)


def _refuse_directory(path: pathlib.Path, entries: list[str]) -> None:
  """Errors for what users name by mistake; else returns, and `read_directory` says what is missing."""
  if ADAPTER_CONFIG in entries:
    raise BadCheckpoint(
      f"{path}: is an adapter, not a model; name the model that it was trained on before it:"
      f" BASE+{path}"
    )
  steps = [int(x) for x in entries if x.isdecimal() and is_checkpoint(path / x)]
  if steps:
    raise BadCheckpoint(
      f"{path}: holds the Orbax checkpoints of {len(steps)} steps; name one of them, the newest is"
      f" {path / str(max(steps))}"
    )
  unfinished = [x for x in entries if ".orbax-checkpoint-tmp" in x]
  if unfinished:
    raise BadCheckpoint(f"{path}: the Orbax checkpoint {unfinished[0]} was never completed")
  loose = [x for x in entries if x.endswith(".safetensors") and not x.startswith("model-")]
  if loose:
    raise MissingFile(
      f"{path}: expected {safetensors.SINGLE} or {safetensors.INDEX}, found neither, but"
      f" {', '.join(loose[:5])}; name a file by itself, or give it the usual name"
    )


def is_checkpoint(path: pathlib.Path) -> bool:
  """Whether a directory looks like what Orbax writes."""
  return path.is_dir() and any((path / mark).exists() for mark in _ORBAX_MARKS)
