"""Slerp of task vectors: the lemmas of WARP, its corner cases, and the groups of leaves."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from wam.core import parts, trees
from wam.core.errors import ConfigError, MismatchedTrees, UnknownName
from wam.merging import spherical

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def unit(i, length=1.0, size=6):
  vector = np.zeros(size, np.float32)
  vector[i] = length
  return {"w": vector}


ZERO = {"w": np.zeros(6, np.float32)}


def vectors(seed, count, size=50):
  random = np.random.default_rng(seed)
  return [{"w": random.normal(size=size).astype(np.float32)} for _ in range(count)]


def norm(tree):
  return np.linalg.norm(np.float64(tree["w"]))


def test_right_angle():
  merged = spherical.slerp(ZERO, unit(0), unit(1), 0.5)["w"]
  np.testing.assert_allclose(merged[:2], [1 / np.sqrt(2)] * 2, rtol=1e-6)


def test_unequal_norms_are_not_interpolated():
  """3 and 1 at a right angle, in the middle: √5 = 2.236, where the mean norm is 2."""
  np.testing.assert_allclose(
    norm(spherical.slerp(ZERO, unit(0, 3.0), unit(1), 0.5)), np.sqrt(5), rtol=1e-6
  )


def test_equal_norms_are_kept_where_lerp_shrinks_them():
  a, b = vectors(0, 2)
  b = {"w": (b["w"] * (norm(a) / norm(b))).astype(np.float32)}
  zero = {"w": np.zeros_like(a["w"])}
  for t in (0.1, 0.5, 0.8):
    np.testing.assert_allclose(norm(spherical.slerp(zero, a, b, t)), norm(a), rtol=1e-6)
    cosine = np.dot(np.float64(a["w"]), b["w"]) / norm(a) ** 2
    shrunk = np.sqrt(1 - 2 * (1 - cosine) * (t - t * t))  # WARP, lemma 2
    lerped = {"w": (1 - t) * np.float64(a["w"]) + t * b["w"]}
    np.testing.assert_allclose(norm(lerped), shrunk * norm(a), rtol=1e-6)


def test_symmetry_scale_and_rotation():
  a, b = vectors(1, 2)
  zero = {"w": np.zeros_like(a["w"])}
  merged = spherical.slerp(zero, a, b, 0.3)["w"]
  np.testing.assert_allclose(merged, spherical.slerp(zero, b, a, 0.7)["w"], rtol=1e-5, atol=1e-6)
  for factor in (1e-6, 1e3):
    big = [{"w": np.float32(factor) * x["w"]} for x in (a, b)]
    scaled = np.asarray(spherical.slerp(zero, *big, 0.3)["w"]) / factor
    np.testing.assert_allclose(scaled, merged, rtol=1e-5, atol=1e-6)
  rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(50, 50)))[0]
  turned = [{"w": (rotation @ x["w"]).astype(np.float32)} for x in (a, b)]
  np.testing.assert_allclose(
    spherical.slerp(zero, *turned, 0.3)["w"], rotation @ merged, rtol=1e-5, atol=1e-5
  )


def test_small_angles_join_lerp_without_a_seam():
  a = {"w": np.float32([1.0, 0.0])}
  for angle in (0.0, 1e-5, 9e-4, 1.1e-3, 1e-2):
    b = {"w": np.float32([np.cos(angle), np.sin(angle)])}
    merged = spherical.slerp({"w": np.zeros(2, np.float32)}, a, b, 0.25)["w"]
    np.testing.assert_allclose(merged, [np.cos(angle / 4), np.sin(angle / 4)], rtol=3e-7, atol=3e-7)


def test_fallbacks_are_flagged_and_finite():
  cases = {
    "zero": (unit(0), ZERO),
    "antiparallel": (unit(0), unit(0, -2.0)),
    "parallel": (unit(0), unit(0, 3.0)),
  }
  for reason, (a, b) in cases.items():
    for blend in (
      spherical.slerp_blend(ZERO, [a, b]),
      spherical.karcher_blend(ZERO, [a, b]),
    ):
      assert blend.flagged() == {"w": reason}
      merged = spherical.apply_blend(ZERO, [a, b], blend)
      np.testing.assert_array_equal(merged["w"], (a["w"] + b["w"]) / 2)
  both = spherical.slerp_blend(ZERO, [ZERO, ZERO])
  assert both.flagged() == {"w": "zero"}
  assert spherical.slerp_blend(ZERO, [unit(0), unit(1)]).flagged() == {}


def test_iterated_slerp_is_not_uniform_and_karcher_is():
  """Orthogonal task vectors of equal norm: √(3/8), √(3/8), 1/2 for M = 3, as worked out by hand from eq. 26."""
  members = [unit(i) for i in range(3)]
  iterated = spherical.slerp_blend(ZERO, members)
  np.testing.assert_allclose(
    iterated.coefficients[0], [np.sqrt(3 / 8), np.sqrt(3 / 8), 0.5], rtol=1e-6
  )
  for count in (2, 3, 5):
    mean = spherical.karcher_blend(ZERO, [unit(i) for i in range(count)])
    np.testing.assert_allclose(mean.coefficients[0], count**-0.5, rtol=1e-6)


def test_karcher_of_two_equal_norms_is_slerp():
  a, b = vectors(5, 2)
  b = {"w": (b["w"] * (norm(a) / norm(b))).astype(np.float32)}
  zero = {"w": np.zeros_like(a["w"])}
  np.testing.assert_allclose(
    spherical.karcher_mean(zero, [a, b], [0.7, 0.3])["w"],
    spherical.slerp(zero, a, b, 0.3)["w"],
    rtol=1e-5,
    atol=1e-6,
  )


def test_angles_are_reported():
  blend = spherical.slerp_blend(ZERO, [unit(0, 2.0), {"w": unit(0)["w"] + unit(1)["w"]}])
  np.testing.assert_allclose(blend.norms[0], [2, np.sqrt(2)], rtol=1e-6)
  np.testing.assert_allclose(blend.angles[0, 0, 1], np.pi / 4, rtol=1e-6)


def test_bfloat16_weights_have_float32_task_vectors():
  """1 + 2⁻⁷ is the bfloat16 after 1: task vectors of one last bit, at a right angle, stay visible."""
  start = {"w": np.ones(2, ml_dtypes.bfloat16)}
  a = {"w": np.array([1 + 2**-7, 1], ml_dtypes.bfloat16)}
  b = {"w": np.array([1, 1 + 2**-7], ml_dtypes.bfloat16)}
  merged = spherical.slerp(start, a, b, 0.5, out_dtype=np.float32)["w"]
  np.testing.assert_allclose(merged, 1 + 2**-7 / np.sqrt(2), rtol=1e-6)
  assert spherical.slerp(start, a, b, 0.5)["w"].dtype == jnp.bfloat16


def network(seed):
  random = np.random.default_rng(seed)
  shapes = {
    "embed/embedding": (5, 4),
    "layers/attention/q/kernel": (3, 4, 4),
    "layers/mlp/up/kernel": (3, 4, 2),
    "final_norm/scale": (4,),
  }
  return trees.unflatten({n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()})


def pair(init, a, b, t):
  """Float64 slerp of flat vectors."""
  x, y = np.float64(a) - init, np.float64(b) - init
  omega = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
  return init + (np.sin((1 - t) * omega) * x + np.sin(t * omega) * y) / np.sin(omega)


@pytest.mark.parametrize("group", ["leaf", "layer", "global", "parts"])
def test_groups(group):
  init, a, b = (network(seed) for seed in range(3))
  merged = trees.flatten(
    spherical.slerp(init, a, b, 0.3, group=parts.by_depth(init, 2) if group == "parts" else group)
  )
  q, up = "layers/attention/q/kernel", "layers/mlp/up/kernel"
  everything = [(n, slice(None)) for n in trees.names(init)]
  layer = lambda *i: [(n, k) for k in i for n in (q, up)]  # noqa: E731
  together = {
    "leaf": [[(n, i)] for n in (q, up) for i in range(3)],
    "layer": [layer(0), layer(1), layer(2), [("embed/embedding", slice(None))]],
    "global": [everything],
    # Three layers in two parts: the later part takes the remainder.
    "parts": [
      [*layer(0), ("embed/embedding", slice(None))],
      [*layer(1, 2), ("final_norm/scale", slice(None))],
    ],
  }[group]
  for pieces in together:
    join = lambda tree, pieces=pieces: np.concatenate(  # noqa: E731
      [trees.flatten(tree)[n][i].ravel() for n, i in pieces]
    )
    found = np.concatenate([np.asarray(merged[n])[i].ravel() for n, i in pieces])
    np.testing.assert_allclose(found, pair(join(init), join(a), join(b), 0.3), rtol=2e-6, atol=2e-6)


def test_untouched_leaves_stay_those_of_the_init():
  init, a, b = (network(seed) for seed in range(3))
  merged = spherical.slerp(init, a, b, 0.5, group=parts.linear_only(init))
  np.testing.assert_array_equal(merged["embed"]["embedding"], init["embed"]["embedding"])
  assert np.any(
    np.asarray(merged["layers"]["mlp"]["up"]["kernel"]) != init["layers"]["mlp"]["up"]["kernel"]
  )


def test_members_that_agree_in_places_keep_the_sphere():
  """Where two of three members are equal and the third is not, entries on which all agree still leave the chord."""
  members = [
    {"w": np.float32([1, 0, 1])},
    {"w": np.float32([1, 0, 1])},
    {"w": np.float32([0, 1, 1])},
  ]
  zero = {"w": np.zeros(3, np.float32)}
  merged = spherical.slerp_iterative(zero, members)["w"]
  x, y = np.float64(members[0]["w"]), np.float64(members[2]["w"])
  np.testing.assert_allclose(merged, pair(np.zeros(3), x, y, 1 / 3), rtol=1e-6)
  assert float(merged[2]) > 1.01


def test_what_does_not_fit_is_refused():
  init, a, b = (network(seed) for seed in range(3))
  with pytest.raises(UnknownName, match="Did you mean 'layer'"):
    spherical.slerp(init, a, b, 0.5, group="layers")
  with pytest.raises(ConfigError, match=r"\[0, 1\]"):
    spherical.slerp(init, a, b, 1.5)
  with pytest.raises(ConfigError, match="non-negative"):
    spherical.karcher_mean(init, [a, b], [-1.0, 2.0])
  with pytest.raises(ConfigError, match="each of 2 members"):
    spherical.slerp_iterative(init, [a, b], [1.0])
  with pytest.raises(MismatchedTrees, match="another tree"):
    spherical.slerp(init, a, b, 0.5, group=parts.whole(ZERO))
  with pytest.raises(MismatchedTrees, match="member 1"):
    spherical.slerp(init, a, b | {"extra": np.zeros(1, np.float32)}, 0.5)


def test_end_points_under_jit():
  init, a, b = (network(seed) for seed in range(3))
  merge = jax.jit(spherical.slerp, static_argnames="group")
  for t, expected in ((0.0, a), (1.0, b)):
    merged = merge(init, a, b, t, group=parts.by_depth(init))
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
