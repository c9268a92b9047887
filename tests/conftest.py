"""Stricter than the program: warnings are errors (setup.cfg), rank promotion raises, eight virtual CPU devices."""

import os
import pathlib

# Before the first import of jax: both are read when the backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


# Compiled as users compile: the merging engine, and tests that compare the bits of programs that differ. In all others
# most optimisations are off, which saves a third of the time.
OPTIMISED = (
  "algorithms/clp_test.py",
  "algorithms/reward_model_population_test.py",
  "benchmarks",
  "core",
  "merging",
  "models/conditioning_test.py",
  "recipes/warp_episodes_test.py",
  "streaming",
  "training/population_test.py",
  "training/resume_test.py",
)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
  """Many tests compile the same programs: a run that is killed and resumed, and the one it is compared with.

  Each worker has a cache of its own: JAX writes entries in place, and another process could read half of one.
  """
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


@pytest.fixture(scope="module", autouse=True)
def compilation(request):
  """Sets how the programs of a test file are compiled; see `OPTIMISED`. `make slow` compiles all of them fully."""
  tests = REPOSITORY / "tests"
  path = request.path.relative_to(tests).as_posix() if request.path.is_relative_to(tests) else ""
  quick = not path.startswith(OPTIMISED) and "not slow" in request.config.option.markexpr
  if quick != jax.config.values["jax_disable_most_optimizations"]:
    # Programs of the file before, compiled the other way.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture
def strict_dtypes():
  """Implicit dtype promotion is an error inside the test (global strictness breaks optax's adamw)."""
  with jax.numpy_dtype_promotion("strict"):
    yield


@pytest.fixture
def passes_all_checks(tmp_path, monkeypatch):
  """Whether `wam run` with these arguments would begin: it is stopped where the workdir would be made."""
  from wam.cli import main as cli
  from wam.training.workdir import Start

  class CheckedError(Exception):
    """Raised where a run would begin."""

  def begin(*args, **keywords):
    raise CheckedError

  def check(*arguments: str) -> bool:
    monkeypatch.setattr(Start, "open", begin)
    try:
      cli.main(["run", *arguments, "--workdir", str(tmp_path / "run"), "--quiet"])
    except CheckedError:
      return True
    return False

  return check


@pytest.fixture(scope="session")
def demo_directory(tmp_path_factory) -> pathlib.Path:
  """Where `make demo` was run at toy size: configs/ and runs/demo/. Tests that change it work on a copy."""
  from tests.toys import TINY
  from wam.cli import main as cli

  directory = tmp_path_factory.mktemp("demo")
  (directory / "configs").symlink_to(REPOSITORY / "configs")
  config, workdir = directory / "configs/alignment_tax/tiny.py", directory / "runs/demo"
  arguments = ["--config", str(config), "--workdir", str(workdir), "--quiet", *TINY]
  assert cli.main(["run", *arguments]) == 0
  return directory


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """Where the real data sets lie: WAM_DATA, else ../shared/data beside the checkout; skips where neither exists."""
  directory = pathlib.Path(os.environ.get("WAM_DATA") or REPOSITORY.parent / "shared" / "data")
  if not directory.is_dir():
    pytest.skip(f"no real data sets: {directory} does not exist (set WAM_DATA)")
  return directory
