"""The programs of a run at full size, with the shapes and placements of their arguments and no weights.

Model shapes are those of the published config.json files; batches, lengths, precision and mesh are the config's. What
is left out: the evaluation of tasks, whose programs are smaller, and the saving.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wam.core.errors import unknown_name
from wam.generation import sampling
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.models.families import config_from_hf
from wam.models.heads import ScalarModel
from wam.training import objectives, optimizers, pair_objectives, sharding, state
from wam.training.state import LossFn
from wam.training.step import make_update

# config.json of the published models, the keys that fix the shape, by the name of their directory.
PUBLISHED: dict[str, dict[str, Any]] = {
  "open_llama_3b_v2": {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
  },
  "Mistral-7B-v0.1": {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
  },
}
# Numbers of steps enter programs as constants of the schedule only.
TOTAL_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted function with the shapes and placements of its arguments.

  Attributes:
    name: a key of `PROGRAMS`.
    function: compiled once for all calls.
    arguments: ShapeDtypeStructs.
    beside: bytes on each device that stay there meanwhile and that the program does not see.
    what: of which size, for people.
  """

  name: str
  function: Any
  arguments: tuple[Any, ...]
  beside: int
  what: str


def published(name: str) -> DecoderConfig:
  """The shape of a published model.

  Raises:
    UnknownName: if it is none of `PUBLISHED`.
  """
  if name not in PUBLISHED:
    raise unknown_name("published model", name, PUBLISHED)
  return config_from_hf(PUBLISHED[name])


def sft(config: Mapping[str, Any], model: LanguageModel, mesh: Mesh) -> Program:
  """An update of supervised fine-tuning."""
  section = config["sft"]
  loss_fn = objectives.next_token(
    model,
    dtype=section["dtype"],
    remat=section["remat"],
    logits_chunk=section.get("logits_chunk"),
  )
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  names = {"tokens": jnp.int32, "mask": jnp.bool_, "loss_mask": jnp.bool_}
  return _training(
    "sft", section, (section["batch_size"], section["length"]), names, (loss_fn, shapes), mesh
  )


def rsf(config: Mapping[str, Any], model: LanguageModel, mesh: Mesh) -> Program:
  """An update on the best of the samples; θ_0 and the reward models lie beside it."""
  section = config["rsf"]
  loss_fn = objectives.next_token(model, dtype=section["dtype"], remat=section["remat"])
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  names = {"tokens": jnp.int32, "mask": jnp.bool_, "loss_mask": jnp.bool_}
  rows = (section["batch_size"], _row_length(config))
  program = _training("rsf", section, rows, names, (loss_fn, shapes), mesh)
  return dataclasses.replace(program, beside=_others(config, _bytes(_placed(shapes, shapes, mesh))))


def reward(config: Mapping[str, Any], model: LanguageModel, mesh: Mesh) -> Program:
  """An update of the reward model; θ_0 lies beside it."""
  section, scalar = config["reward_model"], ScalarModel(model.config)
  loss_fn = pair_objectives.bradley_terry(scalar, dtype=section["dtype"], remat=section["remat"])
  shapes = jax.eval_shape(lambda: scalar.init(jax.random.key(0)))
  sides = ("chosen", "rejected")
  names = dict.fromkeys(sides, jnp.int32) | {f"{n}_mask": jnp.bool_ for n in sides}
  rows = (section["batch_size"], section["length"])
  program = _training("reward_model", section, rows, names, (loss_fn, shapes), mesh)
  return dataclasses.replace(program, beside=_bytes(_placed(shapes, shapes, mesh)))


def sample(config: Mapping[str, Any], model: LanguageModel, mesh: Mesh) -> Program:
  """A call of `generate` as RSF makes it; moments, θ_0 and the reward models lie beside it."""
  section = config["rsf"]
  prompts = section.get("prompts_per_call") or section["prompts_per_iteration"]
  settings = {"num_samples": section["samples_per_prompt"], "dtype": section["dtype"]}
  program = _generate("sample", (config, model, mesh), prompts, settings)
  weights = _bytes(program.arguments[0])
  return dataclasses.replace(program, beside=2 * weights + _others(config, weights))


def reference(config: Mapping[str, Any], model: LanguageModel, mesh: Mesh) -> Program:
  """The samples of θ_0 that rewards are normalised on: 256 prompts."""
  return _generate("reference", (config, model, mesh), 256, {"dtype": _reward_dtype(config)})


def evaluation(config: Mapping[str, Any], model: LanguageModel, mesh: Mesh) -> Program:
  """The samples of a point of the front, float32; before and after RLHF, and the rewards, lie beside it."""
  prompts = config["evaluation"]["num_prompts"]
  program = _generate("evaluation", (config, model, mesh), prompts, {})
  weights = _bytes(program.arguments[0])
  return dataclasses.replace(program, beside=weights + _others(config, weights))


