"""What a rule has against coefficients and parameters, found out before it reads anything."""

from collections.abc import Sequence

import numpy as np

from wam.core.errors import WamError
from wam.merging.rules import Group
from wam.merging.table import METHODS
from wam.streaming.plan import Output


def needs_sums(output: Output, num_entries: int) -> bool:
  """Whether a rule asks for sums or thresholds over its tensors, so that they are read more than once.

  Args:
    output: one of its tensors.
    num_entries: of all of them.

  Raises:
    WamError: what the rule has against its parameters.
  """
  group = Group(np, len(output.members), num_entries, output.base is not None, output.coefficients)
  steps = METHODS[output.method].rule(group, **output.parameters)
  try:
    next(steps)
  except StopIteration:
    return False
  steps.close()
  return True


def problem_of(group: Sequence[Output]) -> str | None:
  """What is wrong with the coefficients and parameters of the outputs of one group; None where nothing is."""
  first = group[0]
  different = [x.name for x in group if x.parameters != first.parameters]
  if different:
    return f"tensors of one group need the same parameters, {first.name} and {different[0]} differ"
  for output in group:
    outside = _outside(output)
    if outside is not None:
      return outside
    try:
      needs_sums(output, sum(x.num_entries for x in group))
    except WamError as error:
      return str(error)
  return None


def _outside(output: Output) -> str | None:
  """Interpolation beyond its end points has to be asked for, as in memory; mergekit's linear takes any weights."""
  if output.parameters.get("extrapolate", True):
    return None
  eta = output.parameters.get("eta")
  if eta is not None and not 0 <= eta <= 1:
    return f"eta: expected a number in [0, 1], found {eta}; extrapolate: true allows it"
  if output.method == "lerp" and min(output.coefficients) < 0:
    return f"lerp: weights {list(output.coefficients)} lie outside; extrapolate: true allows them"
  return None
