"""A policy whose completions can all be listed: what an algorithm does in expectation, exactly.

Four tokens, completions of three at most: C = 40 of them (1 of one token, 3 of two, 36 of three), each ended by EOS or
by its length. Expectations over samples become sums over all C; so does the KL to a reference. Two policies: a small
decoder (`MODEL`) and a table with one row of logits for every prefix (`TABLE`), which can be any distribution at all.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from wam.generation.rollouts import Rollout
from wam.losses import sequence
from wam.models.config import DecoderConfig
from wam.models.decoder import Cache, LanguageModel, Output

# Also what fills up: whoever asks a token whether it is padding takes EOS for it.
EOS = 0
VOCABULARY = 4
LENGTH = 3
PROMPT = np.asarray([2, 1], np.int32)
# Large fresh weights, or all policies would be nearly uniform.
CONFIG = DecoderConfig(
  vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, head_dim=4,
  initializer_range=0.6,
)  # fmt: skip
MODEL = LanguageModel(CONFIG)
# Keywords of `generate` that sample from exactly these completions.
SAMPLING = {"max_new_tokens": LENGTH, "eos_id": EOS, "pad_id": EOS}


def completions() -> tuple[np.ndarray, np.ndarray]:
  """All completions: tokens [C, 3] int32, 0 after EOS, and mask [C, 3] bool, EOS included."""
  rows, lengths = [], []
  for length in range(1, LENGTH + 1):
    for body in itertools.product(range(1, VOCABULARY), repeat=length - 1):
      for last in range(VOCABULARY) if length == LENGTH else (EOS,):
        rows.append([*body, last] + [EOS] * (LENGTH - length))
        lengths.append(length)
  mask = np.arange(LENGTH) < np.asarray(lengths)[:, None]
  return np.asarray(rows, np.int32), mask


def rollout() -> Rollout:
  """All completions as a rollout of C rows, in their order."""
  tokens, mask = completions()
  prompts = np.broadcast_to(PROMPT, (len(tokens), len(PROMPT))).copy()
  ended = ((tokens == EOS) & mask).any(axis=1)
  return Rollout(prompts, np.ones_like(prompts, bool), tokens, mask, ended)


def rows() -> dict[str, np.ndarray]:
  """Prompt and completion of all C: {"tokens" [C, 5] int32, "mask" [C, 5] bool, "loss_mask" [C, 5] bool}."""
  every = rollout()
  return {"tokens": every.tokens, "mask": every.mask, "loss_mask": every.loss_mask}


def prompts(count: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """The prompt, `count` times: tokens [count, 2] int32 and mask [count, 2] bool, as algorithms take them."""
  tokens = np.tile(PROMPT, (count, 1))
  return tokens, np.ones_like(tokens, bool)


def index_of(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The numbers [R] of these completions, tokens [R, 3] and mask [R, 3], among all C."""
  every, real = completions()
  same = (np.where(mask, tokens, -1)[:, None] == np.where(real, every, -1)[None]).all(axis=2)
  assert (same.sum(axis=1) == 1).all()
  return same.argmax(axis=1)


def params(seed: int):
  """Weights of `MODEL`."""
  return MODEL.init(jax.random.key(seed), stacked=False)


def rewards(seed: int) -> np.ndarray:
  """Fractional rewards [C] float32 in (-1, 1)."""
  return np.random.default_rng(seed).uniform(-1, 1, len(completions()[0])).astype(np.float32)


def logprobs(weights, *, model=None, temperature: float = 1.0) -> jax.Array:
  """log π(y) of all completions: [C] float32, summed over their tokens, EOS included.

  Args:
    weights: of the policy.
    model: `MODEL` (None) or `TABLE`.
    temperature: the logits are divided by it.
  """
  batch = rows()
  logits = (model or MODEL).apply(weights, batch["tokens"], mask=batch["mask"]).logits
  scores = sequence.token_logprobs(logits / temperature, batch["tokens"])
  return jnp.sum(jnp.where(batch["loss_mask"], scores, 0.0), axis=1)


