"""Rules against numbers by hand; when averages of weights are ensembles, when nearly, and when not."""

import itertools

import jax
import numpy as np
import pytest

from wam.algorithms import reward_model
from wam.core.errors import BadData, ConfigError, NonFinite, UnknownName
from wam.merging import averages
from wam.models.config import DecoderConfig
from wam.models.heads import ScalarModel
from wam.rewards import ensembles, scorers

MODEL = ScalarModel(
  DecoderConfig(
    vocab_size=20, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, head_dim=4
  )
)


def rollout(count):
  """Prompts [R, 3] and completions [R, 4] of random lengths."""
  draw = np.random.default_rng(0)
  prompts, completions = draw.integers(2, 20, (count, 3)), draw.integers(2, 20, (count, 4))
  completion_mask = np.arange(4)[None] < draw.integers(1, 5, count)[:, None]
  mask = np.ones((count, 3), bool)
  return prompts.astype(np.int32), mask, completions.astype(np.int32), completion_mask


def member(params):
  """The reward model as a scorer; one program for all tests."""
  return scorers.from_model(MODEL, params, chunk=32)


def score(params, batch):
  return member(params)(*batch)


def moved(params, key, scale, names=("decoder", "head")):
  """The parameters plus normal noise in these parts, `scale` times as large as each array."""
  parts = {name: params[name] for name in names}
  leaves, tree = jax.tree.flatten(parts)
  keys = jax.random.split(key, len(leaves))
  noisy = [
    np.asarray(x)
    + scale * np.sqrt(np.mean(np.square(x))) * np.asarray(jax.random.normal(k, x.shape))
    for x, k in zip(leaves, keys, strict=True)
  ]
  return params | jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def start():
  return jax.jit(MODEL.init)(jax.random.key(0))


def constant(*values):
  """A scorer that gives these rewards."""
  return lambda *batch: np.asarray(values, np.float32)


REWARDS = np.asarray([[1.0, 0.0, 5.0], [3.0, 0.0, 2.0], [2.0, 0.0, -4.0]])


def test_rules_by_hand():
  np.testing.assert_allclose(ensembles.combine(REWARDS), [2, 0, 1])
  np.testing.assert_array_equal(ensembles.combine(REWARDS, rule="worst_case"), [1, 0, -4])
  found = ensembles.combine(REWARDS, rule="uncertainty_weighted", variance_coefficient=0.5)
  # Variances 2/3, 0 and 14: squares of (-1, 1, 0) and of (4, 1, -5), over three members.
  np.testing.assert_allclose(found, [2 - 1 / 3, 0, 1 - 7])
  # As the authors' PPO code has it, which divides by M - 1.
  found = ensembles.combine(REWARDS, rule="uncertainty_weighted", variance_coefficient=0.1 * 3 / 2)
  np.testing.assert_allclose(found, REWARDS.mean(0) - 0.1 * np.var(REWARDS, axis=0, ddof=1))


@pytest.mark.parametrize(
  ("rule", "coefficient"), [("mean", None), ("worst_case", None), ("uncertainty_weighted", 0.7)]
)
def test_one_member_and_equal_members_are_that_member(rule, coefficient):
  for copies in (1, 4):
    rewards = np.tile([0.1, -0.7], (copies, 1))
    found = ensembles.combine(rewards, rule=rule, variance_coefficient=coefficient)
    np.testing.assert_allclose(found, [0.1, -0.7], rtol=1e-15)


def test_no_weight_on_the_variance_is_the_mean():
  found = ensembles.combine(REWARDS, rule="uncertainty_weighted", variance_coefficient=0.0)
  np.testing.assert_array_equal(found, ensembles.combine(REWARDS))


def test_normalised_members_are_judged_by_rank_and_not_by_constant_or_scale():
  """Members that are one reward up to constant and scale become one; without scales the widest or lowest decides."""
  truth = np.random.default_rng(0).normal(size=50)
  rewards = np.stack([truth, 10 * truth + 3, truth / 7 - 50])
  reference, rest = rewards[:, :20], rewards[:, 20:]
  scales = ensembles.scales_of(reference)
  expected = (truth[20:] - truth[:20].mean()) / truth[:20].std()
  for rule in ("mean", "worst_case"):
    found = ensembles.combine(rest, rule=rule, scales=scales)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  np.testing.assert_array_equal(ensembles.combine(rest, rule="worst_case"), rest[2])
  centred = ensembles.scales_of(reference, normalisation="center")
  np.testing.assert_array_equal(centred.scale, np.ones(3))
  np.testing.assert_allclose(ensembles.normalise(reference, centred).mean(axis=1), 0, atol=1e-4)


def test_scorer_is_the_rule_on_what_members_give():
  batch = rollout(3)
  members = [constant(*row) for row in REWARDS]
  found = ensembles.ensemble(members, rule="worst_case")(*batch)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, [1, 0, -4])
  np.testing.assert_array_equal(ensembles.score_members(members, *batch), REWARDS)
  scales = ensembles.reference_scales([members[0], members[2]], *batch)
  scorer = ensembles.ensemble([members[0], members[2]], scales=scales)
  expected = (REWARDS[0] - 2) / np.std([1, 0, 5]) + (REWARDS[2] + 2 / 3) / np.std([2, 0, -4])
  np.testing.assert_allclose(scorer(*batch), expected / 2, rtol=1e-6)


