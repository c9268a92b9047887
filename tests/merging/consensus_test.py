"""The methods on thinned task vectors against a float64 twin that goes entry by entry, in blocks of NumPy and on trees
in JAX, and the edge cases of elections and divisors."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.merging import by_blocks
from wam.core import counters, trees
from wam.core.errors import ConfigError, UnknownName
from wam.merging import rules
from wam.merging.methods import METHODS, merge

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SEED = 5
SHAPES = {
  "embed/embedding": (10, 6),
  "final_norm/scale": (7,),
  "layers/mlp/kernel": (3, 6, 8),
  "layers/norm/scale": (3, 6),
}
THREE = (0.4, 1.1, 0.7)


def network(seed, around=None):
  """Flat, with stacked layers. Every fifth entry is that of the start."""
  random = np.random.default_rng(seed)
  flat = {n: random.normal(size=s) for n, s in SHAPES.items()}
  if around is not None:
    for name, start in around.items():
      moves = 0.1 * flat[name] * (random.random(flat[name].shape) > 0.2)
      flat[name] = start + moves
  return {n: x.astype(np.float32) for n, x in flat.items()}


def unrolled(flat):
  result = {}
  for name, x in flat.items():
    if name.startswith("layers/"):
      result |= {name.replace("layers/", f"layers/{i}/", 1): y for i, y in enumerate(x)}
    else:
      result[name] = x
  return result


INIT = network(100)
MEMBERS = [network(i, INIT) for i in range(3)]


# --- the twin ---


def largest(deltas, density):
  """The max(1, int(d·n)) largest of a group, and what ties with the last of them."""
  if density in (0, 1):
    return {n: np.full(d.shape, density == 1) for n, d in deltas.items()}
  every = sorted((abs(x) for d in deltas.values() for x in d.ravel()), reverse=True)
  edge = every[max(1, int(density * len(every))) - 1]
  return {n: abs(d) >= edge for n, d in deltas.items()}


def middle(deltas, density, gamma):
  if density in (0, 1):
    return {n: np.full(d.shape, density == 1) for n, d in deltas.items()}
  every = sorted(abs(x) for d in deltas.values() for x in d.ravel())
  count = max(1, int(density * len(every)))
  bottom = max(0, len(every) - count - int(gamma * len(every)))
  low, high = every[bottom], every[bottom + count - 1]
  return {n: (abs(d) >= low) & (abs(d) <= high) for n, d in deltas.items()}


def bits(name, stream, shape):
  rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
  words = rules.key_words(SEED, name, stream)
  return counters.bits16_run(words, np.arange(rows), 0, columns)


def at_random(deltas, density, m):
  return {
    n: bits(n, f"dare/{m}", d.shape).reshape(d.shape) < round(density * 65536)
    for n, d in deltas.items()
  }


def by_rank(deltas, density, epsilon, m):
  """Masks, and the probability of each entry."""
  masks, shares = {}, {}
  for name, d in deltas.items():
    drawn = bits(name, f"della/{m}", d.shape)
    rows = d.reshape(drawn.shape)
    mask, p = np.zeros(rows.shape, bool), np.ones(rows.shape)
    for i, row in enumerate(rows):
      order = sorted(range(len(row)), key=lambda j, row=row: (abs(row[j]), j))
      for r, j in enumerate(order):
        share = density - epsilon + 2 * epsilon * r / (len(row) - 1) if len(row) > 1 else density
        p[i, j] = round(share * 65536) / 65536
        mask[i, j] = drawn[i, r] < round(share * 65536)
    masks[name], shares[name] = mask.reshape(d.shape), p.reshape(d.shape)
  return masks, shares


def thinned(method, deltas, m, values):
  """What is left of the deltas of one member in one group."""
  density = values["density"]
  density = density[m] if isinstance(density, tuple) else density
  own = np.ones(())
  if method == "ties":
    keep = largest(deltas, density)
  elif method.startswith("breadcrumbs"):
    keep = middle(deltas, density, values["gamma"])
  elif density == 1:
    keep = {n: np.ones(d.shape, bool) for n, d in deltas.items()}
  elif method.startswith("dare"):
    keep = at_random(deltas, density, m)
    own = np.float64(round(density * 65536) / 65536)
  else:
    keep, own = by_rank(deltas, density, values["epsilon"], m)
  left = {n: np.where(keep[n], d, 0) for n, d in deltas.items()}
  if values["rescale"] == "probability":
    return {n: d / (own[n] if isinstance(own, dict) else own) for n, d in left.items()}
  if values["rescale"] == "l1":
    total = lambda x: sum(abs(d).sum() for d in x.values())  # noqa: E731
    return {n: d * (total(deltas) / total(left) if total(left) else 1) for n, d in left.items()}
  return left


def groups_of(names, group):
  return [list(names)] if group == "global" else [[n] for n in names]


def twin(method, init, members, c, **given):
  """Entry by entry, in float64."""
  values = {**METHODS[method].defaults, **given}
  values["normalize"] = {True: "weights", False: "none"}.get(
    values["normalize"], values["normalize"]
  )
  init = {n: np.float64(x) for n, x in unrolled(init).items()}
  members = [{n: np.float64(x) for n, x in unrolled(m).items()} for m in members]
  c = [float(np.float32(x)) for x in c]
  result = {}
  for names in groups_of(init, values.get("group", "leaf")):
    deltas = [{n: m[n] - init[n] for n in names} for m in members]
    left = [thinned(method, d, m, values) for m, d in enumerate(deltas)]
    zero = 1
    if "elect" in values and values["zero_sign"] == "majority":
      signs = [
        np.sign(votes([x[n].ravel()[i] for x in left], c, values))
        for n in names
        for i in range(init[n].size)
      ]
      zero = -1 if sum(signs) < 0 else 1
    for n in names:
      merged = [
        entry([x[n].ravel()[i] for x in left], c, values, zero) for i in range(init[n].size)
      ]
      result[n] = init[n] + np.reshape(merged, init[n].shape)
  return result


def votes(deltas, c, values):
  return sum(
    (w if values["elect"] == "weighted" else 1) * d for w, d in zip(c, deltas, strict=True)
  )


def entry(deltas, c, values, zero):
  if "elect" in values:
    total = votes(deltas, c, values)
    sign = np.sign(total) if total else zero
    weighted = values["elect"] == "weighted"
    agree = [
      (w, d) for w, d in zip(c, deltas, strict=True) if np.sign(w * d if weighted else d) == sign
    ]
  else:
    agree = list(zip(c, deltas, strict=True))
  value = sum(w * d for w, d in agree)
  if values["normalize"] == "weights":
    value /= sum(w for w, _ in agree) or 1
  elif values["normalize"] == "count":
    value /= len(agree) or 1
  return values["scale"] * value


CASES = [
  ("ties", {"density": 0.5}),
  ("ties", {"density": (0.2, 1.0, 0.0), "normalize": False, "scale": 0.6}),
  ("ties", {"density": 0.4, "rescale": "l1", "zero_sign": "majority"}),
  (
    "ties",
    {
      "density": 0.2,
      "group": "global",
      "normalize": "count",
      "elect": "unweighted",
      "zero_sign": "majority",
    },
  ),
  ("breadcrumbs", {"density": 0.6, "gamma": 0.1}),
  ("breadcrumbs", {"density": 0.9, "gamma": 0.4, "normalize": True, "group": "global"}),
  ("breadcrumbs_ties", {"density": 0.3, "gamma": 0.05, "normalize": "count"}),
  ("dare_linear", {"density": 0.5}),
  ("dare_linear", {"density": (0.3, 0.9, 1.0), "rescale": "probability", "normalize": True}),
  ("dare_ties", {"density": 0.5, "elect": "unweighted"}),
  ("dare_ties", {"density": 0.7, "rescale": "none", "normalize": "count", "scale": 1.5}),
  ("della", {"density": 0.5}),
  ("della", {"density": 0.6, "epsilon": 0.3, "rescale": "probability", "zero_sign": "majority"}),
  ("della_linear", {"density": 0.4, "epsilon": 0.1, "scale": 0.5}),
]
each = pytest.mark.parametrize(
  ("method", "given"), CASES, ids=[f"{m}-{i}" for i, (m, _) in enumerate(CASES)]
)


def seed_of(method):
  return SEED if METHODS[method].draws else None


def assert_near(found, expected, rtol=2e-6, atol=1e-6):
  assert found.keys() == expected.keys()
  for name, x in found.items():
    np.testing.assert_allclose(
      np.asarray(x, np.float64), expected[name], rtol=rtol, atol=atol, err_msg=name
    )


def nested(flat):
  return trees.unflatten(flat)


def in_memory(method, init, members, c, **given):
  merged = merge(
    method,
    [nested(m) for m in members],
    init=nested(init),
    coefficients=c,
    seed=seed_of(method),
    **given,
  )
  return trees.flatten(merged)


@each
@pytest.mark.parametrize("c", [THREE, (0.8, -0.5, 1.2)], ids=["positive", "mixed"])
def test_blocks_of_numpy_are_the_twin(method, given, c):
  found = by_blocks.merge(
    method,
    [unrolled(m) for m in MEMBERS],
    init=unrolled(INIT),
    coefficients=c,
    seed=seed_of(method),
    **given,
  )
  assert_near(found, twin(method, INIT, MEMBERS, c, **given))


# Every program takes a second to compile: two leaves are enough, and the contract test has the defaults.
FEW = ("embed/embedding", "layers/mlp/kernel")
FEW_INIT = {n: INIT[n] for n in FEW}
FEW_MEMBERS = [{n: m[n] for n in FEW} for m in MEMBERS]


@pytest.mark.parametrize("index", [1, 3, 5, 8, 10, 12])
def test_stacked_trees_in_jax_are_the_twin(index):
  method, given = CASES[index]
  found = in_memory(method, FEW_INIT, FEW_MEMBERS, THREE, **given)
  assert_near(unrolled(found), twin(method, FEW_INIT, FEW_MEMBERS, THREE, **given))


@pytest.mark.parametrize("index", [0, 8, 11], ids=["ties", "dare_linear", "della"])
def test_layers_apart_are_layers_together_under_jit_and_not(index):
  method, given = CASES[index]
  together = in_memory(method, FEW_INIT, FEW_MEMBERS, THREE, **given)
  apart = in_memory(method, unrolled(FEW_INIT), [unrolled(m) for m in FEW_MEMBERS], THREE, **given)
  compiled = jax.jit(lambda i, m, c: in_memory(method, i, m, c, **given))
  for name, x in compiled(FEW_INIT, FEW_MEMBERS, jnp.float32(THREE)).items():
    np.testing.assert_allclose(x, together[name], rtol=2e-6, atol=1e-7)
  for name, x in unrolled(together).items():
    np.testing.assert_allclose(x, apart[name], rtol=2e-6, atol=1e-7)


def test_scale_may_be_traced():
  compiled = jax.jit(lambda s: in_memory("ties", FEW_INIT, FEW_MEMBERS, THREE, scale=s))
  expected = twin("ties", FEW_INIT, FEW_MEMBERS, THREE, scale=0.25)
  assert_near(unrolled(compiled(jnp.float32(0.25))), expected)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_seeds_decide(method):
  run = lambda seed: by_blocks.merge(  # noqa: E731
    method,
    [unrolled(m) for m in MEMBERS],
    init=unrolled(INIT),
    seed=seed,
    density=0.5,
  )["embed/embedding"]
  np.testing.assert_array_equal(run(1), run(1))
  assert (run(1) != run(2)).mean() > 0.3
  with pytest.raises(ConfigError, match="needs a seed"):
    merge(method, [nested(m) for m in MEMBERS], init=nested(INIT), density=0.5)


def test_bfloat16_members_are_trimmed_by_exact_differences():
  init, *members = [{n: x[n].astype(ml_dtypes.bfloat16) for n in FEW} for x in (INIT, *MEMBERS)]
  found = in_memory("ties", init, members, THREE, density=0.5)
  expected = twin("ties", init, members, THREE, density=0.5)
  for name, x in unrolled(found).items():
    assert x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(x, expected[name].astype(ml_dtypes.bfloat16), err_msg=name)


def test_float64_stays_float64():
  """As rules see it: the answers of sums are float64 anyway, and float32 tensors must not become it."""
  for method, given in [*CASES, ("sce", {"select_topk": 0.5})]:
    row = METHODS[method]
    values = {**row.defaults, **given}
    values.pop("group", None)
    for key in row.per_member:
      values[key] = values[key] if isinstance(values[key], tuple) else (values[key],) * 3
    for dtype in (np.float64, np.float32):
      block = rules.Block(
        np,
        tuple(m["embed/embedding"].astype(dtype) for m in MEMBERS),
        INIT["embed/embedding"].astype(dtype),
        tuple(dtype(x) for x in THREE),
        (),
        lambda stream: bits("embed/embedding", stream, (10, 6)),
      )
      known = rules.Group(np, 3, 60, True, block.coefficients)
      apply = rules.run(row.rule(known, **values), lambda r, b=block: by_blocks._answers(r, [b]))
      assert apply(block).dtype == dtype, method


# --- edge cases ---


def row(*deltas, c=None, method="ties", **given):
  """Members at these deltas from 0, merged in NumPy: a list."""
  members = [{"w": np.float32([d])} for d in deltas]
  init = {"w": np.zeros_like(members[0]["w"])}
  merged = by_blocks.merge(
    method, members, init=init, coefficients=c, seed=seed_of(method), **given
  )
  return merged["w"][0].tolist()


def test_a_zero_sum_elects_plus():
  assert row([2.0, -2.0], [-2.0, 2.0]) == [2.0, 2.0]


def test_a_zero_sum_elects_the_majority():
  ties = lambda *d: row(*d, zero_sign="majority")  # noqa: E731
  assert ties([2.0, -1.0, -1.0], [-2.0, -1.0, -1.0]) == [-2.0, -1.0, -1.0]
  assert ties([2.0, 1.0, 1.0], [-2.0, 1.0, 1.0]) == [2.0, 1.0, 1.0]
  # As many of each: plus.
  assert ties([2.0, -1.0, 1.0], [-2.0, -1.0, 1.0]) == [2.0, -1.0, 1.0]


def test_zeros_never_agree():
  assert row([3.0, 0.0], [0.0, 0.0]) == [3.0, 0.0]
  assert row([3.0, 0.0], [0.0, 0.0], normalize="count") == [3.0, 0.0]
  # Trimmed entries are zeros, too: the mean is over what is left.
  assert row([3.0, 1.0], [1.0, 5.0], density=0.5) == [3.0, 5.0]


def test_a_negative_weight_turns_the_vote_round():
  # Votes 1 and -3: minus; only the second member is in the mean, whose weights sum to -1.
  assert row([1.0], [3.0], c=[1.0, -1.0]) == [3.0]
  assert row([1.0], [3.0], c=[1.0, -1.0], normalize=False) == [-3.0]
  # Elected without weights: plus, both agree, and the weights cancel: divided by 1.
  assert row([1.0], [3.0], c=[1.0, -1.0], elect="unweighted") == [-2.0]


def test_no_weight_no_vote():
  assert row([4.0], [8.0], c=[0.5, 0.0], normalize="count") == [2.0]
  assert row([4.0], [8.0], c=[0.5, 0.0], normalize="count", elect="unweighted") == [1.0]
  assert row([4.0], [-8.0], c=[0.5, 0.0]) == [4.0]


def test_weights_are_applied_before_the_election_or_after():
  assert row([1.0], [-2.0], c=[3.0, 1.0]) == [1.0]
  assert row([1.0], [-2.0], c=[3.0, 1.0], elect="unweighted") == [-2.0]


def test_weights_that_sum_to_nothing_do_not_divide():
  for method in ("breadcrumbs", "dare_linear", "della_linear"):
    assert row([1.0], [3.0], c=[1.0, -1.0], method=method, normalize=True) == [-2.0]
    assert row([1.0], [3.0], c=[1.0, 3.0], method=method, normalize=True) == [2.5]


def test_density_one_draws_and_drops_nothing():
  deltas = [1.0, -2.0, 0.5], [3.0, 4.0, -0.25]
  for method in ("breadcrumbs", "dare_linear", "della_linear"):
    assert row(*deltas, method=method) == [4.0, 2.0, 0.25]
  for method in ("ties", "della"):
    assert row(*deltas, method=method) == [2.0, 4.0, 0.5]


def test_paper_ties_trims_the_model_as_one():
  """The authors' example in two tensors: the fifth part of all entries is kept, wherever they lie."""
  init = {"a": np.zeros(5, np.float32), "b": np.zeros(5, np.float32)}
  member = {"a": np.float32([1, 2, 3, 4, 5]), "b": np.float32([6, 7, 8, 9, 10])}
  merged = by_blocks.merge("ties", [member], init=init, density=0.2, group="global")
  assert merged["a"].tolist() == [0] * 5
  assert merged["b"].tolist() == [0, 0, 0, 9, 10]
  merged = by_blocks.merge("ties", [member], init=init, density=0.2)
  assert merged["a"].tolist() == [0, 0, 0, 0, 5]


