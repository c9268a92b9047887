"""Named streams: the same in every process, different by seed, name and step."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core import rng

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def data(key):
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_streams_differ_by_seed_name_and_step():
  keys = {
    data(rng.key(seed, name, step))
    for seed in range(3)
    for name in ("sft/dropout", "sft/data", "")
    for step in range(4)
  }
  assert len(keys) == 3 * 3 * 4


def test_a_traced_step_draws_what_a_known_one_draws():
  traced = jax.jit(lambda step: jax.random.key_data(rng.key(1, "x", step)))(jnp.int32(7))
  assert tuple(np.asarray(traced).tolist()) == data(rng.key(1, "x", 7))


def test_streams_are_the_same_in_another_process():
  """Python salts its own hashes by process."""
  code = (
    "import jax, numpy; from wam.core import rng;"
    "print(numpy.asarray(jax.random.key_data(rng.key(3, 'a/b', 2))).tolist(),"
    " rng.generator(3, 'a/b').integers(1 << 30))"
  )
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  expected = f"{list(data(rng.key(3, 'a/b', 2)))} {rng.generator(3, 'a/b').integers(1 << 30)}"
  assert result.stdout.strip() == expected


def test_generators_repeat_and_differ():
  draw = lambda *a: rng.generator(*a).integers(1 << 60)  # noqa: E731
  assert draw(0, "a") == draw(0, "a")
  assert len({draw(0, "a"), draw(1, "a"), draw(0, "b")}) == 3
