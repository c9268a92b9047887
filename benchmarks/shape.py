"""The decoder and the batches that every system is measured on. Standard library only: all environments import it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  """8.0 M parameters by default, Llama's architecture, untied; lengths in tokens."""

  vocab_size: int = 4096
  hidden_size: int = 256
  intermediate_size: int = 704
  num_layers: int = 8
  num_heads: int = 8
  num_kv_heads: int = 4
  train_batch: int = 8
  train_length: int = 256
  train_steps: int = 4
  sample_batch: int = 32
  prompt_length: int = 64
  new_tokens: int = 128

  @property
  def head_dim(self) -> int:
    """Size of one head."""
    return self.hidden_size // self.num_heads


FULL = Shape()
# Only to see that everything runs: a tenth of a second a measurement.
QUICK = Shape(
  vocab_size=256,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  train_batch=2,
  train_length=32,
  train_steps=3,
  sample_batch=4,
  prompt_length=8,
  new_tokens=8,
)
