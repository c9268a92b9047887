"""Every example of the README is executed, and its tree is the repository's; its commands: configs_test.py."""

import re
import shlex
import subprocess

import jax.numpy as jnp
import pytest

from tests.conftest import REPOSITORY
from tests.readme import BLOCKS, COMMANDS, README
from tests.toys import OVERRIDES
from wam.merging.methods import METHODS
from wam.report import ledgers


def test_python_example():
  (code,) = (text for kind, text in BLOCKS if kind == "python")
  assert len(code.splitlines()) <= 12
  names: dict = {}
  exec(code, names)
  expected = (
    names["a"]["layers"]["0"]["mlp"]["kernel"] + names["b"]["layers"]["0"]["mlp"]["kernel"]
  ) / 2
  assert jnp.allclose(names["soup"]["layers"]["0"]["mlp"]["kernel"], expected)
  kernels = [names[n]["layers"]["0"]["mlp"]["kernel"] for n in ("mixed", "a")]
  assert jnp.allclose(kernels[0], 0.2 * kernels[1])
  assert jnp.array_equal(
    names["mixed"]["layers"]["1"]["mlp"]["kernel"], names["a"]["layers"]["1"]["mlp"]["kernel"]
  )


def test_make_targets():
  for command in (c for c in COMMANDS if c.startswith("make ")):
    output = subprocess.run(
      [*shlex.split(command), "-n"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    if command == "make demo":
      assert "wam run --config configs/alignment_tax/tiny.py --workdir runs/demo" in output.stdout
    if command == "make test":
      assert "pytest" in output.stdout and "mypy" in output.stdout


def test_runs_are_those_of_the_shipped_configs():
  """Which configs_test.py executes."""
  for command in (c for c in COMMANDS if c.startswith("wam run")):
    path = re.search(r"--config configs/(\S+)", command)[1]
    assert path in OVERRIDES
    assert command in (REPOSITORY / "configs" / path).read_text()


def test_the_table_of_methods_is_complete():
  rows = [line for line in README.splitlines() if line.startswith("| `")]
  named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
  assert named >= set(METHODS)


# The columns of the tables of claims: which ledgers say what stands there, and by which judge.
VERDICTS = {
  "by the gold reward": (["alignment_tax"], "gold"),
  "by the reward model": (["alignment_tax"], "proxy"),
  "in the small world": (["warm", "warp"], "gold"),
  "on the Llama": (["warm_stories", "warp_stories"], "control"),
  "conflicting rewards": (["rewarded_soups"], ""),
  "compatible rewards": (["compatible_rewards"], ""),
}


def claim_tables():
  """(heads, rows) of every table of claims, its cells stripped."""
  found = []
  for block in README.split("\n\n"):
    lines = [line for line in block.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    if rows and rows[0][0] == "claim":
      found.append((rows[0], rows[2:]))
  return found


@pytest.mark.parametrize("table", claim_tables(), ids=lambda table: table[0][2])
def test_tables_of_claims_are_what_the_ledgers_say(table):
  heads, rows = table
  for name, paper, *verdicts in rows:
    for head, shown in zip(heads[2:], verdicts, strict=True):
      experiments, judge = VERDICTS[head]
      entries = [e for x in experiments for e in ledgers.read(REPOSITORY / "experiments" / x)]
      found = [e for e in entries if e.claim in (name, f"{name} ({judge})")]
      # What needs no judge stands in the first column.
      if not found or (found[0].claim == name and judge == "proxy"):
        assert shown == "", (name, head)
      else:
        assert shown == found[0].verdict, (name, head)
        assert paper == found[0].paper, name


def test_every_command_is_covered():
  covered = ("make ", "wam ", "export WAM_DATA=")
  assert all(command.startswith(covered) for command in COMMANDS), COMMANDS


def test_tree_is_the_repository():
  tree = next(text for kind, text in BLOCKS if not kind and "wam/core" in text)
  listed = {line.split()[0] for line in tree.splitlines() if line.strip()}
  found = subprocess.run(
    ["git", "ls-files", "wam", "configs"], cwd=REPOSITORY, capture_output=True, text=True
  )
  if found.returncode:
    pytest.skip("not a git checkout")
  files = {f for f in found.stdout.split() if f.endswith(".py") and not f.endswith("__init__.py")}
  assert files <= listed, files - listed
  assert all((REPOSITORY / path).exists() for path in listed), listed


def test_links_and_pictures_exist():
  for target in re.findall(r"\]\(([^)#]+)\)", README):
    assert (REPOSITORY / target).exists(), target
