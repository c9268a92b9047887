"""The state of an algorithm that alternates sampling and training: what an iteration saves, and how it resumes.

An iteration is committed as a whole: killed inside one, the run does it again and ends with the same bits. The
parameters after every iteration are kept for good; the state to go on from only until the stage is done. Leaves out
what happens in an iteration.
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from wam.checkpoints import orbax
from wam.core.errors import NonFinite
from wam.core.types import Params, PyTree
from wam.training import loop, sharding
from wam.training.state import Pair
from wam.training.step import averages
from wam.training.workdir import Run

State = TypeVar("State")


class Iterations(Generic[State]):
  """The state under training, and the iterations that it has done.

  Attributes:
    state: any pytree; assign the new one.
    iteration: iterations that are done.
    where: shardings of the state.
  """

  state: State

  def __init__(
    self,
    start: Callable[[Params], State],
    params: Params,
    *,
    run: Run,
    stage: str,
    num_iterations: int,
  ):
    """Starts from start(params), or from the last iteration that was committed; its records and no later ones stay.

    Args:
      start: the state before the first iteration, traced under jit; leaves that are named and shaped as parameters lie
        where those lie.
      params: what training starts from; not consumed.
      run: the open workdir.
      stage: names the stage.
      num_iterations: of the whole stage.
    """
    self._run, self._stage, self._num_iterations = run, stage, num_iterations
    self._directory = run.stage_directory(stage)
    self._checkpoints = orbax.Checkpoints(self._directory / "steps")
    shapes = jax.eval_shape(start, params)
    self.where = sharding.shardings(shapes, params, run.rules, run.mesh, uneven=run.uneven)
    latest = self._checkpoints.latest
    run.records.drop_after(stage, latest or 0)
    self.iteration = latest or 0
    if latest is None:
      placed = sharding.put(params, parameter_shardings(params, run))
      self.state = jax.jit(start, out_shardings=self.where)(placed)
    else:
      self.state = self._checkpoints.load(latest, sharding.abstract(shapes, self.where))

  @property
  def done(self) -> bool:
    """Whether all iterations are committed."""
    return self.iteration >= self._num_iterations

  def commit(self, params: Params, *, keep: bool = True) -> None:
    """Saves the iteration's parameters for good, and the state to go on from (the last is followed by the result).

    Args:
      params: after the iteration.
      keep: False only counts the iteration, unless it is the last: killed, the run does all again since the last one
        that was kept, and ends with the same bits. For iterations that are shorter than it takes to save them.

    Raises:
      Interrupted: after SIGTERM or Ctrl-C; the iteration is saved.
    """
    self.iteration += 1
    if not (keep or self.done):
      return
    orbax.save(iteration_path(self._directory, self.iteration), params)
    if not self.done:
      self._run.records.sync()
      self._checkpoints.save(self.iteration, self.state)
      self._run.interrupts.check(f"{self._stage}: iteration {self.iteration} is saved")

  def close(self) -> None:
    """Ends the background threads of the checkpoints."""
    self._checkpoints.close()


def parameter_shardings(params: Params, run: Run) -> PyTree:
  """Where parameters lie, as the run's rules say."""
  return sharding.shardings(params, params, run.rules, run.mesh, uneven=run.uneven)


def iteration_path(directory: pathlib.Path, iteration: int) -> pathlib.Path:
  """Where the parameters after an iteration (from 1) of the stage in `directory` lie."""
  return directory / "iterations" / str(iteration)


def load_iteration(run: Run, iteration: int, like: Params, *, stage: str) -> Params:
  """The parameters after an iteration (from 1), placed as the run's rules say.

  Raises:
    MissingFile: if that iteration has not been done.
  """
  path = iteration_path(run.stage_directory(stage), iteration)
  return orbax.load(path, sharding.abstract(like, parameter_shardings(like, run)))


def load_result(run: Run, like: Params, *, stage: str) -> Params | None:
  """The parameters of a stage that is done; None if it is not."""
  return loop.load_result(run.stage_directory(stage), like, parameter_shardings(like, run))


def averaged(
  history: list[dict[str, Pair]], params: Params, *, stage: str, iteration: int
) -> dict[str, float]:
  """Averages over the updates of an iteration; nothing where there were none.

  Raises:
    NonFinite: if a loss or a parameter is not finite; names stage and iteration.
  """
  if not history:
    return {}
  fetched = sharding.fetch(history)
  sums: Mapping[str, Any] = {
    name: np.sum([metrics[name] for metrics in fetched], axis=0) for name in fetched[0]
  }
  if not math.isfinite(sums["loss"][0]):
    raise NonFinite(
      f"{stage}: a loss of iteration {iteration} is not finite; a lower learning rate may help"
    )
  loop.check_finite(params, stage=stage, step=iteration)
  return averages(sums)
