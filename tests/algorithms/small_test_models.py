"""A decoder small enough for tests of algorithms, and its data."""

import jax
import numpy as np

from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.training import sharding
from wam.training.workdir import Run

EOS = 1
CONFIG = DecoderConfig(
  vocab_size=12, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, head_dim=8
)
MODEL = LanguageModel(CONFIG)


def open_run(directory, **keywords) -> Run:
  """A run on one device that shows nothing."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return Run(directory, seed=0, mesh=mesh, tensorboard=False, show=False, **keywords)


def sequences(count: int, length: int = 8) -> dict[str, np.ndarray]:
  """A prompt of two tokens a, b, then a, b again and EOS; right-padded."""
  draw = np.random.default_rng(0)
  tokens = np.zeros((count, length), np.int32)
  tokens[:, :2] = draw.integers(2, 12, (count, 2))
  tokens[:, 2:4] = tokens[:, :2]
  tokens[:, 4] = EOS
  mask = np.broadcast_to(np.arange(length) < 5, tokens.shape)
  return {"tokens": tokens, "mask": mask, "loss_mask": mask & (np.arange(length) >= 2)}
