"""Hugging Face model directories in and out: config.json, sharded safetensors and the tokenizer together.

Everything that can be refused is refused from the config and the headers, before a weight is read. Leaves out
pickles (refused), quantised weights and downloads: a model is a directory.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from wam.checkpoints import safetensors
from wam.core import trees
from wam.core.errors import BadCheckpoint, MissingFile, NonFinite, unknown_name
from wam.core.types import Params
from wam.models import families, hf_names, stacking
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel

DTYPES: dict[str, np.dtype] = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype(np.float16),
}
_FLOATS = (*DTYPES.values(), np.dtype(np.float64))
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class Pretrained(NamedTuple):
  """A language model from a directory: the model, its weights, its tokenizer (None where the directory has none)."""

  model: LanguageModel
  params: Params
  tokenizer: Any


class PretrainedScalar(NamedTuple):
  """A reward model from a directory."""

  model: ScalarModel
  params: Params
  tokenizer: Any


def load(
  directory: str | os.PathLike[str], *, dtype: str = "float32", stacked: bool = True
) -> Pretrained:
  """Loads a causal language model.

  Args:
    directory: with config.json and safetensors, and perhaps a tokenizer.
    dtype: of the weights in memory, whatever is stored.
    stacked: layout of the layers.

  Raises:
    MissingFile: if the directory, config.json or a file of weights is missing.
    BadCheckpoint: if files are damaged, or config and weights disagree; every tensor concerned is named.
    UnknownName: if the model_type or the dtype is not known.
    NonFinite: if weights hold NaN or infinity; names the tensors.
  """
  _check_dtype(dtype)
  path = pathlib.Path(directory)
  data = read_config(path)
  if families.is_scalar(data):
    raise BadCheckpoint(f"{path}: holds a sequence classifier; load it with load_scalar")
  config = families.config_from_hf(data)
  params = _load_params(path, config, dtype=dtype, stacked=stacked, scalar=False)
  return Pretrained(LanguageModel(config), params, load_tokenizer(path))


def load_scalar(
  directory: str | os.PathLike[str], *, dtype: str = "float32", stacked: bool = True
) -> PretrainedScalar:
  """Loads a reward model: a ...ForSequenceClassification with one label; arguments and errors as in `load`."""
  _check_dtype(dtype)
  path = pathlib.Path(directory)
  data = read_config(path)
  if not families.is_scalar(data):
    raise BadCheckpoint(
      f"{path}: expected a ...ForSequenceClassification, found {data.get('architectures')};"
      " load a language model with load"
    )
  if families.num_labels(data) != 1:
    raise BadCheckpoint(f"{path}: expected 1 label, found {families.num_labels(data)}")
  config = families.config_from_hf(data)
  params = _load_params(path, config, dtype=dtype, stacked=stacked, scalar=True)
  return PretrainedScalar(ScalarModel(config), params, load_tokenizer(path))


def read_config(directory: pathlib.Path) -> dict[str, Any]:
  """The config.json of a model directory.

  Raises:
    MissingFile: if there is none.
    BadCheckpoint: if it is not a JSON object.
  """
  if not directory.is_dir():
    raise MissingFile(f"{directory}: no such directory; expected a Hugging Face model directory")
  path = directory / "config.json"
  if not path.is_file():
    raise MissingFile(f"{path}: no such file; a Hugging Face model directory has one")
  try:
    data = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise BadCheckpoint(f"{path}: is not valid JSON: {error}") from error
  if not isinstance(data, dict):
    raise BadCheckpoint(f"{path}: expected an object, found {type(data).__name__}")
  if data.get("quantization_config"):
    raise BadCheckpoint(f"{path}: the weights are quantised; load an unquantised checkpoint")
  return data


def load_tokenizer(directory: pathlib.Path) -> Any:
  """The tokenizer of a directory, or None where it has no tokenizer files.

  Raises:
    BadCheckpoint: if the files are there and transformers cannot read them.
  """
  if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
    return None
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)
  except Exception as error:  # transformers raises whatever its parsers raise
    raise BadCheckpoint(f"{directory}: the tokenizer cannot be read: {error}") from error


def check_tensors(
  directory: pathlib.Path, config: DecoderConfig, *, scalar: bool = False
) -> dict[str, safetensors.TensorInfo]:
  """Checks the headers of a directory against its config; no weight is read.

  Returns:
    What is stored, by Hugging Face name.

  Raises:
    MissingFile, BadCheckpoint: see `load`.
  """
  stored = safetensors.read_directory(directory)
  expected = {e.theirs: e.shape for e in hf_names.entries(config, scalar=scalar)}
  allowed = {hf_names.SCORE_BIAS} if scalar else set()
  if config.tie_embeddings or scalar:
    allowed.add(hf_names.LM_HEAD)
  problems = [
    f"'{name}' {shape} is missing" for name, shape in expected.items() if name not in stored
  ]
  problems += [
    f"'{name}' {info.shape} is not in the config's architecture"
    for name, info in stored.items()
    if name not in expected and name not in allowed and not hf_names.is_buffer(name)
  ]
  for name, shape in expected.items():
    if name in stored and stored[name].shape != shape:
      problems.append(f"'{name}' has shape {stored[name].shape}, the config says {shape}")
    if name in stored and stored[name].dtype not in _FLOATS:
      problems.append(f"'{name}' is {stored[name].dtype}, expected {', '.join(DTYPES)}")
  if problems:
    raise BadCheckpoint(
      f"{directory}: config.json and the weights disagree in {len(problems)} tensors"
      f" (num_hidden_layers={config.num_layers}, vocab_size={config.vocab_size}):"
      f" {'; '.join(problems)}"
    )
  return stored


def _check_tied(stored: dict[str, safetensors.TensorInfo]) -> None:
  """A tied model may store its output matrix, if that is the embedding."""
  head, embedding = stored[hf_names.LM_HEAD], stored[hf_names.EMBEDDING]
  same = head.shape == embedding.shape and np.array_equal(
    safetensors.open_tensor(head), safetensors.open_tensor(embedding)
  )
  if not same:
    raise BadCheckpoint(
      f"{head.path}: config.json ties the embeddings, but '{hf_names.LM_HEAD}' differs from"
      f" '{hf_names.EMBEDDING}'; set tie_word_embeddings to false or remove the tensor"
    )


def _load_params(
  directory: pathlib.Path, config: DecoderConfig, *, dtype: str, stacked: bool, scalar: bool
) -> Params:
  """Checks, then reads the weights one tensor at a time into the asked layout."""
  stored = check_tensors(directory, config, scalar=scalar)
  if config.tie_embeddings and not scalar and hf_names.LM_HEAD in stored:
    _check_tied(stored)
  flat: dict[str, np.ndarray] = {}
  broken = []
  for entry in hf_names.entries(config, scalar=scalar):
    array = safetensors.open_tensor(stored[entry.theirs])
    if not np.isfinite(array).all():
      broken.append(f"'{entry.theirs}' in {stored[entry.theirs].path.name}")
      continue
    array = (array.T if entry.transposed else array).astype(DTYPES[dtype])
    _place(flat, entry.ours, array, config.num_layers, stacked=stacked)
  if broken:
    raise NonFinite(f"{directory}: NaN or infinity in {len(broken)} tensors: {', '.join(broken)}")
  if scalar:
    flat["head/bias"] = _score_bias(stored, DTYPES[dtype])
  return jax.tree.map(jnp.asarray, trees.unflatten(flat))


def _score_bias(stored: dict[str, safetensors.TensorInfo], dtype: np.dtype) -> np.ndarray:
  if hf_names.SCORE_BIAS not in stored:
    return np.zeros((1,), dtype)
  return safetensors.open_tensor(stored[hf_names.SCORE_BIAS]).reshape(1).astype(dtype)


def _place(
  flat: dict[str, np.ndarray], name: str, array: np.ndarray, layers: int, *, stacked: bool
) -> None:
  """Puts a tensor where it belongs; stacked layers are filled in place, so that no layer is held twice."""
  before, found, after = name.rpartition("layers/")
  if not stacked or not found:
    flat[name] = array
    return
  layer, module = after.split("/", 1)
  whole = f"{before}layers/{module}"
  if whole not in flat:
    flat[whole] = np.empty((layers, *array.shape), array.dtype)
  flat[whole][int(layer)] = array


def save(
  directory: str | os.PathLike[str],
  model: LanguageModel,
  params: Params,
  tokenizer: Any = None,
  *,
  dtype: str = "float32",
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a causal language model that transformers loads.

  Args:
    directory: must not exist, or be empty; appears complete or not at all.
    model: decides the config.
    params: weights in either layout.
    tokenizer: a transformers tokenizer, or None.
    dtype: of the stored weights.
    shard_bytes: size of a shard, at most.

  Raises:
    ConfigError: if the directory is not empty, or the family cannot express the config.
    BadCheckpoint: if weights and config disagree.
    NonFinite: if weights hold NaN or infinity.
    WamError: if the disk is full; nothing is left behind.
  """
  writing = _Writing(dtype=dtype, shard_bytes=shard_bytes, scalar=False)
  _save(directory, model.config, stacking.unstack_layers(params), tokenizer, writing)


