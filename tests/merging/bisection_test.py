import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.merging import bisection
from wam.merging.bisection import kth_largest

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("k", [-3, 1, 2, 300, 511, 512, 10_000])
def test_kth_largest_equals_sorting(k):
  random = np.random.default_rng(3)
  values = np.abs(random.normal(size=512)).astype(np.float32)
  values[:100] = values[100]
  values[7] = 0
  expected = np.sort(values)[::-1][min(max(k, 1), 512) - 1]
  cut = [jnp.asarray(values[:100]), jnp.asarray(values[100:]).reshape(4, 103)]
  # Two lists at a time: each has a threshold of its own.
  for run in (kth_largest, jax.jit(kth_largest)):
    found, least = run([cut, cut[:1]], [k, 100])
    assert found == expected
    assert least == values[:100].min()
  assert kth_largest([cut], [np.int64(k)]) == [expected]


def test_counts_beyond_32_bits():
  """Seven times 2^30 ones above 2^29 halves, without the entries: counts are added in two limbs."""
  counts = [jnp.full((7,), 2**30, jnp.uint32), jnp.asarray(2**29, jnp.uint32)]
  high, low = map(int, bisection._add_up(counts))
  assert high * 65536 + low == 7 * 2**30 + 2**29
  assert list(map(int, bisection._limbs(2**35 + 3, 2**40))) == [2**19, 3]
  assert list(map(int, bisection._limbs(2**50, 2**40))) == [2**24, 0]
