"""The rows of an iteration in minibatches of one shape, shuffled anew in every epoch. Leaves out what the rows are."""

from collections.abc import Iterator, Mapping

import numpy as np


def shuffled(
  rows: Mapping[str, np.ndarray],
  draw: np.random.Generator,
  *,
  batch_size: int,
  epochs: int,
  weight: str = "loss_mask",
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of `batch_size` rows; the last of an epoch is filled up with rows whose weight is 0.

  Args:
    rows: arrays [R, ...] by name.
    draw: one permutation is drawn from it for every epoch.
    batch_size: rows of a batch.
    epochs: how often every row comes.
    weight: the name of the array [R, T] that says what counts.
  """
  count = len(rows[weight])
  for _ in range(epochs):
    order = draw.permutation(count)
    for start in range(0, count, batch_size):
      real = order[start : start + batch_size]
      chosen = np.concatenate([real, np.full(batch_size - len(real), order[0])])
      batch = {name: array[chosen] for name, array in rows.items()}
      batch[weight] = batch[weight] * (np.arange(batch_size)[:, None] < len(real))
      yield batch