@pytest.mark.parametrize(
  ("method", "given", "message"),
  [
    ("ties", {"normalize": "mean"}, "unknown normalize 'mean'.*count, none, weights"),
    ("dare_linear", {"normalize": "count"}, "unknown normalize 'count'.*none, weights"),
    ("ties", {"elect": "both"}, "unknown elect 'both'.*unweighted, weighted"),
    ("della", {"zero_sign": "+"}, "unknown zero_sign"),
    ("ties", {"rescale": "probability"}, "unknown rescale of ties 'probability'.*l1, none"),
    ("breadcrumbs", {"rescale": "probability"}, "unknown rescale of breadcrumbs"),
  ],
)
def test_unknown_names_are_refused(method, given, message):
  with pytest.raises(UnknownName, match=message):
    row([1.0], [2.0], method=method, **given)


def test_one_density_a_member():
  with pytest.raises(ConfigError, match="density has 2 values, expected one or one for each of 3"):
    row([1.0], [2.0], [3.0], density=[0.5, 0.5])
  with pytest.raises(ConfigError, match=r"found 1\.5"):
    row([1.0], [2.0], density=[0.5, 1.5])


# --- SCE ---


def twin_sce(init, members, select_topk, group="leaf"):
  init = {n: np.float64(x) for n, x in unrolled(init).items()}
  members = [{n: np.float64(x) for n, x in unrolled(m).items()} for m in members]
  result = {}
  for names in groups_of(init, group):
    deltas = [np.concatenate([(m[n] - init[n]).ravel() for n in names]) for m in members]
    table = np.stack(deltas)
    if select_topk < 1:
      variance = table.var(0)
      count = int(np.float32(np.count_nonzero(variance)) * np.float32(select_topk))
      chosen = np.argsort(-variance)[:count]
      mask = np.zeros(table.shape[1], bool)
      mask[chosen] = True
      table = table * mask
    energy = (table**2).sum(1)
    weights = energy / energy.sum() if energy.any() else np.full(len(members), 1 / len(members))
    merged = np.zeros(table.shape[1])
    for i, column in enumerate(table.T):
      sign = 1 if column.sum() >= 0 else -1
      agree = [(w, d) for w, d in zip(weights, column, strict=True) if np.sign(d) == sign]
      if sum(w for w, _ in agree):
        merged[i] = sum(w * d for w, d in agree) / sum(w for w, _ in agree)
    pieces = np.split(merged, np.cumsum([init[n].size for n in names])[:-1])
    for n, piece in zip(names, pieces, strict=True):
      result[n] = init[n] + piece.reshape(init[n].shape)
  return result


