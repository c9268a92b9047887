"""The samples that an algorithm kept, iteration by iteration, on the disk: for fine-tuning on them afterwards.

They lie in `<stage directory>/samples/<iteration>`. An iteration that is done again writes the same bits again. Leaves
out which are kept.
"""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from wam.checkpoints import orbax
from wam.core.errors import BadData
from wam.generation.rollouts import Rollout


def save(
  directory: pathlib.Path, iteration: int, rollout: Rollout, kept: np.ndarray, rewards: np.ndarray
) -> None:
  """Writes the rows `kept` of a rollout, in their order, with their rewards.

  Args:
    directory: of the stage.
    iteration: from 1; what lies there is replaced.
    rollout: R completions.
    kept: [K] int, rows of it.
    rewards: [R] float32, by what they were scored.

  Raises:
    CannotWrite: on a full disk.
  """
  orbax.save(
    _path(directory, iteration),
    {
      "tokens": rollout.tokens[kept],
      "mask": rollout.mask[kept],
      "loss_mask": rollout.loss_mask[kept],
      "reward": np.asarray(rewards, np.float32)[kept],
    },
  )


def load(directory: pathlib.Path, iterations: Iterable[int]) -> dict[str, np.ndarray]:
  """The samples of these iterations, one after the other.

  Returns:
    "tokens" [K, T] int32, "mask" and "loss_mask" [K, T] bool: prompts padded on the left, completions on the right and
    named by the loss mask; "reward" [K] float32, "iteration" [K] int32.

  Raises:
    MissingFile: if an iteration kept none, or has not been done.
    BadData: if no iterations are named.
  """
  parts: list[Mapping[str, np.ndarray]] = []
  for i in iterations:
    part = {name: np.asarray(x) for name, x in orbax.load(_path(directory, i)).items()}
    parts.append(part | {"iteration": np.full(len(part["reward"]), i, np.int32)})
  if not parts:
    raise BadData(f"no iterations were named whose samples in {directory} are to be read")
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _path(directory: pathlib.Path, iteration: int) -> pathlib.Path:
  return directory / "samples" / str(iteration)
