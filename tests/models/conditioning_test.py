"""Conditioned weights: what a preference chooses, what its derivative is, and the models that read it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithms.small_test_models import CONFIG, MODEL
from wam.core import trees
from wam.core.errors import ConfigError, UnknownName
from wam.generation.sampling import generate
from wam.models import conditioning, logit_mixture
from wam.models.conditioning import Conditioning
from wam.models.decoder import LanguageModel
from wam.models.logit_mixture import LogitMixture
from wam.models.prefixed import PrefixedModel
from wam.training import sharding

TOKENS = np.random.default_rng(0).integers(2, 12, (4, 7)).astype(np.int32)
# The first row is whole; the others are padded on the left, on the right, and on both sides.
MASK = np.array([[1] * 7, [0, 0] + [1] * 5, [1] * 4 + [0] * 3, [0] + [1] * 4 + [0] * 2], bool)
W = jnp.asarray([0.2, 0.5, 0.3])


def apart(kind, *, size=3, stacked=False, model=MODEL):
  """A conditioning, and conditioned weights whose leaves are all different."""
  how = Conditioning(kind, size, model)
  start = how.init(model.init(jax.random.key(0), stacked=stacked))
  draw = np.random.default_rng(1)
  noisy = jax.tree.map(
    lambda x: jnp.asarray(np.asarray(x) + draw.normal(0, 0.1, x.shape).astype(x.dtype)), start
  )
  return how, noisy


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, tokens, mask):
  return model.apply(params, tokens, mask=mask).logits


def logits_of(model, params, tokens=TOKENS, mask=MASK):
  """Logits [B, T, V] of the real tokens, 0 elsewhere."""
  found = read(model, params, tokens, mask)
  return np.where(mask[:, :, None], found, 0.0)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", ["full", "attention"])
def test_a_one_hot_preference_chooses_a_member_bit_for_bit(kind, stacked):
  how, conditioned = apart(kind, stacked=stacked)
  mixed = jax.jit(how.weights)
  for i in range(3):
    chosen = mixed(conditioned, jnp.eye(3)[i])
    for name, leaf in trees.flatten(chosen).items():
      source = trees.flatten(conditioned)[name]
      steered = kind == "full" or "/attention/" in name
      assert source.ndim == leaf.ndim + steered
      assert np.array_equal(leaf, source[i] if steered else source)
    assert jax.tree.all(jax.tree.map(np.array_equal, chosen, how.member(conditioned, i)))


def test_attention_shares_what_is_no_attention():
  """The matrices of attention have copies: its norm, the MLPs and the embedding are shared."""
  how, conditioned = apart("attention")
  steered = {name for name in trees.names(conditioned) if how.conditions(name)}
  assert steered == {f"layers/{i}/attention/{m}/kernel" for i in (0, 1) for m in "qkvo"}


@pytest.mark.parametrize("kind", ["full", "attention"])
def test_the_derivative_by_a_member_is_its_share(kind):
  """dθ(w)/dθ_i = w_i·I and dθ(w)/dS = I, by finite differences and by the transposed product."""
  how, conditioned = apart(kind)
  mix = jax.jit(how.weights)
  plain = mix(conditioned, W)
  draw = np.random.default_rng(2)
  upstream = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32), plain)
  back = jax.vjp(lambda c: how.weights(c, W), conditioned)[1](upstream)[0]
  for name, leaf in trees.flatten(conditioned).items():
    steered = how.conditions(name)
    step = np.zeros(leaf.shape, np.float32)
    # 2 in one entry of the second copy: the mixture moves by 1 there, the others stay.
    step[(1, *(0,) * (leaf.ndim - 1)) if steered else (0,) * leaf.ndim] = 2.0
    shifted = trees.map_named(
      lambda n, x, n0=name, s=step: np.asarray(x) + s if n == n0 else x, conditioned
    )
    after = trees.flatten(mix(shifted, W))
    change = {n: np.asarray(after[n]) - np.asarray(x) for n, x in trees.flatten(plain).items()}
    expected = np.zeros(change[name].shape)
    expected[(0,) * expected.ndim] = 2.0 * (0.5 if steered else 1.0)
    np.testing.assert_allclose(change[name], expected, atol=1e-6)
    assert all(not np.asarray(x).any() for n, x in change.items() if n != name)
    above = np.asarray(trees.flatten(upstream)[name])
    share = np.asarray(W).reshape(3, *(1,) * above.ndim) if steered else 1.0
    np.testing.assert_allclose(trees.flatten(back)[name], share * above, rtol=1e-6)


@pytest.mark.parametrize("kind", conditioning.KINDS)
def test_equal_members_do_not_know_the_preference(kind):
  """At the start; and where nothing is read before the text, the policy is that of the weights it began with."""
  params = MODEL.init(jax.random.key(0), stacked=False)
  how = Conditioning(kind, 3, MODEL)
  start = how.init(params)
  found = [logits_of(how.model, how.weights(start, w)) for w in (W, jnp.asarray([0.0, 0.1, 0.9]))]
  np.testing.assert_allclose(found[0], found[1], atol=1e-5)
  before = logits_of(MODEL, params)
  if kind != "prompt":
    np.testing.assert_allclose(found[0], before, atol=1e-5)
  np.testing.assert_allclose(logits_of(how.model, how.reference(params)), before, atol=1e-6)


@pytest.mark.parametrize("kind", conditioning.KINDS)
def test_members_that_differ_do(kind):
  how, conditioned = apart(kind)
  found = [
    logits_of(how.model, how.weights(conditioned, w)) for w in (W, jnp.asarray([0.0, 0.1, 0.9]))
  ]
  assert np.abs(found[0] - found[1]).max() > 0.02


def test_logits_are_mixed():
  """Against the members' own logits; a one-hot preference gives one of them exactly."""
  how, conditioned = apart("logit")
  alone = [logits_of(MODEL, how.member(conditioned, i)) for i in range(3)]
  expected = sum(float(c) * z for c, z in zip(W, alone, strict=True))
  np.testing.assert_allclose(logits_of(how.model, how.weights(conditioned, W)), expected, atol=1e-5)
  only = logits_of(how.model, how.weights(conditioned, jnp.eye(3)[1]))
  np.testing.assert_allclose(only, alone[1], atol=1e-6)