@pytest.mark.parametrize(
  ("select_topk", "group"), [(1.0, "leaf"), (0.5, "leaf"), (0.29, "global"), (0.05, "leaf")]
)
def test_sce_is_its_twin(select_topk, group):
  expected = twin_sce(INIT, MEMBERS, select_topk, group)
  given = {"select_topk": select_topk, "group": group}
  found = by_blocks.merge("sce", [unrolled(m) for m in MEMBERS], init=unrolled(INIT), **given)
  assert_near(found, expected)
  if select_topk == 0.5:
    assert_near(unrolled(in_memory("sce", INIT, MEMBERS, None, **given)), expected)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-12])
def test_sce_weighs_small_updates_as_large_ones(size):
  """mergekit takes equal weights where mean squares are below 1e-6: deltas of 1e-4 and 3e-4 count the same there."""
  random = np.random.default_rng(0)
  signs = abs(random.normal(size=(2, 4000))) * random.choice([-1, 1], 4000)
  first, second = signs * size * np.array([[1.0], [3.0]])
  merged = row(first, second, method="sce")
  energy = np.array([(first**2).sum(), (second**2).sum()])
  weights = energy / energy.sum()
  np.testing.assert_allclose(weights, [0.1, 0.9], atol=0.01)
  np.testing.assert_allclose(merged, weights[0] * first + weights[1] * second, rtol=2e-5)


def test_sce_without_updates_is_the_start():
  assert row([0.0, 0.0], [0.0, 0.0], method="sce") == [0.0, 0.0]
  assert row([0.0, 0.0], [0.0, 0.0], method="sce", select_topk=0.5) == [0.0, 0.0]
  # Nothing differs, or too little of it is asked for: nothing is selected.
  assert row([1.0, 2.0], [1.0, 2.0], method="sce", select_topk=0.5) == [0.0, 0.0]
  assert row([1.0, 2.0], [2.0, 2.0], method="sce", select_topk=0.5) == [0.0, 0.0]
  # Energies 5 and 13.
  assert row([1.0, 2.0], [3.0, 2.0], method="sce") == pytest.approx([44 / 18, 2.0])


def test_sce_of_one_member():
  assert row([1.0, -2.0, 0.0], method="sce") == [1.0, -2.0, 0.0]
  with pytest.raises(ConfigError, match="variance over members, found one"):
    row([1.0, -2.0, 0.0], method="sce", select_topk=0.5)
  with pytest.raises(ConfigError, match="select_topk is a share"):
    row([1.0], [2.0], method="sce", select_topk=1.5)
