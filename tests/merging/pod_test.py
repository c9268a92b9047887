"""Merges of a layer of 70 B shape compiled for 64 chips of a TPU v5p, where the libtpu wheel is installed: no TPU is
needed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.merging.collectives import sent
from wam.merging import methods

pytestmark = pytest.mark.slow

WIDTH, HIDDEN = 8192, 28672
SHAPES = {
  "layers/0/attention/q/kernel": (WIDTH, WIDTH),
  "layers/0/attention/k/kernel": (WIDTH, WIDTH // 8),
  "layers/0/mlp/up/kernel": (WIDTH, HIDDEN),
  "layers/0/mlp_norm/scale": (WIDTH,),
}


@pytest.fixture(scope="module")
def pod():
  pytest.importorskip("libtpu", reason="libtpu is not installed")
  devices = topologies.get_topology_desc("v5p:4x4x4", "tpu").devices
  assert len(devices) == 64
  return Mesh(np.array(devices), ("fsdp",), axis_types=(AxisType.Auto,))


@pytest.mark.parametrize(
  ("name", "keywords"),
  [
    ("linear", {}),
    ("slerp", {}),
    ("ties", {"density": 0.4}),
    ("dare_linear", {"density": 0.4, "seed": 5}),
  ],
)
def test_chips_hold_their_shards_and_send_sums(name, keywords, pod):
  where = NamedSharding(pod, PartitionSpec("fsdp"))
  tree = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=where) for n, s in SHAPES.items()}
  init = None if methods.METHODS[name].init == "unused" else tree
  merge = lambda init, *members: methods.merge(name, members, init=init, **keywords)  # noqa: E731
  compiled = jax.jit(merge).lower(init, tree, tree, tree).compile()
  # Numbers for every tensor and pair of members, and one for every entry of the norm at most.
  assert all(what == "all-reduce" and size <= 2 * WIDTH for what, size in sent(compiled))
  shard = sum(2 * math.prod(s) for s in SHAPES.values()) / 64
  memory = compiled.memory_analysis()
  assert memory.argument_size_in_bytes < 1.1 * shard * (3 + (init is not None))
  assert memory.temp_size_in_bytes < 3 * shard