def save_scalar(
  directory: str | os.PathLike[str],
  model: ScalarModel,
  params: Params,
  tokenizer: Any = None,
  *,
  dtype: str = "float32",
  shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a reward model as ...ForSequenceClassification with one label; arguments and errors as in `save`.

  transformers knows no bias of the head: one that is not zero is stored as score.bias, which transformers passes over
  (all its rewards then lie lower by that constant) and `load_scalar` reads.
  """
  params = params | {"decoder": stacking.unstack_layers(params["decoder"])}
  writing = _Writing(dtype=dtype, shard_bytes=shard_bytes, scalar=True)
  _save(directory, model.config, params, tokenizer, writing)


@dataclasses.dataclass(frozen=True)
class _Writing:
  """How a directory is written."""

  dtype: str
  shard_bytes: int
  scalar: bool


def _save(
  directory: str | os.PathLike[str],
  config: DecoderConfig,
  params: Params,
  tokenizer: Any,
  writing: _Writing,
) -> None:
  _check_dtype(writing.dtype)
  config = _with_special_ids(config, tokenizer)
  data = families.config_to_hf(config, dtype=writing.dtype, scalar=writing.scalar)
  flat = trees.flatten(params)
  bias = flat.pop("head/bias", None)
  entries = hf_names.entries(config, scalar=writing.scalar)
  _check_params(flat, entries)
  dtype = DTYPES[writing.dtype]
  num_bytes = {e.theirs: int(np.prod(e.shape)) * dtype.itemsize for e in entries}
  by_name = {e.theirs: e for e in entries}

  def tensor(name: str) -> np.ndarray:
    if name == hf_names.SCORE_BIAS:
      return np.asarray(bias).astype(dtype)
    entry = by_name[name]
    array = np.asarray(jax.device_get(flat[entry.ours])).astype(dtype)
    return array.T if entry.transposed else array

  if bias is not None and np.any(np.asarray(bias)):
    num_bytes[hf_names.SCORE_BIAS] = dtype.itemsize
  with safetensors.new_directory(directory) as path:
    _write_files(path, data, tokenizer, num_bytes=num_bytes, tensor=tensor, writing=writing)


def _write_files(
  path: pathlib.Path,
  data: dict[str, Any],
  tokenizer: Any,
  *,
  num_bytes: dict[str, int],
  tensor: Callable[[str], np.ndarray],
  writing: _Writing,
) -> None:
  (path / "config.json").write_text(json.dumps(data, indent=2) + "\n")
  ids = {key: data[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
  ids = {key: value for key, value in ids.items() if value is not None}
  if ids and not writing.scalar:
    (path / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
  safetensors.write_tensors(path, num_bytes, tensor, shard_bytes=writing.shard_bytes)
  if tokenizer is not None:
    tokenizer.save_pretrained(path)


def _with_special_ids(config: DecoderConfig, tokenizer: Any) -> DecoderConfig:
  """Fills the special token ids that the config does not know from the tokenizer."""
  if tokenizer is None:
    return config
  end = tokenizer.eos_token_id
  return dataclasses.replace(
    config,
    bos_token_id=tokenizer.bos_token_id if config.bos_token_id is None else config.bos_token_id,
    eos_token_id=config.eos_token_id or (() if end is None else (end,)),
    pad_token_id=tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id,
  )


def _check_params(flat: dict[str, Any], entries: list[hf_names.Entry]) -> None:
  """The weights must be those of the config, and finite."""
  expected = {e.ours: e.shape[::-1] if e.transposed else e.shape for e in entries}
  problems = [f"'{name}' is missing" for name in expected if name not in flat]
  problems += [
    f"'{name}' is not in the config's architecture" for name in flat if name not in expected
  ]
  problems += [
    f"'{name}' has shape {np.shape(flat[name])}, the config says {shape}"
    for name, shape in expected.items()
    if name in flat and np.shape(flat[name]) != shape
  ]
  if problems:
    raise BadCheckpoint("the weights do not fit the config: " + "; ".join(problems))
  broken = trees.non_finite(flat)
  if broken:
    raise NonFinite(f"NaN or infinity in {', '.join(broken)}; such weights are not written")


def _check_dtype(dtype: str) -> None:
  if dtype not in DTYPES:
    raise unknown_name("dtype", dtype, DTYPES)
