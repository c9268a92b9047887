import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from wam.streaming.mesh.mesh_layouts import spread

P = PartitionSpec


@pytest.mark.parametrize(
  ("shape", "chunk", "axes", "expected"),
  [
    # The longest axis, over all devices.
    ((16, 64), (16, 64), (0, 1), P(None, ("data", "fsdp"))),
    ((64, 16), (64, 16), (0, 1), P(("data", "fsdp"))),
    # That along which it is stored in pieces, though it is shorter.
    ((16, 64), (4, 64), (0, 1), P(("data", "fsdp"))),
    ((4, 16, 64), (4, 2, 64), (0, 1, 2), P(None, ("data", "fsdp"))),
    # Pieces along an axis that the devices do not divide.
    ((12, 64), (3, 64), (0, 1), P(None, ("data", "fsdp"))),
    # Some of the devices where all do not fit: as many as possible.
    ((12, 6), (12, 6), (0, 1), P("fsdp")),
    ((6, 10), (6, 10), (0, 1), P(None, "data")),
    ((5, 3), (5, 3), (0, 1), P()),
    ((), (), (), P()),
    ((0, 8), (0, 8), (0, 1), P(None, ("data", "fsdp"))),
    # Only an axis that may be cut.
    ((8, 64), (8, 64), (0,), P(("data", "fsdp"))),
    ((8,), (8,), (), P()),
  ],
)
def test_spread(shape, chunk, axes, expected):
  mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  assert spread(shape, chunk, mesh, axes) == expected
