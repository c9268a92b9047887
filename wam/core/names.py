"""What leaf names say: which layer, which kind of weights, and whether layers are stacked.

Names may be ours ("layers/3/attention/q/kernel", or stacked "layers/attention/q/kernel" with leading axis L), Hugging
Face's ("model.layers.3.self_attn.q_proj.weight") or the common Flax ones ("layers_3", "blocks/3", "h/3"). Leaves out
layer axes other than the first.
"""

import re
from typing import NamedTuple

import numpy as np

from wam.core.errors import ConfigError
from wam.core.types import PyTree

KINDS = ("embeddings", "attention", "mlp", "norms", "head")

_BLOCK = r"(?:transformer|encoder|decoder)_?"
_INDEXED = re.compile(
  rf"(?:^|(?<=[/.]))(?:h|(?:{_BLOCK})?(?:layers?|blocks?))[/._]?(\d+)(?=[/.]|$)", re.I
)
# Plural only: a lone "layer/kernel" is a layer, not a stack of them.
_STACKED = re.compile(rf"(?:^|(?<=[/.]))(?:{_BLOCK})?(?:layers|blocks)(?=[/.])", re.I)
_NORM = re.compile(r"norm|^ln(?:[_\d]|$)|^ln_?f$", re.I)
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$|^shared$", re.I)
_HEAD = re.compile(
  r"(?:^|_)head$|^score$|^classifier$|^embed_out$|^unembed|^logits|^qa_outputs$", re.I
)
_ATTENTION = re.compile(
  r"attn|attention|^(?:q|k|v|o|qkv)_?(?:proj)?$|^query|^(?:key|value|out)(?:_?proj)?$", re.I
)
_MLP = re.compile(
  r"mlp|ffn|feed_?forward|expert|moe|^(?:gate|up|down)_proj$|^c_fc$|^fc\d?$|^w[iod123](?:_\d)?$"
  r"|^(?:linear|dense)",
  re.I,
)


class Leaf(NamedTuple):
  """What a leaf's name and shape say."""

  name: str
  rank: int  # axes of one layer's array
  kind: str | None  # one of KINDS, or None where the name says nothing
  layer: int | None  # for a leaf of one layer
  num_layers: int | None  # L, for a stacked leaf [L, ...]
  stem: str  # "model.layers" of "model.layers.3.mlp"; empty outside layers

  def in_layers(self) -> bool:
    """Whether the leaf belongs to one layer or to a stack of them."""
    return self.layer is not None or self.num_layers is not None

  def spelled_out(self, layer: int) -> str:
    """The name that layer `layer` of a stacked leaf has when layers are unrolled."""
    end = _STACKED.search(self.name).end()  # type: ignore[union-attr]
    return f"{self.name[:end]}{self.name[end]}{layer}{self.name[end:]}"


def kind_of(name: str) -> str | None:
  """The kind of a leaf, from its name alone; None where the name says nothing.

  >>> kind_of("model.layers.0.self_attn.q_proj.weight"), kind_of("layers/0/mlp_norm/scale")
  ('attention', 'norms')
  """
  segments = re.split(r"[/.]", name)
  inside = _INDEXED.search(name) or _STACKED.search(name)
  checks: list[tuple[str, re.Pattern[str]]] = [("norms", _NORM)]
  if not inside:
    # "output" alone is the head in Llama's own checkpoints, but a projection inside a layer.
    if re.match(r"^(?:.*[/.])?(?:output)(?:[/.]\w+)?$", name) or any(map(_HEAD.search, segments)):
      return "head"
    checks.append(("embeddings", _EMBEDDING))
  checks += [("attention", _ATTENTION), ("mlp", _MLP)]
  # Norms first: "attention/q_norm" is a norm.
  for kind, pattern in checks:
    if any(pattern.search(segment) for segment in segments):
      return kind
  return None


def layer_of(name: str) -> tuple[str, int] | None:
  """Stem and number of the layer that a leaf belongs to; None outside layers and for stacked leaves.

  >>> layer_of("model.layers.3.mlp.experts.7.up_proj.weight"), layer_of("lm_head.weight")
  (('model.layers', 3), None)
  """
  found = _INDEXED.search(name)
  return (name[: found.start(1)].rstrip("/._"), int(found[1])) if found else None


def with_layer(name: str, layer: int) -> str:
  """The name that a leaf of one layer has in another one.

  >>> with_layer("model.layers.3.mlp.experts.7.up_proj.weight", 12)
  'model.layers.12.mlp.experts.7.up_proj.weight'
  """
  found = _INDEXED.search(name)
  if found is None:
    raise ValueError(f"'{name}' is not a leaf of one layer")
  return f"{name[: found.start(1)]}{layer}{name[found.end(1) :]}"


def is_stacked(name: str) -> bool:
  """Whether a leaf of this name holds all layers at once, on its first axis."""
  return _INDEXED.search(name) is None and _STACKED.search(name) is not None


def describe(tree: PyTree) -> list[Leaf]:
  """What the names and shapes of the leaves say, in the order of the tree.

  Raises:
    ConfigError: if the stacked leaves of one stack have different leading axes.
  """
  from wam.core import trees  # not above: a merge from disk to disk reads names without loading JAX

  leaves: list[Leaf] = []
  lengths: dict[str, dict[int, str]] = {}
  for name, leaf in trees.flatten(tree).items():
    rank = len(np.shape(leaf))
    indexed, stacked = _INDEXED.search(name), _STACKED.search(name)
    if indexed:
      stem = name[: indexed.start(1)].rstrip("/._")
      leaves.append(Leaf(name, rank, kind_of(name), int(indexed[1]), None, stem))
    elif stacked and rank > 0:
      stem, length = name[: stacked.end()], np.shape(leaf)[0]
      lengths.setdefault(stem, {})[length] = name
      leaves.append(Leaf(name, rank - 1, kind_of(name), None, length, stem))
    else:
      leaves.append(Leaf(name, rank, kind_of(name), None, None, ""))
  for stem, found in lengths.items():
    if len(found) > 1:
      examples = ", ".join(f"{n} in '{name}'" for n, name in found.items())
      raise ConfigError(
        f"'{stem}' reads as stacked layers, but leading axes differ: {examples}. Stack the layers on"
        " the first axis, or unroll them as 'layers/0/...'"
      )
  return leaves
