"""The errors a user can cause, and the checks that raise them.

Every error says what was found, what was expected and what to do. All share the base `WamError`, which the command line
turns into one line and exit status 2; each also subclasses the built-in that it is a case of.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class WamError(Exception):
  """Base of all errors that the user can mend."""


class ConfigError(WamError, ValueError):
  """A configuration value is missing, misspelt or contradicts another."""


class MissingFile(WamError, FileNotFoundError):  # noqa: N818 (reads better without a suffix, as in FileNotFound)
  """A file or directory that was named does not exist."""


class BadData(WamError, ValueError):  # noqa: N818
  """A data file cannot be used as it stands; names the file and line."""


class BadCheckpoint(WamError, ValueError):  # noqa: N818
  """A checkpoint is truncated, malformed, or disagrees with its config; names the tensors."""


class MismatchedTrees(WamError, ValueError):  # noqa: N818
  """Trees that must agree in names and shapes do not; names every leaf that differs."""


class UncoveredLeaves(WamError, ValueError):  # noqa: N818
  """Rules that must cover every leaf leave some out; names them."""


class NonFinite(WamError, ValueError):  # noqa: N818
  """A tensor or a loss holds NaN or infinity."""


class UnknownName(WamError, ValueError):  # noqa: N818
  """A name is not among the choices; suggests the nearest."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
  """Returns " Did you mean 'x'?" for the nearest choice, or an empty string when none is near."""
  near = difflib.get_close_matches(name, list(choices), n=1)
  return f" Did you mean '{near[0]}'?" if near else ""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UnknownName:
  """Builds the error for a `name` that is none of the `choices` of this `kind`.

  >>> print(unknown_name("merge method", "slrp", ["lerp", "slerp"]))
  unknown merge method 'slrp'. Did you mean 'slerp'? Choices: lerp, slerp
  """
  choices = sorted(choices)
  return UnknownName(
    f"unknown {kind} '{name}'.{did_you_mean(name, choices)} Choices: {', '.join(choices)}"
  )


def check_rank(name: str, array: Any, rank: int) -> None:
  """Raises ValueError unless `array` has `rank` axes."""
  import numpy as np  # not above: the command line sets how it runs before it is loaded

  if np.ndim(array) != rank:
    raise ValueError(f"{name}: expected {rank} axes, found shape {np.shape(array)}")


def check_same_shape(**arrays: Any) -> None:
  """Raises ValueError, naming each array and its shape, unless all shapes are equal."""
  import numpy as np

  shapes = {name: np.shape(array) for name, array in arrays.items()}
  if len(set(shapes.values())) > 1:
    raise ValueError("shapes differ: " + ", ".join(f"{n} {s}" for n, s in shapes.items()))


def check_same_trees(*trees: Any, names: Sequence[str] | None = None) -> None:
  """Checks that all trees have the leaves of the first one, with equal shapes.

  Args:
    *trees: pytrees of arrays or of anything with a `shape`.
    names: what to call the trees in the message; default "member 0", "member 1", ...

  Raises:
    MismatchedTrees: names every missing, extra or differently shaped leaf of every tree.
  """
  import jax  # not above: the report and the command line raise these errors without loading JAX
  import numpy as np

  labels = names or [f"member {i}" for i in range(len(trees))]
  flat = [
    {
      jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
      for path, leaf in leaves
    }
    for leaves in (jax.tree_util.tree_leaves_with_path(tree) for tree in trees)
  ]
  problems = []
  for label, leaves in zip(labels[1:], flat[1:], strict=True):
    problems += [f"'{n}' is missing from {label}" for n in flat[0].keys() - leaves.keys()]
    problems += [f"'{n}' is only in {label}" for n in leaves.keys() - flat[0].keys()]
    problems += [
      f"'{n}' has shape {leaves[n]} in {label} but {flat[0][n]} in {labels[0]}"
      for n in flat[0].keys() & leaves.keys()
      if leaves[n] != flat[0][n]
    ]
  if problems:
    raise MismatchedTrees(
      f"{len(problems)} leaves do not agree: "
      + "; ".join(sorted(problems))
      + ". Only networks of one architecture can be combined."
    )
