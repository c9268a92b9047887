"""Programs that are compiled once for many stages: members and comparisons train by equal programs, one after another.

Each stage traces its own functions, so that JAX would compile every one anew; its cache of compiled programs finds them
by what they compute. Leaves out caches that outlive the process.
"""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

DIRECTORY = "jax_compilation_cache_dir"
SHORTEST = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
  """Within it, programs that take longer than 0.1 s to compile are kept in a temporary directory of this process.

  Where JAX has a cache already (JAX_COMPILATION_CACHE_DIR), that one stays as it is.
  """
  if getattr(jax.config, DIRECTORY):
    yield
    return
  before = getattr(jax.config, SHORTEST)
  with tempfile.TemporaryDirectory(prefix="wam-programs-") as directory:
    jax.config.update(DIRECTORY, directory)
    jax.config.update(SHORTEST, 0.1)
    compilation_cache.reset_cache()
    try:
      yield
    finally:
      jax.config.update(DIRECTORY, None)
      jax.config.update(SHORTEST, before)
      compilation_cache.reset_cache()
