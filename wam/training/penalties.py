"""Terms that hold a policy near θ_0 while it is trained: distances of the weights, and distillation of θ_0.

Each is LossFn -> LossFn for weights of the policy, with θ_0 in frozen["init"]. A loss is a sum and its weight, so a
penalty is added times that weight, without a gradient through it: loss / weight is the mean loss plus the penalty,
however the batch is cut into microbatches. The record has every penalty as "penalty_<name>".

Lin et al. 2024, "Mitigating the Alignment Tax of RLHF", section 3.1. "printed" are its equations with the sign that
makes sense: it adds λ‖θ - θ_0‖ to what is maximised. "coded" is what the authors' trainer adds to its loss, and what
the paper's values of λ are for. Leaves out the KL in the reward, which belongs to the algorithms.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wam.core import parts, trees
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params, PyTree
from wam.losses import policy
from wam.models.decoder import LanguageModel
from wam.training.state import Frozen, LossFn, Pair

Wrap = Callable[[LossFn], LossFn]
L1_FORMS = ("coded", "printed")
L2_FORMS = ("coded", "printed", "squared")
SCOPES = ("all", "linear")
DISTANCES = ("kl", "logits", "probabilities")
_KINDS = ("", "_mask", "_loss_mask")
# What the authors' code multiplies the means with.
CODED_L1, CODED_L2 = 1e5, 1e9


def l1(*, coefficient: float, form: str = "coded", scope: str = "all") -> Wrap:
  """Adds λ·mean|θ - θ_0|·1e5 ("coded"), or λ·‖θ - θ_0‖₁ ("printed", eq. 2 with the other sign).

  Args:
    coefficient: λ; the paper has 0.04 to 1 for the coded form.
    form: "coded" or "printed".
    scope: "all" leaves, or the "linear" matrices of attention and MLP; the mean is over these.

  Raises:
    ConfigError: if λ is negative or not finite; UnknownName: if there is no such form or scope.
  """
  return _distance("l1", coefficient, form, L1_FORMS, scope)


def l2(*, coefficient: float, form: str = "coded", scope: str = "all") -> Wrap:
  """Adds λ·mean (θ - θ_0)²·1e9 ("coded"), λ·‖θ - θ_0‖₂ ("printed", eq. 3 with the other sign), or its "squared".

  The printed norm pulls with a force that does not fade near θ_0; at θ_0 itself its gradient is taken as 0. Arguments
  and errors as in `l1`; the paper has 0.01 to 0.1 for the coded form.
  """
  return _distance("l2", coefficient, form, L2_FORMS, scope)


def _distance(name: str, coefficient: float, form: str, forms: tuple[str, ...], scope: str) -> Wrap:
  _check(name, coefficient)
  if form not in forms:
    raise unknown_name(f"form of {name}", form, forms)
  if scope not in SCOPES:
    raise unknown_name("scope", scope, SCOPES)

  def wrap(loss_fn: LossFn) -> LossFn:
    def penalised(params: Params, batch: PyTree, key: jax.Array, frozen: Frozen) -> Any:
      distance = weight_distance(params, frozen["init"], f"{name} {form}", scope)
      return _plus(loss_fn(params, batch, key, frozen), name, coefficient * distance)

    return penalised

  return wrap


def weight_distance(params: Params, init: Params, kind: str, scope: str = "all") -> jax.Array:
  """How far weights are from θ_0, a float32 scalar: "l1 coded", "l2 printed" and the like."""
  pairs = list(zip(_scoped(params, scope), _scoped(init, scope), strict=True))
  differences = [x.astype(jnp.float32) - y.astype(jnp.float32) for x, y in pairs]
  count = float(sum(math.prod(d.shape) for d in differences))
  if kind.startswith("l1"):
    # JAX's slope of |x| at 0 is 1; training starts there.
    sizes = (d * jax.lax.stop_gradient(jnp.sign(d)) for d in differences)
    total = sum((jnp.sum(x) for x in sizes), jnp.zeros((), jnp.float32))
    return CODED_L1 * total / count if kind == "l1 coded" else total
  total = sum((jnp.sum(jnp.square(d)) for d in differences), jnp.zeros((), jnp.float32))
  if kind == "l2 printed":
    # The slope of the root is infinite at 0, and training starts there.
    moved = total > 0
    return jnp.where(moved, jnp.sqrt(jnp.where(moved, total, 1.0)), 0.0)
  return CODED_L2 * total / count if kind == "l2 coded" else total


def distillation(
  *,
  model: LanguageModel,
  coefficient: float,
  distance: str = "kl",
  average: str = "tokens",
  dtype: str = "float32",
  remat: bool = False,
) -> Wrap:
  """Adds λ times how far the policy's next-token distributions are from those of θ_0, on what the batch trains.

  "kl" is KL(π_0 ‖ π_θ) at temperature 1; "logits" the mean over the vocabulary of the squared differences of logits;
  "probabilities" ‖π_θ(x) - π_0(x)‖₂², which the paper prints. The authors' code is distance="kl" with
  average="batch": the KL summed up along a sequence, averaged over sequences.

  Costs a forward pass of θ_0, and a second forward and backward pass of the policy.

  Args:
    model: the decoder.
    coefficient: λ; the paper has 1e-5, 1e-3 and 0.1.
    distance: "kl", "logits" or "probabilities".
    average: of the trained positions of the batch: over all "tokens"; over "sequences", each with the mean of its own;
      or the "batch" mean of sums along sequences. Exact under microbatches if the loss counts the same (tokens for RSF,
      pairs for DPO); otherwise microbatches are averaged by the weight of the loss.
    dtype, remat: of the passes, as in `sft.run`.

  Batches have "tokens", "mask" and "loss_mask" [B, T] (or "completion_mask" [B, N], of the last N positions); or, for
  pairs, "chosen", "chosen_mask", "chosen_loss_mask" and the same of "rejected": then both completions are sequences of
  their own. Rows whose "weight" [B] is 0 do not count, where there is one.

  Raises:
    ConfigError: if λ is negative or not finite; UnknownName: if there is no such distance or average.
  """
  _check("distillation", coefficient)
  if distance not in DISTANCES:
    raise unknown_name("distance of distillation", distance, DISTANCES)
  if average not in ("tokens", "sequences", "batch"):
    raise unknown_name("average of distillation", average, ("tokens", "sequences", "batch"))

  def logits(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    output = model.apply(params, tokens, mask=mask, dtype=jnp.dtype(dtype), remat=remat)
    assert output.logits is not None
    return output.logits

  def wrap(loss_fn: LossFn) -> LossFn:
    def penalised(params: Params, batch: PyTree, key: jax.Array, frozen: Frozen) -> Any:
      tokens, mask, trained = _sequences(batch)
      teacher = jax.lax.stop_gradient(logits(frozen["init"], tokens, mask))
      values = token_distance(logits(params, tokens, mask), teacher, distance)
      mean = token_average(values, trained, average)
      return _plus(loss_fn(params, batch, key, frozen), "distillation", coefficient * mean)

    return penalised

  return wrap


def token_distance(logits: jax.Array, teacher: jax.Array, distance: str) -> jax.Array:
  """How far next-token distributions are from the teacher's: logits [B, T, V] -> [B, T] float32, about token t + 1."""
  if distance == "kl":
    return policy.kl(teacher, logits)
  student, taught = logits.astype(jnp.float32), teacher.astype(jnp.float32)
  if distance == "logits":
    return jnp.mean(jnp.square(student - taught), axis=-1)
  return jnp.sum(jnp.square(jax.nn.softmax(student) - jax.nn.softmax(taught)), axis=-1)


