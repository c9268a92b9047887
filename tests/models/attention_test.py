"""Attention and a whole layer against slow NumPy twins in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core import trees
from wam.models.attention import attend, attend_causal
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel


def slow_attention(q, k, v, visible):
  """One query, one head, one key at a time; q [B, T, Q, H], k and v [B, S, K, H], visible [B, T, S]."""
  B, T, Q, H = q.shape
  group = Q // k.shape[2]
  out = np.zeros((B, T, Q, H))
  for b in range(B):
    for t in range(T):
      for head in range(Q):
        seen = [s for s in range(k.shape[1]) if visible[b, t, s]]
        weights = [math.exp(q[b, t, head] @ k[b, s, head // group] / math.sqrt(H)) for s in seen]
        for weight, s in zip(weights, seen, strict=True):
          out[b, t, head] += weight / sum(weights) * v[b, s, head // group]
  return out


def slow_rotate(x, position, theta):
  half = len(x) // 2
  out = np.zeros_like(x)
  for i in range(half):
    angle = position * theta ** (-2 * i / len(x))
    out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
    out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
  return out


def slow_norm(x, scale, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def slow_layer(x, weights, config):
  """One block of one sequence [T, D], written out."""
  T, H = len(x), config.head_dim
  normed = slow_norm(x, weights["attention_norm/scale"], config.rms_norm_eps)
  heads = {}
  for name in "qkv":
    y = normed @ weights[f"attention/{name}/kernel"] + weights[f"attention/{name}/bias"]
    heads[name] = y.reshape(T, -1, H)
  for name in "qk":
    heads[name] = slow_norm(
      heads[name], weights[f"attention/{name}_norm/scale"], config.rms_norm_eps
    )
    for t in range(T):
      for n in range(heads[name].shape[1]):
        heads[name][t, n] = slow_rotate(heads[name][t, n], t, config.rope_theta)
  visible = np.asarray([[t - config.sliding_window < s <= t for s in range(T)] for t in range(T)])
  mixed = slow_attention(heads["q"][None], heads["k"][None], heads["v"][None], visible[None])
  x = x + mixed.reshape(T, -1) @ weights["attention/o/kernel"]
  normed = slow_norm(x, weights["mlp_norm/scale"], config.rms_norm_eps)
  gate, up = normed @ weights["mlp/gate/kernel"], normed @ weights["mlp/up/kernel"]
  return x + (gate / (1 + np.exp(-gate)) * up) @ weights["mlp/down/kernel"]


def test_a_whole_decoder_layer_equals_its_slow_twin():
  config = DecoderConfig(
    vocab_size=20,
    hidden_size=12,
    intermediate_size=20,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_theta=100.0,
    rms_norm_eps=1e-5,
    sliding_window=3,
    attention_bias=True,
    qk_norm=True,
  )
  model = LanguageModel(config)
  random = np.random.default_rng(0)
  params = trees.unflatten(
    {n: random.normal(size=shape).astype(np.float32) for n, shape in config.shapes().items()}
  )
  tokens = random.integers(0, 20, size=7)
  weights = {n: np.asarray(w, np.float64) for n, w in trees.flatten(params).items()}
  layer = {n.removeprefix("layers/0/"): w for n, w in weights.items() if n.startswith("layers/")}
  hidden = slow_layer(weights["embed/embedding"][tokens], layer, config)
  hidden = slow_norm(hidden, weights["final_norm/scale"], config.rms_norm_eps)
  output = model.apply(params, jnp.asarray(tokens)[None, :])
  np.testing.assert_allclose(output.hidden[0], hidden, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    output.logits[0], hidden @ weights["lm_head/kernel"], rtol=1e-4, atol=2e-4
  )


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_attention_equals_its_slow_twin(heads):
  random = np.random.default_rng(1)
  queries, keys = heads
  q = random.normal(size=(2, 3, queries, 4))
  k, v = random.normal(size=(2, 2, 5, keys, 4))
  visible = random.random((2, 3, 5)) < 0.6
  visible[:, :, 0] = True
  found = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(visible)[:, None])
  np.testing.assert_allclose(found, slow_attention(q, k, v, visible), atol=1e-5)


@pytest.mark.parametrize("length", [1, 63, 64, 130, 513])
def test_causal_blocks_equal_one_block(length):
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (1, length, 2, 4))
  k, v = (jax.random.normal(key, (1, length, 1, 4)) for key in keys[1:])
  visible = jnp.tril(jnp.ones((length, length), bool))[None, None]
  np.testing.assert_allclose(
    jax.jit(attend_causal)(q, k, v, visible), attend(q, k, v, visible), atol=1e-5
  )


def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient():
  q = k = v = jnp.ones((1, 2, 1, 4))
  visible = jnp.zeros((1, 1, 2, 2), bool)
  gradient = jax.grad(lambda q: attend(q, k, v, visible).sum())(q)
  assert jnp.isfinite(gradient).all()


def test_attention_in_bfloat16_keeps_its_dtype():
  x = jnp.ones((1, 2, 2, 4), jnp.bfloat16)
  assert attend(x, x, x, jnp.ones((1, 1, 2, 2), bool)).dtype == jnp.bfloat16
