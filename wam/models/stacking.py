"""The two layouts of a decoder's layers: one subtree per layer, or one subtree with a leading layer axis.

Stacked layers are scanned (short compile times, one set of buffers); unrolled layers are faster to decode with.
"""

import jax
import jax.numpy as jnp

from wam.core import trees
from wam.core.errors import BadCheckpoint, check_same_trees
from wam.core.types import Params


def is_stacked(params: Params) -> bool:
  """Whether `params["layers"]` holds one subtree with a leading axis L rather than one subtree per layer.

  >>> is_stacked({"layers": {"0": {"mlp": {}}, "1": {"mlp": {}}}})
  False
  >>> is_stacked({"layers": {"mlp": {}}})
  True
  """
  return not all(name.isdecimal() for name in params["layers"])


def stack_layers(params: Params) -> Params:
  """The stacked layout of the same weights; params that are stacked already are returned as they are.

  Raises:
    BadCheckpoint: if the layers are not numbered 0, 1, ... without a gap.
    MismatchedTrees: if layers differ in names or shapes.
  """
  if is_stacked(params):
    return params
  layers = params["layers"]
  expected = [str(i) for i in range(len(layers))]
  if set(layers) != set(expected):
    raise BadCheckpoint(f"layers: expected the names 0 to {len(layers) - 1}, found {list(layers)}")
  trees = [layers[name] for name in expected]
  check_same_trees(*trees, names=[f"layer {name}" for name in expected])
  return params | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)}


def unstack_layers(params: Params) -> Params:
  """The unrolled layout of the same weights; params that are unrolled already are returned as they are."""
  if not is_stacked(params):
    return params
  layers = trees.unstack(params["layers"])
  return params | {"layers": {str(i): layer for i, layer in enumerate(layers)}}