def token_average(values: jax.Array, trained: jax.Array, average: str) -> jax.Array:
  """The average of values [B, T] about token t + 1 over trained tokens [B, T], float32; 0 where there are none."""
  weights = trained[:, 1:]
  # Values at padding mean nothing, not even that they are finite.
  kept = jnp.where(weights > 0, values[:, :-1], 0.0) * weights
  sums, counts = jnp.sum(kept, axis=1), jnp.sum(weights, axis=1)
  if average == "tokens":
    return jnp.sum(sums) / jnp.maximum(jnp.sum(counts), 1.0)
  rows = jnp.maximum(jnp.sum(counts > 0), 1).astype(jnp.float32)
  if average == "sequences":
    sums = sums / jnp.maximum(counts, 1.0)
  return jnp.sum(sums) / rows


def _sequences(batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Tokens, mask and what is trained of a batch, each [B, T], or [2B, T] for pairs; see `distillation`."""
  if "tokens" in batch:
    tokens, mask, trained = batch["tokens"], batch["mask"], _trained(batch)
  elif all(f"{side}{kind}" in batch for side in ("chosen", "rejected") for kind in _KINDS):
    # Side by side, so that a pair stays on its device.
    joined = (jnp.stack([batch[f"chosen{k}"], batch[f"rejected{k}"]], axis=1) for k in _KINDS)
    tokens, mask, trained = (x.reshape(-1, *x.shape[2:]) for x in joined)
  else:
    tokens, mask, trained = None, None, None
  if trained is None:
    raise ConfigError(
      f"distillation: cannot read batches of {', '.join(sorted(batch))}; expected tokens, mask and loss_mask, or"
      " chosen, chosen_mask, chosen_loss_mask and the same of rejected. This algorithm cannot be combined with it"
    )
  if "weight" in batch and batch["weight"].ndim == 1:
    counts = jnp.repeat(batch["weight"] > 0, len(trained) // len(batch["weight"]))
    trained = trained * counts[:, None]
  return tokens, mask, trained.astype(jnp.float32)


def _trained(batch: Mapping[str, Any]) -> jax.Array | None:
  if "loss_mask" in batch:
    return batch["loss_mask"]
  if "completion_mask" in batch:
    completions = batch["completion_mask"]
    prompt = batch["tokens"].shape[1] - completions.shape[1]
    return jnp.pad(completions, ((0, 0), (prompt, 0)))
  return None


def _plus(
  found: Any, name: str, penalty: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
  """What a loss returned, with a penalty."""
  loss, weight, metrics = found
  weight = jax.lax.stop_gradient(weight)
  term = penalty * weight.astype(jnp.float32)
  return loss + term, weight, {**metrics, f"penalty_{name}": (term, weight)}


def _scoped(params: Params, scope: str) -> list[Any]:
  flat = trees.flatten(params)
  if scope == "all":
    return list(flat.values())
  indices = parts.linear_only(params).indices()
  chosen = [leaf for name, leaf in flat.items() if (indices[name] >= 0).all()]
  if not chosen:
    raise ConfigError("scope='linear': the weights have no matrices of attention or MLP by name")
  return chosen


def _check(name: str, coefficient: float) -> None:
  if not (math.isfinite(coefficient) and coefficient >= 0):
    raise ConfigError(
      f"{name}: coefficient is {coefficient}, expected at least 0: the penalty is added to a loss"
    )
