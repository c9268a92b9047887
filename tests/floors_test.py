"""The floors: imports point down only, folders of one floor do not know each other, modules stay small.

Parsed, not imported, so that imports inside functions count too.
"""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "wam"

FLOORS = {
  "core": 0,
  "merging": 1,
  "models": 1,
  "checkpoints": 1,
  "data": 1,
  "losses": 1,
  "training": 2,
  "streaming": 2,
  "generation": 2,
  "rewards": 2,
  "pretrained": 2,
  "algorithms": 3,
  "evaluation": 3,
  "recipes": 4,
  "report": 4,
  "cli": 5,
}
# Third-party packages that a folder may import; a folder not named here may import any.
ALLOWED = {"core": {"jax", "numpy", "ml_dtypes"}}
FORBIDDEN = {"report": {"jax", "jaxlib", "flax", "optax", "orbax"}}
MAX_LINES = 400


def room_of(path: pathlib.Path) -> str:
  """The folder of wam/ that a file lies in, or the module's own name."""
  first = path.relative_to(PACKAGE).parts[0]
  return first.removesuffix(".py")


def nodes(tree: ast.AST, *, at_load: bool):
  """All nodes, or those only that run when the module is loaded (not the bodies of functions)."""
  for node in ast.iter_child_nodes(tree):
    if at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      continue
    yield node
    yield from nodes(node, at_load=at_load)


def imported(
  source: str, package: tuple[str, ...], *, at_load: bool = False
) -> list[tuple[int, str]]:
  """(line, dotted name) of what a module that lies in `package` imports anywhere, or when it is loaded."""
  found = []
  for node in nodes(ast.parse(source), at_load=at_load):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else ()
      stem = ".".join([*base, *([node.module] if node.module else [])])
      found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
      first = node.args[0] if node.args else None
      if isinstance(first, ast.Constant) and isinstance(first.value, str):
        found.append((node.lineno, first.value))
  return found


def violations(room: str, source: str, package: tuple[str, ...]) -> list[str]:
  """What in a module of this room breaks the rules of the floors."""
  problems = []
  for line, name in imported(source, package):
    top, *rest = name.split(".")
    if top != "wam":
      if room in ALLOWED and top not in ALLOWED[room] and not is_standard(top):
        problems.append(f"{line}: {room} imports {top}")
      if top in FORBIDDEN.get(room, ()):
        problems.append(f"{line}: {room} imports {top}")
      continue
    other = rest[0] if rest else ""
    if other == room or other not in FLOORS:
      continue
    if FLOORS[other] > FLOORS[room]:
      problems.append(f"{line}: {room} (floor {FLOORS[room]}) imports {other} above it")
    elif FLOORS[other] == FLOORS[room]:
      problems.append(f"{line}: {room} imports {other} of its own floor")
  return problems


def is_standard(name: str) -> bool:
  return name in sys.stdlib_module_names


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
  room = room_of(path)
  assert room in FLOORS, f"{room} has no floor: add it to the design"
  package = ("wam", *path.relative_to(PACKAGE).parts[:-1])
  assert violations(room, path.read_text(), package) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_small(path):
  assert len(path.read_text().splitlines()) <= MAX_LINES


def test_report_does_not_reach_jax_through_other_rooms():
  """What report imports of wam, directly or not, imports no JAX when it is loaded."""
  todo = [p for p in MODULES if room_of(p) == "report"]
  seen = set(todo)
  while todo:
    path = todo.pop()
    package = ("wam", *path.relative_to(PACKAGE).parts[:-1])
    for line, name in imported(path.read_text(), package, at_load=True):
      top, *rest = name.split(".")
      assert top not in FORBIDDEN["report"], f"{path}:{line} imports {top}, and report imports it"
      if top != "wam":
        continue
      for depth in range(1, len(rest) + 1):
        stem = PACKAGE.joinpath(*rest[:depth])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
          if file.is_file() and file not in seen:
            seen.add(file)
            todo.append(file)


@pytest.mark.parametrize(
  ("room", "source", "problems"),
  [
    ("merging", "from wam.core import trees", 0),
    ("merging", "from wam.merging.members import listed", 0),
    ("merging", "from wam.models import decoder", 1),
    ("merging", "from wam import models", 1),
    ("merging", "from ..models import decoder", 1),
    ("merging", "def f():\n  import wam.training.loop", 1),
    ("merging", "import importlib\nimportlib.import_module('wam.cli.main')", 1),
    ("core", "import json\nimport jax.numpy as jnp", 0),
    ("core", "import flax", 1),
    ("report", "def f():\n  from jax import numpy", 1),
    ("evaluation", "import wam.algorithms", 1),
    ("evaluation", "from wam.merging import averages", 0),
  ],
)
def test_the_rules_catch_what_they_should(room, source, problems):
  assert len(violations(room, source, ("wam", room))) == problems
