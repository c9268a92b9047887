"""The cache of compiled programs: used within, gone afterwards, and not in the way of the user's own."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from wam.training import program_cache


@pytest.fixture
def without_cache():
  """As a program starts; the tests themselves have a cache."""
  options = (program_cache.DIRECTORY, program_cache.SHORTEST)
  before = {name: getattr(jax.config, name) for name in options}
  jax.config.update(program_cache.DIRECTORY, None)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_programs_are_kept_within_and_gone_afterwards(without_cache):
  shortest = getattr(jax.config, program_cache.SHORTEST)
  with program_cache.shared_programs():
    directory = pathlib.Path(getattr(jax.config, program_cache.DIRECTORY))
    jax.config.update(program_cache.SHORTEST, 0.0)
    jax.jit(lambda x: jnp.sin(x) + 3.5)(jnp.ones(7)).block_until_ready()
    assert list(directory.iterdir())
  assert not directory.exists()
  assert getattr(jax.config, program_cache.DIRECTORY) is None
  assert getattr(jax.config, program_cache.SHORTEST) == shortest


def test_it_ends_with_an_error_too(without_cache):
  with pytest.raises(KeyError), program_cache.shared_programs():
    raise KeyError
  assert getattr(jax.config, program_cache.DIRECTORY) is None


def test_another_cache_stays(without_cache, tmp_path):
  jax.config.update(program_cache.DIRECTORY, str(tmp_path))
  with program_cache.shared_programs():
    assert getattr(jax.config, program_cache.DIRECTORY) == str(tmp_path)
  assert getattr(jax.config, program_cache.DIRECTORY) == str(tmp_path)
