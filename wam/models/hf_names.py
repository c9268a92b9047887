"""Names and layout of tensors: Hugging Face's <-> ours.

The same for all our families. Their linear weights are [outputs, inputs], ours [inputs, outputs]: kernels are
transposed. Pure: knows no files and no arrays.
"""

import re
from typing import NamedTuple

from wam.models.config import DecoderConfig

_MODULES = {
  "attention_norm/scale": "input_layernorm.weight",
  "mlp_norm/scale": "post_attention_layernorm.weight",
  "attention/q_norm/scale": "self_attn.q_norm.weight",
  "attention/k_norm/scale": "self_attn.k_norm.weight",
  **{f"attention/{x}/kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
  **{f"attention/{x}/bias": f"self_attn.{x}_proj.bias" for x in "qkvo"},
  **{f"mlp/{x}/kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
  **{f"mlp/{x}/bias": f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
}
_ENDS = {
  "embed/embedding": "model.embed_tokens.weight",
  "final_norm/scale": "model.norm.weight",
  "lm_head/kernel": "lm_head.weight",
}
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
SCORE = "score.weight"
SCORE_BIAS = "score.bias"
# Buffers that old versions stored beside the weights; they follow from the config.
_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class Entry(NamedTuple):
  """One tensor under both names.

  Attributes:
    ours: "layers/0/attention/q/kernel".
    theirs: "model.layers.0.self_attn.q_proj.weight".
    shape: in the file.
    transposed: whether ours is the transpose.
  """

  ours: str
  theirs: str
  shape: tuple[int, ...]
  transposed: bool


def their_name(name: str) -> str:
  """The Hugging Face name of one of our (unrolled) names.

  >>> their_name("layers/3/mlp/up/kernel")
  'model.layers.3.mlp.up_proj.weight'
  """
  if name in _ENDS:
    return _ENDS[name]
  _, layer, module = name.split("/", 2)
  return f"model.layers.{layer}.{_MODULES[module]}"


def entries(config: DecoderConfig, *, scalar: bool = False) -> list[Entry]:
  """Every tensor of a decoder of this shape, in the unrolled layout.

  Args:
    config: of the decoder.
    scalar: of a `ScalarModel` instead: names below "decoder/", no lm_head, and "head/kernel" for score.weight (its
      bias, which transformers does not know, is left to the caller).
  """
  found = []
  for ours, shape in config.shapes().items():
    if scalar and ours == "lm_head/kernel":
      continue
    transposed = ours.endswith("/kernel")
    stored = shape[::-1] if transposed else shape
    found.append(Entry(f"decoder/{ours}" if scalar else ours, their_name(ours), stored, transposed))
  if scalar:
    found.append(Entry("head/kernel", SCORE, (1, config.hidden_size), True))
  return found


def is_buffer(theirs: str) -> bool:
  """Whether a stored tensor is no weight and may be passed over."""
  return _BUFFER.fullmatch(theirs) is not None
