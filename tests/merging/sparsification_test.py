"""What is kept of a task vector: counts and bands against sorting, masks against Python's loops, densities against
binomial bounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core import counters
from wam.core.errors import ConfigError, UnknownName
from wam.merging import ranks, sparsification
from wam.merging.rules import Block, Group, Sum, key_words


def block_of(deltas, seed=0, name="w", bits=None):
  """Members at these deltas from 0."""
  deltas = [np.asarray(d, np.float32) for d in deltas]
  shape = deltas[0].shape
  rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))

  def drawn(stream):
    words = key_words(seed, name, stream)
    return counters.bits16_run(words, np.arange(rows), 0, columns).reshape(shape)

  ones = (np.float32(1),) * len(deltas)
  return Block(np, tuple(deltas), np.zeros(shape, np.float32), ones, (), bits or drawn)


def thinned(make, block, *arguments, **keywords):
  """Deltas, masks and gains; requests are answered by sorting and float64 sums. Also the number of requests."""
  group = Group(np, len(block.members), block.members[0].size, True, block.coefficients)
  generator = make(group, *arguments, **keywords)
  asked, answers = 0, None
  try:
    while True:
      requests = generator.send(answers)
      assert requests, "an empty sweep"
      asked += len(requests)
      answers = [answer(block, r) for r in requests]
  except StopIteration as stop:
    known = stop.value
  members = [(np.array(d), k) for d, k in known.thin(block)]
  return [d for d, _ in members], [k for _, k in members], known, asked


def answer(block, request):
  value = request.function(block)
  if isinstance(request, Sum):
    return tuple(np.asarray(v, np.float64) for v in value)
  value = np.sort(value.ravel())[::-1]
  return value[min(max(request.k, 1), value.size) - 1]


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- the largest ---


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1001])
@pytest.mark.parametrize("density", [1e-6, 0.2, 0.29, 0.5, 0.999])
def test_the_largest_are_kept_and_at_least_one(size, density):
  delta = normal(size)
  _, (keep,), known, asked = thinned(sparsification.largest, block_of([delta]), (density,))
  count = max(1, int(density * size))
  largest = sorted(range(size), key=lambda i: -abs(float(delta[i])))[:count]
  assert np.flatnonzero(keep).tolist() == sorted(largest)
  assert (asked, known.nonzero, known.gains) == (1, True, None)


def test_density_one_asks_for_nothing_and_zero_keeps_nothing():
  block = block_of([normal(9, seed=s) for s in range(3)])
  _, keeps, known, asked = thinned(sparsification.largest, block, (1.0, 0.0, 0.5))
  assert keeps[0] is None
  assert keeps[1].sum() == 0
  assert keeps[2].sum() == 4
  assert asked == 1
  assert not known.nonzero


def test_what_ties_with_the_threshold_is_kept():
  # As between bfloat16 weights: few magnitudes, each many times.
  delta = np.repeat(np.float32([0.5, -0.25, 0.25, 0.125]), [2, 3, 4, 5])
  _, (keep,), _, _ = thinned(sparsification.largest, block_of([delta]), (4 / 14,))
  np.testing.assert_array_equal(keep, abs(delta) >= 0.25)
  assert keep.sum() == 9


def test_zeros_are_not_among_the_largest():
  delta = np.float32([0, 0, 1, 0, -2, 0, -0.0, 0])
  _, (keep,), _, _ = thinned(sparsification.largest, block_of([delta]), (0.75,))
  np.testing.assert_array_equal(keep, delta != 0)
  _, (keep,), _, _ = thinned(sparsification.largest, block_of([np.zeros(5)]), (0.5,))
  assert not keep.any()


def test_what_is_not_a_number_is_dropped():
  delta = np.float32([np.nan, 1, -2, 0.5])
  generator = sparsification.largest(Group(np, 1, 4, True, None), (0.5,))
  next(generator)
  with pytest.raises(StopIteration) as stop:
    generator.send([np.float32(1)])
  ((_, keep),) = stop.value.value.thin(block_of([delta]))
  assert keep.tolist() == [False, True, True, False]


# --- the middle ---


def middle_by_sorting(delta, density, gamma):
  """Which are kept: ascending by magnitude, after the bottom, exactly int(density·n)."""
  size = delta.size
  count = int(density * size)
  bottom = max(0, size - count - int(gamma * size))
  order = sorted(range(size), key=lambda i: abs(float(delta[i])))
  return sorted(order[bottom : bottom + count])


@pytest.mark.parametrize("size", [3, 8, 100, 1001])
@pytest.mark.parametrize(
  ("density", "gamma"), [(0.5, 0.01), (0.5, 0.2), (0.9, 0.01), (0.9, 0.3), (0.34, 0.0), (0.4, 1.0)]
)
def test_the_middle_is_kept(size, density, gamma):
  delta = normal(size)
  _, (keep,), known, asked = thinned(sparsification.middle, block_of([delta]), (density,), (gamma,))
  assert np.flatnonzero(keep).tolist() == middle_by_sorting(delta, density, gamma)
  assert (asked, known.nonzero) == (2, True)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_small_tensors_are_not_zeroed(size):
  """gamma·n < 1, density·n < 1, or both."""
  for density, gamma in ((0.5, 0.01), (0.1, 0.01), (0.1, 0.5)):
    _, (keep,), _, _ = thinned(
      sparsification.middle, block_of([normal(size)]), (density,), (gamma,)
    )
    assert keep.sum() == max(1, int(density * size))


def test_equal_magnitudes_stay_together():
  delta = np.float32([1, -1, 1, 1, -1, 1])
  _, (keep,), _, _ = thinned(sparsification.middle, block_of([delta]), (0.5,), (0.2,))
  assert keep.all()


def test_a_middle_of_everything_or_nothing():
  block = block_of([normal(9, seed=s) for s in range(2)])
  _, keeps, _, asked = thinned(sparsification.middle, block, (1.0, 0.0), (0.3, 0.3))
  assert keeps[0] is None
  assert not keeps[1].any()
  assert asked == 0


# --- at random ---


@pytest.mark.parametrize("density", [2**-16, 0.01, 0.3, 0.5, 0.9, 1 - 2**-16])
def test_random_masks_have_their_density(density):
  block = block_of([normal(300, 1000, seed=s) for s in range(2)])
  _, keeps, _, _ = thinned(sparsification.random, block, (density, density), "none")
  p = round(density * 65536) / 65536
  for keep in keeps:
    assert abs(keep.sum() - p * keep.size) < 5 * math.sqrt(p * (1 - p) * keep.size)
  # Of two members independent: both keep an entry with p².
  both = (keeps[0] & keeps[1]).sum()
  assert abs(both - p * p * keep.size) < 5 * math.sqrt(p * p * (1 - p * p) * keep.size) + 1


def test_random_masks_depend_on_seed_name_and_member_alone():
  deltas = [normal(20, 30, seed=s) for s in range(2)]
  masks = lambda **k: thinned(sparsification.random, block_of(deltas, **k), (0.5, 0.5), "l1")[1]  # noqa: E731
  first, second = masks(), masks()
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)
  others = [masks(seed=1)[0], masks(name="v")[0], first[1]]
  for other in others:
    assert 200 < (other != first[0]).sum() < 400
  # What is drawn does not look at the deltas.
  again = thinned(sparsification.random, block_of([-d for d in deltas]), (0.5, 0.5), "none")[1]
  np.testing.assert_array_equal(again[0], first[0])


def test_tiny_densities_do_not_vanish():
  bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  block = block_of([normal(256, 256)], bits=lambda stream: bits)
  for density, count in ((1e-9, 1), (2**-16, 1), (0.3, round(0.3 * 65536)), (0.0, 0)):
    _, (keep,), _, _ = thinned(sparsification.random, block, (density,), "none")
    assert keep.sum() == count
  for density in (1.0, 1 - 1e-9):
    assert thinned(sparsification.random, block, (density,), "none")[1][0] is None


def test_rescaling_keeps_the_l1_norm_or_divides_by_the_probability():
  block = block_of([normal(40, 30, seed=s) for s in range(3)])
  deltas, keeps, known, asked = thinned(sparsification.random, block, (0.3, 1.0, 0.0), "l1")
  assert asked == 1
  kept = np.float64(deltas[0])[keeps[0]]
  np.testing.assert_allclose(
    known.gains[0] * abs(kept).sum(), abs(np.float64(deltas[0])).sum(), rtol=1e-6
  )
  assert known.gains[1:] == (1, 1)
  _, _, known, asked = thinned(sparsification.random, block, (0.3, 1.0, 0.0), "probability")
  assert (known.gains, asked) == ((65536 / round(0.3 * 65536), 1.0, 1.0), 0)
  _, _, known, asked = thinned(sparsification.random, block, (0.3, 1.0, 0.0), "none")
  assert (known.gains, asked) == (None, 0)
  _, _, known, asked = thinned(sparsification.random, block, (1.0, 1.0, 0.0), "l1")
  assert (known.gains, asked) == (None, 0)


def test_a_norm_of_nothing_rescales_to_nothing():
  bits = np.full((1, 4), 65535, np.uint16)
  for delta in (normal(1, 4), np.zeros((1, 4))):
    _, (keep,), known, _ = thinned(
      sparsification.random, block_of([delta], bits=lambda stream: bits), (0.5,), "l1"
    )
    assert not keep.any()
    assert known.gains == (1,)


def test_tiny_deltas_are_rescaled_too():
  """mergekit leaves norms below 1e-7 as they are."""
  delta = 1e-12 * normal(1, 64)
  (delta,), (keep,), known, _ = thinned(sparsification.random, block_of([delta]), (0.5,), "l1")
  assert known.gains[0] > 1.2
  np.testing.assert_allclose(
    known.gains[0] * abs(np.float64(delta))[keep].sum(), abs(np.float64(delta)).sum(), rtol=1e-6
  )


# --- by rank ---


def probabilities(size, density, epsilon):
  if size == 1:
    return [density]
  return [density - epsilon + 2 * epsilon * r / (size - 1) for r in range(size)]


def by_rank(delta, bits, density, epsilon):
  """Masks and probabilities, entry by entry."""
  keep, p = np.zeros(delta.shape, bool), np.zeros(delta.shape)
  for i, row in enumerate(delta):
    order = sorted(range(len(row)), key=lambda j: (abs(float(row[j])), j))
    for rank, (j, share) in enumerate(
      zip(order, probabilities(len(row), density, epsilon), strict=True)
    ):
      keep[i, j] = int(bits[i, rank]) < round(share * 65536)
      p[i, j] = round(share * 65536) / 65536
  return keep, p


@pytest.mark.parametrize("shape", [(5, 40), (1, 7), (6, 1), (3, 2)])
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.0), (0.6, 0.3999)])
def test_ranked_masks(shape, density, epsilon):
  delta = np.round(normal(*shape), 1)  # with ties
  block = block_of([delta])
  expected, p = by_rank(delta, block.random_bits("della/0"), density, epsilon)
  for rescale in ("none", "l1", "probability"):
    (thin,), (keep,), known, asked = thinned(
      sparsification.ranked, block, (density,), (epsilon,), rescale
    )
    np.testing.assert_array_equal(keep, expected)
    assert asked == (rescale == "l1")
    if rescale == "probability":
      np.testing.assert_allclose(thin, np.where(expected, delta / p, 0), rtol=1e-6)
    else:
      np.testing.assert_array_equal(thin, delta)
    if rescale == "l1" and expected.any() and delta[expected].any():
      norms = abs(np.float64(delta)).sum(), abs(np.float64(delta))[keep].sum()
      np.testing.assert_allclose(known.gains[0], norms[0] / norms[1], rtol=1e-6)


def test_ranks_have_their_probabilities():
  size, rows, density, epsilon = 11, 40_000, 0.4, 0.25
  order = np.random.default_rng(1).permuted(np.tile(np.arange(1, size + 1), (rows, 1)), axis=1)
  signs = np.random.default_rng(2).choice([-1, 1], order.shape)
  _, (keep,), _, _ = thinned(
    sparsification.ranked, block_of([order * signs]), (density,), (epsilon,), "none"
  )
  for rank, p in enumerate(probabilities(size, density, epsilon), start=1):
    kept = keep[order == rank].sum()
    assert abs(kept - p * rows) < 5 * math.sqrt(p * (1 - p) * rows)
  # And so no column is preferred.
  for kept in keep.sum(0):
    assert abs(kept - density * rows) < 5 * math.sqrt(density * (1 - density) * rows)


def test_dividing_by_the_probability_keeps_the_mean():
  row = np.linspace(-2, 2, 20, dtype=np.float32)
  block = block_of([np.tile(row, (20_000, 1))])
  (thin,), _, _, _ = thinned(sparsification.ranked, block, (0.5,), (0.2,), "probability")
  deviation = abs(row) * math.sqrt(1 / 0.3 - 1) / math.sqrt(len(thin))
  assert (abs(thin.mean(0, dtype=np.float64) - row) < 5 * deviation + 1e-12).all()


def test_one_entry_a_row_has_the_density():
  """0/0 in mergekit, which stops at tensors [n, 1]."""
  _, (keep,), _, _ = thinned(
    sparsification.ranked, block_of([normal(20_000, 1)]), (0.3,), (0.2,), "l1"
  )
  assert abs(keep.sum() - 6000) < 5 * math.sqrt(0.21 * 20_000)


def test_a_vector_is_one_row_and_a_number_too():
  vector = normal(17)
  rows = by_rank(vector[None], block_of([vector]).random_bits("della/0")[None], 0.5, 0.3)[0]
  _, (keep,), _, _ = thinned(sparsification.ranked, block_of([vector]), (0.5,), (0.3,), "l1")
  np.testing.assert_array_equal(keep, rows[0])
  number = block_of([np.float32(2)], bits=lambda stream: np.uint16([7]).reshape(()))
  _, (keep,), _, _ = thinned(sparsification.ranked, number, (0.5,), (0.3,), "none")
  assert keep.shape == ()
  assert keep


@pytest.mark.parametrize(
  ("density", "epsilon"), [(0.1, 0.15), (0.15, 0.15), (0.9, 0.15), (0.85, 0.15), (0.5, -0.1)]
)
def test_windows_outside_of_zero_and_one_are_refused(density, epsilon):
  with pytest.raises(ConfigError, match=f"density {density} and epsilon {epsilon}"):
    thinned(sparsification.ranked, block_of([normal(4)]), (density,), (epsilon,), "l1")


def test_no_window_is_needed_where_nothing_is_drawn():
  block = block_of([normal(2, 4), normal(2, 4)])
  deltas, keeps, known, _ = thinned(sparsification.ranked, block, (1.0, 0.0), (0.15, 0.15), "l1")
  assert keeps[0] is None
  assert not keeps[1].any()
  assert known.gains is None
  np.testing.assert_array_equal(deltas[0], block.members[0])


def test_probabilities_stay_inside_zero_and_one():
  p = ranks.probabilities(1000, 0.5, 0.4999999)
  assert p.min() == 1 / 65536
  assert p.max() == 65535 / 65536
  assert ranks.drawn(np.full((1, 1000), 65534, np.uint16), p).sum() > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_place_undoes_sorting_in_numpy_and_in_jax(dtype):
  rows = abs(np.round(normal(6, 50), 1)).astype(dtype)
  ranked = np.arange(300, dtype=np.int32).reshape(6, 50)
  expected = np.empty_like(ranked)
  for i, row in enumerate(rows):
    for r, j in enumerate(sorted(range(50), key=lambda j, row=row: (row[j], j))):
      expected[i, j] = ranked[i, r]
  np.testing.assert_array_equal(ranks.by_place(np, rows, ranked), expected)
  if dtype == np.float32:
    in_jax = jax.jit(lambda x, y: ranks.by_place(jnp, x, y))(rows, ranked)
    np.testing.assert_array_equal(in_jax, expected)


# --- what is refused ---


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_shares_outside_of_zero_and_one_are_refused(value):
  block = block_of([normal(4)])
  for make, arguments in (
    (sparsification.largest, ((value,),)),
    (sparsification.middle, ((value,), (0.1,))),
    (sparsification.random, ((value,), "l1")),
    (sparsification.ranked, ((value,), (0.1,), "l1")),
  ):
    with pytest.raises(ConfigError, match=f"density is a share.*{value}"):
      thinned(make, block, *arguments)
  with pytest.raises(ConfigError, match="gamma is a share"):
    thinned(sparsification.middle, block, (0.5,), (value,))


def test_unknown_rescalings_are_refused():
  block = block_of([normal(4)])
  with pytest.raises(UnknownName, match=r"rescale of dare 'l2'.*l1, none, probability"):
    thinned(sparsification.random, block, (0.5,), "l2")
  with pytest.raises(UnknownName, match="rescale of della"):
    thinned(sparsification.ranked, block, (0.5,), (0.1,), "True")


def test_bools_name_the_rescaling_of_mergekit():
  block = block_of([normal(4, 4)])
  for given, name in ((True, "l1"), (False, "none")):
    found = thinned(sparsification.random, block, (0.5,), given)[2].gains
    assert found == thinned(sparsification.random, block, (0.5,), name)[2].gains


def test_deltas_are_new_arrays():
  """Who adds them up works in place."""
  block = block_of([normal(4, 4), normal(4, 4, seed=1)])
  before = [x.copy() for x in block.members]
  for make, arguments in (
    (sparsification.largest, ((0.5, 1.0),)),
    (sparsification.middle, ((0.5, 1.0), (0.1, 0.1))),
    (sparsification.random, ((0.5, 1.0), "probability")),
    (sparsification.ranked, ((0.5, 1.0), (0.1, 0.1), "probability")),
  ):
    known = thinned(make, block, *arguments)[2]
    for delta, _ in known.thin(block):
      delta += 100
    for x, y in zip(block.members, before, strict=True):
      np.testing.assert_array_equal(x, y)