def test_scales_outside_are_normalised_heads(start):
  """`reward_model.normalise` puts the same numbers into the weights."""
  batch = rollout(32)
  trees = [moved(start, jax.random.key(m), 0.3) for m in range(3)]
  members = [member(tree) for tree in trees]
  scales = ensembles.reference_scales(members, *batch)
  normalised = [member(reward_model.normalise(tree, score(tree, batch))) for tree in trees]
  for rule in ("mean", "worst_case"):
    outside = ensembles.ensemble(members, rule=rule, scales=scales)(*batch)
    inside = ensembles.ensemble(normalised, rule=rule)(*batch)
    np.testing.assert_allclose(outside, inside, atol=2e-5)


def test_averaged_heads_are_the_mean_prediction(start):
  """Members that differ in the linear head only, and so linear models on frozen features."""
  batch = rollout(32)
  trees = [moved(start, jax.random.key(m), 1.0, names=("head",)) for m in range(5)]
  assert np.std([score(tree, batch) for tree in trees], axis=0).min() > 0.1  # they differ
  together = ensembles.ensemble([member(tree) for tree in trees])
  np.testing.assert_allclose(
    score(averages.uniform_mean(trees), batch), together(*batch), atol=2e-6
  )


def test_averaged_weights_differ_from_the_mean_prediction_in_second_order(start):
  """WARM's first-order claim: halve the distance between members, and the difference falls to a quarter."""
  batch = rollout(32)
  ends = [moved(start, jax.random.key(m), 0.1) for m in range(3)]

  def difference(t):
    members = [averages.lerp(start, end, t) for end in ends]
    together = np.mean([score(member, batch).astype(np.float64) for member in members], axis=0)
    return np.linalg.norm(score(averages.uniform_mean(members), batch) - together)

  found = [difference(t) for t in (1.0, 0.5, 0.25)]
  # Float32 leaves some 1e-6 in the norm; the differences are far above it.
  assert found[2] > 1e-4
  assert found[0] / found[1] == pytest.approx(4, rel=0.02)
  assert found[1] / found[2] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(("M", "layers"), [(1, 2), (2, 2), (6, 2), (3, 4)])
def test_features_that_some_members_learn(M, layers):
  """WARM's toy theory (section 4): a member learns feature j in every layer with chance p_j, or not at all.

  Prediction y·Σ_j (Π_layers w_j)·|z_j|². Over all patterns of who learnt what, the ensemble's coefficient has the mean
  p and the weight average's the mean of (k/M)^L, k ~ Binomial(M, p): p² + p(1 - p)/M for two layers.
  """
  chances = np.asarray([0.2, 0.5, 0.9])
  ensemble, average = np.zeros(3), np.zeros(3)
  for learnt in itertools.product((0.0, 1.0), repeat=M):
    probability = np.prod([chances if b else 1 - chances for b in learnt], axis=0)
    members = [{f"layer{i}": np.float32([b]) for i in range(layers)} for b in learnt]
    soup = averages.uniform_mean(members)
    average += probability * np.prod([float(soup[name][0]) for name in soup])
    coefficients = [np.prod([member[name][0] for name in member]) for member in members]
    ensemble += probability * ensembles.combine(np.asarray(coefficients))
  np.testing.assert_allclose(ensemble, chances, rtol=1e-6)
  if layers == 2:
    np.testing.assert_allclose(average, chances**2 + chances * (1 - chances) / M, rtol=1e-6)
  elif M == 3:
    # E (k/3)^4 over k = 0..3.
    p, q = chances, 1 - chances
    expected = (3 * p * q**2 * 1 + 3 * p**2 * q * 16 + p**3 * 81) / 81
    np.testing.assert_allclose(average, expected, rtol=1e-6)


def test_bad_input_is_refused():
  with pytest.raises(UnknownName, match="Did you mean 'worst_case'"):
    ensembles.combine(REWARDS, rule="worstcase")
  for coefficient in (None, -0.1, np.nan, np.inf):
    with pytest.raises(ConfigError, match=r"0\.5 for best-of-n"):
      ensembles.ensemble(
        [constant(1)], rule="uncertainty_weighted", variance_coefficient=coefficient
      )
  with pytest.raises(ConfigError, match="not to 'mean'"):
    ensembles.combine(REWARDS, variance_coefficient=0.5)
  with pytest.raises(ConfigError, match="at least one member"):
    ensembles.ensemble([])
  with pytest.raises(ConfigError, match="at least one member"):
    ensembles.combine(np.zeros((0, 3)))
  scales = ensembles.scales_of(REWARDS[:2], normalisation="center")
  with pytest.raises(ConfigError, match="scales of 2 members for an ensemble of 3"):
    ensembles.ensemble([constant(1)] * 3, scales=scales)
  with pytest.raises(ConfigError, match="scales of 2 members for rewards of 3"):
    ensembles.combine(REWARDS, scales=scales)
  broken = REWARDS.copy()
  broken[1, 2] = np.nan
  with pytest.raises(NonFinite, match=r"members \[1\]"):
    ensembles.combine(broken)
  with pytest.raises(NonFinite, match="ensemble member 1: 1 of 3"):
    ensembles.ensemble([constant(*row) for row in broken], rule="worst_case")(*rollout(3))
  with pytest.raises(NonFinite, match="member 1: 1 of 3"):
    ensembles.scales_of(broken)
  with pytest.raises(BadData, match=r"members \[1\] give all 3"):
    ensembles.scales_of(np.asarray([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]))
  with pytest.raises(BadData, match="no reference samples"):
    ensembles.scales_of(np.zeros((2, 0)))
  with pytest.raises(UnknownName, match="Did you mean 'standardize'"):
    ensembles.scales_of(REWARDS, normalisation="standardise")
