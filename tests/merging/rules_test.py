"""The sums and choices on which rules stand."""

import jax.numpy as jnp
import numpy as np
import pytest

from wam.core.errors import ConfigError
from wam.merging import rules
from wam.merging.rules import Block, Group


def block(xp, *members, coefficients=(), base=None):
  return Block(xp, tuple(xp.asarray(m) for m in members), base, coefficients)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("with_base", [False, True])
def test_a_sum_is_new_and_leaves_its_terms_alone(xp, with_base):
  leaves = [xp.asarray(normal(i, 3, 4)) for i in range(3)]
  base = xp.asarray(normal(9, 3, 4)) if with_base else None
  before = [np.array(x) for x in (*leaves, *([base] if with_base else []))]
  for factors in ([1.0, 1.0, 1.0], [0.2, -1.5, 1.0]):
    found = rules.weighted_sum(leaves, factors, base)
    start = np.float64(before[3]) if with_base else 0
    expected = start + sum(
      c * (np.float64(x) - start) for c, x in zip(factors, before, strict=False)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    if xp is np:
      assert not any(np.shares_memory(found, x) for x in (*leaves, base) if x is not None)
  for x, y in zip((*leaves, *([base] if with_base else [])), before, strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_where_members_agree_is_kept_bit_for_bit(dtype, share):
  first = normal(0, 50, 7).astype(dtype)
  agree = np.random.default_rng(1).random(first.shape) < share
  first[0, :3] = [-0.0, np.inf, 1e-42]
  agree[0, :3] = share > 0
  second = np.where(agree, first, first + 1)
  merged = first + dtype(1e-3)
  found = rules.keep_agreement(block(np, first, second, first), merged.copy())
  assert found.dtype == dtype
  expected = np.where(first == second, first, merged)
  assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("xp", [np, jnp])
def test_agreement_counts_only_where_coefficients_sum_to_one(xp):
  first = normal(0, 4, 3)
  merged = xp.asarray(first + np.float32(0.5))
  affine = xp.asarray(np.array([[True], [False], [True], [False]]))
  found = rules.keep_agreement(block(xp, first, first), xp.array(merged), affine)
  np.testing.assert_array_equal(np.asarray(found)[::2], first[::2])
  np.testing.assert_array_equal(np.asarray(found)[1::2], np.asarray(merged)[1::2])
  none = rules.keep_agreement(block(xp, first, first), xp.array(merged), xp.asarray(False))
  np.testing.assert_array_equal(none, merged)
  alone = rules.keep_agreement(block(xp, first), xp.array(merged))
  np.testing.assert_array_equal(alone, merged)


@pytest.mark.parametrize("xp", [np, jnp])
def test_one_member_with_all_the_coefficient(xp):
  a, b = np.float32([-0.0, 1e-42, np.inf]), np.float32([1, 2, 3])
  one, zero, half = (xp.float32(x) for x in (1, 0, 0.5))
  merged = xp.asarray(np.float32([7, 8, 9]))
  for coefficients, expected in (((one, zero), a), ((zero, one), b), ((half, half), merged)):
    found = rules.keep_only(block(xp, a, b, coefficients=coefficients), merged)
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def test_known_coefficients_that_cancel_are_refused():
  assert rules.coefficient_sum([np.float32(1), np.float32(2)]) == 3
  assert float(rules.coefficient_sum([jnp.float32(1), jnp.float32(-1)])) == 0
  for cancelling in ([1.0, -1.0], [np.float32(0.1), np.float32(0.2), np.float32(-0.3)], [0.0]):
    with pytest.raises(ConfigError, match="sum to zero"):
      rules.coefficient_sum(cancelling)


def test_a_rule_is_sent_the_answers_to_what_it_asks():
  def rule(group):
    (total,) = yield ["the sum"]
    (twice,) = yield [f"twice {total}"]
    return lambda block: (group.num_members, total, twice)

  asked = []

  def evaluate(requests):
    asked.extend(requests)
    return [len(asked)]

  apply = rules.run(rule(Group(np, 2, 5, False, None)), evaluate)
  assert apply(None) == (2, 1, 2)
  assert asked == ["the sum", "twice 1"]