def score(config: Mapping[str, Any], model: LanguageModel, mesh: Mesh) -> Program:
  """256 completions through a reward model; policy, moments, θ_0 and a judge lie beside it."""
  scalar, rows, dtype = ScalarModel(model.config), 256, _reward_dtype(config)
  shapes = jax.eval_shape(lambda: scalar.init(jax.random.key(0)))
  batch = _batch((rows, _row_length(config)), {"tokens": jnp.int32, "mask": jnp.bool_}, mesh)

  def values(params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return scalar.apply(params, tokens, mask=mask, dtype=jnp.dtype(dtype))

  placed = _placed(shapes, shapes, mesh)
  # Policy, moments and the others, of which one is an argument.
  beside = 2 * _bytes(placed) + _others(config, _bytes(placed))
  return Program(
    "score",
    jax.jit(values),
    (placed, batch["tokens"], batch["mask"]),
    beside,
    f"{rows} rows of {_row_length(config)} tokens, {dtype}",
  )


PROGRAMS: dict[str, Callable[[Mapping[str, Any], LanguageModel, Mesh], Program]] = {
  "sft": sft,
  "reward_model": reward,
  "reference": reference,
  "sample": sample,
  "score": score,
  "rsf": rsf,
  "evaluation": evaluation,
}


def _reward_dtype(config: Mapping[str, Any]) -> str:
  return str(config["reward_model"].get("dtype", "float32"))


def _generate(
  name: str,
  setting: tuple[Mapping[str, Any], LanguageModel, Mesh],
  prompts: int,
  more: Mapping[str, Any],
) -> Program:
  """A call of `generate` with the prompts split over the devices."""
  config, model, mesh = setting
  settings = dict(config["sampling"]) | {"eos_id": model.config.eos_token_id, "pad_id": 0, **more}
  length = settings.pop("prompt_length")
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))

  def generate(params: Any, tokens: jax.Array, mask: jax.Array, key: jax.Array) -> Any:
    return sampling.generate(model, params, tokens, mask, key, **settings)

  batch = _batch((prompts, length), {"tokens": jnp.int32, "mask": jnp.bool_}, mesh)
  rows = prompts * settings.get("num_samples", 1)
  what = f"{prompts} prompts of {length} tokens, {rows} completions of {settings['max_new_tokens']}"
  return Program(
    name,
    jax.jit(generate),
    (_placed(shapes, shapes, mesh), batch["tokens"], batch["mask"], _key()),
    0,
    f"{what}, {settings.get('dtype', 'float32')}",
  )


def _training(
  name: str,
  section: Mapping[str, Any],
  rows: tuple[int, int],
  fields: Mapping[str, Any],
  trained: tuple[LossFn, Any],
  mesh: Mesh,
) -> Program:
  """An update as the loop compiles it, its state donated."""
  loss_fn, shapes = trained
  tx = optimizers.make(total_steps=TOTAL_STEPS, **section["optimizer"])
  states = jax.eval_shape(lambda p: state.init(p, tx), shapes)
  accumulate = section.get("accumulate_steps", 1)
  sharding.check_batch_size(rows[0] // accumulate, mesh)
  where = sharding.shardings(states, shapes, sharding.DECODER_RULES, mesh)
  update = make_update(loss_fn, tx, accumulate_steps=accumulate)
  return Program(
    name,
    jax.jit(update, donate_argnums=0, out_shardings=(where, None)),
    (sharding.abstract(states, where), _batch(rows, fields, mesh), _key()),
    0,
    f"batch {rows[0]} of {rows[1]} tokens in {accumulate} microbatches, {section['dtype']}",
  )


def _row_length(config: Mapping[str, Any]) -> int:
  return config["sampling"]["prompt_length"] + config["sampling"]["max_new_tokens"]


def _batch(rows: tuple[int, int], fields: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
  where = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
  return {n: jax.ShapeDtypeStruct(rows, dtype, sharding=where) for n, dtype in fields.items()}


def _placed(tree: Any, params: Any, mesh: Mesh) -> Any:
  return sharding.abstract(tree, sharding.shardings(tree, params, sharding.DECODER_RULES, mesh))


def _key() -> Any:
  return jax.eval_shape(lambda: jax.random.key(0))


def _bytes(placed: Any) -> int:
  """Bytes of float32 weights on each device."""
  return sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(placed))


def _others(config: Mapping[str, Any], weights: int) -> int:
  """What lies beside RSF: θ_0, the proxy and, where the config has one, the judge."""
  return (3 if config["problem"].get("control_pairs") else 2) * weights
