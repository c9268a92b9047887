"""Log-probabilities of completions, and the reference's cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithms import small_test_models
from tests.algorithms.small_test_models import open_run
from wam.checkpoints import orbax
from wam.core.errors import BadData, NonFinite
from wam.models.decoder import LanguageModel
from wam.training import completions, pairs, sharding
from wam.training.completions import Sequences
from wam.training.workdir import Run

LENGTH = 24
CONFIG = dataclasses.replace(small_test_models.CONFIG, num_layers=1)
MODEL = LanguageModel(CONFIG)


def rows(count: int = 9, *, left: bool = False, seed: int = 0) -> Sequences:
  """Prompts of 1 to 9 tokens and completions of 1 to 9, padded on the right or on the left."""
  draw = np.random.default_rng(seed)
  tokens = draw.integers(0, CONFIG.vocab_size, (count, LENGTH)).astype(np.int32)
  mask, loss_mask = np.zeros((2, count, LENGTH), bool)
  for row in range(count):
    prompt, completion = draw.integers(1, 10, 2)
    start = LENGTH - prompt - completion if left else 0
    mask[row, start : start + prompt + completion] = True
    loss_mask[row, start + prompt : start + prompt + completion] = True
  return Sequences(tokens, mask, loss_mask)


@jax.jit
def logits_of(params, data: Sequences):
  return MODEL.apply(params, data.tokens, mask=data.mask).logits


def slow(params, data: Sequences) -> np.ndarray:
  """From all logits, row by row in float64."""
  found = []
  for logits, tokens, loss_mask in zip(
    np.asarray(logits_of(params, data), np.float64), data.tokens, data.loss_mask, strict=True
  ):
    places = np.flatnonzero(loss_mask)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found.append(sum(log_p[place - 1, tokens[place]] for place in places))
  return np.asarray(found)


@pytest.fixture(scope="module")
def params():
  # Larger than fresh weights, so that the policy is far from uniform.
  return jax.tree.map(lambda x: 6 * x, MODEL.init(jax.random.key(0), stacked=False))


@pytest.mark.parametrize("left", [False, True])
def test_log_probabilities_equal_those_of_rows_alone(params, left):
  data = rows(left=left)
  expected = slow(params, data)
  assert completions.width(data.loss_mask) == 16  # the longest completion has 9 tokens
  for options in (
    {},
    {"positions": completions.width(data.loss_mask)},
    {"positions": 10, "logits_chunk": 3},
  ):
    compute = jax.jit(lambda p, d, o=options: completions.logprobs(MODEL, p, d, **o))
    found = compute(params, data)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5, err_msg=str(options))


def test_gradients_do_not_depend_on_the_positions_left_out(params):
  data = rows()

  def gradient(**options):
    total = lambda p: jnp.sum(completions.logprobs(MODEL, p, data, **options))  # noqa: E731
    return jax.jit(jax.grad(total))(params)

  for a, b in zip(
    jax.tree.leaves(gradient()), jax.tree.leaves(gradient(positions=16)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


def test_width_is_that_of_the_longest_completion_and_one_token_before_it():
  mask = np.zeros((3, 40), bool)
  mask[0, 5:10] = True
  assert completions.width(mask) == 8
  mask[1, 31:39] = True
  assert completions.width(mask) == 16
  assert completions.width(mask[:1], mask[1:]) == 16
  mask[2, 1:40] = True
  assert completions.width(mask) == 40
  assert completions.width(np.zeros((2, 40), bool)) == 8


def compute(run: Run, weights, data: Sequences, *, chunk: int = 4):
  return completions.reference_logprobs(
    MODEL,
    weights,
    {"chosen": data, "rejected": rows(seed=1)},
    path=run.directory / "reference",
    run=run,
    chunk=chunk,
  )


def test_what_is_cached_equals_what_is_computed_and_is_not_computed_again(
  params, tmp_path, monkeypatch
):
  data = rows()
  with open_run(tmp_path) as run:
    fresh = compute(run, params, data)
    np.testing.assert_allclose(fresh["chosen"], slow(params, data), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(fresh["rejected"], slow(params, rows(seed=1)), rtol=2e-5, atol=2e-5)
    monkeypatch.setattr(completions, "logprobs", None)
    again = compute(run, jax.tree.map(jnp.copy, params), data)
  assert all(np.array_equal(again[name], fresh[name]) for name in ("chosen", "rejected"))
  assert all(x.dtype == np.float32 and x.shape == (9,) for x in again.values())


def test_a_cache_of_anything_else_is_replaced(params, tmp_path):
  with open_run(tmp_path) as run:
    compute(run, params, rows(seed=2))
    found = compute(run, params, rows())
  np.testing.assert_allclose(found["chosen"], slow(params, rows()), rtol=2e-5, atol=2e-5)


def test_the_fingerprint_knows_everything_that_matters(params):
  data = rows()
  first = jax.tree.leaves(params)[0]
  tokens = data.tokens.copy()
  tokens[3, 0] = (tokens[3, 0] + 1) % CONFIG.vocab_size
  other = LanguageModel(dataclasses.replace(CONFIG, rms_norm_eps=1e-3))
  marks = [
    completions._fingerprint(model, weights, {"chosen": sequences}, dtype)
    for model, weights, sequences, dtype in (
      (MODEL, params, data, "float32"),
      (MODEL, jax.tree.map(lambda x: x + 1e-6 * (x is first), params), data, "float32"),
      # The same numbers at other places.
      (MODEL, jax.tree.map(lambda x: x[..., ::-1], params), data, "float32"),
      (MODEL, params, data._replace(tokens=tokens), "float32"),
      (MODEL, params, data._replace(mask=data.loss_mask), "float32"),
      (other, params, data, "float32"),
      (MODEL, params, data, "bfloat16"),
    )
  ]
  assert len(set(marks)) == len(marks)
  copy = jax.tree.map(jnp.copy, params)
  assert completions._fingerprint(MODEL, copy, {"chosen": rows()}, "float32") == marks[0]


def test_the_mesh_changes_neither_the_fingerprint_nor_the_numbers(params, tmp_path):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  placed = sharding.put(
    params, sharding.shardings(params, params, sharding.DECODER_RULES, mesh, uneven="replicate")
  )
  data = rows()
  with open_run(tmp_path / "a") as run:
    alone = compute(run, params, data)
  spread = Run(tmp_path / "b", seed=0, mesh=mesh, tensorboard=False, show=False)
  with spread as run, jax.set_mesh(mesh):
    together = compute(run, placed, data, chunk=8)
  for name, values in alone.items():
    np.testing.assert_allclose(together[name], values, rtol=2e-5, atol=2e-5)
  marks = {orbax.load_extra(tmp_path / name / "reference") for name in "ab"}
  assert len(marks) == 1


def test_log_probabilities_that_are_not_finite_are_refused(params, tmp_path):
  broken = params | {"lm_head": {"kernel": params["lm_head"]["kernel"].at[0, 0].set(jnp.nan)}}
  with (
    open_run(tmp_path) as run,
    pytest.raises(NonFinite, match=r"9 of 9 chosen completions are not finite, .* row 0"),
  ):
    compute(run, broken, rows())
  assert not orbax.exists(tmp_path / "reference")


def as_columns(chosen: Sequences, rejected: Sequences) -> dict[str, np.ndarray]:
  sides = {"chosen": chosen, "rejected": rejected}
  return {f"{s}{part}": x for s, data in sides.items() for part, x in zip(pairs.PARTS, data, strict=True)}  # fmt: skip


def test_equal_completions_are_dropped_and_counted():
  chosen, rejected = rows(), rows()
  changed = rejected.tokens.copy()
  for row in (2, 5):
    at = np.argmax(rejected.loss_mask[row])
    changed[row, at] = (changed[row, at] + 1) % CONFIG.vocab_size
  changed[:, -1] += 1  # padding
  data = as_columns(chosen, rejected._replace(tokens=changed))
  found, equal = pairs.usable(data | {"reward": np.zeros(9)}, "here")
  assert equal == 7 and set(found) == set(pairs.COLUMNS)
  for name, x in found.items():
    np.testing.assert_array_equal(x, data[name][[2, 5]])
  # One that goes on where the other ends is another completion.
  longer = chosen._replace(mask=chosen.mask.copy(), loss_mask=chosen.loss_mask.copy())
  end = int(chosen.mask[4].sum())
  longer.mask[4, end] = longer.loss_mask[4, end] = True
  assert pairs.usable(as_columns(chosen, longer), "here")[1] == 8


def test_pairs_that_cannot_be_used_are_refused():
  data = as_columns(rows(), rows(seed=1))
  with pytest.raises(BadData, match=r"here: .* missing rejected_loss_mask"):
    pairs.usable({n: x for n, x in data.items() if n != "rejected_loss_mask"}, "here")
  with pytest.raises(BadData, match="no pairs are left of 9: in every pair the completions are"):
    pairs.usable(as_columns(rows(), rows()), "here")
  with pytest.raises(BadData, match="no pairs are left of 0: there were none"):
    pairs.usable({n: x[:0] for n, x in data.items()}, "here")
  empty = data["rejected_loss_mask"].copy()
  empty[[4, 7]] = False
  with pytest.raises(BadData, match=r"2 of 9 pairs have a completion without any .* number 4"):
    pairs.usable(data | {"rejected_loss_mask": empty}, "here")
  with pytest.raises(ValueError, match="shapes differ"):
    pairs.usable(data | {"rejected": data["rejected"][:, 1:]}, "here")


def test_side_by_side_alternates():
  chosen, rejected = rows(), rows(seed=1)
  both = pairs.side_by_side(as_columns(chosen, rejected))
  for x, a, b in zip(both, chosen, rejected, strict=True):
    np.testing.assert_array_equal(x[0::2], a)
    np.testing.assert_array_equal(x[1::2], b)
