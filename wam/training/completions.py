"""Log-probabilities of whole completions: under gradients, and of a reference, computed once and kept on the disk.

What direct preference methods are made of. Leaves out the losses, and per-token log-probabilities (losses/sequence.py).
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from wam.checkpoints import orbax
from wam.core import trees
from wam.core.errors import NonFinite, check_same_shape
from wam.core.types import Params
from wam.losses import sequence
from wam.models.decoder import LanguageModel
from wam.training import sharding
from wam.training.workdir import Run

# Widths are rounded up to a multiple of this, to keep the number of compiled shapes small.
_MULTIPLE = 8


class Sequences(NamedTuple):
  """Rows of prompt and completion, padded on either side."""

  tokens: Any  # [B, T] int32
  mask: Any  # [B, T] bool, real tokens
  loss_mask: Any  # [B, T] bool, the completion with its EOS


def width(*loss_masks: np.ndarray) -> int:
  """Positions that `logprobs` has to look at: the longest completion of any row and the token before it, rounded up."""
  longest = 0
  for mask in loss_masks:
    T = mask.shape[1]
    first, last = np.argmax(mask, axis=1), T - 1 - np.argmax(mask[:, ::-1], axis=1)
    longest = max(longest, int(np.max(np.where(mask.any(axis=1), last - first + 1, 0), initial=0)))
  return min(-(-(longest + 1) // _MULTIPLE) * _MULTIPLE, loss_masks[0].shape[1])


def logprobs(
  model: LanguageModel,
  params: Params,
  rows: Sequences,
  *,
  positions: int | None = None,
  dtype: Any = jnp.float32,
  remat: bool = False,
  logits_chunk: int | None = None,
) -> jax.Array:
  """log π(completion | prompt) at temperature 1, the sum over the tokens of the loss mask: [B] float32, in nats.

  Args:
    model: the decoder.
    params: its weights.
    rows: B of them.
    positions: logits are computed at so many positions of each row, from the one that predicts the completion's first
      token on; what `width` says, or None for all. Those of the prompt would be thrown away.
    dtype, remat: as in `LanguageModel.apply`.
    logits_chunk: positions whose logits are held at a time; None for all.
  """
  check_same_shape(tokens=rows.tokens, mask=rows.mask, loss_mask=rows.loss_mask)
  tokens, weights = jnp.asarray(rows.tokens), jnp.asarray(rows.loss_mask)
  hidden = model.apply(
    params, tokens, mask=rows.mask, dtype=dtype, remat=remat, logits=False
  ).hidden
  T = tokens.shape[1]
  if positions is not None and positions < T:
    start = jnp.clip(jnp.argmax(weights, axis=1) - 1, 0, T - positions)

    def cut(x: jax.Array) -> jax.Array:
      return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, positions))(x, start)

    hidden, tokens, weights = cut(hidden), cut(tokens), cut(weights)
  if logits_chunk is None:
    scores = sequence.token_logprobs(model.logits(params, hidden), tokens)
  else:
    scores = sequence.token_logprobs_from_hidden(
      hidden, tokens, lambda h: model.logits(params, h), chunk=logits_chunk
    )
  return jnp.sum(jnp.where(weights, scores, 0.0), axis=1)


def reference_logprobs(
  model: LanguageModel,
  params: Params,
  sides: Mapping[str, Sequences],
  *,
  path: pathlib.Path,
  run: Run,
  chunk: int,
  dtype: str = "float32",
  logits_chunk: int | None = None,
) -> dict[str, np.ndarray]:
  """`logprobs` of all rows under fixed weights, from `path` where they lie there already.

  What lies there is used only if it was computed from the same rows, weights, model and dtype (by their fingerprint),
  and replaced otherwise. So a run that goes on does not compute them again, and holds no second copy of the weights.

  Args:
    model: the decoder.
    params: the reference.
    sides: NumPy arrays [R, T] by name ("chosen", "rejected").
    path: a directory of its own.
    run: the open workdir; gives the mesh.
    chunk: rows at a time; one program is compiled for it.
    dtype, logits_chunk: as in `logprobs`.

  Returns:
    [R] float32 by name.

  Raises:
    NonFinite: if one is NaN or infinite; names the row. Interrupted: between two chunks.
  """
  mark = _fingerprint(model, params, sides, dtype)
  if _everywhere(orbax.exists(path) and orbax.load_extra(path) == mark):
    return {name: np.asarray(x) for name, x in orbax.load(path).items()}
  positions = width(*(rows.loss_mask for rows in sides.values()))

  # One program for all chunks, not kept beyond this call.
  @jax.jit
  def compute(weights: Params, rows: Sequences) -> jax.Array:
    return logprobs(
      model,
      weights,
      rows,
      positions=positions,
      dtype=jnp.dtype(dtype),
      logits_chunk=logits_chunk,
    )

  found = {}
  for name, rows in sides.items():
    pieces = []
    for part, real in chunks(rows._asdict(), chunk):
      run.interrupts.check("the log-probabilities of the reference")
      placed = sharding.put_whole_batch(part, run.mesh)
      pieces.append(sharding.fetch(compute(params, Sequences(**placed)))[real])
    found[name] = np.concatenate(pieces)
    bad = np.flatnonzero(~np.isfinite(found[name]))
    if bad.size:
      raise NonFinite(
        f"the reference's log-probabilities of {bad.size} of {len(found[name])} {name} completions are not finite,"
        f" the first is that of row {bad[0]}; look at its tokens, and at the weights"
      )
  orbax.save(path, found, mark)
  return found


def chunks(
  arrays: Mapping[str, np.ndarray], size: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
  """Pieces of `size` rows, the last filled up with the first row; and which rows of a piece [size] are no filling."""
  count = len(next(iter(arrays.values())))
  for start in range(0, count, size):
    index = np.arange(start, start + size)
    real = index < count
    yield {name: x[np.where(real, index, 0)] for name, x in arrays.items()}, real


def _everywhere(found: bool) -> bool:
  """Whether all processes say so: then none computes while another reads."""
  if jax.process_count() == 1:
    return found
  return bool(np.min(multihost_utils.process_allgather(np.int32(found))))


def _fingerprint(
  model: LanguageModel, params: Params, sides: Mapping[str, Sequences], dtype: str
) -> str:
  """A hash of everything that the log-probabilities depend on."""
  digest = hashlib.sha256(f"{model!r} {dtype}".encode())
  for name, rows in sides.items():
    for field, array in rows._asdict().items():
      digest.update(f"{name} {field} {array.shape} {array.dtype}".encode())
      digest.update(np.ascontiguousarray(array).tobytes())
  shapes = {name: (np.shape(x), str(x.dtype)) for name, x in trees.flatten(params).items()}
  digest.update(json.dumps(shapes).encode())
  digest.update(sharding.fetch(_checksums(params)).tobytes())
  return digest.hexdigest()


@jax.jit
def _checksums(params: Params) -> jax.Array:
  """One number a leaf, [leaves] uint32: the same however the leaf is split over devices, since integer sums wrap."""
  return jnp.stack([_checksum(x) for x in jax.tree.leaves(params)])


def _checksum(x: jax.Array) -> jax.Array:
  """Σ over entries of a mix of the entry's bits and its place, modulo 2^32."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  place, stride = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= x.shape[axis]
  # The finaliser of MurmurHash3: every bit of entry and place reaches every bit of the sum.
  mixed = bits ^ (place * jnp.uint32(0x9E3779B9))
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
