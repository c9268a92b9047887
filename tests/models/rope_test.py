"""Rotary tables: closed forms and the shape of each scaling (numbers against torch: golden_test.py)."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.models import rope
from wam.models.config import DecoderConfig, RopeScaling

BASE = DecoderConfig(
  vocab_size=8,
  hidden_size=16,
  intermediate_size=8,
  num_layers=1,
  num_heads=2,
  rope_theta=100.0,
  max_position_embeddings=64,
)
PLAIN = 100.0 ** -(np.arange(0, 8, 2) / 8)


def frequencies(scaling, length=10):
  return rope.scaled_frequencies(dataclasses.replace(BASE, rope_scaling=scaling), length)


def test_rotation_is_by_position_times_frequency():
  cos, sin = rope.tables(BASE, jnp.asarray([[0, 3]]))
  np.testing.assert_allclose(cos[0, 1, 0], np.cos(3 * PLAIN), atol=1e-6)
  np.testing.assert_allclose(sin[0, 1, 0], np.sin(3 * PLAIN), atol=1e-6)
  np.testing.assert_array_equal(cos[0, 0, 0], np.ones(4))


def test_rotated_products_depend_on_the_difference_of_positions_only():
  random = np.random.default_rng(0)
  q, k = (jnp.asarray(random.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

  def product(at_q, at_k):
    turned = [
      rope.rotate(x, *rope.tables(BASE, jnp.asarray([[at]]))) for x, at in ((q, at_q), (k, at_k))
    ]
    return float((turned[0] * turned[1]).sum())

  assert product(2, 5) == pytest.approx(product(12, 15), abs=1e-5)
  assert product(2, 5) != pytest.approx(product(2, 6), abs=1e-2)


def test_linear_divides_every_frequency():
  found, factor = frequencies(RopeScaling("linear", factor=4.0))
  np.testing.assert_allclose(found, PLAIN / 4)
  assert factor == 1.0


def test_dynamic_is_plain_within_the_context_and_slower_beyond():
  scaling = RopeScaling("dynamic", factor=2.0)
  np.testing.assert_allclose(frequencies(scaling, 64)[0], PLAIN, rtol=1e-5)
  base = 100.0 * (2.0 * 128 / 64 - 1) ** (8 / 6)
  np.testing.assert_allclose(
    frequencies(scaling, 128)[0], base ** -(np.arange(0, 8, 2) / 8), rtol=1e-5
  )


def test_llama3_keeps_short_waves_and_stretches_long_ones():
  scaling = RopeScaling(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
  )
  found, _ = frequencies(scaling)
  wavelengths = 2 * math.pi / PLAIN
  assert wavelengths[0] < 32 / 4
  assert wavelengths[-1] > 32
  assert found[0] == pytest.approx(PLAIN[0])
  assert found[-1] == pytest.approx(PLAIN[-1] / 8)
  smooth = (32 / wavelengths[1] - 1) / 3
  assert found[1] == pytest.approx((1 - smooth) * PLAIN[1] / 8 + smooth * PLAIN[1])


def test_yarn_attention_factor_is_the_papers():
  scaling = RopeScaling("yarn", factor=4.0, original_max_position_embeddings=16)
  assert frequencies(scaling)[1] == pytest.approx(0.1 * math.log(4) + 1)
  given = dataclasses.replace(scaling, attention_factor=1.5)
  assert frequencies(given)[1] == 1.5


def test_longrope_switches_its_divisors_beyond_the_original_context():
  scaling = RopeScaling(
    "longrope",
    original_max_position_embeddings=16,
    short_factor=(1.0,) * 4,
    long_factor=(2.0, 3.0, 4.0, 5.0),
  )
  np.testing.assert_allclose(frequencies(scaling, 16)[0], PLAIN, rtol=1e-6)
  np.testing.assert_allclose(frequencies(scaling, 17)[0], PLAIN / [2, 3, 4, 5], rtol=1e-6)


def test_incomplete_and_unknown_scalings_are_refused():
  with pytest.raises(ConfigError, match="low_freq_factor, high_freq_factor"):
    RopeScaling("llama3", factor=2.0, original_max_position_embeddings=8)
  with pytest.raises(UnknownName, match="Did you mean 'linear'"):
    RopeScaling("linaer", factor=2.0)
