"""Parameters that a supervised stage leaves at chosen steps, for good: points of one trajectory.

What Baklava starts from and moving averages average (Ramé et al. 2024, WARM, arXiv 2401.12187, section 3.2). They lie
in `kept/<step>` of the stage's directory, and what was kept twice by a run that was killed has the same bits. Leaves
out checkpoints to resume from (loop.py), and the iterations of algorithms that sample (iterations.py).
"""

import pathlib

from wam.checkpoints import orbax
from wam.core.types import Params, PyTree
from wam.training import sharding
from wam.training.workdir import Run


def path(directory: pathlib.Path, step: int) -> pathlib.Path:
  """Where the parameters after `step` updates of the stage in `directory` lie."""
  return directory / "kept" / str(step)


def save(directory: pathlib.Path, step: int, params: Params) -> None:
  """Keeps the parameters after `step` updates of the stage in `directory`.

  Raises:
    CannotWrite: on a full disk.
  """
  orbax.save(path(directory, step), params)


def steps(run: Run, stage: str) -> list[int]:
  """The steps of a stage after which its parameters were kept, ascending."""
  found = path(run.stage_directory(stage), 0).parent.glob("[0-9]*")
  return sorted(int(each.name) for each in found if each.name.isdigit() and orbax.exists(each))


def load(run: Run, step: int, like: Params, *, stage: str, where: PyTree | None = None) -> Params:
  """The parameters after `step` updates of a stage.

  Args:
    run: the open workdir.
    step: one that was kept.
    like: a tree of their shapes and dtypes.
    stage: its name.
    where: shardings; default those that the run's rules say of `like`.

  Raises:
    MissingFile: if that step was not kept, or not reached.
  """
  if where is None:
    where = sharding.shardings(like, like, run.rules, run.mesh, uneven=run.uneven)
  return orbax.load(path(run.stage_directory(stage), step), sharding.abstract(like, where))