def objective(
  weights, reference_weights, values, kl_coef: float, *, model=None, temperature: float = 1.0
) -> jax.Array:
  """E_π[r] - kl_coef·KL(π ‖ π_ref) of whole completions, exactly: a scalar to differentiate.

  Args:
    weights: of π.
    reference_weights: of π_ref; no gradient flows into them.
    values: rewards [C] in the order of `completions`.
    kl_coef: β.
    model, temperature: as in `logprobs`, for both policies.
  """
  log_p = logprobs(weights, model=model, temperature=temperature)
  log_q = logprobs(reference_weights, model=model, temperature=temperature)
  log_ratio = log_p - jax.lax.stop_gradient(log_q)
  return jnp.sum(jnp.exp(log_p) * (values - kl_coef * log_ratio))


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def gradient(
  weights, reference_weights, values, kl_coef: float, *, model=None, temperature: float = 1.0
):
  """The gradient of `objective` with respect to the weights of π (upwards)."""
  keywords = {"model": model, "temperature": temperature}
  return jax.grad(lambda w: objective(w, reference_weights, values, kl_coef, **keywords))(weights)


def optimum(reference_logprobs, values, kl_coef: float) -> np.ndarray:
  """log π*(y) of the best policy there is, π* = π_ref exp(r/β)/Z: [C] float64 (Rafailov et al. 2023, eq. 4)."""
  scores = np.asarray(reference_logprobs, np.float64) + np.asarray(values, np.float64) / kl_coef
  peak = scores.max()
  return scores - peak - np.log(np.exp(scores - peak).sum())


def value_of(policy_logprobs, reference_logprobs, values, kl_coef: float) -> float:
  """`objective` of any distribution over the completions, given as log-probabilities [C]."""
  log_p = np.asarray(policy_logprobs, np.float64)
  penalty = kl_coef * (log_p - np.asarray(reference_logprobs, np.float64))
  return float(np.sum(np.exp(log_p) * (np.asarray(values, np.float64) - penalty)))


@dataclasses.dataclass(frozen=True)
class TableModel:
  """A policy that looks its logits up: what algorithms and `generate` use of a `LanguageModel`, for PROMPT only.

  Its "hidden states" are the logits; its cache keeps the tokens in place of keys.
  """

  config: DecoderConfig = CONFIG

  def init(self, seed: int, scale: float = 1.0):
    """Random logits [13, 4], one row for each of the 1 + 3 + 9 prefixes; named so that sharding rules know them."""
    table = np.random.default_rng(seed).normal(0.0, scale, (13, VOCABULARY)).astype(np.float32)
    return {"layers": {"0": {"head": {"kernel": jnp.asarray(table)}}}}

  def init_cache(self, batch: int, length: int, dtype=jnp.float32) -> Cache:
    return Cache(
      keys=(jnp.zeros((batch, 1, 1, length), dtype),),
      values=(jnp.zeros((batch, 1, length, 1), dtype),),
      valid=jnp.zeros((batch, length), bool),
      index=jnp.zeros((), jnp.int32),
    )

  def logits(self, weights, hidden):
    del weights
    return hidden.astype(jnp.float32)

  def apply(
    self, weights, tokens, *, mask=None, positions=None, cache=None, dtype=jnp.float32,
    remat=False, logits=True,
  ) -> Output:  # fmt: skip
    del mask, positions, remat
    tokens = jnp.asarray(tokens)
    slots, every = jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens
    if cache is not None:
      slots = slots + cache.index
      new = tokens.astype(cache.keys[0].dtype)[:, None, None, :]
      written = jax.lax.dynamic_update_slice(cache.keys[0], new, (0, 0, 0, cache.index))
      every = written[:, 0, 0, :].astype(jnp.int32)
      cache = Cache((written,), cache.values, cache.valid, cache.index + tokens.shape[1])
    hidden = weights["layers"]["0"]["head"]["kernel"][_prefixes(every, slots)].astype(dtype)
    return Output(self.logits(weights, hidden) if logits else None, hidden, cache)


TABLE = TableModel()


def _prefixes(tokens, slots):
  """Which row of the table each slot [T] looks at, [B, T], given the tokens [B, S] of all slots."""
  P = len(PROMPT)
  padded = jnp.pad(tokens, ((0, 0), (0, P + 2)))
  first, second = (jnp.maximum(padded[:, P + i, None] - 1, 0) for i in (0, 1))
  depth = (slots - (P - 1))[None, :]
  after_one, after_two = 1 + first, 4 + 3 * first + second
  return jnp.where(depth <= 0, 0, jnp.where(depth == 1, after_one, after_two))
