"""The state of a search over a few numbers, in one JSON file: exact, and whole or not there. Leaves out weights."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from wam.checkpoints.records import write_atomically
from wam.core.errors import BadCheckpoint

State = TypeVar("State")


class SmallState:
  """Where a search stands, or what it found.

  The first process writes; every process must see the file.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the file where there is one.

    Raises:
      BadCheckpoint: if it is not such a file.
    """
    self._path = path
    self._content: Mapping[str, Any] = {}
    if path.is_file():
      try:
        self._content = json.loads(path.read_text(encoding="utf-8"))
      except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadCheckpoint(
          f"{path}: not the state of a search; remove it to begin again"
        ) from error

  @property
  def result(self) -> dict[str, Any] | None:
    """What the search found; None while it runs."""
    return self._content.get("result")

  def restore(self, start: State) -> tuple[State, list[float]]:
    """The state that was saved, with the leaves of `start`, and the values so far; `start` where there is none.

    Raises:
      BadCheckpoint: if the leaves that were saved are not those of `start`.
    """
    if "leaves" not in self._content:
      return start, []
    like, structure = jax.tree.flatten(start)
    saved = [np.asarray(x) for x in self._content["leaves"]]
    if [x.shape for x in saved] != [np.shape(x) for x in like]:
      raise BadCheckpoint(
        f"{self._path}: expected the shapes {[np.shape(x) for x in like]}, found"
        f" {[x.shape for x in saved]}; another search was saved there, remove it to begin again"
      )
    leaves = [jnp.asarray(x, jnp.asarray(y).dtype) for x, y in zip(saved, like, strict=True)]
    return jax.tree.unflatten(structure, leaves), list(self._content["values"])

  def save(self, state: Any, values: list[float]) -> None:
    """Saves the state of a search; float32 numbers survive as text.

    Raises:
      CannotWrite: on a full disk; what was saved before is intact.
    """
    leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(state)]
    self._write({"leaves": leaves, "values": values})

  def finish(self, result: Mapping[str, Any]) -> None:
    """Saves what was found in place of the state."""
    self._write({"result": dict(result)})

  def _write(self, content: Mapping[str, Any]) -> None:
    self._content = content
    if jax.process_index() == 0:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      write_atomically(self._path, json.dumps(content) + "\n")
