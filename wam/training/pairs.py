"""Pairs of completions as arrays: which of them can be used, their columns side by side, and the reference's.

The columns are "chosen" and "rejected" [R, T] int32, and for both "…_mask" (real tokens) and "…_loss_mask" (the
completion with its EOS) [R, T] bool. Leaves out how they are made (data/encoding.py) and what is learnt from them.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core.errors import BadData, check_same_shape
from wam.core.types import Params, PyTree
from wam.models.decoder import LanguageModel
from wam.training import completions, iterations, sharding
from wam.training.completions import Sequences
from wam.training.workdir import Run

Rows = dict[str, np.ndarray]
SIDES = ("chosen", "rejected")
PARTS = ("", "_mask", "_loss_mask")
COLUMNS = tuple(f"{side}{part}" for side in SIDES for part in PARTS)


def usable(rows: Mapping[str, np.ndarray], what: str) -> tuple[Rows, int]:
  """The pairs whose completions differ, and how many were left out because they do not.

  Equal completions cannot teach anything: whatever the labels, their log-ratios are equal.

  Args:
    rows: the columns; others are dropped.
    what: names them in messages ("dpo: rows").

  Raises:
    BadData: if a column is missing, a completion has no token at all, or no pair is left.
  """
  missing = [name for name in COLUMNS if name not in rows]
  if missing:
    raise BadData(
      f"{what}: expected columns as encoding.pair_rows makes, missing {', '.join(missing)}"
    )
  columns = {name: np.asarray(rows[name]) for name in COLUMNS}
  check_same_shape(**columns)
  full = np.all([columns[f"{side}_loss_mask"].any(axis=1) for side in SIDES], axis=0)
  if not full.all():
    raise BadData(
      f"{what}: {np.sum(~full)} of {len(full)} pairs have a completion without any token, the first is number"
      f" {np.argmin(full)}; an empty text should be encoded as EOS alone (add_eos=True), or its pair left out"
    )
  chosen, rejected = (np.where(columns[f"{s}_loss_mask"], columns[s], -1) for s in SIDES)
  different = (chosen != rejected).any(axis=1)
  if not different.any():
    why = "in every pair the completions are equal" if len(different) else "there were none"
    raise BadData(f"{what}: no pairs are left of {len(different)}: {why}")
  return {name: x[different] for name, x in columns.items()}, int(np.sum(~different))


def with_reference(
  model: LanguageModel,
  params: Params,
  rows: Rows,
  *,
  path: pathlib.Path,
  run: Run,
  chunk: int,
  dtype: str = "float32",
  logits_chunk: int | None = None,
) -> Rows:
  """The rows and two columns more, "chosen_reference" and "rejected_reference" [R] float32: log-probabilities under
  `params`, computed or, if they lie there, read from `path`; see `completions.reference_logprobs`.
  """
  placed = sharding.put(params, iterations.parameter_shardings(params, run), copy=False)
  found = completions.reference_logprobs(
    model,
    placed,
    {side: Sequences(*(rows[f"{side}{part}"] for part in PARTS)) for side in SIDES},
    path=path,
    run=run,
    chunk=chunk,
    dtype=dtype,
    logits_chunk=logits_chunk,
  )
  return rows | {f"{side}_reference": found[side] for side in SIDES}


def side_by_side(batch: PyTree) -> Sequences:
  """The 2B completions of a batch of B pairs, chosen in the even rows: one forward pass, a pair on one device."""
  return Sequences(*(_alternate(*(batch[f"{side}{part}"] for side in SIDES)) for part in PARTS))


def _alternate(chosen: Any, rejected: Any) -> jax.Array:
  """[B, T], [B, T] -> [2B, T]."""
  return jnp.stack([chosen, rejected], axis=1).reshape(-1, chosen.shape[1])
