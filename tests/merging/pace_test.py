"""Many programs that sum over virtual devices, one after the other: without a pace XLA ends the process."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wam.merging import in_memory, pace
from wam.merging.rules import Sum


def normed(group):
  (square,) = yield [Sum(lambda b: b.xp.sum(b.members[0] ** 2))]
  return lambda b: b.members[0] / b.xp.sqrt(square)


def test_more_programs_than_may_be_under_way():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  where = NamedSharding(mesh, PartitionSpec("x"))
  tree = {
    f"w{i}": jax.device_put(jnp.full((1024, 512 + 8 * (i % 2)), 2.0), where) for i in range(80)
  }
  for _ in range(3):
    merged = in_memory.merge_trees(normed, [tree], None, None)
    for x in merged.values():
      np.testing.assert_allclose(x, x.size**-0.5, rtol=1e-5)


def test_traced_results_and_single_devices_are_left_alone():
  for number in range(20):
    pace.keep(number, {"a": jnp.ones(3), "b": None})
  jax.jit(lambda x: [pace.keep(i, x) for i in range(20)] and x)(jnp.ones(3))