def test_a_mixture_of_its_own():
  """Fresh ones are mixed evenly, with a member twice they are the member."""
  mixture = LogitMixture(CONFIG, MODEL, 2)
  fresh = mixture.init(jax.random.key(0), stacked=False)
  expected = logits_of(MODEL, MODEL.init(jax.random.key(0), stacked=False))
  np.testing.assert_allclose(logits_of(mixture, fresh), expected, atol=1e-5)
  apart_by_two = logit_mixture.join([fresh["layers"]["0"]] * 2, jnp.asarray([2.0, 1.0]))
  np.testing.assert_allclose(logits_of(mixture, apart_by_two), 3 * expected, atol=1e-5)


def spelled_out(params, tokens, embeddings, *, place):
  """Logits of one row [T] after the same decoder read it with `embeddings` [K, D] put in before `place`: [T, V].

  The embeddings are rows of an enlarged vocabulary of an ordinary model, and the row is written out with their ids.
  """
  V, K = CONFIG.vocab_size, len(embeddings)
  larger = LanguageModel(dataclasses.replace(CONFIG, vocab_size=V + K))
  added = {"embed": {"embedding": np.concatenate([params["embed"]["embedding"], embeddings])}}
  kernel = np.pad(params["lm_head"]["kernel"], ((0, 0), (0, K)))
  row = [*tokens[:place], *(V + np.arange(K)), *tokens[place:]]
  # Filled up behind, where no earlier token looks.
  filled = np.asarray([row + [0] * (9 - len(row))], np.int32)
  found = read(larger, params | added | {"lm_head": {"kernel": kernel}}, filled, filled >= 0)
  return np.asarray(found)[0, K : len(row), :V]


@pytest.mark.parametrize("bos", [None, 3])
def test_a_prefix_is_read_before_the_text(bos):
  """Against rows written out by hand, without padding; after BOS where a row begins with it."""
  config = dataclasses.replace(CONFIG, bos_token_id=bos)
  model = LanguageModel(config)
  how, conditioned = apart("prompt", size=2, model=model)
  tokens = TOKENS.copy()
  tokens[0, 0] = tokens[1, 2] = 3
  preference = jnp.asarray([0.25, 0.75])
  found = logits_of(how.model, how.weights(conditioned, preference), tokens=tokens)
  words = np.asarray(conditioned["embed"]["embedding"])[CONFIG.vocab_size :][:22].reshape(2, 11, -1)
  # 0.25 lies between the second and the third tenth.
  read = np.stack([(words[0, 2] + words[0, 3]) / 2, (words[1, 7] + words[1, 8]) / 2])
  shared = how.member(conditioned, 0)
  assert shared["embed"]["embedding"].shape == (12, 16)
  for row in range(4):
    real = tokens[row][MASK[row]]
    place = int(bos is not None and real[0] == bos)
    expected = spelled_out(shared, real, read, place=place)
    np.testing.assert_allclose(found[row][MASK[row]], expected, atol=1e-5)
  with pytest.raises(ValueError, match="counts positions itself"):
    how.model.apply(shared, tokens, positions=jnp.zeros((4, 7), jnp.int32))


