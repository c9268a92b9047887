"""What fixes the shape of a decoder: `DecoderConfig` and `RopeScaling`, both frozen and hashable.

Hashable so that a model can be a static argument of `jax.jit`. Leaves out how Hugging Face spells these fields
(`families.py`) and everything about training.
"""

import dataclasses
import math
from typing import Literal

from wam.core.errors import ConfigError, unknown_name

RopeKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
ROPE_KINDS: tuple[str, ...] = ("linear", "dynamic", "llama3", "yarn", "longrope")
ACTIVATIONS: tuple[str, ...] = ("silu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How the rotary frequencies are stretched beyond the trained context. Fields that a kind does not use stay unset.

  Attributes:
    kind: linear (position interpolation), dynamic (NTK by the length in use), llama3, yarn or longrope.
    factor: how many times longer the context became; None (yarn, longrope): max_position_embeddings / original.
    original_max_position_embeddings: context of the pre-training, in tokens (llama3, yarn, longrope).
    low_freq_factor: llama3: wavelengths above original / low_freq_factor are stretched in full.
    high_freq_factor: llama3: wavelengths below original / high_freq_factor are left alone.
    attention_factor: multiplies cos and sin (yarn, longrope); None: the value of the paper.
    beta_fast: yarn: rotations over the original context above which a dimension is left alone.
    beta_slow: yarn: rotations below which a dimension is stretched in full.
    mscale: yarn: numerator of DeepSeek's form of the attention factor.
    mscale_all_dim: yarn: its denominator.
    truncate: yarn: round the bounds of the ramp to whole dimensions.
    short_factor: longrope: one divisor per frequency within the original context.
    long_factor: longrope: one divisor per frequency beyond it.
  """

  kind: str
  factor: float | None = None
  original_max_position_embeddings: int | None = None
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  attention_factor: float | None = None
  beta_fast: float | None = None
  beta_slow: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True
  short_factor: tuple[float, ...] | None = None
  long_factor: tuple[float, ...] | None = None

  def __post_init__(self) -> None:
    if self.kind not in ROPE_KINDS:
      raise unknown_name("rope scaling", self.kind, ROPE_KINDS)
    needed = {
      "linear": ("factor",),
      "dynamic": ("factor",),
      "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
      ),
      "yarn": ("original_max_position_embeddings",),
      "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    }[self.kind]
    missing = [name for name in needed if getattr(self, name) is None]
    if missing:
      raise ConfigError(f"rope scaling '{self.kind}' needs {', '.join(missing)}: found nothing")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape and options of one decoder.

  Attributes:
    vocab_size: V.
    hidden_size: D.
    intermediate_size: F.
    num_layers: L.
    num_heads: Q.
    num_kv_heads: K, divides Q; 0 means Q (no grouping).
    head_dim: H, even; 0 means D / Q.
    rope_theta: base of the rotary frequencies.
    rope_scaling: how they are stretched, or None.
    rms_norm_eps: added to the mean square.
    max_position_embeddings: context length in tokens; a fact about the training, not a limit of the code.
    sliding_window: a query sees itself and the sliding_window - 1 slots before it; None: all.
    sliding_layers: which layers the window holds for, one bool per layer; None: all of them.
    tie_embeddings: the output matrix is the embedding, transposed.
    attention_bias: biases on q, k and v.
    attention_output_bias: bias on o.
    mlp_bias: biases on gate, up and down.
    qk_norm: RMSNorm over each head of q and k before the rotation.
    activation: of the gate: silu, gelu (exact) or gelu_tanh.
    initializer_range: standard deviation of fresh kernels and embeddings.
    family: the Hugging Face model_type it is written as.
    bos_token_id: as config.json says; carried along, unused by the network.
    eos_token_id: likewise; several are allowed.
    pad_token_id: likewise.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int = 0
  head_dim: int = 0
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  rms_norm_eps: float = 1e-6
  max_position_embeddings: int = 2048
  sliding_window: int | None = None
  sliding_layers: tuple[bool, ...] | None = None
  tie_embeddings: bool = False
  attention_bias: bool = False
  attention_output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  activation: str = "silu"
  initializer_range: float = 0.02
  family: str = "llama"
  bos_token_id: int | None = None
  eos_token_id: tuple[int, ...] = ()
  pad_token_id: int | None = None

  def __post_init__(self) -> None:
    # Written through the base class because the dataclass is frozen; the zeros mean "the usual".
    if not self.num_kv_heads:
      object.__setattr__(self, "num_kv_heads", self.num_heads)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")
    for name in (*sizes, "num_kv_heads", "max_position_embeddings"):
      if getattr(self, name) < 1:
        raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
    if not self.head_dim:
      object.__setattr__(self, "head_dim", self._usual_head_dim())
    if self.num_heads % self.num_kv_heads:
      raise ConfigError(
        f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
      )
    if self.head_dim < 2 or self.head_dim % 2:
      raise ConfigError(f"head_dim: rotary embeddings need an even number, found {self.head_dim}")
    if self.activation not in ACTIVATIONS:
      raise unknown_name("activation", self.activation, ACTIVATIONS)
    self._check_window()

  def _usual_head_dim(self) -> int:
    if self.hidden_size % self.num_heads:
      raise ConfigError(
        f"hidden_size ({self.hidden_size}) is not a multiple of num_heads ({self.num_heads});"
        " give head_dim if that is meant"
      )
    return self.hidden_size // self.num_heads

  def _check_window(self) -> None:
    if self.sliding_window is not None and self.sliding_window < 1:
      raise ConfigError(f"sliding_window: expected at least 1 or None, found {self.sliding_window}")
    if self.sliding_layers is not None and len(self.sliding_layers) != self.num_layers:
      raise ConfigError(
        f"sliding_layers: expected one entry per layer ({self.num_layers}), found"
        f" {len(self.sliding_layers)}"
      )
    # One spelling for each meaning, so that equal networks have equal configs.
    if self.sliding_window is None or not any(self.sliding_layers or (True,)):
      object.__setattr__(self, "sliding_window", None)
      object.__setattr__(self, "sliding_layers", None)
    elif self.sliding_layers is not None and all(self.sliding_layers):
      object.__setattr__(self, "sliding_layers", None)

  def windowed(self) -> tuple[bool, ...]:
    """Which layers see only the sliding window, one bool per layer."""
    if self.sliding_window is None:
      return (False,) * self.num_layers
    return self.sliding_layers or (True,) * self.num_layers

  def num_params(self) -> int:
    """How many numbers a decoder of this shape holds.

    >>> DecoderConfig(
    ...   vocab_size=7, hidden_size=4, intermediate_size=6, num_layers=2, num_heads=2
    ... ).num_params()
    348
    """
    return sum(math.prod(shape) for shape in self.shapes().values())

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Name and shape of every leaf in the unrolled layout ("layers/0/attention/q/kernel": (D, Q*H))."""
    V, D, F, H = self.vocab_size, self.hidden_size, self.intermediate_size, self.head_dim
    queries, keys = self.num_heads * H, self.num_kv_heads * H
    shapes: dict[str, tuple[int, ...]] = {"embed/embedding": (V, D)}
    linear = {
      "attention/q": (D, queries, self.attention_bias),
      "attention/k": (D, keys, self.attention_bias),
      "attention/v": (D, keys, self.attention_bias),
      "attention/o": (queries, D, self.attention_output_bias),
      "mlp/gate": (D, F, self.mlp_bias),
      "mlp/up": (D, F, self.mlp_bias),
      "mlp/down": (F, D, self.mlp_bias),
    }
    for i in range(self.num_layers):
      layer = f"layers/{i}"
      shapes |= {f"{layer}/attention_norm/scale": (D,), f"{layer}/mlp_norm/scale": (D,)}
      for name, (rows, columns, bias) in linear.items():
        shapes[f"{layer}/{name}/kernel"] = (rows, columns)
        if bias:
          shapes[f"{layer}/{name}/bias"] = (columns,)
      if self.qk_norm:
        shapes |= {f"{layer}/attention/{name}/scale": (H,) for name in ("q_norm", "k_norm")}
    shapes["final_norm/scale"] = (D,)
    if not self.tie_embeddings:
      shapes["lm_head/kernel"] = (D, V)
    return shapes
