"""Logits against numbers that transformers' torch models gave once (tests/parity/make_golden.py), without torch."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.cases import CASES, tokens, weights
from wam.models import stacking
from wam.models.decoder import LanguageModel

GOLDEN = pathlib.Path(__file__).parent / "golden" / "logits.npz"


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, stacked):
  config = CASES[name]
  params = stacking.stack_layers(weights(config)) if stacked else weights(config)
  found = jax.jit(LanguageModel(config).apply)(params, jnp.asarray(tokens(config))).logits
  with np.load(GOLDEN) as golden:
    expected = golden[name]
  assert expected.std() > 0.5
  np.testing.assert_allclose(found[:, :, ::3], expected, rtol=0, atol=1e-4)


def test_every_option_changes_the_numbers():
  """A golden number that does not depend on an option would not test it."""
  with np.load(GOLDEN) as golden:
    plain = golden["llama"]
    for name in ("llama_linear", "llama_dynamic", "llama_llama3", "llama_yarn", "llama_longrope"):
      assert np.abs(golden[name] - plain).max() > 0.01, name