def test_a_level_is_its_token():
  how, conditioned = apart("prompt", size=2)
  words = conditioned["embed"]["embedding"][12:][:22].reshape(2, 11, -1)
  found = how.weights(conditioned, jnp.asarray([0.3, 0.7]))["embed"]["embedding"]
  np.testing.assert_allclose(found[12:], [words[0, 3], words[1, 7]], atol=1e-6)
  ends = how.weights(conditioned, jnp.asarray([0.0, 1.0]))["embed"]["embedding"]
  assert np.array_equal(ends[12:], [words[0, 0], words[1, 10]])


@pytest.mark.parametrize("stacked", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["logit", "prompt"])
def test_sampling_reads_what_scoring_reads(kind, stacked):
  """Tokens chosen with a cache have the log-probabilities that a pass over all of them gives."""
  how, conditioned = apart(kind, stacked=stacked)
  weights = how.weights(conditioned, W)
  prompts, mask = TOKENS[:2, :4], np.array([[1] * 4, [0, 0, 1, 1]], bool)
  drawn = generate(
    how.model, weights, prompts, mask, jax.random.key(0), max_new_tokens=6, eos_id=(), pad_id=0, num_samples=3
  )  # fmt: skip
  logits = read(how.model, weights, drawn.tokens, drawn.mask)[:, 3:-1]
  logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn.completions[..., None], axis=-1)
  np.testing.assert_allclose(drawn.logprobs, logprobs[..., 0], atol=1e-5)


@pytest.mark.slow
def test_a_reference_samples_what_the_model_samples():
  """The wrappers with unsteered weights draw the tokens of the plain model."""
  params = MODEL.init(jax.random.key(0), stacked=False)
  arguments = (TOKENS[:2], MASK[:2], jax.random.key(0))
  plain = generate(MODEL, params, *arguments, max_new_tokens=4, eos_id=(), pad_id=0)
  for kind in ("logit", "prompt"):
    how = Conditioning(kind, 3, MODEL)
    reference = how.reference(params)
    found = generate(how.model, reference, *arguments, max_new_tokens=4, eos_id=(), pad_id=0)
    assert np.array_equal(found.completions, plain.completions)


@pytest.mark.parametrize("kind", ["attention", "prompt"])
def test_frozen_weights_get_no_gradient(kind):
  how, conditioned = apart(kind)
  weigh = jax.jit(
    jax.grad(
      lambda c: jnp.sum(how.model.apply(how.weights(how.freeze_shared(c), W), TOKENS).logits ** 2)
    )
  )
  slopes = trees.flatten(weigh(conditioned))
  for name, slope in slopes.items():
    moved = np.asarray(slope).any(axis=tuple(range(1, slope.ndim)))
    if kind == "prompt" and name == "embed/embedding":
      assert not moved[:12].any() and moved[12:].any()
    else:
      assert moved.any() == how.conditions(name)


def test_it_is_sharded_as_the_weights_are():
  """Copies and extra rows lie as the rules say of the leaf; the mixture is the same on 8 devices."""
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  for kind in conditioning.KINDS:
    how, conditioned = apart(kind, stacked=True)
    where = sharding.shardings(conditioned, conditioned, sharding.DECODER_RULES, mesh)
    placed = sharding.put(conditioned, where)
    if kind != "prompt":
      kernel = placed["layers"]["attention"]["q"]["kernel"]
      assert kernel.shape == (3, 2, 16, 16)
      assert kernel.sharding.spec == jax.P(None, None, "fsdp", "tensor")
    mixed = jax.jit(how.weights)
    for x, y in zip(
      jax.tree.leaves(mixed(conditioned, W)), jax.tree.leaves(mixed(placed, W)), strict=True
    ):
      np.testing.assert_allclose(x, np.asarray(y), atol=1e-6)


def test_what_it_refuses():
  with pytest.raises(UnknownName, match="Did you mean 'attention'"):
    Conditioning("atention", 2, MODEL)
  with pytest.raises(ConfigError, match="at least 1"):
    Conditioning("full", 0, MODEL)
  with pytest.raises(ConfigError, match="1 levels"):
    Conditioning("prompt", 2, MODEL, levels=1)
  headless = {"layers": {"0": {"mlp": {"up": {"kernel": jnp.ones((2, 2))}}}}}
  with pytest.raises(ConfigError, match="no leaf that it could condition"):
    Conditioning("attention", 2, MODEL).init(headless)


def test_models_are_hashable():
  assert hash(LogitMixture(CONFIG, MODEL, 2)) == hash(LogitMixture(CONFIG, MODEL, 2))
  assert LogitMixture(CONFIG, MODEL, 2) != LogitMixture(CONFIG, MODEL, 3)
  assert PrefixedModel(CONFIG, MODEL, 2) != MODEL
