"""Random streams with names.

A stream is (seed, name, step). Adding a stream never moves another one, and a run that resumes at a step draws what it
would have drawn there.
"""

import hashlib

import jax
import numpy as np


def _fingerprint(name: str) -> int:
  """A 32-bit hash of the name that is the same in every process (Python's own is salted)."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def key(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
  """The jax key of the stream `name` ("sft/dropout") at `step`.

  Args:
    seed: the run's seed.
    name: the stream's name; any string.
    step: a Python int or a traced int32 scalar.

  Returns:
    A typed key, shape [].
  """
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _fingerprint(name)), step)


def generator(seed: int, name: str) -> np.random.Generator:
  """The numpy generator of the stream `name`."""
  return np.random.default_rng([seed, _fingerprint(name)])
