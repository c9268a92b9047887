"""Masks that a rule asks for in every sweep over a tensor, kept from one sweep to the next at a bit an entry.

There is room for a given number of bytes; what does not fit is worked out again, which costs time and changes nothing.
"""

import math
import threading
from collections.abc import Callable

import numpy as np


class Masks:
  """The masks of the tensors that are under way, for several threads."""

  def __init__(self, room: int):
    """Starts with none, and room for so many bytes."""
    self._room = room
    self._lock = threading.Lock()
    self._packed: dict[str, dict[tuple[int, str], np.ndarray]] = {}

  def get(
    self,
    tensor: str,
    start: int,
    name: str,
    mask: Callable[[], np.ndarray],
    *,
    shape: tuple[int, ...],
    keep: bool,
  ) -> np.ndarray:
    """The mask of a block: kept, or worked out and then kept if there is room.

    Args:
      tensor: whose block it is.
      start: the first entry of the block.
      name: of the mask.
      mask: works it out.
      shape: of the block and the mask.
      keep: whether it will be asked for again.
    """
    packed = self._packed.get(tensor, {}).get((start, name))
    if packed is not None:
      size = math.prod(shape)
      return np.unpackbits(packed, count=size).view(bool).reshape(shape)
    made = mask()
    if keep:
      packed = np.packbits(made)
      with self._lock:
        if packed.nbytes <= self._room:
          self._room -= packed.nbytes
          self._packed.setdefault(tensor, {})[start, name] = packed
    return made

  def forget(self, tensor: str) -> None:
    """Makes room: the tensor is done."""
    with self._lock:
      self._room += sum(x.nbytes for x in self._packed.pop(tensor, {}).values())
